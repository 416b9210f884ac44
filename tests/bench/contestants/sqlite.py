"""One SQLite file that every process opens itself: what people do today."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path

from . import REQUEST_EVENTS, event

TITLE = "SQLite, opened by all"
WORKLOADS = frozenset({"one", "request"})
WITHIN_ONE = False
BUSY_S = 60.0
TABLE = "CREATE TABLE events (id INTEGER PRIMARY KEY, run_id TEXT, seq INTEGER, type TEXT, time_us INTEGER, data TEXT)"
INSERT = "INSERT INTO events (run_id, seq, type, time_us, data) VALUES (?, ?, ?, ?, ?)"


def missing() -> str | None:
    """The standard library has it."""
    return None


def start(directory: Path, env: Mapping[str, str]) -> None:
    """Only the table is made."""
    connection = _open(directory)
    connection.execute(TABLE)
    connection.close()


def _open(directory: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(directory / "events.db", timeout=BUSY_S, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


class Inserter:
    """A connection of its own."""

    window = 0

    def __init__(self, directory: Path, index: int) -> None:
        self._connection = _open(directory)
        self._run_id, self._seq = f"run-{index}", 0

    def _row(self) -> tuple[object, ...]:
        self._seq += 1
        new = event(self._seq)
        return self._run_id, self._seq, new["type"], new["time_us"], json.dumps(new["data"])

    def one(self) -> int:
        """A transaction of one row."""
        return self._connection.execute(INSERT, self._row()).rowcount

    def request(self) -> int:
        """A transaction of many rows, which takes the lock at its begin so that none waits for another halfway."""
        rows = [self._row() for _ in range(REQUEST_EVENTS)]
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany(INSERT, rows)
        self._connection.execute("COMMIT")
        return len(rows)

    def send(self, events: int) -> None:
        """Nothing can be in flight."""
        raise NotImplementedError

    def receive(self) -> int:
        """Nothing can be in flight."""
        raise NotImplementedError


def connect(directory: Path, index: int) -> Inserter:
    """A connection to the file in the directory."""
    return Inserter(directory, index)
