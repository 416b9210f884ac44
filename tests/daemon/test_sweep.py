"""Removing keeps to its pace: one small piece at a time, and a pause as long as it took."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from runhistd.config import Config
from runhistd.daemon.collect import PIECE_RUNS, Collector
from runhistd.daemon.commit import Outcome, Slot
from runhistd.daemon.sweep import Sweeper
from runhistd.model.errors import Refusal, StorageFull
from runhistd.model.removal import Clear, Compact, Delete
from runhistd.model.retention import Candidate, Decision, Policy
from runhistd.store.log import Request
from runhistd.store.prune import Cleared, Compacted, Deleted

TOOK_S = 3.0


class Writer:
    """Carries every request out after TOOK_S; what was asked together, and when."""

    last_commit_s = TOOK_S

    def __init__(self) -> None:
        self.asked: list[tuple[float, list[Request]]] = []
        self.outcomes: dict[str, Outcome] = {}
        self.left = 0
        self.nothing_left = trio.Event()
        self.sweeper = Sweeper(self, self.no_blobs)
        self._arrived: list[tuple[Request, Slot]] = []
        self._woken = trio.Event()

    def submit(self, request: Request, slot: Slot, size: int) -> None:
        self._arrived.append((request, slot))
        self._woken.set()

    @property
    def removed(self) -> list[list[str]]:
        """The names of the runs that were asked for together."""
        asked = ([one.run_id for one in requests if isinstance(one, Delete | Compact)] for _, requests in self.asked)
        return [names for names in asked if names]

    async def no_blobs(self) -> int:
        self.nothing_left.set()
        return 0

    async def run(self) -> None:
        while True:
            await self._woken.wait()
            self._woken = trio.Event()
            taken, self._arrived = self._arrived, []
            self.asked.append((trio.current_time(), [request for request, _ in taken]))
            await trio.sleep(TOOK_S)
            for request, slot in taken:
                slot.settle(self._outcome(request))

    def _outcome(self, request: Request) -> Outcome:
        if isinstance(request, Clear):
            self.left = max(0, self.left - 1)
            return Cleared(self.left > 0, 10)
        assert isinstance(request, Delete | Compact)
        done = Deleted(True) if isinstance(request, Delete) else Compacted(False, 1)
        return self.outcomes.pop(request.run_id, done)


@asynccontextmanager
async def writing() -> AsyncIterator[Writer]:
    writer = Writer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        yield writer
        nursery.cancel_scope.cancel()


def decision(name: str, kind: str | None = None, size: int = 10) -> Decision:
    return Decision(Candidate(1, 1000, "default", name, None, None, "completed", 5, False), size, "a rule", kind)


def collector(writer: Writer, decisions: list[Decision]) -> Collector:
    async def look(policy: Policy, now_us: int, trust_clock: bool) -> list[Decision]:
        return decisions

    return Collector(Config, look, writer.sweeper, lambda: True)


async def test_after_each_piece_there_is_a_pause_as_long_as_it_took(autojump_clock: MockClock) -> None:
    async with writing() as writer, trio.open_nursery() as nursery:
        writer.left = 4
        began_s = trio.current_time()
        nursery.start_soon(writer.sweeper.run)
        await writer.nothing_left.wait()
        nursery.cancel_scope.cancel()
    assert [at_s - began_s for at_s, _ in writer.asked] == [0, 2 * TOOK_S, 4 * TOOK_S, 6 * TOOK_S]


async def test_nobody_waits_for_the_pause_after_the_last_piece(autojump_clock: MockClock) -> None:
    async with writing() as writer:
        began_s = trio.current_time()
        await writer.sweeper.remove([Delete(1000, "default", "r")])
        assert trio.current_time() - began_s == TOOK_S


async def test_a_pass_and_what_clears_up_behind_it_share_the_pace(autojump_clock: MockClock) -> None:
    async with writing() as writer, trio.open_nursery() as nursery:
        writer.left = 3
        began_s = trio.current_time()
        nursery.start_soon(writer.sweeper.run)
        await collector(writer, [decision(str(i)) for i in range(2 * PIECE_RUNS)]).collect(dry_run=False)
        nursery.cancel_scope.cancel()
    assert [at_s - began_s for at_s, _ in writer.asked] == [2 * TOOK_S * i for i in range(len(writer.asked))]
    kinds = [type(requests[0]).__name__ for _, requests in writer.asked]
    assert kinds in (["Clear", "Delete", "Clear", "Delete"], ["Delete", "Clear", "Delete"])


async def test_with_what_is_removed_goes_some_clearing_away(autojump_clock: MockClock) -> None:
    async with writing() as writer:
        pass_ = collector(writer, [decision("a"), decision("b")])
        await pass_.collect(dry_run=False)
    assert [type(request).__name__ for _, requests in writer.asked for request in requests] == ["Delete", "Delete", "Clear"]
    assert pass_.status().freed_bytes == 10


async def test_what_is_left_after_a_pass_is_cleared_away_also_when_it_was_cut_short(autojump_clock: MockClock) -> None:
    async with writing() as writer, trio.open_nursery() as nursery:
        nursery.start_soon(writer.sweeper.run)
        await writer.nothing_left.wait()
        writer.nothing_left, writer.left = trio.Event(), 5
        writer.outcomes["a"] = StorageFull()
        with pytest.raises(Refusal):
            await collector(writer, [decision("a")]).collect(dry_run=False)
        await writer.nothing_left.wait()
        assert writer.left == 0
        nursery.cancel_scope.cancel()


async def test_a_pass_deletes_a_few_runs_together(autojump_clock: MockClock) -> None:
    async with writing() as writer:
        decisions = [decision(str(i)) for i in range(2 * PIECE_RUNS + 1)]
        writer.outcomes["2"] = Deleted(False)
        pass_ = collector(writer, decisions)
        removed, _ = await pass_.collect(dry_run=False)
    assert [len(names) for names in writer.removed] == [PIECE_RUNS, PIECE_RUNS, 1]
    assert removed == [one for one in decisions if one.run.run_id != "2"]
    assert pass_.status().removed == 2 * PIECE_RUNS


async def test_of_what_is_dropped_together_only_the_unfinished_is_asked_for_again(autojump_clock: MockClock) -> None:
    async with writing() as writer:
        writer.outcomes = {"b": Compacted(True, 200), "c": Compacted(False, 0)}
        decisions = [decision(name, "output") for name in "abc"]
        removed, _ = await collector(writer, decisions).collect(dry_run=False)
    assert writer.removed == [["a", "b", "c"], ["b"]]
    assert removed == decisions[:2]


async def test_what_is_large_is_dropped_alone(autojump_clock: MockClock) -> None:
    async with writing() as writer:
        decisions = [decision("a", "output"), decision("b", "output", 10**6), decision("c", "output")]
        await collector(writer, decisions).collect(dry_run=False)
    assert writer.removed == [["a"], ["b"], ["c"]]


async def test_a_refusal_ends_the_pass_and_what_is_gone_is_counted(autojump_clock: MockClock) -> None:
    async with writing() as writer:
        writer.outcomes["1"] = StorageFull()
        pass_ = collector(writer, [decision(str(i)) for i in range(2 * PIECE_RUNS)])
        with pytest.raises(Refusal):
            await pass_.collect(dry_run=False)
        assert len(writer.asked) == 1
        assert pass_.status().removed == PIECE_RUNS - 1
