"""Followers: cursors into the log.

A follower never has a queue of its own: it looks from its cursor, sends, and looks again, so that a slow one lags and
costs nothing. Those that keep up share the newest committed events in memory, encoded once; only those behind read the
database. A commit wakes the followers of the runs that it touched and carries no data.

What is only shown is the exception: it waits in an inbox of the follower's own (see `inbox`), and joins the page that
looks at the log up to its place.
"""

from __future__ import annotations

import heapq
import itertools
from bisect import bisect
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

import msgspec
import trio
from attrs import evolve, frozen

from runhistd.model.events import StoredEvent
from runhistd.model.views import EventFilter, Gap
from runhistd.store.live import Live
from runhistd.store.log import Committed
from runhistd.store.rows import DATA, KIND, POSITION, TYPE, Row, stored_event

from .inbox import Inbox, Item

PAGE_EVENTS = 100
PAGE_BYTES = 1024 * 1024
TAIL_BYTES = 8 * 1024 * 1024

RunName = tuple[int, str, str]
"""uid, namespace, run_id."""

_encode = msgspec.json.Encoder().encode


def encode_event(event: StoredEvent) -> bytes:
    """An event as it stands in a reply."""
    return _encode(event)


class _Recent:
    """Events that were committed together, each encoded when somebody wants it, and about the bytes that they take."""

    __slots__ = ("_encoded", "committed", "last", "size")

    def __init__(self, committed: Committed) -> None:
        self.committed = committed
        self.last: int = committed.rows[-1][POSITION]
        self.size = sum(len(row[DATA]) + 512 for row in committed.rows)  # with the members around the data, roughly
        self._encoded: dict[int, bytes] = {}

    def is_of(self, uid: int, filter: EventFilter) -> bool:
        """Whether they are of a run that is wanted."""
        one = self.committed
        return one.uid == uid and filter.wants_run(one.namespace, one.run_id, one.agent_id, one.team_run_id)

    def after(self, position: int, filter: EventFilter) -> Iterator[tuple[int, bytes]]:
        """The positions and JSON of those behind a position whose type and kind are wanted."""
        for row in self.committed.rows:
            if row[POSITION] > position and filter.wants_event(row[TYPE], row[KIND]):
                yield row[POSITION], self._encode(row)

    def _encode(self, row: Row) -> bytes:
        found = self._encoded.get(row[POSITION])
        if found is None:
            found = encode_event(stored_event(self.committed.namespace, self.committed.run_id, row))
            self._encoded[row[POSITION]] = found
        return found


def encode_gap(gap: Gap) -> bytes:
    """A gap as it stands in a reply."""
    return _encode(gap)


@frozen
class Page:
    """Encoded items with their positions, up to which position the log was looked at for them, and the encoded gaps up to
    there. `dropped`: so many items that are only shown went unseen since the page before."""

    items: list[tuple[int, bytes]]
    looked_at: int
    gaps: Sequence[bytes] = ()
    dropped: int = 0

    @classmethod
    def of(cls, events: Iterable[tuple[int, bytes]], looked_at: int, gaps: Iterable[bytes] = ()) -> Page:
        """A page of encoded events."""
        return cls([(at, b'{"event":%b}' % event) for at, event in events], looked_at, list(gaps))

    def joined(self, inbox: Inbox) -> Page:
        """With what waits in the inbox, each item behind the events that came before it."""
        shown = [(at, b'{"published":%b}' % item) for at, item in inbox.take(self.looked_at)]
        dropped = inbox.take_dropped()
        if not shown and not dropped:
            return self
        items = list(heapq.merge(self.items, shown, key=lambda item: item[0]))  # at a position the event comes first
        return evolve(self, items=items, dropped=dropped)


class Tail:
    """The newest committed events in memory, and the followers that wait for more."""

    def __init__(self, position: int) -> None:
        self.position = position
        self._start = position  # everything behind it is here
        self._recent: list[_Recent] = []
        self._bytes = 0
        self._waiting: dict[RunName | None, set[trio.Event]] = {}
        self._inboxes: dict[RunName | None, set[Inbox]] = {}

    def extend(self, events: list[Committed]) -> None:
        """Take in what was just committed, and wake those who wait for it."""
        if not events:
            return
        recent = [_Recent(committed) for committed in events]
        self._recent += recent
        self._bytes += sum(one.size for one in recent)
        self.position = recent[-1].last
        if self._bytes > 2 * TAIL_BYTES:
            self._trim()
        touched: set[RunName | None] = {(c.uid, c.namespace, c.run_id) for c in events} if self._waiting else set()
        for name in (None, *touched):
            for event in self._waiting.get(name, ()):
                event.set()

    def show(self, shown: list[Live]) -> None:
        """Give what is not stored to those who asked for it."""
        if not self._inboxes:
            return
        for item in map(Item, shown):
            published = item.live.published
            for name in (None, (item.live.uid, published.namespace, published.run_id)):
                for inbox in self._inboxes.get(name, ()):
                    inbox.offer(item)

    def open_inbox(self, uid: int, filter: EventFilter) -> Inbox:
        """An inbox for what is shown from now on; close it."""
        inbox = Inbox(uid, filter)
        self._inboxes.setdefault(name_wanted(uid, filter), set()).add(inbox)
        return inbox

    def close_inbox(self, uid: int, filter: EventFilter, inbox: Inbox) -> None:
        """Its follower is gone."""
        name = name_wanted(uid, filter)
        self._inboxes[name].discard(inbox)
        if not self._inboxes[name]:
            del self._inboxes[name]

    def forget(self) -> None:
        """Send everybody to the database, because runs were deleted of which events are here."""
        self._recent.clear()
        self._bytes = 0
        self._start = self.position

    def after(self, position: int, uid: int, filter: EventFilter) -> Page | None:
        """The next page behind a position, or None when that lies further back than memory reaches."""
        if position < self._start:
            return None
        events: list[tuple[int, bytes]] = []
        size = 0
        behind = self._recent[bisect(self._recent, position, key=lambda one: one.last) :]
        wanted = (one.after(position, filter) for one in behind if one.is_of(uid, filter))
        for at, encoded in itertools.chain.from_iterable(wanted):
            size += len(encoded)
            if events and (len(events) == PAGE_EVENTS or size > PAGE_BYTES):
                return Page.of(events, at - 1)
            events.append((at, encoded))
        return Page.of(events, self.position)

    async def wait(self, name: RunName | None, at_most_s: float, inbox: Inbox | None) -> bool:
        """Wait for the next commit, of that run or of any, or for the inbox; False when the time passed first."""
        arrived = trio.Event()
        if inbox is not None:
            inbox.arrived = arrived
        waiting = self._waiting.setdefault(name, set())
        waiting.add(arrived)
        try:
            with trio.move_on_after(at_most_s):
                await arrived.wait()
            return arrived.is_set()
        finally:
            waiting.discard(arrived)
            if not waiting and self._waiting.get(name) is waiting:
                del self._waiting[name]

    def _trim(self) -> None:
        kept = 0
        first = len(self._recent)
        while first > 0 and kept + self._recent[first - 1].size <= TAIL_BYTES:
            first -= 1
            kept += self._recent[first].size
        self._start = self._recent[first - 1].last if first else self._start
        del self._recent[:first]
        self._bytes = kept


def name_wanted(uid: int, filter: EventFilter) -> RunName | None:
    """The one run that the filter is about, if it names one."""
    if filter.run_id is None or filter.namespace is None:
        return None
    return uid, filter.namespace, filter.run_id


async def follow(
    tail: Tail,
    uid: int,
    filter: EventFilter,
    position: int,
    heartbeat_s: float,
    inbox: Inbox | None,
    read: Callable[[int], Awaitable[Page]],
    send: Callable[[Page], Awaitable[None]],
) -> None:
    """Send pages from behind `position` for ever: the first at once, empty ones only as heartbeats.

    `read` looks into the database where memory does not reach; `send` returns when the peer can take more. What is only
    shown comes from the `inbox`; None leaves it out.
    """
    name = name_wanted(uid, filter)
    is_due = True
    while True:
        page = tail.after(position, uid, filter)
        if page is None:
            page = await read(position)
        caught_up = page.looked_at >= tail.position
        position = page.looked_at
        if inbox is not None:
            page = page.joined(inbox)
        if page.items or page.gaps or page.dropped or is_due:
            await send(page)
            is_due = False
        elif not caught_up:
            await trio.lowlevel.checkpoint()
        if caught_up and tail.position <= position and (inbox is None or not inbox.is_ready(position)):
            is_due = not await tail.wait(name, heartbeat_s, inbox)
