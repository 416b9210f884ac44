"""Records in the journal's own protocol, at a real datagram socket."""

from __future__ import annotations

import logging
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from runhistd.daemon.journal import JournalHandler, goes_to_journal
from runhistd.daemon.log import LogfmtFormatter


def decode(datagram: bytes) -> dict[str, str]:
    """The fields of a datagram; both forms of the protocol."""
    fields = {}
    while datagram:
        name, _, datagram = datagram.partition(b"\n")
        if b"=" in name:
            name, _, value = name.partition(b"=")
        else:
            (length,) = struct.unpack_from("<Q", datagram)
            value, end = datagram[8 : 8 + length], datagram[8 + length : 9 + length]
            assert (len(value), end) == (length, b"\n")
            datagram = datagram[9 + length :]
        fields[name.decode()] = value.decode()
    return fields


class Kept(logging.Handler):
    """Keeps the messages that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


class Journal:
    """The journal's end, a logger that sends to it, and what went elsewhere instead."""

    def __init__(self, folder: Path) -> None:
        self.address = os.path.relpath(folder / "journal")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.address)
        self.socket.settimeout(30)
        self.elsewhere = Kept()
        self.handler = JournalHandler(self.elsewhere, self.address)
        self.handler.setFormatter(LogfmtFormatter(stamped=False))
        self.logger = logging.Logger("runhistd.liveness")
        self.logger.addHandler(self.handler)

    def receive(self) -> dict[str, str]:
        return decode(self.socket.recv(1 << 20))


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(tmp_path)
    yield made
    made.handler.close()
    made.socket.close()


def test_a_record_has_its_fields_in_the_journal(journal: Journal) -> None:
    fields = {"run_id": "nightly-7", "peer_pid": 4711, "what else": True}
    journal.logger.warning("the process is dead", extra={"fields": fields})
    assert journal.receive() == {
        "MESSAGE": 'msg="the process is dead" logger=liveness run_id=nightly-7 peer_pid=4711 what else=true',
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "runhistd",
        "RUNHIST_LOGGER": "runhistd.liveness",
        "RUNHIST_RUN": "nightly-7",
        "RUNHIST_PEER_PID": "4711",
        "RUNHIST_WHAT_ELSE": "True",
    }


def test_a_value_cannot_forge_a_field(journal: Journal) -> None:
    hostile = "a\nPRIORITY=0\nMESSAGE\n\x00\x00"
    journal.logger.info("seen", extra={"fields": {"run_id": hostile}})
    received = journal.receive()
    assert (received["RUNHIST_RUN"], received["PRIORITY"]) == (hostile, "6")
    assert "\n" not in received["MESSAGE"]


def test_a_traceback_comes_with_the_record(journal: Journal) -> None:
    try:
        raise KeyError("gone")
    except KeyError:
        journal.logger.exception("a call failed")
    received = journal.receive()
    assert "KeyError: 'gone'" in received["MESSAGE"]
    assert received["PRIORITY"] == "3"


def test_what_the_journal_does_not_take_goes_elsewhere_and_nothing_waits(journal: Journal) -> None:
    sent = 0
    while not journal.elsewhere.messages:  # nobody receives: it is full in the end
        journal.logger.info("again", extra={"fields": {"number": (sent := sent + 1)}})
    assert sent > 1
    journal.socket.close()
    journal.logger.info("gone")
    assert journal.elsewhere.messages == ["again", "gone"]
    journal.logger.info("large", extra={"fields": {"text": "x" * 10_000_000}})
    assert journal.elsewhere.messages[2:] == ["large"]


def test_only_the_very_stream_that_the_manager_named_is_the_journals(tmp_path: Path) -> None:
    with (tmp_path / "stream").open("w") as stream:
        found = os.fstat(stream.fileno())
        named = f"{found.st_dev}:{found.st_ino}"
        assert goes_to_journal(stream.fileno(), {"JOURNAL_STREAM": named})
        for other in (f"{found.st_dev}:{found.st_ino + 1}", "", "nonsense", ":"):
            assert not goes_to_journal(stream.fileno(), {"JOURNAL_STREAM": other})
        assert not goes_to_journal(stream.fileno(), {})
    assert not goes_to_journal(10_000, {"JOURNAL_STREAM": named})
