"""The speed that is demanded, as one table: what is compared with what, how much it must be, and what was reached.

`reached.json` holds the figures that the README states; a test holds the README's table against it, and CI fails when a
quick measurement finds a ratio below HOLD of what is stated there.

    python -m tests.bench.goals [FILE...]

takes the figures out of what `python -m tests.bench --json FILE` wrote into `reached.json`, and prints the README's table.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from .measure import Measured
from .writing import Rounds

REACHED = Path(__file__).parent / "reached.json"
HOLD = 0.7
"""Of a stated ratio: below it something got slower, and above it machines differ."""

Figures = Mapping[str, float]


class Goal(NamedTuple):
    """A figure that must be at least, or at most, the goal. `unit` stands behind it; a ratio has ×."""

    name: str
    what: str
    bound: Literal["≥", "≤"]
    goal: float
    unit: str = "×"
    quick: bool = False
    """Whether CI holds it."""

    def is_met(self, figure: float) -> bool:
        """Whether that is enough."""
        return figure >= self.goal if self.bound == "≥" else figure <= self.goal

    def holds(self, figure: float, reached: float) -> bool:
        """Whether a figure is not far from what was reached, to the worse side."""
        return figure >= HOLD * reached if self.bound == "≥" else HOLD * figure <= reached

    def show(self, figure: float) -> str:
        """The figure with its unit."""
        digits = 0 if abs(figure) >= 100 else 1 if abs(figure) >= 10 else 2
        return f"{figure:,.{digits}f}{'' if self.unit in '×' else ' '}{self.unit}"


def _against(name: str, what: str, goals: Sequence[tuple[str, str, float]], quick: bool) -> list[Goal]:
    return [Goal(f"{name}/{rival}", f"{what}, against {title}", "≥", goal, quick=quick) for rival, title, goal in goals]


ONE, REQUEST = "8 processes, one event at a time", "8 processes, 100 events per request"
GOALS = [
    *_against("disk/one", ONE, [("redis", "Redis", 0.8), ("postgres", "PostgreSQL", 0.8)], True),
    *_against(
        "slow/one",
        f"{ONE}, 2 ms syncs",
        [("redis", "Redis", 1.5), ("postgres", "PostgreSQL", 1.5), ("sqlite", "direct SQLite", 6.0)],
        True,
    ),
    Goal("disk/one/worst", f"{ONE}: direct SQLite's worst latency against ours", "≥", 20.0),
    *_against("disk/lone", "a lone writer", [("redis", "Redis", 0.65)], True),
    *_against("slow/lone", "a lone writer, 2 ms syncs", [("redis", "Redis", 0.9)], True),
    Goal("disk/flight/ceiling", "8 processes, 100 in flight, against the ceiling", "≥", 0.5, quick=True),
    Goal("disk/flight/sqlite", "8 processes, 100 in flight, against direct SQLite one at a time", "≥", 5.0, quick=True),
    *_against(
        "disk/request",
        REQUEST,
        [
            ("ceiling", "the ceiling", 0.7),
            ("redis", "Redis", 1.1),
            ("sqlite", "direct SQLite", 1.1),
            ("postgres", "PostgreSQL", 2.0),
        ],
        True,
    ),
    Goal("many/fairness", "64 processes: the slowest against the fastest", "≥", 0.5),
    Goal("many/memory", "64 processes: the daemon's memory", "≤", 150, "MB"),
    Goal("follow/p50", "commit to follower, 8 followers, 1,000 events/s: median", "≤", 2, "ms"),
    Goal("follow/p99", "the same: p99", "≤", 20, "ms"),
    Goal("read/list", "list the newest 50 of 100,000 runs, in the daemon", "≤", 5, "ms"),
    Goal("read/show", "show a run of 100,000 events (first page), in the daemon", "≤", 5, "ms"),
    Goal("grow/ratio", "throughput at 10 million events against 100,000", "≥", 0.8),
    Goal("start/ready", "start with 1 million events, 100,000 runs, 1,000 orphans", "≤", 1, "s"),
    Goal("idle/wakeups", "a minute idle with 64 connections: wake-ups", "≤", 5, "/s"),
    Goal("idle/memory", "the same: memory", "≤", 60, "MB"),
    Goal("command/list", "`runhist list`, processor time against `python -c pass`", "≤", 5, quick=True),
    Goal("retention/p99", "appends' p99 while retention removes 10,000 runs, against before", "≤", 2),
]


def of_writers(found: Sequence[Rounds]) -> dict[str, float]:
    """The ratios that goals are about, each the median of the ratios of the rounds, whose halves were neighbours in time."""
    by_name = {(one.disk, one.workload, one.contestant): one.rounds for one in found}
    figures: dict[str, float] = {}
    for (disk, workload, rival), rounds in by_name.items():
        ours = by_name.get((disk, workload, "runhistd"))
        if ours is None or rival == "runhistd":
            continue
        figures[f"{disk}/{workload}/{rival}"] = _ratio(ours, rounds, lambda one: one.events_s)
        if rival == "sqlite" and workload == "one":
            figures[f"{disk}/one/worst"] = _ratio(rounds, ours, lambda one: one.worst_us)
    flight, one_each = by_name.get(("disk", "flight", "runhistd")), by_name.get(("disk", "one", "sqlite"))
    if flight and one_each:
        figures["disk/flight/sqlite"] = _ratio(flight, one_each, lambda one: one.events_s)
    return figures


def _ratio(above: Sequence[Measured], below: Sequence[Measured], of: Callable[[Measured], float]) -> float:
    return statistics.median(of(a) / max(of(b), 1e-9) for a, b in zip(above, below, strict=True))


def stated() -> dict[str, float]:
    """What the README states as reached."""
    figures: dict[str, float] = json.loads(REACHED.read_text())
    return figures


def fallen(figures: Figures, reached: Figures) -> list[str]:
    """What CI fails for: each ratio below HOLD of what is stated as reached, in words."""
    return [
        f"{goal.what}: {goal.show(figures[goal.name])}, and the README states {goal.show(reached[goal.name])}"
        for goal in GOALS
        if goal.quick and goal.name in figures and goal.name in reached
        if not goal.holds(figures[goal.name], reached[goal.name])
    ]


def better(one: Figures, other: Figures) -> dict[str, float]:
    """Of two measurements the better figure of each goal: what else the machine does only makes them worse."""
    return {
        goal.name: (max if goal.bound == "≥" else min)(one[goal.name], other[goal.name])
        for goal in GOALS
        if goal.name in one and goal.name in other
    }


def markdown(reached: Figures) -> str:
    """The README's table."""
    lines = ["| what | goal | reached | |", "|---|---|---|---|"]
    for goal in GOALS:
        figure = reached.get(goal.name)
        shown = "not measured" if figure is None else goal.show(figure)
        met = figure is None or goal.is_met(figure)
        lines.append(f"| {goal.what} | {goal.bound} {goal.show(goal.goal)} | {shown} | {'' if met else '**not met**'} |")
    return "\n".join(lines) + "\n"


def table(figures: Figures) -> list[str]:
    """The goals that figures are known of, as lines of text."""
    return [
        f"{goal.what:75} {goal.bound} {goal.show(goal.goal):>9}  {goal.show(figures[goal.name]):>9}"
        f"  {'' if goal.is_met(figures[goal.name]) else 'not met'}".rstrip()
        for goal in GOALS
        if goal.name in figures
    ]


def state(measured: Sequence[Path]) -> None:
    """Make what these files hold of figures that goals are about the stated ones."""
    found: dict[str, float] = {}
    for path in measured:
        found |= json.loads(path.read_text())["figures"]
    names = [goal.name for goal in GOALS if goal.name in found]
    REACHED.write_text(json.dumps({name: float(f"{found[name]:.3g}") for name in names}, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:]:
        state([Path(name) for name in sys.argv[1:]])
    sys.stdout.write(markdown(stated()))
