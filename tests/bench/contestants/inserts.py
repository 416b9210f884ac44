"""The bare rows of events, inserted into the same table with the same settings, and nothing decided or folded."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

from msgspec import Raw

from runhistd.daemon.commit import CHECKPOINT_BYTES
from runhistd.model.events import Accepted, Event
from runhistd.store import sql
from runhistd.store.database import PAGE_BYTES, open_writer
from runhistd.store.rows import rows_of

from . import REQUEST_EVENTS, event

TITLE = "bare inserts, from memory"
WORKLOADS = frozenset({"flight", "request"})
WITHIN_ONE = True
WRITERS = 8


def missing() -> str | None:
    """It is here."""
    return None


def start(directory: Path, env: Mapping[str, str]) -> None:
    """No server."""


class Table:
    """The table of events."""

    window = 8 * 100

    def __init__(self, directory: Path) -> None:
        self._connection = open_writer(directory / "history.db")
        self._connection.set_wal_hook(self._measure_wal)
        self._wal_bytes = 0
        self._position = self._kept = 0
        new = Accepted(Event(type="tool:result", data=Raw(json.dumps(event(1)["data"]).encode())), "note", None, 1)
        (self._row,) = rows_of([new], 0, 0, 0, 1, uuid4().bytes, time.time_ns() // 1000)

    def _insert(self, events: int) -> int:
        rows = []
        for i in range(events):
            self._position += 1
            rows.append((self._position, i % WRITERS, self._position, *self._row[3:]))
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany(sql.INSERT_EVENT, rows)
        self._connection.execute("COMMIT")
        if self._wal_bytes >= CHECKPOINT_BYTES:
            self._connection.wal_checkpoint()
        return events

    def _measure_wal(self, connection: object, database: str, pages: int) -> int:
        self._wal_bytes = pages * PAGE_BYTES
        return 0

    def one(self) -> int:
        """Nobody waits in here."""
        raise NotImplementedError

    def request(self) -> int:
        """As many rows as a request of each writer brings."""
        return self._insert(WRITERS * REQUEST_EVENTS)

    def send(self, events: int) -> None:
        """Keep their number."""
        self._kept += events

    def receive(self) -> int:
        """Insert as many."""
        kept, self._kept = self._kept, 0
        return self._insert(kept)


def connect(directory: Path, index: int) -> Table:
    """The table, for all writers."""
    return Table(directory)
