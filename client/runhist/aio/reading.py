"""Reading a history from tasks, under the names of `runhist.reading`; what is iterated there is `async for` here.

Every page is a call of its own on a connection of its own, so an iteration that is left early leaves nothing behind. A
follow keeps its connection until its block is left, it is closed or it is forgotten.
"""

from __future__ import annotations

from base64 import b64decode
from collections import deque
from typing import (
    Any,
    AsyncIterator,
    Awaitable,
    Callable,
    Deque,
    Dict,
    Iterable,
    List,
    Mapping,
    Optional,
    Sequence,
    TypeVar,
    Union,
    cast,
)

import anyio

from ..connection import Connection, Parameters, Unreachable
from ..encoding import present
from ..large import with_data
from ..paths import SocketChoice
from ..protocol.errors import NoSuchBlob, NoSuchRun, ShuttingDown
from ..reading import LASTING, PAGE, READ_TIMEOUT_S, Place, as_list, gap_of, is_wanted
from ..records import TERMINAL_KINDS, Cursor, Event, Gap, Published, RunRecord, StepRecord, Usage, UsageRow, UsageTotals
from .asking import Asking

Item = Union[Event, Gap]
_T = TypeVar("_T")
_Item = TypeVar("_Item")


class Reader:
    """Asks the daemon that `choice` names; with None recording is off, and there is nothing to read."""

    def __init__(self, choice: Optional[SocketChoice]) -> None:
        self._choice = choice

    @property
    def off(self) -> bool:
        """Whether there is nothing to read."""
        return self._choice is None

    async def connect(self) -> Asking:
        """A new connection. Raises Unreachable."""
        assert self._choice is not None
        return await Asking.open(self._choice, READ_TIMEOUT_S)

    def connect_blocking(self) -> Connection:
        """A new connection for a worker thread. Raises Unreachable."""
        return Connection.open(self._choice, timeout=READ_TIMEOUT_S)

    async def call(self, method: str, parameters: Parameters) -> Dict[str, Any]:
        """One call on a connection of its own."""
        async with await self.connect() as asking:
            return await asking.call(method, parameters, READ_TIMEOUT_S)


class Pages(AsyncIterator[_T]):
    """What a method gives page by page, at most `limit` of it; `take` makes items of a reply."""

    def __init__(
        self,
        reader: Reader,
        method: str,
        parameters: Mapping[str, Any],
        take: Callable[[Dict[str, Any]], Iterable[_T]],
        *,
        limit: Optional[int] = None,
        page: str = "page",
    ) -> None:
        self._reader = reader
        self._method = method
        self._parameters = {**parameters, "limit": PAGE if limit is None else min(limit, PAGE)}
        self._take = take
        self._left = limit
        self._page = page  # the member that asks for the next page, with what the reply has as `next_`
        self._items: Deque[_T] = deque()
        self._ended = reader.off

    async def __anext__(self) -> _T:
        if self._left == 0:
            raise StopAsyncIteration
        while not self._items:
            if self._ended:
                raise StopAsyncIteration
            reply = await self._reader.call(self._method, self._parameters)
            self._items.extend(self._take(reply))
            page = reply.get(f"next_{self._page}")
            self._ended = page is None
            self._parameters[self._page] = page
        if self._left is not None:
            self._left -= 1
        return self._items.popleft()


class RunReader:
    """One run as it is stored, whoever records it."""

    def __init__(self, reader: Reader, namespace: Optional[str], run_id: str) -> None:
        self.namespace = namespace
        self.run_id = run_id
        self._reader = reader

    async def get(self) -> RunRecord:
        """The run as it stands. Raises NoSuchRun, also where recording is off."""
        if self._reader.off:
            raise NoSuchRun(namespace=self.namespace or "default", run_id=self.run_id)
        reply = await self._reader.call("GetRun", self._name())
        return RunRecord.from_wire(reply["run"], reply["detail"])

    async def steps(self) -> List[StepRecord]:
        """Every attempt of every step, in the order in which they began."""
        pages = Pages(self._reader, "GetSteps", self._name(), lambda reply: map(StepRecord.from_wire, reply["steps"]))
        return [step async for step in pages]

    async def usage(self) -> Usage:
        """Tokens and cost, in total and by step attempt and model."""
        total = UsageTotals()
        rows: List[UsageRow] = []
        async for reply in Pages(self._reader, "GetUsage", self._name(), lambda reply: [reply]):
            total = UsageTotals.from_wire(reply["total"])
            rows += [UsageRow.from_wire(row) for row in reply["rows"]]
        return Usage(total, tuple(rows))

    def events(
        self,
        *,
        follow: bool = False,
        after_seq: int = 0,
        from_checkpoint: bool = False,
        types: Optional[Sequence[str]] = None,
        kinds: Optional[Sequence[str]] = None,
    ) -> RunEvents:
        """The run's events in order of seq, behind `after_seq`; see `runhist.RunReader.events`."""
        return RunEvents(lambda: self._open(follow, after_seq, from_checkpoint, types, kinds))

    async def _open(
        self,
        follow: bool,
        after_seq: int,
        from_checkpoint: bool,
        types: Optional[Sequence[str]],
        kinds: Optional[Sequence[str]],
    ) -> AsyncIterator[Item]:
        filters = {**self._name(), **present(types=as_list(types), kinds=as_list(kinds))}
        if from_checkpoint and not self._reader.off:
            after_seq = max(after_seq, ((await self.get()).checkpoint_seq or 1) - 1)
        return await self._follow(filters, after_seq) if follow else self._stored(filters, after_seq)

    def _stored(self, filters: Mapping[str, Any], after_seq: int) -> AsyncIterator[Item]:
        request = {**filters, "after_seq": after_seq}
        return _Whole(self._reader, Pages(self._reader, "GetEvents", request, _stored_items, page="after_seq"))

    async def _follow(self, filters: Mapping[str, Any], after_seq: int) -> AsyncIterator[Item]:
        if self._reader.off or (await self.get()).ended:
            return self._stored(filters, after_seq)
        position = 0
        if after_seq:
            request = {**self._name(), "after_seq": after_seq - 1, "limit": 1}
            events = (await self._reader.call("GetEvents", request))["events"]
            position = next((event["position"] for event in events if event["seq"] == after_seq), 0)
        # The filter is applied to what comes, because the run's end must be seen although the filter may leave it out.
        run = {"namespace": self.namespace or "default", "run_id": self.run_id}
        follower: Follower[Item] = Follower(self._reader, Cursor(None, position), run)
        return _RunFollower(self, follower, filters, after_seq)

    def _name(self) -> Dict[str, Any]:
        return present(namespace=self.namespace, run_id=self.run_id)


def _stored_items(reply: Dict[str, Any]) -> List[Item]:
    return [*(Gap(**gap) for gap in reply["gaps"]), *map(Event.from_wire, reply["events"])]


async def _whole(reader: Reader, event: Event) -> Event:
    """The event with all its data. Raises NoSuchRun and NoSuchBlob for what was deleted, and Unreachable."""
    if event.data_blob is None:
        return event
    run = {"namespace": event.namespace, "run_id": event.run_id}
    content: List[bytes] = []
    async with await reader.connect() as asking:
        asking.stream("GetBlob", {**run, "sha256": event.data_blob.sha256})
        while sum(map(len, content)) < event.data_blob.size:
            content.append(b64decode((await asking.reply())["base64"]))
    return with_data(event, content)


class _Whole(AsyncIterator[Item]):
    """Stored events, each with all its data."""

    def __init__(self, reader: Reader, items: AsyncIterator[Item]) -> None:
        self._reader = reader
        self._items = items
        self._begun: Optional[Item] = None  # whose data did not come yet: the iteration was cancelled

    async def __anext__(self) -> Item:
        item = self._begun = self._begun or await self._items.__anext__()
        if isinstance(item, Event):
            try:
                item = await _whole(self._reader, item)
            except NoSuchBlob:  # it was dropped in between
                item = gap_of(item, f"events.{item.kind}")
        self._begun = None
        return item


class RunEvents(AsyncIterator[Item]):
    """A run's events as they are read; made by `events`. Where a follow is left early, `async with` closes it at once."""

    def __init__(self, begin: Callable[[], Awaitable[AsyncIterator[Item]]]) -> None:
        self._begin = begin
        self._source: Optional[AsyncIterator[Item]] = None
        self._closed = False

    async def __aenter__(self) -> RunEvents:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the iteration."""
        self._closed = True
        if isinstance(self._source, _RunFollower):
            self._source.close()

    async def __anext__(self) -> Item:
        if self._closed:
            raise StopAsyncIteration
        if self._source is None:
            self._source = await self._begin()
        return await self._source.__anext__()


class _RunFollower(AsyncIterator[Item]):
    """The events of one run that goes on, up to its end."""

    def __init__(self, run: RunReader, follower: Follower[Item], filters: Mapping[str, Any], after_seq: int) -> None:
        self._run = run
        self._follower = follower
        self._filters = filters
        self._after_seq = after_seq

    def close(self) -> None:
        self._follower.close()

    async def __anext__(self) -> Item:
        async for item in self._follower:
            if isinstance(item, Gap):
                await self._run.get()  # NoSuchRun, unless an older run of this name is meant
                return item
            if item.kind in TERMINAL_KINDS:
                self.close()
            if is_wanted(item, self._filters, self._after_seq):
                return item
        raise StopAsyncIteration


class Follower(AsyncIterator[_Item]):
    """Gives events as they are committed, each once and in order of position, and never ends by itself.

    It begins when its block is entered, or else with its first item; that raises Unreachable if there is no daemon then.
    All else as `runhist.Follower`. Cancelled while it waits, it goes on with the next item.
    """

    def __init__(
        self, reader: Reader, cursor: Optional[Cursor], filters: Mapping[str, Any], tail: Optional[int] = None
    ) -> None:
        self._place = Place(cursor, filters, tail)
        self._reader = reader
        self._asking: Optional[Asking] = None
        self._has_begun = False
        self._is_shown = bool(filters.get("published"))
        self.closed = reader.off

    @property
    def cursor(self) -> Optional[Cursor]:
        """Up to where it has looked; None before it was connected."""
        return self._place.cursor

    @property
    def dropped(self) -> int:
        """How much of what is only shown went unseen, because this follower was too slow for it."""
        return self._place.dropped

    async def __aenter__(self) -> Follower[_Item]:
        if not self.closed:
            asking = await self._connect()
            if self._is_shown:
                self._place.take(await asking.reply())  # what is shown from this moment on is seen: the daemon has begun
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the stream; a task that waits for its next item finds its end."""
        self.closed = True
        if self._asking is not None:
            self._asking.close()

    async def __anext__(self) -> _Item:
        while not self.closed:
            try:
                item = self._place.next_item()
                if item is not None:
                    return cast("_Item", await self._whole(item))  # the daemon gives what was asked for
                if self._asking is None or self._asking.closed:
                    await self._connect()
                else:
                    self._place.take(await self._asking.reply())
            except ShuttingDown:
                await self._pause()
            except Unreachable as error:
                if not self.closed and (not self._has_begun or error.reason in LASTING):
                    raise
                await self._pause()
        raise StopAsyncIteration

    async def _whole(self, item: Union[Event, Gap, Published]) -> Union[Event, Gap, Published]:
        if not isinstance(item, Event):
            return item
        try:
            return await _whole(self._reader, item)
        except (NoSuchRun, NoSuchBlob):
            return gap_of(item, "deleted")
        except BaseException:
            self._place.put_back(item)
            raise

    async def _connect(self) -> Asking:
        asking = self._asking = await self._reader.connect()
        if self._place.is_now:
            self._place.begin(await asking.call("GetStatus", {}, READ_TIMEOUT_S))
        asking.stream("Follow", self._place.request())
        self._has_begun = True
        return asking

    async def _pause(self) -> None:
        if self._asking is not None:
            self._asking.close()
        if not self.closed:
            await anyio.sleep(self._place.pause())
