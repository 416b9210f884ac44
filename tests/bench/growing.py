"""Whether recording gets slower as the history grows: the same writers on a small and on a large one, in turn."""

from __future__ import annotations

import statistics
from pathlib import Path

from .filling import Filling, fill
from .measure import Place, Workload, compete, started

SMALL, LARGE = 100_000, 10_000_000
RUN_EVENTS = 100
WORKLOAD = Workload("grow", "8 processes, 100 events in flight each", "flight", 8)


def run(place: Place, seconds: float, repeats: int, small: int = SMALL, large: int = LARGE) -> dict[str, float]:
    """Events a second of both in the median, and the median of the rounds' ratios."""

    def of(events: int) -> Filling:
        return Filling(events // RUN_EVENTS, RUN_EVENTS)

    def fill_small(directory: Path) -> None:
        fill(directory, of(small))

    def fill_large(directory: Path) -> None:
        fill(directory, of(large))

    with started("runhistd", place, fill_small) as little, started("runhistd", place, fill_large) as grown:
        rates = [tuple(compete(arena, WORKLOAD, seconds).events_s for arena in (little, grown)) for _ in range(repeats)]
    found = {
        name: statistics.median(rate[i] for rate in rates) for i, name in enumerate(("small_events_s", "large_events_s"))
    }
    return {**found, "events": large, "ratio": statistics.median(rate[1] / max(rate[0], 1e-9) for rate in rates)}
