"""Reads: a page at once on the loop's thread, whatever takes longer in a thread, and none for longer than it may.

A thread that reads row by row and a loop that is busy take the interpreter's lock from each other with every row, and
whoever wants it back waits for the other's turn of 5 ms. While four programs recorded, the few rows of a run's steps took
6.6 ms in a thread and 1.8 ms on the loop's own. So what only reads a page is tried there first, for AT_ONCE_S at most: a
read that goes on (for a page of a thousand, or because the disk must be asked) begins again in a thread. All of them
together have a SHARE of the loop's time, of which BURST_S can be saved up, so that reading never keeps the committer
waiting for long.

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
from runhistd.store.database import LOOK_STEPS, ReadCutOff, Reader, end_reads, open_reader, telling_cut_off

MAX_READERS = 4
READ_S = 20.0  # a page of anything takes milliseconds
AT_ONCE_S = 0.005
AT_ONCE_STEPS = 200  # between two looks at the clock: a row or two, as each may have to come from the disk
SHARE = 0.5
BURST_S = 0.05
RETRY_AFTER_US = 1_000_000
T = TypeVar("T")


class Readers:
    """A few read-only connections of one database."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._idle: list[_Bounded] = []
        self._at_once: _Bounded | None = None
        self._allowance = _Allowance()
        self._threads = trio.CapacityLimiter(MAX_READERS)
        self._cut_s = float("-inf")
        self.cut_off = 0
        """How many reads were ended, since the start."""

    async def read_page(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Call a function of the store that reads a page, twice if need be. Raises Busy, and DamagedDatabase."""
        await trio.lowlevel.checkpoint()
        if self._allowance.is_left(time.monotonic()):
            if self._at_once is None:
                self._at_once = _Bounded(self._database, _is_over_at_once, AT_ONCE_STEPS, busy_ms=0)
            began_s = time.monotonic()
            try:
                return self._at_once.call(function, *arguments, **options)
            except ReadCutOff:
                pass
            finally:
                self._allowance.spend(time.monotonic() - began_s)
        return await self.read(function, *arguments, **options)

    async def read(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Call a function of the store with a connection, in a thread. Raises Busy, and DamagedDatabase."""

        def call() -> T:
            bounded = self._idle.pop() if self._idle else _Bounded(self._database, self._is_over, LOOK_STEPS)
            try:
                return bounded.call(function, *arguments, **options)
            finally:
                self._idle.append(bounded)

        try:
            return await trio.to_thread.run_sync(call, limiter=self._threads)
        except ReadCutOff:
            self.cut_off += 1
            raise Busy(RETRY_AFTER_US) from None

    def _is_over(self, began_s: float) -> bool:
        return time.monotonic() - began_s > READ_S or self._cut_s > began_s

    def end_all(self) -> None:
        """End what is read now."""
        self._cut_s = time.monotonic()

    def close(self) -> None:
        """Close the connections."""
        while self._idle:
            self._idle.pop().connection.close()
        if self._at_once is not None:
            self._at_once.connection.close()


class _Bounded:
    """A connection whose reads are ended when `is_over(began_s)`, which is asked every so many steps."""

    def __init__(self, database: Path, is_over: Callable[[float], bool], steps: int, **options: Any) -> None:
        self.connection: Reader = open_reader(database, **options)
        self.began_s = 0.0
        end_reads(self.connection, lambda: is_over(self.began_s), steps)

    def call(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Call it with the connection. Raises ReadCutOff, DamagedDatabase."""
        self.began_s = time.monotonic()
        try:
            with telling_cut_off():
                return function(self.connection, *arguments, **options)
        finally:
            if self.connection.in_transaction:  # its end was cut off too
                self.began_s = float("inf")
                self.connection.execute("ROLLBACK")


def _is_over_at_once(began_s: float) -> bool:
    return time.monotonic() - began_s > AT_ONCE_S


class _Allowance:
    """How much of the loop's time reads may take: SHARE of what passes, and no more than BURST_S of it together."""

    def __init__(self) -> None:
        self._left_s = BURST_S
        self._at_s = time.monotonic()

    def is_left(self, now_s: float) -> bool:
        """Whether another one may begin."""
        self._left_s = min(BURST_S, self._left_s + (now_s - self._at_s) * SHARE)
        self._at_s = now_s
        return self._left_s > 0

    def spend(self, seconds: float) -> None:
        """A read took so long."""
        self._left_s -= seconds
