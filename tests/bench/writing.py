"""The writers: every contestant does every workload that it can, in turn, round after round, on this disk and on a slow one.

Rounds, and not contestant after contestant, so that what else happens on the machine falls on all of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .contestants import NAMES, contestant
from .measure import WORKLOADS, Measured, Place, Workload, measure

SLOWER_US = 2000
DISKS = ("disk", "slow")


class Rounds(NamedTuple):
    """What the rounds of one contestant in one workload found."""

    disk: str
    workload: str
    contestant: str
    rounds: list[Measured]

    def median(self, of: Callable[[Measured], float | None]) -> float | None:
        """Of a figure; None where it is not known."""
        figures = [figure for one in self.rounds if (figure := of(one)) is not None]
        return statistics.median(figures) if figures else None


class Race(NamedTuple):
    """A workload on one of DISKS, and who is to do it."""

    disk: str
    workload: Workload
    names: Sequence[str]

    @property
    def title(self) -> str:
        """What is measured, for people."""
        return self.workload.title + (f", each sync {SLOWER_US / 1000:g} ms slower" if self.disk == "slow" else "")


def takes_part(name: str, workload: Workload) -> bool:
    """Whether the contestant can do it at all; whoever stands for all writers cannot be a lone one."""
    one = contestant(name)
    return workload.kind in one.WORKLOADS and not (one.WITHIN_ONE and workload.processes == 1)


def run(
    place: Place,
    seconds: float,
    warm_s: float,
    repeats: int,
    race: Race,
    tell: Callable[[str], None],
) -> list[Rounds]:
    """Measure those contestants of the race that can. `tell` hears of each measurement."""
    workload = race.workload
    there = place._replace(slower_us=SLOWER_US if race.disk == "slow" else 0)
    able = [name for name in race.names if contestant(name).missing() is None and takes_part(name, workload)]
    of = {name: Rounds(race.disk, workload.name, name, []) for name in able}
    for _ in range(repeats):
        for name in able:
            tell(f"{race.title}: {contestant(name).TITLE}")
            of[name].rounds.append(measure(name, workload, there, seconds, warm_s))
    return list(of.values())


def everything(disks: Sequence[str]) -> list[Race]:
    """All contestants in all workloads."""
    return [Race(disk, workload, NAMES) for disk in disks for workload in WORKLOADS]


def table(found: Sequence[Rounds]) -> list[str]:
    """The rows of one disk and one workload as lines of text."""
    lines = [
        f"{'':30}{'events/s':>9} {'min … max':>17} {'p50':>8} {'p99':>8} {'worst':>9} {'client':>7} {'server':>7}"
        f" {'events/sync':>11} {'pressure':>9}"
    ]
    for one in found:
        rates = [measured.events_s for measured in one.rounds]
        figures = [one.median(lambda m: m.p50_us), one.median(lambda m: m.p99_us), one.median(lambda m: m.worst_us)]
        latencies = " ".join(f"{_ms(figure):>{width}}" for figure, width in zip(figures, (8, 8, 9), strict=True))
        cpu = f"{_us(one.median(lambda m: m.client_cpu_us)):>7} {_us(one.median(lambda m: m.server_cpu_us)):>7}"
        grouped = one.median(lambda m: m.events_per_sync)
        waits = f"{_percent(one.median(lambda m: m.cpu_pressure))}/{_percent(one.median(lambda m: m.io_pressure))}"
        lines.append(
            f"{contestant(one.contestant).TITLE:30}{statistics.median(rates):>9,.0f}"
            f" {f'{min(rates):,.0f} … {max(rates):,.0f}':>17} {latencies} {cpu}"
            f" {'–' if grouped is None else f'{grouped:.1f}':>11} {waits:>9}"
        )
    return lines


def _ms(us: float | None) -> str:
    if us is None:
        return "–"
    return f"{us / 1000:.2f} ms" if us < 10_000 else f"{us / 1000:,.0f} ms"


def _us(us: float | None) -> str:
    return "–" if us is None else f"{us:.0f} µs"


def _percent(part: float | None) -> str:
    return "–" if part is None else f"{part:.0%}"
