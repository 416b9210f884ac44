"""How much a user may have stored: so many runs, and so many bytes.

What is stored is counted with the transaction that stores it, so that a limit holds exactly. At the limit no run begins and
no event is taken, with one exception: what ends a run is, because only runs that have ended can be forgotten, and nothing
would ever become free otherwise. It goes over the limit by no more than the ends of the runs that are open.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from .errors import QuotaExceeded
from .events import TERMINAL_STATUS, Accepted

RUNS = "runs_per_user"
BYTES = "bytes_per_user"
EVENT_BYTES = 200  # of an event beside its texts: the other columns, and its place in the indexes

_encode = msgspec.json.Encoder().encode


class Stored(Struct):
    """What a user has stored. The bytes are those of its events, also of runs that are deleted and not cleared away yet,
    and of the content that it gave."""

    runs: int = 0
    bytes: int = 0

    def plus(self, runs: int, size: int) -> Stored:
        """With so much more."""
        return Stored(self.runs + runs, self.bytes + size)


class Quota(Struct, frozen=True):
    """What each user may have stored; None is no limit."""

    runs: int | None = None
    bytes: int | None = None

    @property
    def is_off(self) -> bool:
        """Whether nothing is limited."""
        return self.runs is None and self.bytes is None

    def check_run(self, stored: Stored, size: int) -> None:
        """Refuse another run, whose first event has so many bytes. Raises QuotaExceeded."""
        if self.runs is not None and stored.runs >= self.runs:
            raise QuotaExceeded(RUNS, self.runs)
        self.check_bytes(stored, size)

    def check_events(self, stored: Stored, accepted: Sequence[Accepted]) -> None:
        """Refuse other events, unless they end their run. Raises QuotaExceeded."""
        if not all(new.kind in TERMINAL_STATUS for new in accepted):
            self.check_bytes(stored, bytes_of(accepted))

    def check_bytes(self, stored: Stored, size: int) -> None:
        """Refuse so many bytes more. Raises QuotaExceeded."""
        if self.bytes is not None and stored.bytes + size > self.bytes:
            raise QuotaExceeded(BYTES, self.bytes)


def bytes_of(accepted: Sequence[Accepted]) -> int:
    """What events count for: their texts that may be long, as they are stored, and the rest of their rows."""
    size = EVENT_BYTES * len(accepted)
    for new in accepted:
        event = new.event
        size += len(memoryview(event.data))
        if event.usage is not None:
            size += len(_encode(event.usage))
        if event.key is not None:
            size += len(event.key.encode())
    return size
