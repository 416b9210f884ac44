"""What each user has stored, counted while it is stored, so that nobody needs to look at all of it.

The figures of a batch are in memory at once, so that the requests of one batch cannot pass a limit together, and
count for good with its COMMIT. Written they are only now and then, because a row more in every commit would make each of
them slower: after SAVE_EVENTS events, with every removal, and at a clean end. `position` says up to which event the rows
hold, and what lies behind it is counted when the history is opened. Since whatever removes something writes them, nothing
that they have counted can be gone by then.
"""

from __future__ import annotations

from collections.abc import Sequence

import apsw

from ..model.events import Accepted
from ..model.quota import Quota, Stored
from . import sql

SAVE_EVENTS = 1000


def load(connection: apsw.Connection) -> dict[int, Stored]:
    """The figures of all users as they are now. The caller reads in one transaction."""
    found = {uid: Stored(runs, size) for uid, runs, size in connection.execute(sql.LOAD_USERS)}
    for uid, runs, size in connection.execute(sql.COUNT_BEHIND_USERS):
        found[uid] = found.get(uid, Stored()).plus(runs, size)
    return found


class Tally:
    """The figures of all users, and `quota`, what each may have."""

    def __init__(self, connection: apsw.Connection) -> None:
        self.quota = Quota()
        self._connection = connection
        self._stored = load(connection)
        self._position: int = connection.execute(sql.USERS_POSITION).get
        self._unwritten = set(self._stored)
        self._added: dict[int, Stored] = {}
        self._is_written = False

    def of(self, uid: int) -> Stored:
        """What the user has, with what this batch has brought so far."""
        stored, added = self._stored.get(uid, Stored()), self._added.get(uid, Stored())
        return stored.plus(added.runs, added.bytes)

    def add(self, uid: int, runs: int, size: int) -> None:
        """The user has so many runs and bytes more, or fewer."""
        added = self._added.get(uid)
        if added is None:
            added = self._added[uid] = Stored()
        added.runs += runs
        added.bytes += size

    def check_run(self, uid: int, size: int) -> None:
        """Refuse the user another run, whose first event has so many bytes. Raises QuotaExceeded."""
        if not self.quota.is_off:
            self.quota.check_run(self.of(uid), size)

    def check_events(self, uid: int, accepted: Sequence[Accepted]) -> None:
        """Refuse the user other events, unless they end their run. Raises QuotaExceeded."""
        if not self.quota.is_off:
            self.quota.check_events(self.of(uid), accepted)

    def check_bytes(self, uid: int, size: int) -> None:
        """Refuse the user so many bytes more. Raises QuotaExceeded."""
        if not self.quota.is_off:
            self.quota.check_bytes(self.of(uid), size)

    def is_behind(self, position: int) -> bool:
        """Whether the next start would have to count events."""
        return position > self._position

    def save(self, position: int, *, removes: bool) -> None:
        """Write what has changed, if it is time. The caller commits, and then calls `committed`."""
        if not removes and position < self._position + SAVE_EVENTS:
            return
        for uid in self._unwritten | self._added.keys():
            now = self.of(uid)
            self._connection.execute(sql.SAVE_USER, (uid, now.runs, now.bytes, position))
        self._is_written = True

    def committed(self, position: int) -> None:
        """What came with the batch, and was written, is on the disk."""
        for uid in self._added:
            self._stored[uid] = self.of(uid)
        self._unwritten |= self._added.keys()
        self._added.clear()
        if self._is_written:
            self._position, self._is_written = position, False
            self._unwritten.clear()

    def roll_back(self) -> None:
        """Forget what the batch had brought."""
        self._added.clear()
        self._is_written = False
