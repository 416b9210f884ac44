"""What happens when the disk is full: writes are refused, reads go on, and forgetting still works.

SQLite tells of a full disk before anything of a transaction is on it, so a refused batch leaves nothing behind, and the
next one may well succeed: writing resumes by itself. But deleting needs room too, for the write-ahead log and its
checkpoint, and on a full disk there is none. So a file of RESERVE_BYTES lies beside the database for nothing but to be
removed then. While it is gone only removals are carried out, since appends would eat the room at once; it is made again
before anything else is written.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from runhistd.model.artifacts import DropBlob
from runhistd.model.errors import StorageFull
from runhistd.model.publish import Publish
from runhistd.model.removal import Clear, Compact, Delete
from runhistd.store.database import DiskFull
from runhistd.store.log import Batch, EventLog, Request

logger = logging.getLogger("runhistd.space")

RESERVE_NAME = "reserve"
RESERVE_BYTES = 16 * 1024 * 1024  # some times what lies in the write-ahead log between two checkpoints
RESERVE_PART = 8  # … and at most one part in so many of a small disk
LOOK_AGAIN_S = 1.0  # between two attempts to make the reserve again
CALL_AGAIN_S = 60.0  # between two calls of `on_full`: it starts a pass of retention
SETS_FREE = (Delete, Clear, Compact, DropBlob)


class Space:
    """The room on the disk of a state directory. `on_full` is called when writes begin to be refused for the lack of it."""

    def __init__(self, state_dir: Path) -> None:
        self.on_full: Callable[[], None] = lambda: None
        self._path = state_dir / RESERVE_NAME
        self._size = min(RESERVE_BYTES, shutil.disk_usage(state_dir).total // RESERVE_PART)
        self._next_call_s = float("-inf")
        self._spent = False
        self._next_look_s = float("-inf")
        self._since_us: int | None = None
        self.refused = 0
        """Requests since the disk was full."""
        self.make_reserve()

    @property
    def full_since_us(self) -> int | None:
        """Since when writes are refused; None while they are taken."""
        if self._since_us is not None and not self._spent and self._free_bytes() >= self._size // 2:
            self._since_us = None  # somebody has made room, and nobody has written since
        return self._since_us

    def make_reserve(self) -> bool:
        """Have the reserve on the disk, if there is room for it; else only removals are carried out."""
        try:
            self._spent = not self._has_reserve() and not self._make()
        except OSError as error:
            self._clear()
            self._spent = True
            logger.debug("the reserve cannot be made", extra={"fields": {"error": error}})
        return not self._spent

    def release_reserve(self) -> bool:
        """Make the reserve's room free; False when there is none any more."""
        with contextlib.suppress(OSError):
            self._path.unlink()
            self._spent = True
            logger.warning("the disk is full; the reserve is used", extra={"fields": {"path": self._path}})
            return True
        return False

    def look_again(self) -> None:
        """Make the reserve again as soon as there is room, and with it let everything be written."""
        if self._spent and time.monotonic() >= self._next_look_s:
            self._next_look_s = time.monotonic() + LOOK_AGAIN_S
            if self.make_reserve():
                logger.info("there is room again", extra={"fields": {"refused": self.refused}})

    def open_log(self, database: Path) -> EventLog:
        """Open the log, with the reserve's room where there is no other. Raises what opening it raises."""
        try:
            return EventLog.open(database)
        except DiskFull:
            if not self.release_reserve():
                raise
            return EventLog.open(database)

    def apply(self, log: EventLog, requests: Sequence[Request], now_us: int) -> Batch:
        """Have a batch stored as far as there is room. Raises what the log raises."""
        self.look_again()
        done = self._apply_admitted(log, requests, now_us)
        refused = [i for i, outcome in enumerate(done.outcomes) if isinstance(outcome, StorageFull)]
        if not refused:
            if done.events and not self._spent:
                self._since_us = None
            return done
        if not self._spent:
            log.checkpoint(truncate=True)  # where the log holds old versions of the same pages, that makes some room
        removals = [i for i in refused if isinstance(requests[i], SETS_FREE)]
        if removals and (self._spent or self.release_reserve()):
            log.checkpoint(truncate=True)
            self._try_again(log, requests, removals, done, now_us)
        self.note_refused(sum(isinstance(done.outcomes[i], StorageFull) for i in refused), now_us)
        return done

    def note_refused(self, refused: int, now_us: int) -> None:
        """So many writes were refused because the disk is full."""
        if not refused:
            return
        if self._since_us is None:
            self._since_us, self.refused = now_us, 0
            logger.error("the disk is full: writes are refused", extra={"fields": {"path": self._path.parent}})
            if time.monotonic() >= self._next_call_s:
                self._next_call_s = time.monotonic() + CALL_AGAIN_S
                self.on_full()
        self.refused += refused

    def _apply_admitted(self, log: EventLog, requests: Sequence[Request], now_us: int) -> Batch:
        """The batch, without what must wait for the reserve to be there again."""
        if not self._spent:
            return log.apply(requests, now_us)
        admits = (*SETS_FREE, Publish)  # which stores nothing
        admitted = [request for request in requests if isinstance(request, admits)]
        done = log.apply(admitted, now_us) if admitted else Batch([])
        outcomes = iter(done.outcomes)
        done.outcomes = [next(outcomes) if isinstance(one, admits) else StorageFull() for one in requests]
        return done

    def _try_again(
        self, log: EventLog, requests: Sequence[Request], removals: list[int], done: Batch, now_us: int
    ) -> None:
        for i in removals:
            again = log.apply([requests[i]], now_us)
            done.outcomes[i] = again.outcomes[0]
            done.held += again.held
            done.gaps |= again.gaps
        log.checkpoint(truncate=True)

    def _has_reserve(self) -> bool:
        return self._path.is_file() and self._path.stat().st_size >= self._size

    def _make(self) -> bool:
        """Make the file where some more is left beside it."""
        self._clear()
        if self._free_bytes() < self._size + self._size // 4:
            return False
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, 0, self._size)
            else:
                os.write(descriptor, bytes(self._size))
        finally:
            os.close(descriptor)
        return True

    def _clear(self) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink()

    def _free_bytes(self) -> int:
        return shutil.disk_usage(self._path.parent).free
