"""Feeds both ends of the protocol, and a daemon on its socket, with frames that a grammar and chance make.

    python -m tests.fuzz --frames 2_000_000 --live 20_000 --seed 1

The frames are drawn from the seed, in portions of their own, so that a finding names the portion that shows it again:
`--portion N` takes that one alone. A portion is fed as it stands and cut into chunks anywhere: both must come to the same.
On the socket nothing but calls and their typed errors may be answered, no fault of the daemon's own is among them, and a
neighbour records and reads all the time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.conftest import Daemon
from tests.fuzz import live
from tests.fuzz.grammar import Grammar
from tests.fuzz.portions import PORTION, Result, run_portion


def run_machines(seed: int, portions: Sequence[int], processes: int) -> Iterator[Result]:
    """All the portions, by so many processes."""
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        asked = [pool.apply_async(run_portion, (seed, portion)) for portion in portions]
        for result in asked:
            yield result.get()


def run_live(seed: int, frames: int) -> Counter[str]:
    """Send that many frames to a daemon. Raises AssertionError."""
    home = Path(tempfile.mkdtemp(prefix="rh"))
    daemon = Daemon(home / "state")
    try:
        return live.fuzz(daemon.start(), Grammar(random.Random(f"{seed} live")), frames)
    finally:
        daemon.kill()
        shutil.rmtree(home)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz, and print what was seen; 1 with a finding."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--frames", type=int, default=200_000, metavar="N", help="for the two machines (default: 200,000)")
    parser.add_argument("--live", type=int, default=2000, metavar="N", help="for the daemon's socket (default: 2,000)")
    parser.add_argument("--seed", type=int, default=int(time.time()), metavar="S", help="(default: the time)")
    parser.add_argument("--portion", type=int, metavar="N", help="only this portion, in this process")
    args = parser.parse_args(arguments)
    begun_s = time.monotonic()
    seen: Counter[str] = Counter()
    frames, findings = 0, []
    portions = range(-(-args.frames // PORTION)) if args.portion is None else [args.portion]
    if args.portion is None:
        results = run_machines(args.seed, portions, os.cpu_count() or 1)
    else:
        results = (run_portion(args.seed, portion) for portion in portions)
    for result in results:
        frames += result.frames
        seen += result.seen
        if result.finding:
            findings.append(f"--seed {args.seed} --portion {result.portion}\n{result.finding}")
    took_s = time.monotonic() - begun_s
    sys.stdout.write(f"seed {args.seed}: {frames:,} frames in {took_s:.0f} s: {shown(seen)}\n")
    if args.portion is None and args.live:
        try:
            sys.stdout.write(f"{args.live:,} frames on a socket: {shown(run_live(args.seed, args.live))}\n")
        except AssertionError:
            findings.append(f"--seed {args.seed}, on a socket\n{traceback.format_exc()}")
    sys.stdout.write("".join(f"\n{finding}\n" for finding in findings[:5]) + f"{len(findings)} findings\n")
    return 1 if findings else 0


def shown(seen: Counter[str]) -> str:
    """Outcomes with their counts."""
    return ", ".join(f"{name} {count:,}" for name, count in seen.most_common())


if __name__ == "__main__":
    sys.exit(main())
