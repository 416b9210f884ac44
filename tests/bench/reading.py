"""Reading out of a large history: the newest runs of many, and a run of many events.

What is timed is from a call to the last byte of its reply, neither decoded nor shown: the daemon's part, and the socket.
"""

from __future__ import annotations

import statistics
import time
from contextlib import closing
from pathlib import Path

from .contestants import runhistd
from .filling import Filling, fill
from .measure import Place, started

TIMES = 50


def run(place: Place, filling: Filling) -> dict[str, float]:
    """Milliseconds in the median: `list` the newest 50 runs, and `show` the large run with the first page of its events."""

    def prepare(directory: Path) -> None:
        fill(directory, filling)

    with started("runhistd", place, prepare) as arena, closing(runhistd.History(arena.directory)) as history:
        status = history.call("GetStatus")
        listed = _took_ms(history, [("ListRuns", {"limit": 50})])
        named: dict[str, object] = {"run_id": "large"}
        shown = _took_ms(
            history,
            [("GetRun", named), ("GetSteps", named), ("GetUsage", named), ("GetEvents", {**named, "limit": 100})],
        )
    runs = sum(count["runs"] for count in status["runs"])
    return {"list": listed, "show": shown, "runs": runs, "events": status["position"]}


def _took_ms(history: runhistd.History, calls: list[tuple[str, dict[str, object]]]) -> float:
    took_s = []
    for _ in range(TIMES):
        begun_s = time.perf_counter()
        for method, parameters in calls:
            history.call_raw(method, parameters)
        took_s.append(time.perf_counter() - begun_s)
    return statistics.median(took_s) * 1000
