"""A file of JSON lines for each process, with fdatasync: durable, and no more than that."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from . import REQUEST_EVENTS, event

TITLE = "JSONL, a file each"
WORKLOADS = frozenset({"one", "request"})
WITHIN_ONE = False


def missing() -> str | None:
    """Nothing is needed."""
    return None


def start(directory: Path, env: Mapping[str, str]) -> None:
    """No server."""


class Appender:
    """A file of its own."""

    window = 0

    def __init__(self, directory: Path, index: int) -> None:
        self._file = os.open(directory / f"{index}.jsonl", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        self._run_id, self._seq = f"run-{index}", 0

    def _append(self, events: int) -> int:
        lines = []
        for _ in range(events):
            self._seq += 1
            lines.append(json.dumps({"run_id": self._run_id, "seq": self._seq, **event(self._seq)}) + "\n")
        os.write(self._file, "".join(lines).encode())
        os.fdatasync(self._file)
        return events

    def one(self) -> int:
        """A line."""
        return self._append(1)

    def request(self) -> int:
        """Many lines and one sync."""
        return self._append(REQUEST_EVENTS)

    def send(self, events: int) -> None:
        """Nothing can be in flight."""
        raise NotImplementedError

    def receive(self) -> int:
        """Nothing can be in flight."""
        raise NotImplementedError


def connect(directory: Path, index: int) -> Appender:
    """A file in the directory."""
    return Appender(directory, index)
