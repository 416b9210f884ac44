"""Clearing away what deleted runs left: a little at a time, with the appends going on between.

The sweeper looks at its start, since a crash may have interrupted it, and whenever a run was deleted. It asks the
committer for one small piece after the other and waits for each. A piece goes into the transaction of the appends that it
meets. Before the next one there is a pause as long as that took: whatever a piece costs, all removing together takes no more
than half of the committer's time, and writers wait for one piece at most.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import trio

from runhistd.model.errors import Damaged, Refusal
from runhistd.model.removal import Clear
from runhistd.store.log import Request
from runhistd.store.prune import Cleared, Removal

from .commit import Outcome, Slot

logger = logging.getLogger("runhistd.sweep")

RETRY_S = 60.0  # after a refusal, which only a full disk brings about


class Commits(Protocol):
    """What the committer is to a sweeper."""

    @property
    def last_commit_s(self) -> float:
        """How long the last commit took."""

    def submit(self, request: Request, slot: Slot, size: int) -> None:
        """Queue a request; its slot is settled when it is on disk, or refused."""


class Asked:
    """The place of an outcome that a task waits for."""

    connection = None

    def __init__(self) -> None:
        self.outcome: Outcome | None = None
        self.settled = trio.Event()

    def settle(self, outcome: Outcome) -> None:
        """Take the outcome."""
        self.outcome = outcome
        self.settled.set()


class _Piece(Asked):
    """One that notes how long the commit took that settled it."""

    def __init__(self, commits: Commits) -> None:
        super().__init__()
        self._commits = commits
        self.took_s = 0.0

    def settle(self, outcome: Outcome) -> None:
        """Take the outcome."""
        self.took_s = self._commits.last_commit_s
        super().settle(outcome)


class Sweeper:
    """Clears away, when woken, until nothing is left; then calls `collect_blobs`, for what only deleted runs had used.

    That returns how many bytes it freed.
    """

    def __init__(self, commits: Commits, collect_blobs: Callable[[], Awaitable[int]]) -> None:
        self._commits = commits
        self._collect_blobs = collect_blobs
        self._woken = trio.Event()
        self._woken.set()
        self._one_piece_at_a_time = trio.Lock()
        self._next_piece_s = float("-inf")
        self.freed_bytes = 0  # since the daemon's start

    def wake(self) -> None:
        """There may be something to clear away."""
        self._woken.set()

    async def ask(self, request: Request) -> Outcome:
        """Have a request committed and wait for what became of it. Raises its Refusal."""
        asked = Asked()
        self._commits.submit(request, asked, 0)
        await asked.settled.wait()
        assert asked.outcome is not None
        if isinstance(asked.outcome, Refusal):
            raise asked.outcome
        return asked.outcome

    async def remove(self, piece: Sequence[Removal]) -> list[Outcome]:
        """Have some of many removals committed together, and some of what they leave cleared away with them; what became
        of them, after the commit. Keeps the pause. Whoever is through wakes the sweeper for the rest."""
        *outcomes, _ = await self._commit([*piece, Clear()])
        return outcomes

    async def _commit(self, piece: Sequence[Removal]) -> list[Outcome]:
        async with self._one_piece_at_a_time:
            await trio.sleep_until(self._next_piece_s)
            asked = [_Piece(self._commits) for _ in piece]
            for request, one in zip(piece, asked, strict=True):
                self._commits.submit(request, one, 0)
            for one in asked:
                await one.settled.wait()
            self._next_piece_s = trio.current_time() + max(one.took_s for one in asked)
        outcomes = [one.outcome for one in asked if one.outcome is not None]
        self.freed_bytes += sum(outcome.bytes for outcome in outcomes if isinstance(outcome, Cleared))
        return outcomes

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            await self._woken.wait()
            self._woken = trio.Event()
            try:
                await self._clear()
                blobs_bytes = await self._collect_blobs()  # not added at once: a pass may add to it meanwhile
                self.freed_bytes += blobs_bytes
            except Damaged:
                return
            except Refusal as refusal:
                logger.warning("cannot clear away deleted runs", extra={"fields": {"refusal": type(refusal).__name__}})
                await trio.sleep(RETRY_S)
                self.wake()

    async def _clear(self) -> None:
        more = True
        while more:
            (cleared,) = await self._commit([Clear()])
            if isinstance(cleared, Refusal):
                raise cleared
            assert isinstance(cleared, Cleared)
            more = cleared.more
