"""What appends notice of retention: their 99th percentile while many runs are removed, against that before.

python -m tests.bench.forgetting DIRECTORY INDEX
"""

from __future__ import annotations

import json
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

from .contestants import runhistd
from .filling import Filling, fill
from .measure import Place, child, percentile, read_line, started

WRITERS = 4
KEPT = 10
WARM_S = 1.0
LOOK_S = 0.05
STILL_S = 0.5  # that nothing more was freed


def run(place: Place, runs: int, run_events: int = 10, calm_s: float = 4.0) -> dict[str, float]:
    """The ratio, both percentiles in milliseconds, how many runs were removed, and how many seconds that took."""

    def prepare(directory: Path) -> None:
        fill(directory, Filling(runs + KEPT, run_events))

    with started("runhistd", place, prepare) as arena:
        command = [sys.executable, "-m", "tests.bench.forgetting", str(arena.directory)]
        writers = [child([*command, str(i)], arena.env) for i in range(WRITERS)]
        try:
            for writer in writers:
                read_line(writer)
            time.sleep(WARM_S)
            calm = (time.monotonic(), time.monotonic() + calm_s)
            time.sleep(calm_s)
            busy = _remove(arena.directory, runs)
            for writer in writers:
                writer.stdin.write("\n")
                writer.stdin.flush()
            ended = [entry for writer in writers for entry in json.loads(read_line(writer))]
        finally:
            for writer in writers:
                writer.kill()
                writer.communicate()
    calm_ms, busy_ms = (_p99_ms(ended, between) for between in (calm, busy))
    return {"p99": busy_ms / calm_ms, "calm_ms": calm_ms, "busy_ms": busy_ms, "removed": runs, "took_s": busy[1] - busy[0]}


def _remove(directory: Path, runs: int) -> tuple[float, float]:
    """Have retention remove so many runs; when that began, and when nothing of them was left to be cleared away."""
    with closing(runhistd.History(directory)) as history:
        begun_s = changed_s = time.monotonic()
        runhistd.configure(directory, runhistd.RETENTION.format(KEPT))
        removed = freed = -1
        while removed < runs or time.monotonic() < changed_s + STILL_S:
            retention = history.call("GetStatus")["retention"]
            if (removed, freed) != (retention["removed"], retention["freed_bytes"]):
                changed_s = time.monotonic()
                if removed <= 0:
                    begun_s = changed_s
            removed, freed = retention["removed"], retention["freed_bytes"]
            time.sleep(LOOK_S)
        return begun_s, changed_s


def _p99_ms(ended: list[tuple[float, int]], between: tuple[float, float]) -> float:
    return percentile(sorted(took for at_s, took in ended if between[0] <= at_s <= between[1]), 99) / 1000


def write(directory: Path, index: int) -> None:
    """Append one event at a time until a line is read; print when each was on the disk, and what it took in microseconds."""
    writer = runhistd.connect(directory, index)
    told = threading.Event()

    def listen() -> None:
        sys.stdin.readline()
        told.set()

    threading.Thread(target=listen, daemon=True).start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    ended: list[tuple[float, int]] = []
    now_s = time.monotonic()
    while not told.is_set():
        writer.one()
        ended_s = time.monotonic()
        ended.append((ended_s, int((ended_s - now_s) * 1e6)))
        now_s = ended_s
    sys.stdout.write(json.dumps(ended) + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]))
