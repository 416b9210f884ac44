"""`runhist.LogHandler`: log records as events of the current run, which neither recurse nor break the program."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

import runhist
from runhist import StaleEpoch, Unencodable
from tests.client.conftest import Refuse

if TYPE_CHECKING:
    from tests.client.conftest import SmallHistory


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """The root logger, with our handler at it."""
    root, handler = logging.getLogger(), runhist.LogHandler()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield root
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture
def alone() -> logging.Logger:
    """A logger whose records no other handler sees."""
    made = logging.Logger("alone", logging.INFO)
    made.addHandler(runhist.LogHandler())
    return made


def outputs(small: SmallHistory) -> list[dict[str, Any]]:
    return [stored.event["data"] for stored in small.stored if stored.event["type"] == "output"]


def test_a_record_is_an_output_event_of_the_stream_log(small: SmallHistory, logger: logging.Logger) -> None:
    with runhist.connect(deadline=30).begin_run():
        logging.getLogger("engine.node").warning("retry %d of %s", 2, "fetch")
        logger.debug("too fine")
    assert outputs(small) == [{"stream": "log", "level": "WARNING", "logger": "engine.node", "text": "retry 2 of fetch"}]


def test_a_record_belongs_to_the_step_that_it_was_made_in(small: SmallHistory, logger: logging.Logger) -> None:
    with runhist.connect(deadline=30).begin_run() as run:
        with run.step("fetch"):
            logger.info("inside")
        logger.info("outside")
    places = [(s.event.get("step_id"), s.event.get("attempt")) for s in small.stored if s.event["type"] == "output"]
    assert places == [("fetch", 1), (None, None)]


def test_formatters_levels_and_filters_are_those_of_any_handler(small: SmallHistory, alone: logging.Logger) -> None:
    (handler,) = alone.handlers
    handler.setFormatter(logging.Formatter("<%(message)s>"))
    handler.setLevel(logging.WARNING)
    handler.addFilter(lambda record: "secret" not in record.getMessage())
    with runhist.connect(deadline=30).begin_run():
        alone.info("below")
        alone.error("a secret")
        try:
            _ = 1 / 0
        except ZeroDivisionError:
            alone.exception("broken")
    (data,) = outputs(small)
    assert data["text"].startswith("<broken>\nTraceback") and data["level"] == "ERROR"


def test_what_is_no_text_is_kept_beside_it(small: SmallHistory, logger: logging.Logger) -> None:
    with runhist.connect(deadline=30).begin_run():
        logger.info("caf\udce9")
    (data,) = outputs(small)
    assert (data["text"], data["base64"]) == ("caf\ufffd", "Y2Fm6Q==")


def test_our_own_logger_is_left_alone(small: SmallHistory, logger: logging.Logger) -> None:
    with runhist.connect(deadline=30).begin_run():
        logging.getLogger("runhist").warning("ours")
        logging.getLogger("runhist.deep").warning("ours")
        logging.getLogger("runhistorian").warning("theirs")
    assert [data["text"] for data in outputs(small)] == ["theirs"]


def test_a_fault_of_recording_is_logged_and_not_recorded_again(
    small: SmallHistory, logger: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    with runhist.connect(deadline=30).begin_run() as run:
        run.append("x", {"a": float("nan")})
    assert [record.name for record in caplog.records] == ["runhist"] and outputs(small) == []


def test_a_record_that_comes_up_while_one_is_recorded_is_left_out(small: SmallHistory, alone: logging.Logger) -> None:
    class Chatty:
        def __str__(self) -> str:
            alone.info("being shown")
            return "chatty"

    with runhist.connect(deadline=30).begin_run():
        alone.info("%s", Chatty())
        alone.info("next")
    assert [data["text"] for data in outputs(small)] == ["chatty", "next"]


def test_a_record_that_cannot_be_formatted_is_told_of(small: SmallHistory, alone: logging.Logger) -> None:
    class Broken:
        def __str__(self) -> str:
            raise ValueError("unspeakable")

    with runhist.connect(deadline=30).begin_run():
        alone.info("%d", "x")
        alone.info(Broken())
    first, second = [data["text"] for data in outputs(small)]
    assert "test_log_handler.py" in first and "cannot be formatted: TypeError" in first
    assert second.endswith("cannot be formatted: ValueError: unspeakable")


def test_without_a_current_run_a_record_goes_nowhere(small: SmallHistory, logger: logging.Logger) -> None:
    logger.warning("alone")
    assert small.calls == []


def test_a_log_call_raises_nothing_and_leaves_what_is_due_to_the_engines_next_call(
    small: SmallHistory, logger: logging.Logger
) -> None:
    history = runhist.connect(deadline=30, errors="raise")
    run = history.begin_run()
    with run.use():
        run._record_quietly("x", {"a": float("nan")})
        logger.warning("kept")
        with pytest.raises(Unencodable):
            run.note("x")
    run.flush()
    assert [data["text"] for data in outputs(small)] == ["kept"]


def test_a_run_that_was_taken_over_breaks_the_engines_call_and_no_log_call(
    small: SmallHistory, logger: logging.Logger
) -> None:
    def refuse(method: str, parameters: dict[str, Any]) -> None:
        if method == "Append":
            raise Refuse("StaleEpoch", epoch=2, owner_pid=1, last_n=0)

    small.before = refuse
    history = runhist.connect(deadline=30)
    run = history.begin_run()
    with run.use():
        run.append("x")
        assert run._link is not None and run._outbox is not None
        outbox = run._outbox
        run._link.wait(lambda: outbox.refused is not None, 30)
        logger.warning("one")
        logger.warning("two")
        with pytest.raises(StaleEpoch):
            run.note("x")


def test_a_thread_that_holds_the_recordings_lock_may_log(small: SmallHistory, alone: logging.Logger) -> None:
    begun = threading.Event()

    def log(run: runhist.Run) -> None:
        with run.use():
            begun.set()
            alone.info("other")

    with runhist.connect(deadline=30).begin_run() as run:
        assert run._link is not None
        with run._link.lock:  # as a finalizer finds it that runs in the middle of recording
            other = threading.Thread(target=log, args=(run,))
            other.start()
            begun.wait(30)
            alone.info("holder")
        other.join(30)
        assert not other.is_alive()
    assert sorted(data["text"] for data in outputs(small)) == ["holder", "other"]
