"""Recording faults: counted per run, logged once per kind and history, raised only where the engine asked for it.

An engine must not break because its recording does, and must still be able to see that it did. So every event that is
not recorded counts one in `run.faults`; the first fault of each kind goes to the logger `runhist`; and with
`errors="raise"` the next call raises it. Log records are kept back until the recording lock is released, because a
handler may itself record.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Deque, Optional, Set, Tuple

from .encoding import plain_text
from .protocol.errors import Refusal, StaleEpoch

logger = logging.getLogger("runhist")


class Journal:
    """What one history has logged already, and what waits to be logged."""

    def __init__(self) -> None:
        self._logged: Set[str] = set()
        self._waiting: Deque[Tuple[int, str]] = deque()

    def add(self, kind: str, text: str, level: int = logging.WARNING) -> None:
        """Queue a record unless one of its kind was queued before."""
        if kind not in self._logged:
            self._logged.add(kind)
            self._waiting.append((level, text))

    def write(self) -> None:
        """Log what waits. Call it without holding a lock."""
        while self._waiting:
            try:
                level, text = self._waiting.popleft()
            except IndexError:  # another thread was faster
                return
            logger.log(level, "%s", plain_text(text))  # a handler that writes UTF-8 could not write all that a run holds


class Faults:
    """The faults of one run."""

    def __init__(self, journal: Journal, raising: bool) -> None:
        self.count = 0
        self._journal = journal
        self._raising = raising
        self._pending: Optional[Exception] = None
        self._refused: Optional[Refusal] = None

    def add(self, kind: str, error: Exception, text: str, count: int = 1) -> None:
        """Note that `count` events are not recorded because of `error`."""
        self.count += count
        self._journal.add(kind, f"{text}; further faults of this kind are only counted (run.faults)")
        if isinstance(error, Refusal) and self._refused is None:
            self._refused = error
        if self._pending is None and (self._raising or isinstance(error, StaleEpoch)):
            self._pending = error

    def take_refused(self) -> Optional[Refusal]:
        """The first refusal since this was last asked."""
        refused, self._refused = self._refused, None
        return refused

    def take_pending(self) -> Optional[Exception]:
        """What the engine's next call must raise, once."""
        pending, self._pending = self._pending, None
        return pending
