"""Which runs are forgotten, and by which rule. One function decides, for the dry run and for the real one.

Only closed runs count: completed, failed, cancelled, and those that are incomplete for longer than the grace, since nobody
came back for them. Live, paused and pinned runs are never taken and count for nothing. What counts is when the end was
received, so that a long run is as young as its end.

    max_age_days         closed longer ago than that
    max_runs_per_agent   older than the newest so many of its agent (of its workflow, where it has no agent) in its namespace
    events               output and notes of runs closed so many days ago, each kind by its own limit; the run stays
    max_bytes            the oldest of what remains, until the rest fits
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping

from attrs import field, frozen
from msgspec import Struct

MAX_AGE_DAYS = "max_age_days"
MAX_RUNS = "max_runs_per_agent"
MAX_BYTES = "max_bytes"
DAY_US = 86_400_000_000
CLOSED = ("completed", "failed", "cancelled", "incomplete")


@frozen
class Override:
    """Other limits for the runs that match; None matches all. A limit that is None is off; one that is absent stays."""

    namespace: str | None
    agent_id: str | None
    workflow: str | None
    limits: Mapping[str, int | None]


@frozen
class Policy:
    """The limits; None is off. Of the overrides that match a run and name a limit, the first one counts."""

    limits: Mapping[str, int | None]
    incomplete_grace_days: int
    overrides: tuple[Override, ...] = ()
    event_days: Mapping[str, int | None] = field(factory=dict)

    @property
    def is_off(self) -> bool:
        """Whether nothing is limited, for no run."""
        caps = (self.limits, self.event_days, *(override.limits for override in self.overrides))
        return all(limit is None for limits in caps for limit in limits.values())

    def limit(self, name: str, run: Candidate) -> tuple[int | None, int]:
        """The limit of that name for a run, and which override it comes from (-1: none)."""
        for i, override in enumerate(self.overrides):
            if name in override.limits and _matches(override, run):
                return override.limits[name], i
        return self.limits[name], -1


class Candidate(Struct, frozen=True, gc=False):
    """A run as retention sees it; a pass looks at all that there are. `ended_us` is when its end was received, or when it
    became incomplete."""

    run: int
    uid: int
    namespace: str
    run_id: str
    agent_id: str | None
    workflow: str | None
    status: str
    ended_us: int
    pinned: bool


@frozen
class Decision:
    """A run that is to go, about how much it takes, and the rule; with `kind`, only its events of that kind."""

    run: Candidate
    bytes: int
    rule: str
    kind: str | None = None


def decide(
    candidates: Iterable[Candidate],
    policy: Policy,
    now_us: int,
    *,
    used_bytes: int,
    size_of: Callable[[Candidate], int],
    trust_clock: bool = True,
) -> list[Decision]:
    """What goes, oldest first. `used_bytes` is what all takes now; without `trust_clock` nothing goes by its age."""
    grace_us = policy.incomplete_grace_days * DAY_US
    counted = [
        run
        for run in candidates
        if run.status in CLOSED
        and not run.pinned
        and (run.status != "incomplete" or (trust_clock and run.ended_us < now_us - grace_us))
    ]
    counted.sort(key=lambda run: (run.ended_us, run.run), reverse=True)
    ranks: dict[tuple[object, ...], int] = {}
    taken: dict[int, str] = {}
    for run in counted:
        days, _ = policy.limit(MAX_AGE_DAYS, run)
        most, source = policy.limit(MAX_RUNS, run)
        group = (run.uid, run.namespace, run.agent_id, run.workflow if run.agent_id is None else None, source)
        rank = ranks[group] = ranks.get(group, 0) + 1
        if days is not None and trust_clock and run.ended_us < now_us - days * DAY_US:
            taken[run.run] = MAX_AGE_DAYS
        elif most is not None and rank > most:
            taken[run.run] = MAX_RUNS
    return _with_sizes(reversed(counted), taken, policy.limits[MAX_BYTES], used_bytes, size_of)


def decide_events(
    candidates: Iterable[Candidate],
    policy: Policy,
    now_us: int,
    *,
    done: Container[tuple[int, str]],
    size_of: Callable[[Candidate, str], int],
    trust_clock: bool = True,
) -> list[Decision]:
    """Which kinds of events are dropped from which runs, oldest first; not from those that are `done` already."""
    if not trust_clock or not policy.event_days:
        return []
    return [
        Decision(run, size_of(run, kind), f"events.{kind}", kind)
        for run in sorted(candidates, key=lambda run: (run.ended_us, run.run))
        for kind, days in policy.event_days.items()
        if days is not None
        and run.ended_us < now_us - days * DAY_US
        and run.status in CLOSED
        and run.status != "incomplete"  # somebody may still go on with it, and want to see what it said
        and not run.pinned
        and (run.run, kind) not in done
    ]


def _with_sizes(
    oldest_first: Iterable[Candidate],
    taken: Mapping[int, str],
    max_bytes: int | None,
    used_bytes: int,
    size_of: Callable[[Candidate], int],
) -> list[Decision]:
    decisions = []
    kept = []
    for run in oldest_first:
        if run.run in taken:
            decisions.append(Decision(run, size_of(run), taken[run.run]))
        else:
            kept.append(run)
    used_bytes -= sum(decision.bytes for decision in decisions)
    for run in kept if max_bytes is not None else ():
        if max_bytes is None or used_bytes <= max_bytes:
            break
        decisions.append(Decision(run, size_of(run), MAX_BYTES))
        used_bytes -= decisions[-1].bytes
    decisions.sort(key=lambda decision: (decision.run.ended_us, decision.run.run))
    return decisions


def _matches(override: Override, run: Candidate) -> bool:
    wanted = (override.namespace, override.agent_id, override.workflow)
    return all(
        want is None or want == have for want, have in zip(wanted, (run.namespace, run.agent_id, run.workflow), strict=True)
    )


class ClockWatch:
    """Whether the wall clock may be trusted with ages: not for SETTLED_S after it jumped against the clock that counts
    from the boot. Times are in seconds; both clocks are asked for at the same moment."""

    JUMP_S = 600.0
    SETTLED_S = 86_400.0

    def __init__(self, wall_s: float, boot_s: float) -> None:
        self._offset_s = wall_s - boot_s
        self._jumped_at_s: float | None = None
        self._before_s = self._offset_s

    @classmethod
    def restored(cls, offset_s: float, before_s: float, jumped_at_s: float | None) -> ClockWatch:
        """The watch that had this state, in the same boot. Raises TypeError for what is no number."""
        watch = cls(float(offset_s), 0.0)
        watch._before_s = float(before_s)
        watch._jumped_at_s = None if jumped_at_s is None else float(jumped_at_s)
        return watch

    def state(self) -> dict[str, float | None]:
        """What `restored` takes."""
        return {"offset_s": self._offset_s, "before_s": self._before_s, "jumped_at_s": self._jumped_at_s}

    def trusts(self, wall_s: float, boot_s: float) -> bool:
        """Look at both clocks. A jump that is taken back is forgotten at once."""
        offset_s = wall_s - boot_s
        if abs(offset_s - self._offset_s) > self.JUMP_S:
            if self._jumped_at_s is None:
                self._before_s = self._offset_s
            self._jumped_at_s = boot_s
        self._offset_s = offset_s
        if self._jumped_at_s is None:
            return True
        if abs(offset_s - self._before_s) <= self.JUMP_S or boot_s - self._jumped_at_s >= self.SETTLED_S:
            self._jumped_at_s = None
            return True
        return False
