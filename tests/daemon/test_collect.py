"""When retention works, and what it trusts."""

from __future__ import annotations

from runhistd.config import Config
from runhistd.daemon.collect import SKIPPED, Collector
from runhistd.daemon.commit import Slot
from runhistd.daemon.sweep import Sweeper
from runhistd.model.removal import Clear, Delete
from runhistd.model.retention import Candidate, Decision, Policy
from runhistd.store.log import Request
from runhistd.store.prune import Cleared, Deleted


class Bench:
    """A collector whose trust in the clock the test sets, and what it asked for."""

    last_commit_s = 0.0

    def __init__(self) -> None:
        self.clock_trusted = True
        self.trusted: list[bool] = []
        self.deleted: list[str] = []
        run = Candidate(1, 1000, "default", "r", None, None, "completed", 5, False)
        self.decisions = [Decision(run, 10, "max_runs_per_agent")]
        self.still_holds = True
        sweeper = Sweeper(self, self.no_blobs)
        self.collector = Collector(Config, self.look, sweeper, lambda: self.clock_trusted)

    async def look(self, policy: Policy, now_us: int, trust_clock: bool) -> list[Decision]:
        self.trusted.append(trust_clock)
        return self.decisions

    def submit(self, request: Request, slot: Slot, size: int) -> None:
        if isinstance(request, Clear):
            slot.settle(Cleared(False))
            return
        assert isinstance(request, Delete)
        self.deleted.append(request.run_id)
        slot.settle(Deleted(self.still_holds))

    async def no_blobs(self) -> int:
        return 0


async def test_while_the_wall_clock_has_jumped_ages_are_not_trusted_and_the_status_says_so() -> None:
    bench = Bench()
    await bench.collector.collect(dry_run=False)
    bench.clock_trusted = False
    assert (await bench.collector.collect(dry_run=False))[1] == SKIPPED
    assert bench.collector.status().skipped == SKIPPED
    bench.clock_trusted = True
    await bench.collector.collect(dry_run=False)
    assert bench.trusted == [True, False, True]
    assert bench.collector.status().skipped is None


async def test_a_dry_run_deletes_nothing_and_counts_as_no_pass() -> None:
    bench = Bench()
    decisions, _ = await bench.collector.collect(dry_run=True)
    assert decisions == bench.decisions
    assert bench.deleted == []
    assert bench.collector.status().last_us is None


async def test_what_no_longer_holds_when_its_turn_comes_is_not_told_as_removed() -> None:
    bench = Bench()
    bench.still_holds = False
    assert (await bench.collector.collect(dry_run=False))[0] == []
    assert bench.deleted == ["r"]
    assert bench.collector.status().removed == 0
