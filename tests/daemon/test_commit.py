"""The committer gathers writes where commits are slow; what is only shown is no part of that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from runhistd.daemon.commit import IDLE_S, MAX_BATCH, Bounds, Committer, Outcome
from runhistd.daemon.instance import Instance
from runhistd.daemon.space import Space
from runhistd.model.publish import Publish
from runhistd.model.removal import Delete
from runhistd.store.database import open_reader
from runhistd.store.leases import Begun
from runhistd.store.live import Shown
from runhistd.store.log import Appended, EventLog
from tests.store.histories import UID, append, begin, event

SLOW_S = 10.0


class Peer:
    """Somebody who sends requests."""

    def flush(self) -> None:
        pass


class Asked:
    """Notes when an outcome came."""

    def __init__(self) -> None:
        self.connection: Peer | None = None
        self.outcome: Outcome | None = None
        self.at_s = 0.0
        self.settled = trio.Event()

    def settle(self, outcome: Outcome) -> None:
        self.outcome, self.at_s = outcome, trio.current_time()
        self.settled.set()


@pytest.fixture
def committer(tmp_path: Path) -> Iterator[Committer]:
    """One with a log of its own."""
    with Instance.take(tmp_path / "state") as instance:
        log = EventLog.open(instance.database)
        bounds = Bounds(1_000_000, 1_000_000, 1 << 30)
        yield Committer(log, instance, Space(instance.state_dir), bounds, lambda batch: None)
        log.close()


async def test_what_is_only_shown_is_neither_gathered_nor_waited_for(
    committer: Committer, autojump_clock: trio.testing.MockClock
) -> None:
    began, first, shown, second, late = Asked(), Asked(), Asked(), Asked(), Asked()
    token = Publish(UID, "default", "r", 1, [event("token")])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(committer.run)
        committer.submit(begin("r"), began, 10)
        await began.settled.wait()
        assert isinstance(began.outcome, Begun)
        committer._last_served, committer.last_commit_s = 2, SLOW_S
        committer.submit(token, shown, 10)
        await shown.settled.wait()
        assert (shown.at_s, committer.commits, committer._last_served) == (0.0, 1, 2)
        committer.submit(append("r", 1, 1, event()), first, 10)
        await trio.testing.wait_all_tasks_blocked()
        committer.submit(token, late, 10)
        await first.settled.wait()
        assert first.at_s == late.at_s == SLOW_S / 2
        committer._last_served, committer.last_commit_s = 2, SLOW_S
        for n, slot in ((2, first), (3, second)):
            slot.connection = Peer()
            committer.submit(append("r", 1, n, event()), slot, 10)
        await second.settled.wait()
        assert second.at_s == SLOW_S / 2  # both are there: nobody waits longer
        nursery.cancel_scope.cancel()
    assert isinstance(late.outcome, Shown) and isinstance(first.outcome, Appended)


async def test_what_the_daemon_asks_for_goes_along_with_the_writers_and_is_not_waited_for(
    committer: Committer, autojump_clock: trio.testing.MockClock
) -> None:
    writers, removals = [Asked() for _ in range(2)], [Asked() for _ in range(8)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(committer.run)
        committer.submit(begin("r"), writers[0], 10)
        await writers[0].settled.wait()
        for slot in writers:
            slot.connection, slot.settled = Peer(), trio.Event()
        committer._last_served, committer.last_commit_s = 2, SLOW_S
        for i, slot in enumerate(removals):
            committer.submit(Delete(UID, "default", str(i)), slot, 0)
        await trio.testing.wait_all_tasks_blocked()
        committer.submit(append("r", 1, 1, event()), writers[0], 10)
        await trio.sleep(1)
        assert not removals[0].settled.is_set(), "so many writes would do, but there is only one of the writers"
        committer.submit(append("r", 1, 2, event()), writers[1], 10)
        await removals[0].settled.wait()
        assert {slot.at_s for slot in (*writers, *removals)} == {1.0}, "one commit for all"
        assert committer._last_served == 2
        nursery.cancel_scope.cancel()


async def test_a_log_that_a_reader_keeps_long_is_told_once_it_passes_its_bound(tmp_path: Path) -> None:
    told: list[int] = []
    with Instance.take(tmp_path / "state") as instance:
        log = EventLog.open(instance.database)
        bounds = Bounds(1_000_000_000, 1_000_000_000, 1_000_000)
        committer = Committer(log, instance, Space(instance.state_dir), bounds, lambda batch: None)
        committer.on_long_wal = lambda: told.append(log.wal_bytes)
        outside = open_reader(instance.database)
        committer.submit(begin("r"), Asked(), 10)
        committer.commit_queued()
        outside.execute("BEGIN")
        outside.execute("SELECT * FROM runs").fetchall()
        for n in range(1, 101):
            committer.submit(append("r", 1, n, event("output", {"text": "x" * 60_000})), Asked(), 10)
            committer.commit_queued()
        assert told and min(told) > 1_000_000
        outside.execute("ROLLBACK")
        outside.close()
        log.checkpoint(truncate=True)
        assert log.wal_bytes == 0
        log.close()


async def test_nobody_waits_for_one_who_floods(committer: Committer) -> None:
    flood = [Asked() for _ in range(3 * MAX_BATCH)]
    for i, slot in enumerate(flood):
        slot.connection = Peer()
        committer.submit(begin(str(i)), slot, 100)
    other = Asked()
    other.connection = Peer()
    committer.submit(begin(uid=UID + 1), other, 100)
    committer.commit_queued()
    assert isinstance(other.outcome, Begun)
    assert sum(slot.outcome is not None for slot in flood) == MAX_BATCH - 1


async def test_who_has_all_the_room_of_a_user_waits_and_others_do_not(
    committer: Committer, autojump_clock: trio.testing.MockClock
) -> None:
    committer.configure(Bounds(1_000_000, 1000, 1 << 30))
    committer.submit(begin("r"), Asked(), 999)
    await committer.wait_room(UID)
    committer.submit(begin("s"), Asked(), 1)
    await committer.wait_room(UID + 1)
    with trio.move_on_after(5) as waiting:
        await committer.wait_room(UID)
    assert waiting.cancelled_caught and committer.queued_bytes_of(UID) == 1000
    committer.commit_queued()
    await committer.wait_room(UID)
    assert committer.queued_bytes_of(UID) == 0


async def test_what_one_brings_together_is_committed_together_and_at_once(committer: Committer) -> None:
    slots = [Asked() for _ in range(3)]

    def fill() -> None:
        for i, slot in enumerate(slots):
            committer.submit(begin(str(i)), slot, 10)

    committer.commit_after(fill)
    assert committer.commits == 1 and all(isinstance(slot.outcome, Begun) for slot in slots)


async def test_what_is_brought_together_waits_for_more_writers_where_that_pays(
    committer: Committer, autojump_clock: trio.testing.MockClock
) -> None:
    first, second, third = Asked(), Asked(), Asked()
    first.connection, second.connection, third.connection = Peer(), Peer(), Peer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(committer.run)
        await trio.testing.wait_all_tasks_blocked()
        committer._last_served, committer.last_commit_s = 2, SLOW_S
        committer.commit_after(lambda: committer.submit(begin("r"), first, 10))
        await trio.sleep(SLOW_S / 4)
        assert first.outcome is None
        committer.commit_after(lambda: committer.submit(begin("s"), second, 10))
        assert isinstance(first.outcome, Begun) and isinstance(second.outcome, Begun)
        committer._last_served, committer.last_commit_s = 2, SLOW_S
        committer.commit_after(lambda: committer.submit(begin("t"), third, 10))
        await third.settled.wait()
        assert third.at_s == SLOW_S / 4 + SLOW_S / 2  # its own half, whatever the earlier ones had waited
        nursery.cancel_scope.cancel()


async def test_a_log_at_rest_is_moved_into_the_database_again_and_again(
    committer: Committer, autojump_clock: trio.testing.MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(committer.run)
        for i in range(3):
            committer.commit_after(lambda run_id=str(i): committer.submit(begin(run_id), Asked(), 10))  # type: ignore[misc]
            assert committer._log is not None and committer._log.wal_bytes > 0
            await trio.sleep(2 * IDLE_S + 1)
            assert committer._log.wal_bytes == 0
        nursery.cancel_scope.cancel()
