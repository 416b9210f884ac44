"""What each user has stored, kept beside it in the same transactions, so that nobody needs to count it.

The figures of a batch are in memory at once, so that the requests of one batch cannot pass a limit together, and
become the stored ones with its COMMIT.
"""

from __future__ import annotations

import apsw

from ..model.quota import Quota, Stored
from . import sql


class Tally:
    """The figures of all users, and `quota`, what each may have."""

    def __init__(self, connection: apsw.Connection) -> None:
        self.quota = Quota()
        self._connection = connection
        self._stored = {uid: Stored(runs, size) for uid, runs, size in connection.execute(sql.LOAD_USERS)}
        self._added: dict[int, Stored] = {}

    def of(self, uid: int) -> Stored:
        """What the user has, with what this batch has brought so far."""
        stored, added = self._stored.get(uid, Stored()), self._added.get(uid, Stored())
        return Stored(stored.runs + added.runs, stored.bytes + added.bytes)

    def add(self, uid: int, *, runs: int = 0, size: int = 0) -> None:
        """The user has so many runs and bytes more, or fewer."""
        added = self._added.setdefault(uid, Stored())
        added.runs += runs
        added.bytes += size

    def save(self) -> None:
        """Write what has changed. The caller commits, and then calls `committed`."""
        for uid, added in self._added.items():
            self._connection.execute(sql.SAVE_USER, (uid, added.runs, added.bytes))

    def committed(self) -> None:
        """What was saved is on the disk."""
        for uid in self._added:
            self._stored[uid] = self.of(uid)
        self._added.clear()

    def roll_back(self) -> None:
        """Forget what the batch had brought."""
        self._added.clear()
