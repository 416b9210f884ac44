"""Reads in threads, each with a read-only connection of its own, and none for longer than it may.

While somebody reads, the write-ahead log cannot begin anew: it keeps what was written since for that reader. So a read is
ended after READ_S, and at once when the log has passed its bound, whoever reads; the peer is told to try again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import trio

from runhistd.model.errors import Busy
from runhistd.store.database import ReadCutOff, Reader, end_reads, open_reader, telling_damage

MAX_READERS = 4
READ_S = 20.0  # a page of anything takes milliseconds
RETRY_AFTER_US = 1_000_000
T = TypeVar("T")


class Readers:
    """A few read-only connections of one database."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._idle: list[_Bounded] = []
        self._threads = trio.CapacityLimiter(MAX_READERS)
        self._cut_s = float("-inf")
        self.cut_off = 0
        """How many reads were ended, since the start."""

    async def read(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Call a function of the store with a connection, in a thread. Raises Busy, and DamagedDatabase."""

        def call() -> T:
            bounded = self._idle.pop() if self._idle else _Bounded(self._database, lambda: self._cut_s)
            try:
                bounded.began_s = time.monotonic()
                with telling_damage():
                    return function(bounded.connection, *arguments, **options)
            finally:
                self._idle.append(bounded)

        try:
            return await trio.to_thread.run_sync(call, limiter=self._threads)
        except ReadCutOff:
            self.cut_off += 1
            raise Busy(RETRY_AFTER_US) from None

    def end_all(self) -> None:
        """End what is read now."""
        self._cut_s = time.monotonic()

    def close(self) -> None:
        """Close the connections."""
        while self._idle:
            self._idle.pop().connection.close()


class _Bounded:
    """A connection whose reads are ended when they go on for too long, or began before `cut_s()`."""

    def __init__(self, database: Path, cut_s: Callable[[], float]) -> None:
        self.connection: Reader = open_reader(database)
        self.began_s = 0.0
        self._cut_s = cut_s
        end_reads(self.connection, self._is_over)

    def _is_over(self) -> bool:
        return time.monotonic() - self.began_s > READ_S or self._cut_s() > self.began_s
