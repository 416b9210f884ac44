"""The committer: the one place that writes.

Everything that waits goes into one transaction, because one commit for all is many times cheaper than one each. The
commit runs on the event loop's own thread: handing it to another thread costs more than a sync takes on a fast disk,
and on a slow one there is nothing to do meanwhile but to gather the next batch, which the sockets hold for us. Receipts
a second of writers that send one event at a time, on a machine with two cores (medians of three that
`python -m tests.bench.placement --seconds 3` printed; syncs as fast as its disk's, then 2 ms slower):

                       8 writers        1 writer
    loop's thread      4574    1712     1413    291
    a pool's thread    2305     966      956    272
    a thread of its    3487    1025      989    243

The worst latencies were no better off the loop's thread: 20, 26 and 17 ms with 8 writers, checkpoints included.

Whoever brings many requests at a time has them committed at once by `commit_after`; what else is queued is committed by
the committer's own task.

After a commit that served n requests and took long, the next one waits until n are there again or half that time has
passed: where a sync takes milliseconds that brings all writers into every commit. A lone writer never waits. What the
daemon itself asks for, such as the removals of retention, goes along with those writers and is not waited for. What is only
shown takes its place in the queue, but nothing waits for it, and it makes no transaction and no figures.

When more waits than goes into one transaction, users and their connections take turns (see `fair`). What a user may have
waiting is bounded too: whoever reads its requests waits for room of its own, so that nobody fills the queue alone.

SQLite's own checkpoints are off. The committer checkpoints when the WAL has grown, and when it has been idle; before
each it makes sure that the files are still the ones at their paths, or nothing may be acknowledged any more.

Who watches whether the committer works is told after a commit, or, when there was nothing to commit for a while, after a
select of its own: a timer of the event loop's would still go off when nothing can be committed any more.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol
from uuid import uuid4

import trio
from attrs import frozen

from runhistd.config import Config
from runhistd.model.errors import Damaged, InternalError, Refusal
from runhistd.model.publish import Publish
from runhistd.store.imports import Imported
from runhistd.store.leases import Begun, Buried, Claimed, Released
from runhistd.store.live import Shown
from runhistd.store.log import Appended, Batch, EventLog, Failed, Request
from runhistd.store.prune import Outcome as Removed
from runhistd.store.tally import Tally

from .fair import Fair
from .instance import Instance
from .space import Space

logger = logging.getLogger("runhistd.commit")

MAX_BATCH = 1000  # requests in one transaction, so that none waits long for the others
MAX_BATCH_BYTES = 8 * 1024 * 1024  # of them, at least one
CHECKPOINT_BYTES = 4 * 1024 * 1024
TRUNCATE_BYTES = 64 * 1024 * 1024
IDLE_S = 5.0
SLOW_COMMIT_S = 0.0005  # below this, waiting for more writers costs more than it saves

Outcome = Appended | Begun | Claimed | Released | Buried | Imported | Shown | Removed | Refusal


class Sender(Protocol):
    """What a slot's outcome is sent over."""

    def flush(self) -> None:
        """Send what is settled. Must not block."""


class Slot(Protocol):
    """Where the outcome of a request goes."""

    @property
    def connection(self) -> Sender | None:
        """Whose requests stay in order with this one; None for the daemon's own, which overtake nothing of their user's."""

    def settle(self, outcome: Outcome) -> None:
        """Take the outcome. Must not block."""


@frozen
class Bounds:
    """How many bytes of requests may wait, of all users together and of each, and how long the write-ahead log may get."""

    queue_bytes: int
    queue_bytes_per_user: int
    wal_bytes: int

    @classmethod
    def of(cls, config: Config) -> Bounds:
        """Of queue_bytes the half: the other one is for what has not come whole yet, and for replies."""
        return cls(config.queue_bytes // 2, config.queue_bytes_per_user, config.wal_bytes)


Waiting = tuple[Request, Slot, int]
"""A request that is not committed, where its outcome goes, and its bytes."""


class Taken(NamedTuple):
    """The requests of a batch, and how many of them are writes, and writes of writers."""

    waiting: list[Waiting]
    writes: int
    writers: int


def now_us() -> int:
    """The wall clock in microseconds."""
    return time.time_ns() // 1000


class Committer:
    """Takes requests, commits them in batches, and settles their slots after the commit.

    `log` is None when the history may only be read; every request is then refused as Damaged. `on_beat` is called about
    every `beat_s`, and only when it has just been seen that the committer works.
    """

    def __init__(
        self,
        log: EventLog | None,
        instance: Instance,
        space: Space,
        bounds: Bounds,
        on_commit: Callable[[Batch], None],
        beat_s: float = float("inf"),
        on_beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._log = log
        self._instance = instance
        self.space = space
        self._bounds = bounds
        self.on_long_wal: Callable[[], None] = lambda: None
        """Called when the write-ahead log stays longer than its bound, which only readers bring about."""
        self._on_commit = on_commit
        self._beat_s = beat_s
        self._on_beat = on_beat
        self._next_beat_s = float("-inf")
        self._queue: Fair[Waiting] = Fair()
        self._queued_bytes = 0
        self._queued_bytes_of: defaultdict[int | None, int] = defaultdict(int)
        self._queued_writes = 0
        self._queued_writers = 0
        self._left_s: float | None = None  # since when what is queued waits for more
        self._arrived = trio.lowlevel.ParkingLot()
        self._is_filled = False  # by somebody who commits it
        self._is_gathering = False
        self._is_idle = False
        self._room = trio.lowlevel.ParkingLot()
        self._last_now_us = 0
        self.last_commit_s = 0.0
        """How long the last commit took."""
        self._last_served = 0
        self.latencies_us: deque[int] = deque(maxlen=1000)
        self.commits = 0

    @property
    def waiting(self) -> int:
        """How many requests are not committed yet."""
        return len(self._queue)

    def submit(self, request: Request, slot: Slot, size: int) -> None:
        """Queue a request of that many bytes; its slot is settled when it is on disk, or refused."""
        if self._log is None:
            slot.settle(Damaged("runhistd verify"))
            return
        uid = request.uid
        self._queue.add((request, slot, size), uid, slot.connection, size)
        self._queued_bytes += size
        self._queued_bytes_of[uid] += size
        self._count(request, slot, 1)
        if not self._is_filled:
            self._wake()

    def commit_after(self, fill: Callable[[], None]) -> None:
        """Call `fill` and commit what it has queued, unless waiting for more writers pays. Raises what `run` raises."""
        self._is_filled = True
        try:
            fill()
        finally:
            self._is_filled = False
        if not self._waiting_pays:
            self.commit_queued()
        if self._queue or self._is_idle:
            self._wake()

    @property
    def tally(self) -> Tally | None:
        """What each user has stored, and may; None when the history may only be read."""
        return None if self._log is None else self._log.tally

    def queued_bytes_of(self, uid: int) -> int:
        """What a user has waiting."""
        return self._queued_bytes_of.get(uid, 0)

    def configure(self, bounds: Bounds) -> None:
        """Other bounds from now on."""
        self._bounds = bounds
        self._room.unpark_all()

    def has_room(self, uid: int | None = None) -> bool:
        """Whether the queue is below its bound, and the user below its own."""
        return self._queued_bytes < self._bounds.queue_bytes and (
            uid is None or self._queued_bytes_of.get(uid, 0) < self._bounds.queue_bytes_per_user
        )

    async def wait_room(self, uid: int | None = None) -> None:
        """Return when there is room: whoever reads requests waits here first."""
        while not self.has_room(uid):
            await self._room.park()

    async def run(self) -> None:
        """Commit until cancelled. Raises StorageFault or InstanceLost, after which nobody may be answered."""
        while True:
            commits = self.commits
            with trio.move_on_after(min(IDLE_S, self._beat_s)):
                while not self._queue:
                    await self._arrived.park()
            if self._queue:
                await self._gather()
                self.commit_queued()
                if self._queue:  # otherwise we wait, and the others run
                    await trio.lowlevel.checkpoint()
            elif self.commits == commits:
                self._checkpoint(truncate=True)
                await self._idle()

    @property
    def _waiting_pays(self) -> bool:
        """Whether the last commit was slow and served more writers than are there again."""
        is_slow = self.last_commit_s >= SLOW_COMMIT_S
        return is_slow and self._queued_writes > 0 and self._queued_writers < self._last_served

    def _wake(self) -> None:
        """Have the committer's task look at the queue."""
        if self._left_s is None and self._queue:
            self._left_s = trio.current_time()
        if not (self._is_gathering and self._waiting_pays):
            self._arrived.unpark_all()

    async def _gather(self) -> None:
        """Return when waiting for more writers does not pay any more, or half of the last commit's time has passed."""
        self._is_gathering = True
        try:
            while self._left_s is not None and self._waiting_pays:
                ends_s = self._left_s + self.last_commit_s / 2
                if trio.current_time() >= ends_s:
                    return
                with trio.move_on_at(ends_s):
                    await self._arrived.park()
        finally:
            self._is_gathering = False

    async def _idle(self) -> None:
        """Return when something comes; until then look now and then whether the history still answers."""
        commits = self.commits
        self._is_idle = True
        try:
            while not self._queue and self.commits == commits:
                if trio.current_time() >= self._next_beat_s:
                    if self._log is not None:
                        self._log.look()
                    self._beat()
                with trio.move_on_at(self._next_beat_s):
                    await self._arrived.park()
        finally:
            self._is_idle = False

    def _beat(self) -> None:
        self._next_beat_s = trio.current_time() + self._beat_s
        self._on_beat()

    def commit_queued(self) -> None:
        """Commit what waits, up to a batch, and hand out the outcomes."""
        if self._log is None or not self._queue:
            return
        taken = self._take()
        started_s = time.perf_counter()
        batch = self.space.apply(self._log, [request for request, _, _ in taken.waiting], self._last_now_us)
        self._hand_out(taken, batch, started_s)

    def _take(self) -> Taken:
        """The requests of the next batch, at one moment that never lies before the last one's."""
        self._left_s = None
        self._last_now_us = max(now_us(), self._last_now_us)
        writes, writers = self._queued_writes, self._queued_writers
        taken = self._queue.take(MAX_BATCH, MAX_BATCH_BYTES)
        for request, slot, _ in taken:
            self._count(request, slot, -1)
        return Taken(taken, writes - self._queued_writes, writers - self._queued_writers)

    def _count(self, request: Request, slot: Slot, by: int) -> None:
        """Note that so many writes wait, and of them so many of writers, each of whom will send the next one; what the
        daemon itself asks for comes when it comes."""
        if not isinstance(request, Publish):
            self._queued_writes += by
            if slot.connection is not None:
                self._queued_writers += by

    def _hand_out(self, taken: Taken, batch: Batch, started_s: float) -> None:
        """Settle what was committed, tell of it, and checkpoint when it is time."""
        if taken.writes:
            self.last_commit_s = time.perf_counter() - started_s
            self._last_served = taken.writers
            self.commits += 1
            self.latencies_us.append(int(self.last_commit_s * 1_000_000))
        senders: dict[Sender | None, None] = {}
        sizes: defaultdict[int | None, int] = defaultdict(int)
        for (request, slot, size), outcome in zip(taken.waiting, batch.outcomes, strict=True):
            slot.settle(_isolate(outcome) if isinstance(outcome, Failed) else outcome)
            senders[slot.connection] = None
            sizes[request.uid] += size
        for sender in senders:
            if sender is not None:
                sender.flush()
        self._forget_bytes(sizes)
        if self._room:
            self._room.unpark_all()
        self._on_commit(batch)
        if trio.current_time() >= self._next_beat_s:
            self._beat()
        if self._log is not None and self._log.wal_bytes >= CHECKPOINT_BYTES:
            self._checkpoint(truncate=self._log.wal_bytes >= TRUNCATE_BYTES)

    def _forget_bytes(self, sizes: Mapping[int | None, int]) -> None:
        for uid, size in sizes.items():
            self._queued_bytes -= size
            self._queued_bytes_of[uid] -= size
            if not self._queued_bytes_of[uid]:
                del self._queued_bytes_of[uid]

    def _checkpoint(self, *, truncate: bool) -> None:
        if self._log is not None and self._log.wal_bytes:
            self._instance.check_inodes()
            self._log.checkpoint(truncate=truncate)
            if self._log.wal_bytes > self._bounds.wal_bytes:
                self.on_long_wal()


def _isolate(failed: Failed) -> InternalError:
    """Log a fault of ours under an id that the reply carries."""
    request_id = str(uuid4())
    logger.error("a request failed", exc_info=failed.error, extra={"fields": {"request_id": request_id}})
    return InternalError(request_id)
