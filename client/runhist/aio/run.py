"""Recording one run from tasks: the handle whose recording calls never wait.

What is recorded waits in the history's window for the daemon, and past it in the spool; where there is none, or it takes
nothing, an event is a fault. So is one with more data than may be sent with it (1 MiB): to give that before it would be to
wait. `await run.flush()` now and then is how a fast engine keeps pace with the daemon. See `runhist.handle` for what
handles record.

Leaving the run's block waits, at most the deadline and shielded from cancellation, until all of it is stored. An
exception that is leaving a block is never replaced by one of recording's.
"""

from __future__ import annotations

import functools
import os
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Generic,
    Optional,
    Sequence,
    Type,
    TypeVar,
    Union,
)

import anyio.to_thread

from .. import ambient
from ..faults import Faults
from ..handle import RunHandle, is_answer
from ..outbox import Entry, Outbox
from ..protocol.errors import RunClosed, RunhistError
from ..records import Event, Receipt
from .link import HistoryLeft, TaskLink
from .reading import Item, RunEvents, RunReader

if TYPE_CHECKING:
    from .client import History

_R = TypeVar("_R", bound="Run")


class Run(RunHandle):
    """A run that this process records; made by `History.begin_run`.

    Leaving its block completes it; an exception fails or cancels it. What was said inside by `complete`, `fail` or
    `cancel` stands. Without a block, call one of these and then `flush`.
    """

    def __init__(self, history: History, outbox: Optional[Outbox], faults: Faults, run_id: str, fresh: bool) -> None:
        super().__init__(history, outbox, faults, run_id, fresh)
        self._history: History = history
        self._link: Optional[TaskLink] = history._link

    async def artifact(
        self,
        path: Union[str, "os.PathLike[str]"],
        *,
        name: Optional[str] = None,
        kind: Optional[str] = None,
        digest: bool = False,
        keep: bool = False,
    ) -> None:
        """A file that the run made; see `runhist.Run.artifact`. A worker thread reads it and gives it to the daemon."""
        if self._link is None:
            return
        from ..artifacts import gather

        given = os.fspath(path)
        connect = self._history._reader.connect_blocking if keep else None
        gathering = functools.partial(gather, given, name=name, kind=kind, digest=digest, keep=connect)
        self._record_artifact(given, *await anyio.to_thread.run_sync(gathering, abandon_on_cancel=True))

    async def wait_gate(self) -> Any:
        """The answer to the gate that this handle paused the run at, waited for without an end.

        To go on, claim the run. Raises RunClosed when the run was ended instead, StaleEpoch when another process went
        on with it, and what `flush` raises.
        """
        await self.flush()
        reader = RunReader(self._history._reader, self.namespace, self._run_id)
        gate_seq = self._outbox.last_seq if self._outbox else None  # nothing of ours comes behind it
        async with reader.events(follow=True, after_seq=gate_seq or 0) as events:
            async for event in events:
                if isinstance(event, Event) and is_answer(event):
                    return event.data.get("answer")
        raise RunClosed(status=(await reader.get()).status)

    async def release(self) -> None:
        """Give the run up before its end, so that another process may claim it. Raises what `flush` raises."""
        await self.flush()
        if self.epoch is not None:
            name = {"namespace": self.namespace, "run_id": self._run_id}
            await self._history._reader.call("ReleaseRun", {**name, "epoch": self.epoch})
        self._ended = True

    async def __aenter__(self: _R) -> _R:
        ambient.enter(self)
        return self

    async def __aexit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        ambient.leave(self)
        try:
            if not self._ended:
                self._end_as(error)
            await self._settle_last()
        except RunhistError:
            if error is None:
                raise

    async def flush(self, deadline: Optional[float] = None) -> Receipt:
        """Wait until everything is stored, at most `deadline` seconds (the history's, if none is given).

        Raises what the daemon refused since the last flush. While the daemon is away the receipt says "spooled" when all
        of it is on the disk. Events that are not stored in time wait on; the receipt says "off" then.
        """
        link, outbox = self._link, self._outbox
        if link is None or outbox is None or link.forked:
            return Receipt("off", faults=self._faults.count)
        seconds = self._history.deadline if deadline is None else deadline
        await link.wait_kept(outbox, lambda: outbox.settled, seconds, patient=True)
        return self._take_stock(link, outbox)

    def events(
        self,
        *,
        follow: bool = False,
        after_seq: int = 0,
        types: Optional[Sequence[str]] = None,
        kinds: Optional[Sequence[str]] = None,
    ) -> RunEvents:
        """The run's events as they are stored (see `RunReader.events`), after what this handle recorded before."""
        reader = RunReader(self._history._reader, self.namespace, self._run_id)

        async def begin() -> AsyncIterator[Item]:
            link, outbox = self._link, self._outbox
            if link is not None and outbox is not None:
                await link.wait_kept(outbox, lambda: outbox.settled, self._history.deadline)
            return await reader._open(follow, after_seq, False, types, kinds)

        return RunEvents(begin)

    async def _settle_last(self) -> None:
        """The last flush of a block."""
        link, outbox = self._link, self._outbox
        if link is None or outbox is None or link.forked:
            return
        try:
            await link.wait_kept(outbox, lambda: outbox.settled, self._history.deadline, shield=True)
        finally:
            self._take_last_stock(link, outbox)

    def _hand_over(self, entry: Entry, ends: bool) -> None:
        link = self._link
        if link is not None and link.is_left:
            error = HistoryLeft("the block of its history was left, or the history's task was cancelled")
            with link.lock:
                self._faults.add("left", error, f"an event of run {self._run_id} is not recorded: {error}")
            return
        super()._hand_over(entry, ends)

    def _make_room(self, size: int) -> bool:
        assert self._link is not None
        return self._link.make_room(size)


class Opening(Generic[_R]):
    """A run that is about to be begun or claimed: await it for its handle, or enter it as the run's block."""

    def __init__(self, open: Callable[[], Coroutine[Any, Any, _R]]) -> None:
        self._open = open
        self._run: Optional[_R] = None

    def __await__(self) -> Generator[Any, Any, _R]:
        return self._open().__await__()

    async def __aenter__(self) -> _R:
        self._run = await self
        return await self._run.__aenter__()

    async def __aexit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        assert self._run is not None
        await self._run.__aexit__(kind, error, trace)
