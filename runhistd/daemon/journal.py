"""Log records with fields of their own in systemd's journal, by its native protocol
(https://systemd.io/JOURNAL_NATIVE_PROTOCOL/).

Used only where stderr goes to the journal anyway, which $JOURNAL_STREAM tells (systemd.exec(5)). `journalctl
RUNHIST_RUN=ID` then finds what concerns a run, and `RUNHIST_PEER_PID=PID` what concerns a process; the message is the same
line as everywhere, without the time and the level, which the journal has itself.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import struct
from collections.abc import Mapping

SOCKET = "/run/systemd/journal/socket"
IDENTIFIER = "runhistd"
PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}  # syslog(3)
RUN_FIELD = "RUNHIST_RUN"  # of what is called run_id in a record; the others are RUNHIST_ and their name
_NOT_IN_NAMES = re.compile("[^A-Z0-9_]")


class JournalHandler(logging.Handler):
    """Sends records to the journal; what it does not take (it is full, or restarts) goes to the other handler instead."""

    def __init__(self, otherwise: logging.Handler, address: str = SOCKET) -> None:
        super().__init__()
        self._otherwise = otherwise
        self._address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def emit(self, record: logging.LogRecord) -> None:
        """Send one."""
        fields: dict[str, object] = {
            "MESSAGE": self.format(record),
            "PRIORITY": PRIORITIES.get(record.levelno, 6),
            "SYSLOG_IDENTIFIER": IDENTIFIER,
            "RUNHIST_LOGGER": record.name,
        }
        for name, value in getattr(record, "fields", {}).items():
            fields[field_name(name)] = value
        try:
            self._socket.sendto(b"".join(encode(name, value) for name, value in fields.items()), self._address)
        except OSError:
            self._otherwise.handle(record)

    def close(self) -> None:
        """Send nothing more."""
        self._socket.close()
        super().close()


def field_name(name: str) -> str:
    """The journal's name of a record's field."""
    return RUN_FIELD if name == "run_id" else "RUNHIST_" + _NOT_IN_NAMES.sub("_", name.upper())


def encode(name: str, value: object) -> bytes:
    """One field, with its length in front, so that no value can begin another."""
    content = str(value).encode("utf-8", "replace")
    return name.encode("ascii") + b"\n" + struct.pack("<Q", len(content)) + content + b"\n"


def goes_to_journal(descriptor: int, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a descriptor is the stream that the service manager connected with the journal."""
    device, _, inode = environment.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return (device, inode) == (str(found.st_dev), str(found.st_ino))
