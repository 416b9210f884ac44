"""Retention at work: a pass when the daemon starts, then one each interval, and one whenever somebody asks.

A pass reads what is there in one snapshot and decides; the same decision is what a dry run tells. Then the runs are deleted,
a few at a time, between appends, each on the condition that what was read of it still holds: a run that was pinned or
claimed meanwhile stays. The sweeper, whose pace that keeps to, clears the rows away with them and afterwards.

The interval varies by a tenth, so that the daemons of one machine do not all work at once.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator

import trio

from runhistd.config import Config
from runhistd.model.errors import Damaged, Refusal
from runhistd.model.removal import Compact, Delete
from runhistd.model.retention import MAX_AGE_DAYS, MAX_BYTES, MAX_RUNS, Decision, Override, Policy
from runhistd.model.views import RetentionStatus
from runhistd.store.prune import Compacted, Deleted

from .commit import Outcome, now_us
from .sweep import Sweeper

logger = logging.getLogger("runhistd.collect")

JITTER = 0.1
PIECE_RUNS = 6  # that are deleted together, which takes about half a millisecond, and as long again to clear away
PIECE_BYTES = 64 * 1024  # of events that are dropped together
SKIPPED = f"{MAX_AGE_DAYS}: the wall clock has jumped"

Look = Callable[[Policy, int, bool], Awaitable[list[Decision]]]
"""What would go by that policy at that time, with or without trust in the clock."""


def policy_of(config: Config) -> Policy:
    """The settings as rules."""
    limits = {
        MAX_RUNS: config.max_runs_per_agent,
        MAX_AGE_DAYS: config.max_age_days,
        MAX_BYTES: config.max_bytes,
    }
    overrides = (Override(one.namespace, one.agent, one.workflow, one.caps) for one in config.override)
    return Policy(limits, config.incomplete_grace_days, tuple(overrides), config.events)


class Collector:
    """Carries out passes, one at a time. `settings` gives the configuration in force, `clock_trusted` whether ages count."""

    def __init__(
        self, settings: Callable[[], Config], look: Look, sweeper: Sweeper, clock_trusted: Callable[[], bool]
    ) -> None:
        self._settings = settings
        self._look = look
        self._sweeper = sweeper
        self._clock_trusted = clock_trusted
        self._one_at_a_time = trio.Lock()
        self._rescheduled = trio.Event()
        self._last_us: int | None = None
        self._next_us: int | None = None
        self._removed = 0
        self._skipped: str | None = None

    def status(self) -> RetentionStatus:
        """What GetStatus says of retention."""
        return RetentionStatus(self._last_us, self._next_us, self._removed, self._sweeper.freed_bytes, self._skipped)

    def reschedule(self) -> None:
        """The settings have changed: a pass by the new ones is due now."""
        self._rescheduled.set()

    async def run(self) -> None:
        """A pass at once, then one each interval, until cancelled."""
        while True:
            try:
                await self.collect(dry_run=False)
            except Damaged:
                return
            except Refusal as refusal:
                logger.warning("a pass was cut short", extra={"fields": {"refusal": type(refusal).__name__}})
            except Exception as error:  # recording must go on, whatever keeps us from forgetting
                logger.error("a pass failed", exc_info=error)
            pause_s = self._settings().interval_s * random.uniform(1 - JITTER, 1 + JITTER)
            self._next_us = now_us() + int(pause_s * 1_000_000)
            self._rescheduled = trio.Event()
            with trio.move_on_after(pause_s):
                await self._rescheduled.wait()

    async def collect(self, *, dry_run: bool) -> tuple[list[Decision], str | None]:
        """One pass: what goes, and which rule was skipped. Raises a Refusal halfway when the disk is full."""
        async with self._one_at_a_time:
            trust_clock = self._clock_trusted()
            skipped = None if trust_clock else SKIPPED
            decisions = await self._look(policy_of(self._settings()), now_us(), trust_clock)
            if dry_run:
                return [decision for decision in decisions if decision.bytes], skipped
            try:
                removed = [decision for piece in _pieces(decisions) for decision in await self._carry_out(piece)]
            finally:
                self._sweeper.wake()  # also for the content that nobody has used
            self._last_us, self._skipped = now_us(), skipped
            if skipped is not None:
                logger.warning("a rule was skipped", extra={"fields": {"skipped": skipped}})
            if removed:
                fields = {"runs": len(removed), "bytes": sum(decision.bytes for decision in removed)}
                logger.info("retention removed runs", extra={"fields": fields})
            return removed, skipped

    async def _carry_out(self, piece: list[Decision]) -> list[Decision]:
        """Delete these runs, or drop their events of a kind; what there was to do, and was still to be done."""
        carried_out, waiting = set(), piece
        while waiting:
            outcomes = await self._sweeper.remove([_request(decision) for decision in waiting])
            answered = list(zip(waiting, outcomes, strict=True))
            carried_out |= {decision for decision, outcome in answered if _has_removed(outcome)}
            self._removed += sum(isinstance(outcome, Deleted) and outcome.deleted for outcome in outcomes)
            for outcome in outcomes:
                if isinstance(outcome, Refusal):
                    raise outcome
            waiting = [decision for decision, outcome in answered if isinstance(outcome, Compacted) and outcome.more]
        return [decision for decision in piece if decision in carried_out]


def _pieces(decisions: Iterable[Decision]) -> Iterator[list[Decision]]:
    """Few enough at a time to be carried out together."""
    piece: list[Decision] = []
    drops_bytes = 0
    for decision in decisions:
        bytes_now = 0 if decision.kind is None else decision.bytes
        if piece and (len(piece) == PIECE_RUNS or drops_bytes + bytes_now > PIECE_BYTES):
            yield piece
            piece, drops_bytes = [], 0
        piece.append(decision)
        drops_bytes += bytes_now
    if piece:
        yield piece


def _request(decision: Decision) -> Delete | Compact:
    run = decision.run
    if decision.kind is None:
        return Delete(run.uid, run.namespace, run.run_id, decision.rule, closed_us=run.ended_us)
    return Compact(run.uid, run.namespace, run.run_id, decision.kind, run.ended_us)


def _has_removed(outcome: Outcome) -> bool:
    return (isinstance(outcome, Deleted) and outcome.deleted) or (isinstance(outcome, Compacted) and outcome.events > 0)
