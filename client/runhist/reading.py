"""Reading a history: runs, steps, usage, events, and following what is recorded from now on.

Reading uses connections of its own, because a stream occupies its connection and must not hold up recording. Unlike
recording it raises: Unreachable when there is no daemon, a Refusal such as NoSuchRun otherwise. Followers reconnect by
their cursor, so that a restart of the daemon neither loses nor repeats an event.
"""

from __future__ import annotations

import random
import time
from itertools import chain
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, TypeVar, Union, cast

from .connection import Connection, Unreachable
from .encoding import present
from .large import whole
from .paths import SocketChoice
from .protocol.errors import NoSuchBlob, NoSuchRun, ShuttingDown
from .records import TERMINAL_KINDS, Cursor, Event, Gap, Published, RunRecord, StepRecord, Usage, UsageRow, UsageTotals

READ_TIMEOUT_S = 30.0
PAGE = 100
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0
LASTING = frozenset({"not_permitted", "not_a_history", "path_too_long"})  # reasons that waiting does not mend
_Item = TypeVar("_Item")


class Reader:
    """Asks the daemon that `choice` names; with None recording is off, and there is nothing to read."""

    def __init__(self, choice: Optional[SocketChoice]) -> None:
        self._choice = choice

    @property
    def off(self) -> bool:
        """Whether there is nothing to read."""
        return self._choice is None

    def connect(self) -> Connection:
        """A new connection. Raises Unreachable."""
        return Connection.open(self._choice, timeout=READ_TIMEOUT_S)

    def call(self, method: str, parameters: Mapping[str, Any]) -> Dict[str, Any]:
        """One call on a connection of its own."""
        with self.connect() as connection:
            return connection.call(method, parameters, timeout=READ_TIMEOUT_S)

    def pages(self, method: str, parameters: Mapping[str, Any], limit: Optional[int] = None) -> Iterator[Dict[str, Any]]:
        """The replies of a method that gives `next_page`; `limit` is the most items of one page."""
        page = None
        with self.connect() as connection:
            while True:
                request = {**parameters, **present(page=page, limit=limit)}
                reply = connection.call(method, request, timeout=READ_TIMEOUT_S)
                yield reply
                page = reply.get("next_page")
                if page is None:
                    return

    def list_runs(self, filters: Mapping[str, Any], limit: Optional[int]) -> Iterator[RunRecord]:
        """Runs that match, newest first, at most `limit`."""
        if self.off:
            return
        left = limit
        for reply in self.pages("ListRuns", filters, PAGE if limit is None else min(limit, PAGE)):
            for run in reply["runs"]:
                if left is not None:
                    if left == 0:
                        return
                    left -= 1
                yield RunRecord.from_wire(run)
            if left == 0:
                return


class RunReader:
    """One run as it is stored, whoever records it."""

    def __init__(self, reader: Reader, namespace: Optional[str], run_id: str) -> None:
        self.namespace = namespace
        self.run_id = run_id
        self._reader = reader

    def get(self) -> RunRecord:
        """The run as it stands. Raises NoSuchRun, also where recording is off."""
        if self._reader.off:
            raise NoSuchRun(namespace=self.namespace or "default", run_id=self.run_id)
        reply = self._reader.call("GetRun", self._name())
        return RunRecord.from_wire(reply["run"], reply["detail"])

    def steps(self) -> List[StepRecord]:
        """Every attempt of every step, in the order in which they began."""
        return [StepRecord.from_wire(step) for reply in self._pages("GetSteps") for step in reply["steps"]]

    def usage(self) -> Usage:
        """Tokens and cost, in total and by step attempt and model."""
        total = UsageTotals()
        rows: List[UsageRow] = []
        for reply in self._pages("GetUsage"):
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
    ) -> Iterator[Union[Event, Gap]]:
        """The run's events in order of seq, behind `after_seq`; `types` and `kinds` restrict them.

        With `from_checkpoint` they begin at the run's last checkpoint, if it has one and that is later. With `follow`
        it waits for further ones, outlives a restart of the daemon, and ends with the run. Where retention has dropped
        some, a Gap says so, before the events of the same page. NoSuchRun: the run was deleted.
        """
        if self._reader.off:
            return iter(())
        filters = {**self._name(), **present(types=as_list(types), kinds=as_list(kinds))}
        if from_checkpoint:
            after_seq = max(after_seq, (self.get().checkpoint_seq or 1) - 1)
        return self._follow(filters, after_seq) if follow else self._stored(filters, after_seq)

    def _stored(self, filters: Mapping[str, Any], after_seq: int) -> Iterator[Union[Event, Gap]]:
        next_seq: Optional[int] = after_seq
        with self._reader.connect() as connection:
            while next_seq is not None:
                request = {**filters, "after_seq": next_seq, "limit": PAGE}
                reply = connection.call("GetEvents", request, timeout=READ_TIMEOUT_S)
                yield from (Gap(**gap) for gap in reply["gaps"])
                for event in map(Event.from_wire, reply["events"]):
                    try:
                        yield whole(connection, event)
                    except NoSuchBlob:  # it was dropped in between
                        yield gap_of(event, f"events.{event.kind}")
                next_seq = reply.get("next_after_seq")

    def _follow(self, filters: Mapping[str, Any], after_seq: int) -> Iterator[Union[Event, Gap]]:
        if self.get().ended:
            yield from self._stored(filters, after_seq)
            return
        # The filter is applied here, because the run's end must be seen although the filter may leave it out.
        run = {"namespace": self.namespace or "default", "run_id": self.run_id}
        cursor = Cursor(None, self._position(after_seq))
        follower: Follower[Union[Event, Gap]] = Follower(self._reader, cursor, run)
        with follower:
            for event in follower:
                if isinstance(event, Gap):
                    self.get()  # NoSuchRun, unless an older run of this name is meant
                    yield event
                    continue
                if is_wanted(event, filters, after_seq):
                    yield event
                if event.kind in TERMINAL_KINDS:
                    return

    def _position(self, seq: int) -> int:
        """A position at which to begin in order to see everything behind `seq`."""
        if seq == 0:
            return 0
        reply = self._reader.call("GetEvents", {**self._name(), "after_seq": seq - 1, "limit": 1})
        return next((event["position"] for event in reply["events"] if event["seq"] == seq), 0)

    def _pages(self, method: str) -> Iterator[Dict[str, Any]]:
        return iter(()) if self._reader.off else self._reader.pages(method, self._name())

    def _name(self) -> Dict[str, Any]:
        return present(namespace=self.namespace, run_id=self.run_id)


class Follower(Iterator[_Item]):
    """Yields events as they are committed, each once and in order of position, and never ends by itself.

    A lost connection is made again, with growing pauses, and continues behind `cursor`: the last event that was given
    out, or further where later ones did not match. Raises PositionExpired when the history is another one than before.
    Where events were deleted that it would have given out, it yields a Gap, possibly again after a lost connection. What
    is only shown it yields where that was asked for. A
    follower is for one thread; close it, or leave its block, to end it.
    """

    def __init__(
        self, reader: Reader, cursor: Optional[Cursor], filters: Mapping[str, Any], tail: Optional[int] = None
    ) -> None:
        self._place = Place(cursor, filters, tail)
        self._reader = reader
        self._connection: Optional[Connection] = None
        self._replies: Iterator[Dict[str, Any]] = iter(())
        self.closed = reader.off
        if not self.closed:
            self._connect()
            if filters.get("published"):
                self._read()  # what is shown from this moment on is seen: the daemon has begun

    @property
    def cursor(self) -> Optional[Cursor]:
        """Up to where it has looked; None before it was connected."""
        return self._place.cursor

    @property
    def dropped(self) -> int:
        """How much of what is only shown went unseen, because this follower was too slow for it."""
        return self._place.dropped

    def __enter__(self) -> Follower[_Item]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the stream; `next` then ends too."""
        self.closed = True
        if self._connection is not None:
            self._connection.close()

    def __next__(self) -> _Item:
        while not self.closed:
            try:
                item = self._place.next_item()
                if item is not None:
                    return cast("_Item", self._whole(item))  # the daemon gives what was asked for
                self._read()
            except ShuttingDown:
                self._pause()
            except Unreachable as error:
                if error.reason in LASTING:
                    raise
                self._pause()
        raise StopIteration

    def _whole(self, item: Union[Event, Gap, Published]) -> Union[Event, Gap, Published]:
        """The item, an event with all its data; a gap where that was deleted in between."""
        if not isinstance(item, Event) or item.data_blob is None:
            return item
        try:
            with self._reader.connect() as connection:
                return whole(connection, item)
        except (NoSuchRun, NoSuchBlob):
            return gap_of(item, "deleted")
        except BaseException:
            self._place.put_back(item)
            raise

    def _read(self) -> None:
        """Take the next reply, on a new connection if there is none."""
        if self._connection is None or self._connection.closed:
            self._connect()
        for reply in self._replies:
            self._place.take(reply)
            return
        self._connection = None  # a stream that ends without an error; begin it again

    def _connect(self) -> None:
        connection = self._connection = self._reader.connect()
        if self._place.is_now:
            self._place.begin(connection.call("GetStatus", {}, timeout=READ_TIMEOUT_S))
        self._replies = connection.stream("Follow", self._place.request())

    def _pause(self) -> None:
        if self._connection is not None:
            self._connection.close()
        time.sleep(self._place.pause())


class Place:
    """Where a follower is, and what it has still to give out; it knows no connection."""

    def __init__(self, cursor: Optional[Cursor], filters: Mapping[str, Any], tail: Optional[int]) -> None:
        self.cursor = cursor
        self._filters = filters
        self._tail = tail
        self._failures = 0
        self.dropped = 0
        self._items: Iterator[Union[Event, Gap, Published]] = iter(())
        self._next_cursor = cursor
        self._before = cursor

    @property
    def is_now(self) -> bool:
        """Whether it is at "from now", and does not know yet where that is."""
        return self.cursor is None and self._tail is None

    def begin(self, status: Mapping[str, Any]) -> None:
        """Be at the head that GetStatus told: "now" is this moment, also if the first event comes much later."""
        self.cursor = self._next_cursor = Cursor(status["instance_id"], status["position"])

    def request(self) -> Dict[str, Any]:
        """What to Follow from here."""
        cursor = None if self.cursor is None else present(**self.cursor._asdict())
        return {**self._filters, **present(cursor=cursor, tail=self._tail)}

    def take(self, reply: Mapping[str, Any]) -> None:
        """A reply has come; the items of the one before were given out."""
        self._failures = 0
        self._tail = None
        self._next_cursor = Cursor(reply["cursor"].get("instance_id"), reply["cursor"]["position"])
        self.dropped += reply.get("dropped", 0)
        self._items = _items(reply["items"])

    def next_item(self) -> Union[Event, Gap, Published, None]:
        """The next item to give out; None where another reply is needed."""
        for item in self._items:
            if isinstance(item, Event):  # a gap may reach beyond events that are still to come
                self._before = self.cursor
                self.cursor = Cursor(self._next_cursor and self._next_cursor.instance_id, item.position)
            return item
        self.cursor = self._next_cursor
        return None

    def put_back(self, event: Event) -> None:
        """The event that came last could not be given out; it comes again."""
        self.cursor = self._before
        self._items = chain((event,), self._items)

    def pause(self) -> float:
        """How many seconds to wait after one more failure."""
        longest: float = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(self._failures, 10))
        self._failures += 1
        return longest * random.uniform(0.5, 1.0)


def is_wanted(event: Event, filters: Mapping[str, Any], after_seq: int) -> bool:
    """Whether a run's event is behind `after_seq` and matches the filters' types and kinds."""
    types, kinds = filters.get("types"), filters.get("kinds")
    return (types is None or event.type in types) and (kinds is None or event.kind in kinds) and event.seq > after_seq


def _items(items: List[Dict[str, Any]]) -> Iterator[Union[Event, Gap, Published]]:
    """What the items of a reply are; kinds of items that this version does not know are left out."""
    for item in items:
        if item.get("event") is not None:
            yield Event.from_wire(item["event"])
        elif item.get("gap") is not None:
            yield Gap(**item["gap"])
        elif item.get("published") is not None:
            yield Published.from_wire(item["published"])


def gap_of(event: Event, rule: str) -> Gap:
    """What is told instead of an event that is gone."""
    return Gap(event.namespace, event.run_id, event.position, event.position, rule)


def follow_from(cursor: Union[int, Cursor, None]) -> Optional[Cursor]:
    """The cursor that `follow` means: a bare number is a position in whichever history answers."""
    return Cursor(None, cursor) if isinstance(cursor, int) else cursor


def as_list(names: Optional[Sequence[str]]) -> Optional[List[str]]:
    """As JSON wants it."""
    return None if names is None else list(names)
