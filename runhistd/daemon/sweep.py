"""Clearing away what deleted runs left: a little at a time, with the appends going on between.

The sweeper looks at its start, since a crash may have interrupted it, and whenever a run was deleted. It asks the
committer for one small transaction after the other and waits for each, so that writers never wait for more than one.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from runhistd.model.errors import Damaged, Refusal
from runhistd.model.removal import Clear
from runhistd.store.log import Request
from runhistd.store.prune import Cleared

from .commit import Outcome, Slot

logger = logging.getLogger("runhistd.sweep")

RETRY_S = 60.0  # after a refusal, which only a full disk brings about


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

    def flush(self) -> None:
        """Nothing is sent."""


class Sweeper:
    """Clears away, when woken, until nothing is left; then calls `collect_blobs`, for what only deleted runs had used.

    That returns how many bytes it freed.
    """

    def __init__(self, submit: Callable[[Request, Slot, int], None], collect_blobs: Callable[[], Awaitable[int]]) -> None:
        self._submit = submit
        self._collect_blobs = collect_blobs
        self._woken = trio.Event()
        self._woken.set()
        self.freed_bytes = 0  # since the daemon's start

    def wake(self) -> None:
        """There may be something to clear away."""
        self._woken.set()

    async def ask(self, request: Request) -> Outcome:
        """Have a request committed and wait for what became of it. Raises its Refusal."""
        asked = Asked()
        self._submit(request, asked, 0)
        await asked.settled.wait()
        assert asked.outcome is not None
        if isinstance(asked.outcome, Refusal):
            raise asked.outcome
        return asked.outcome

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            await self._woken.wait()
            self._woken = trio.Event()
            try:
                while isinstance(cleared := await self.ask(Clear()), Cleared) and cleared.more:
                    self.freed_bytes += cleared.bytes
                self.freed_bytes += await self._collect_blobs()
            except Damaged:
                return
            except Refusal as refusal:
                logger.warning("cannot clear away deleted runs", extra={"fields": {"refusal": type(refusal).__name__}})
                await trio.sleep(RETRY_S)
                self.wake()
