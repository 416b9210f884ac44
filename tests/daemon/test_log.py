"""The log's lines."""

from __future__ import annotations

import io
import logging
import shlex
import subprocess
import sys

import pytest

from runhistd.daemon import log


@pytest.fixture
def lines() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def logger(lines: io.StringIO) -> logging.Logger:
    made = logging.Logger("runhistd.part")
    handler = logging.StreamHandler(lines)
    handler.setFormatter(log.LogfmtFormatter())
    made.addHandler(handler)
    return made


def test_a_record_is_one_line_of_keys_and_values(logger: logging.Logger, lines: io.StringIO) -> None:
    logger.warning("queue is full", extra={"fields": {"bytes": 12, "path": "/a b", "open": True, "run_id": None}})
    line = lines.getvalue()
    assert line.count("\n") == 1
    pairs = dict(word.split("=", 1) for word in shlex.split(line))
    assert pairs.pop("ts").endswith("Z")
    assert pairs == {
        "level": "warning",
        "msg": "queue is full",
        "logger": "part",
        "bytes": "12",
        "path": "/a b",
        "open": "true",
        "run_id": "null",
    }


@pytest.mark.parametrize(
    "hostile", ["a\nts=forged", "\x1b[2J", "\r", "\x9b31m", "\u202egnp", "a\u2028b", '"', "\\", "\x7f", ""]
)
def test_a_value_can_neither_forge_a_line_nor_drive_a_terminal(
    hostile: str, logger: logging.Logger, lines: io.StringIO
) -> None:
    logger.error("odd", extra={"fields": {"title": hostile, "after": 1}})
    line = lines.getvalue()
    assert line.endswith(" after=1\n")
    assert line.rstrip("\n").isprintable()
    assert len(line.splitlines()) == 1


def test_a_lone_surrogate_can_be_logged() -> None:
    assert log.quote("\udcff").encode("utf-8") == b'"\\udcff"'


def test_a_traceback_stays_on_its_line(logger: logging.Logger, lines: io.StringIO) -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logger.exception("failed")
    assert lines.getvalue().count("\n") == 1
    assert "ValueError: two" in lines.getvalue()


def test_levels_below_the_chosen_one_are_not_written_and_warnings_of_python_are() -> None:
    program = (
        "import logging, warnings\nfrom runhistd.daemon import log\nlog.configure('warning')\n"
        "logging.getLogger('runhistd').info('quiet')\nlogging.getLogger('runhistd').error('loud')\nwarnings.warn('old')\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "quiet" not in ended.stderr
    assert "level=error msg=loud" in ended.stderr
    assert "level=warning" in ended.stderr and "UserWarning: old" in ended.stderr
