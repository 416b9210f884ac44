"""Where what is only shown waits for one follower: a bounded queue, of which the oldest go first.

The log cannot be the queue of what it does not hold, so each follower who asked for it has one here. An item waits until
its follower has looked at the log up to where the item was shown: so it comes behind the events that came before it (a
token never before the beginning of its step), however far behind the follower is.
"""

from __future__ import annotations

from collections import deque

import msgspec
import trio
from attrs import define

from runhistd.model.views import EventFilter
from runhistd.store.live import Live

INBOX_BYTES = 256 * 1024

_encode = msgspec.json.Encoder().encode


@define
class Item:
    """Something that is shown, encoded once for all its followers."""

    live: Live
    json: bytes | None = None

    def encoded(self) -> bytes:
        """As it stands in a reply."""
        if self.json is None:
            self.json = _encode(self.live.published)
        return self.json


class Inbox:
    """What waits for a follower. `dropped` counts what went unseen since the follower was last told."""

    def __init__(self, uid: int, filter: EventFilter) -> None:
        self.dropped = 0
        self.arrived = trio.Event()
        self._uid = uid
        self._filter = filter
        self._items: deque[Item] = deque()
        self._bytes = 0

    def offer(self, item: Item) -> None:
        """Take an item in, if the follower wants it."""
        live, published, wanted = item.live, item.live.published, self._filter
        run = (published.namespace, published.run_id, live.agent_id, live.team_run_id)
        if live.uid != self._uid or not wanted.wants_run(*run) or not wanted.wants_event(published.type, published.kind):
            return
        self._items.append(item)
        self._bytes += len(item.encoded())
        while self._bytes > INBOX_BYTES:
            self._bytes -= len(self._items.popleft().encoded())
            self.dropped += 1
        self.arrived.set()

    def is_ready(self, looked_at: int) -> bool:
        """Whether `take` would give something, or there is something to tell."""
        return self.dropped > 0 or (bool(self._items) and self._items[0].live.position <= looked_at)

    def take(self, looked_at: int) -> list[tuple[int, bytes]]:
        """What may be shown to a follower who has looked at the log up to there, with the positions it stands behind."""
        taken: list[tuple[int, bytes]] = []
        while self._items and self._items[0].live.position <= looked_at:
            item = self._items.popleft()
            self._bytes -= len(item.encoded())
            taken.append((item.live.position, item.encoded()))
        return taken

    def take_dropped(self) -> int:
        """How many went unseen since this was last asked."""
        dropped, self.dropped = self.dropped, 0
        return dropped
