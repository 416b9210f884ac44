"""Measure runhistd beside what people use today.

    python -m tests.bench [--only PART]... [--short] [--json FILE]

Needs cc to count and to slow syncs; redis-server, PostgreSQL and the extra `bench` for those contestants, which are left
out with the reason where they are missing. With --short, which is for CI, ends with 1 when something got slower than the
README says.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from . import goals, machine, syncs, writing
from .contestants import NAMES, contestant
from .measure import WORKLOADS, Place, folder

PARTS = ("writers", "slow")
SHORT = [
    ("disk", "one", ("runhistd", "redis", "postgres", "sqlite")),
    ("slow", "one", ("runhistd", "redis", "postgres", "sqlite")),
    ("disk", "lone", ("runhistd", "redis")),
    ("slow", "lone", ("runhistd", "redis")),
    ("disk", "flight", ("runhistd", "ceiling")),
    ("disk", "request", ("runhistd", "ceiling", "redis", "sqlite", "postgres")),
]


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=PARTS, metavar="PART", help=f"one of {', '.join(PARTS)}")
    parser.add_argument("--short", action="store_true", help="the ratios that CI holds, in less than two minutes")
    parser.add_argument("--seconds", type=float, help="that count of each measurement (default: 4, short 0.7)")
    parser.add_argument("--repeats", type=int, help="of each measurement, whose median counts (default: 3, short 2)")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to be measured")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write all figures")
    return parser.parse_args()


def say(text: str) -> None:
    """Print a line now."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def tell(doing: str) -> None:
    """Show what is being measured, where somebody looks."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{time.strftime('%H:%M:%S')} {doing}")
        sys.stderr.flush()


def print_writers(found: list[writing.Rounds]) -> None:
    """A table for each disk and workload."""
    titles = {workload.name: workload.title for workload in WORKLOADS}
    for (disk, workload), rounds in itertools.groupby(found, lambda one: (one.disk, one.workload)):
        say(f"\n{titles[workload]}{', each sync 2 ms slower' if disk == 'slow' else ''}")
        for line in writing.table(list(rounds)):
            say(line)


def main() -> int:
    """Measure, print, write. 1 when --short found something slower than the README says."""
    args = arguments()
    wanted = set(args.only or PARTS)
    seconds, warm_s = args.seconds or (0.7 if args.short else 4.0), 0.3 if args.short else 1.0
    results: dict[str, Any] = {"machine": machine.describe(args.directory), "seconds": seconds}
    figures: dict[str, float] = {}
    say(results["machine"])
    with folder(Place(args.directory, None)) as directory:
        results["sync_s"] = syncs.sync_s(directory)
        say(f"a sync of 4 KiB takes {results['sync_s'] * 1000:.2f} ms")
        results["missing"] = {name: why for name in NAMES if (why := contestant(name).missing())}
        for name, why in results["missing"].items():
            say(f"without {contestant(name).TITLE}: {why}")
        why = syncs.missing()
        if why:
            say(f"without slow syncs: {why}")
        place = Place(args.directory, None if why else syncs.build(directory))
        disks = [disk for disk, part in zip(writing.DISKS, PARTS, strict=False) if part in wanted]
        disks = [disk for disk in disks if disk == "disk" or not why]
        plan = [row for row in (SHORT if args.short else writing.everything(disks)) if row[0] in disks]
        found = writing.run(place, seconds, warm_s, args.repeats or (2 if args.short else 3), plan, tell)
        print_writers(found)
        figures.update(goals.of_writers(found))
        results["writers"] = [{**one._asdict(), "rounds": [measured._asdict() for measured in one.rounds]} for one in found]
    results["figures"] = figures
    say("\ngoals")
    for line in goals.table(figures):
        say(line)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    slower = goals.fallen(figures, goals.stated()) if args.short else []
    for line in slower:
        say(f"slower than stated: {line}")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
