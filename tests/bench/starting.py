"""How long a start takes where much was recorded and many runs lost their owner with the machine's last boot."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from contextlib import closing
from pathlib import Path

from .contestants import runhistd
from .filling import DATABASE, Filling, fill
from .measure import Place, folder, started


def run(place: Place, filling: Filling, repeats: int) -> dict[str, float]:
    """Seconds from the start of the process, interpreter included, until it answers; and the orphans adopted by then."""
    with folder(place) as filled:
        fill(filled, filling)
        found = [_start(place, filled / DATABASE) for _ in range(repeats)]
    return {"ready": statistics.median(took_s for took_s, _ in found), "adopted": min(adopted for _, adopted in found)}


def _start(place: Place, database: Path) -> tuple[float, int]:
    """Start once on a copy of that database."""
    begun_s = 0.0

    def prepare(directory: Path) -> None:
        nonlocal begun_s
        shutil.copyfile(database, directory / DATABASE)
        os.sync()  # what the copy left to be written is no part of the start
        begun_s = time.monotonic()

    with started("runhistd", place, prepare) as arena:
        took_s = time.monotonic() - begun_s
        with closing(runhistd.History(arena.directory)) as history:
            runs = {count["status"]: count["runs"] for count in history.call("GetStatus")["runs"]}
    return took_s, runs.get("incomplete", 0)
