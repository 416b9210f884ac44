"""Measure runhistd beside what people use today.

    python -m tests.bench [--only PART]... [--long] [--short] [--json FILE]

Needs cc to count and to slow syncs; redis-server, PostgreSQL and the extra `bench` for those contestants, which are left
out with the reason where they are missing. With --short, which is for CI, ends with 1 when something is far slower than the
README says, twice in a row.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from . import goals, machine, syncs, writing
from .contestants import NAMES, contestant
from .measure import WORKLOADS, Place, folder
from .parts import LONG, PARTS
from .writing import Race

ONE, LONE, FLIGHT, REQUEST = WORKLOADS
WRITERS = {"writers": "disk", "slow": "slow"}
SHORT = [
    Race("disk", ONE, ("runhistd", "redis", "postgres", "sqlite")),
    Race("slow", ONE, ("runhistd", "redis", "postgres", "sqlite")),
    Race("disk", LONE, ("runhistd", "redis")),
    Race("slow", LONE, ("runhistd", "redis")),
    Race("disk", FLIGHT, ("runhistd", "ceiling")),
    Race("disk", REQUEST, ("runhistd", "ceiling", "redis", "sqlite", "postgres")),
]
SHORT_PARTS = {*WRITERS, "command"}


def arguments() -> argparse.Namespace:
    """What was asked for."""
    names = [*WRITERS, *PARTS]
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=names, metavar="PART", help=f"one of {', '.join(names)}")
    parser.add_argument("--long", action="store_true", help=f"also `{LONG}`: ten million events, which take 5 GB")
    parser.add_argument("--short", action="store_true", help="the ratios that CI holds, in less than two minutes")
    parser.add_argument("--seconds", type=float, help="that count of each measurement (default: 4, short 0.7)")
    parser.add_argument("--repeats", type=int, help="of each measurement, whose median counts (default: 3, short 2)")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to be measured")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write all figures")
    args = parser.parse_args()
    args.seconds = args.seconds or (0.7 if args.short else 4.0)
    args.repeats = args.repeats or (2 if args.short else 3)
    args.warm_s = 0.3 if args.short else 1.0
    args.parts = args.only or [name for name in names if name != LONG or args.long]
    if args.short:
        args.parts = [name for name in args.parts if name in SHORT_PARTS]
    return args


def say(text: str) -> None:
    """Print a line now."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def tell(doing: str) -> None:
    """Show what is being measured, where somebody looks."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{time.strftime('%H:%M:%S')} {doing}")
        sys.stderr.flush()


def introduce(place: Place, why_no_slow: str | None) -> dict[str, Any]:
    """Say on what is measured, and who cannot take part."""
    found: dict[str, Any] = {"machine": machine.describe(place.directory)}
    with folder(place) as directory:
        found["sync_ms"] = syncs.sync_s(directory) * 1000
    found["missing"] = {contestant(name).TITLE: why for name in NAMES if (why := contestant(name).missing())}
    if why_no_slow:
        found["missing"]["slow syncs"] = why_no_slow
    say(f"{found['machine']}; a sync of 4 KiB takes {found['sync_ms']:.2f} ms")
    for title, why in found["missing"].items():
        say(f"without {title}: {why}")
    return found


def measure_writers(args: argparse.Namespace, place: Place) -> list[writing.Rounds]:
    """The contestants, a table for each disk and workload."""
    disks = [disk for part, disk in WRITERS.items() if part in args.parts and (disk == "disk" or place.slowsync)]
    found: list[writing.Rounds] = []
    for race in SHORT if args.short else writing.everything(disks):
        if race.disk in disks:
            rounds = writing.run(place, args.seconds, args.warm_s, args.repeats, race, tell)
            say(f"\n{race.title}")
            for line in writing.table(rounds):
                say(line)
            found += rounds
    return found


def measure_parts(args: argparse.Namespace, place: Place) -> dict[str, float]:
    """The other parts, a line each; their figures by part and name."""
    figures: dict[str, float] = {}
    say("")
    for name in args.parts:
        if name in PARTS:
            tell(name)
            before_us, before_s = machine.pressure_us().get("cpu", 0), time.monotonic()
            found = PARTS[name].run(place, args.seconds, args.repeats)
            waited = (machine.pressure_us().get("cpu", 0) - before_us) / 1e6 / (time.monotonic() - before_s)
            say(f"{PARTS[name].words.format(**found)}; pressure {waited:.0%}")
            figures |= {f"{name}/{what}": figure for what, figure in found.items()}
    return figures


def main() -> int:
    """Measure, print, write. 1 when --short found something far slower than the README says, and did so again."""
    args = arguments()
    with folder(Place(args.directory, None)) as directory:
        why_no_slow = syncs.missing()
        place = Place(args.directory, None if why_no_slow else syncs.build(directory))
        results = introduce(place, why_no_slow)
        found = measure_writers(args, place)
        figures = {**goals.of_writers(found), **measure_parts(args, place)}
        if args.short and goals.fallen(figures, goals.stated()):
            say("\nsomething seems slower than the README says: once more")
            again = {**goals.of_writers(measure_writers(args, place)), **measure_parts(args, place)}
            figures = goals.better(figures, again)
    say("")
    for line in goals.table(figures):
        say(line)
    if args.json:
        rounds = [{**one._asdict(), "rounds": [measured._asdict() for measured in one.rounds]} for one in found]
        results |= {"seconds": args.seconds, "writers": rounds, "figures": figures}
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    slower = goals.fallen(figures, goals.stated()) if args.short else []
    for line in slower:
        say(f"slower than stated: {line}")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
