"""Fuzzing guided by coverage: what reaches new code in the decoding is kept and changed further.

    python -m tests.fuzz.guided --runs 200_000

Needs atheris (https://github.com/google/atheris), which installs on few platforms; without it nothing is done and said so.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

FRAME_BYTES = 20_000
FIRST_FRAMES = 2000


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz so many frames, in a process of its own, because atheris ends it; another status than 0 is a finding."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.guided", description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=100_000, metavar="N", help="how many frames (default: 100,000)")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="(default: 1)")
    parser.add_argument("--corpus", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if importlib.util.find_spec("atheris") is None:
        sys.stdout.write("atheris is not installed: nothing is fuzzed by coverage\n")
        return 0
    if args.corpus is not None:
        fuzz(args.runs, args.seed, args.corpus)
    with tempfile.TemporaryDirectory(prefix="rh") as directory:
        write_corpus(Path(directory), args.seed)
        command = [sys.executable, "-m", "tests.fuzz.guided", f"--runs={args.runs}", f"--seed={args.seed}"]
        return subprocess.run([*command, f"--corpus={directory}"], check=False).returncode


def write_corpus(directory: Path, seed: int) -> None:
    """What to begin with: frames of the grammar, one a file."""
    from tests.fuzz.grammar import Grammar

    grammar = Grammar(random.Random(seed))
    for i in range(FIRST_FRAMES):
        (directory / f"{i}").write_bytes(grammar.frame()[:FRAME_BYTES])


def fuzz(runs: int, seed: int, corpus: Path) -> None:
    """Fuzz; does not return."""
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["runhist", "runhistd"]):
        from tests.fuzz.subjects import Calling, Serving

    def one(text: bytes) -> None:
        Serving().take([text + b"\0"])
        Calling().take([text + b"\0"])

    options = [f"-runs={runs}", f"-seed={seed}", f"-max_len={FRAME_BYTES}", f"-artifact_prefix={corpus}/"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
