"""Going on with a run from tasks; see `runhist.claim` for what a claim is.

A claim that was sent may be granted though its task is cancelled meanwhile, and the run would then belong to a process
that does not know it. So the claim is a task of the history's, which is waited for; where the waiting is cancelled, it
gives the run back.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, AsyncIterator, Dict, Mapping, Optional

import anyio

from ..faults import Faults
from ..outbox import Outbox
from ..paths import SocketChoice
from ..protocol.errors import RunhistError
from ..records import Event, Gap
from .asking import call_again_if_lost
from .reading import Item, RunReader
from .run import Run

if TYPE_CHECKING:
    from .client import History


class ClaimedRun(Run):
    """A run that this process goes on with; made by `History.claim_run`. What it finds is read when it is asked for."""

    def __init__(self, history: History, outbox: Optional[Outbox], faults: Faults, run_id: str, resumed_seq: int) -> None:
        super().__init__(history, outbox, faults, run_id, fresh=False)
        self._resumed_seq = resumed_seq
        self._resumed: Optional[Mapping[str, Any]] = None

    async def from_status(self) -> str:
        """What the run was before: paused, incomplete, or running where it was taken over."""
        return str((await self._resumed_data())["from_status"])

    async def answer(self) -> Any:
        """What the gate of the paused run was answered with; None where there was no gate or no answer."""
        return (await self._resumed_data()).get("answer")

    async def checkpoint_data(self) -> Optional[Dict[str, Any]]:
        """The data of the last checkpoint that the run recorded before; None where there is none."""
        async for event in self._reader().events(kinds=["checkpoint"], from_checkpoint=True):
            if isinstance(event, Event) and event.seq < self._resumed_seq:
                return event.data
        return None

    def earlier_events(self) -> AsyncIterator[Item]:
        """What was recorded behind the last checkpoint, or from the beginning, up to this claim."""
        return _EarlierEvents(self._reader().events(from_checkpoint=True), self._resumed_seq)

    async def _resumed_data(self) -> Mapping[str, Any]:
        if self._resumed is None:
            async for event in self._reader().events(after_seq=self._resumed_seq - 1, kinds=["run.resumed"]):
                if isinstance(event, Event):
                    self._resumed = event.data
                    break
        assert self._resumed is not None  # every claim stores one
        return self._resumed

    def _reader(self) -> RunReader:
        return RunReader(self._history._reader, self.namespace, self._run_id)


class _EarlierEvents(AsyncIterator[Item]):
    def __init__(self, events: AsyncIterator[Item], resumed_seq: int) -> None:
        self._events = events
        self._resumed_seq = resumed_seq

    async def __anext__(self) -> Item:
        async for event in self._events:
            if isinstance(event, Gap):
                return event
            if event.seq >= self._resumed_seq:
                break
            if event.kind != "checkpoint":
                return event
        raise StopAsyncIteration


class Claiming:
    """One claim on its way; `run` is its task."""

    def __init__(self, request: bytes, choice: SocketChoice, seconds: float) -> None:
        self.granted: Dict[str, Any] = {}
        self.error: Optional[RunhistError] = None
        self.ended = anyio.Event()
        self._request = request
        self._choice = choice
        self._seconds = seconds

    async def run(self) -> None:
        """Claim, whoever is cancelled; at most the deadline."""
        with anyio.CancelScope(shield=True):
            try:
                self.granted = await call_again_if_lost("ClaimRun", self._request, self._choice, self._seconds)
            except RunhistError as error:
                self.error = error
            finally:
                self.ended.set()

    async def give_back(self) -> None:
        """Release what was granted; nobody waits for it."""
        with anyio.CancelScope(shield=True):
            await self.ended.wait()
            if self.granted:
                lease = {name: self.granted[name] for name in ("namespace", "run_id", "epoch")}
                with contextlib.suppress(RunhistError):
                    await call_again_if_lost("ReleaseRun", lease, self._choice, self._seconds)
