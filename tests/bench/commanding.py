"""What the command line costs: the processor's time of `runhist list` against that of an interpreter that does nothing."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from .filling import Filling, fill
from .measure import Place, started

TIMES = 15
RUNS = 50
PYTHON = Path(sys.executable)
COMMANDS = {"nothing": [str(PYTHON), "-c", "pass"], "list": [str(PYTHON.with_name("runhist")), "list"]}


def run(place: Place) -> dict[str, float]:
    """Milliseconds of each in the median, and how many times `nothing` `list` takes."""
    with started("runhistd", place, lambda directory: fill(directory, Filling(RUNS))) as arena:
        used_ms: dict[str, list[float]] = {name: [] for name in COMMANDS}
        for _ in range(TIMES):
            for name, command in COMMANDS.items():
                used_ms[name].append(_used_ms(command, arena.env))
    nothing, listed = (statistics.median(used_ms[name]) for name in ("nothing", "list"))
    return {"nothing_ms": nothing, "list_ms": listed, "list": listed / nothing}


def _used_ms(command: Sequence[str], env: Mapping[str, str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000
