"""Four small engines that do real work on this machine, and record it as any engine would: through the client library.

Each is a program of its own, started as `python -m runhistd.demo NAME`; it finds the history by RUNHIST_SOCKET.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import marshal
import resource
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import runhist
from runhist import History, Run, Step

STDLIB = Path(sysconfig.get_paths()["stdlib"])
LEFT_OUT = frozenset({"site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib", "lib2to3"})
CPU_SECOND_USD = 1.00
PRICE_NOTE = f"costs are examples: ${CPU_SECOND_USD:.2f} a CPU second"


def sources_by_package() -> Iterator[tuple[str, list[Path]]]:
    """The standard library's source files, package by package; single modules count as one package."""
    yield "modules", sorted(STDLIB.glob("*.py"))
    for package in sorted(path for path in STDLIB.iterdir() if (path / "__init__.py").exists()):
        if package.name not in LEFT_OUT:
            files = (path for path in package.rglob("*.py") if not LEFT_OUT & set(path.relative_to(STDLIB).parts))
            yield package.name, sorted(files)


def compile_stdlib(history: History) -> int:
    """Compile every source file, and keep the byte code in a temporary directory."""
    with history.begin_run(workflow="compile-stdlib", agent_id="builder", title=f"Compile {STDLIB}") as run:
        with tempfile.TemporaryDirectory(prefix="runhist-demo-") as target:
            files = sizes = 0
            for package, sources in sources_by_package():
                with run.step(package) as step:
                    for source in sources:
                        code = marshal.dumps(compile(source.read_bytes(), str(source), "exec", dont_inherit=True))
                        files += 1
                        (Path(target) / f"{files}.pyc").write_bytes(importlib.util.MAGIC_NUMBER + code)
                        step.output(f"{source.relative_to(STDLIB)}: {len(code):,} bytes")
                        sizes += len(code)
        run.complete({"files": files, "bytes": sizes})
    return ending(run)


def hash_trees(history: History) -> int:
    """SHA-256 of every directory tree of the standard library."""
    with history.begin_run(workflow="hash-trees", agent_id="auditor", title=f"Hash {STDLIB}") as run:
        hashes = {}
        for tree in sorted(path for path in STDLIB.iterdir() if path.is_dir() and path.name not in LEFT_OUT):
            with run.step(tree.name) as step:
                digest, count, size = hashlib.sha256(), 0, 0
                for path in sorted(path for path in tree.rglob("*") if path.is_file()):
                    content = path.read_bytes()
                    digest.update(hashlib.sha256(content).digest())
                    count, size = count + 1, size + len(content)
                hashes[tree.name] = digest.hexdigest()
                step.output(f"{hashes[tree.name]}  {tree.name} ({count} files, {size:,} bytes)")
            run.checkpoint({"hashed": len(hashes)})
        run.complete({"trees": len(hashes), "hashes": hashes})
    return ending(run)


def compress_sources(history: History) -> int:
    """Compress the standard library at several levels, with a step for each, and check what came out."""
    with history.begin_run(workflow="compress-sources", agent_id="archivist", title="Which gzip level pays?") as run:
        with run.step("read") as step:
            contents = [path.read_bytes() for _, files in sources_by_package() for path in files]
            total = sum(map(len, contents))
            step.output(f"{len(contents)} files, {total:,} bytes")
        compressed: dict[int, list[bytes]] = {}
        with run.step("compress") as step:
            for level in (1, 6, 9):
                with run.step(f"level {level}") as within:
                    compressed[level] = [gzip.compress(content, level) for content in contents]
                    within.output(f"{sum(map(len, compressed[level])) / total:.1%} of the size")
        with run.step("check") as step:
            for level, packed in compressed.items():
                if [gzip.decompress(content) for content in packed] != contents:
                    raise ValueError(f"level {level} does not give back what was compressed")
            step.output("everything comes back")
        run.complete({str(level): sum(map(len, packed)) for level, packed in compressed.items()})
    return ending(run)


MODULE = """\
def median(numbers):
    ordered = sorted(numbers)
    return ordered[len(ordered) // 2
"""
TESTS = """\
import unittest
from median import median

class Median(unittest.TestCase):
    def test_odd(self):
        self.assertEqual(median([3, 1, 2]), 2)

    def test_even(self):
        self.assertEqual(median([4, 1, 2, 3]), 2.5)

unittest.main(verbosity=2)
"""


def small_pipeline(history: History) -> int:
    """Write a module, mend its real syntax error at the second try, and fail at its real, wrong test result."""
    prices = {"cpu_second_usd": f"{CPU_SECOND_USD:.2f}", "note": "an example, made up for the demo"}
    with history.begin_run(
        workflow="small-pipeline",
        agent_id="fixer",
        title=f"Write and test a module ({PRICE_NOTE})",
        definition={"steps": ["write", "check", "test", "publish"], "prices": prices},
    ) as run:
        with tempfile.TemporaryDirectory(prefix="runhist-demo-") as directory:
            module = Path(directory) / "median.py"
            with priced(run, "write") as step:
                module.write_text(MODULE)
                (Path(directory) / "test_median.py").write_text(TESTS)
                step.output(f"wrote {module.name}, {len(MODULE)} bytes")
            with priced(run, "check") as step:
                program(step, "-m", "py_compile", module.name, cwd=directory)
                step.retrying("a bracket is not closed; closing it")
            module.write_text(MODULE.rstrip() + "]\n")
            with priced(run, "check", step.step_id) as step:
                program(step, "-m", "py_compile", module.name, cwd=directory)
            with priced(run, "test") as step:
                status = program(step, "test_median.py", cwd=directory)
                if status != 0:
                    step.fail(f"exit {status}: test_even")
            run.step("publish").skip("the tests failed")
        run.fail("test: exit 1: test_even")
    return ending(run)


@contextmanager
def priced(run: Run, name: str, step_id: str | None = None) -> Iterator[Step]:
    """A step whose CPU time, that of its programs included, is recorded at the example price."""
    before = cpu_seconds()
    with run.step(name, step_id) as step:
        try:
            yield step
        finally:
            cost = (cpu_seconds() - before) * CPU_SECOND_USD
            step.usage(provider="example price", model="cpu", cost_usd=f"{cost:.6f}")


def cpu_seconds() -> float:
    """What this process and its ended children have used."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def program(step: Step, *arguments: str, cwd: str) -> int:
    """Run Python with these arguments, record its output, and return its exit status."""
    ended = subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    for stream, text in (("stdout", ended.stdout), ("stderr", ended.stderr)):
        for line in text.splitlines():
            step.output(line, stream)
    return ended.returncode


def ending(run: Run) -> int:
    """0 when everything is on the disk."""
    return 0 if run.flush().durable == "committed" else 1


ENGINES: dict[str, Callable[[History], int]] = {
    "compile-stdlib": compile_stdlib,
    "hash-trees": hash_trees,
    "compress-sources": compress_sources,
    "small-pipeline": small_pipeline,
}


def run_engine(name: str) -> int:
    """Do one engine's work; 0 when all of it is recorded."""
    return ENGINES[name](runhist.connect(require=True))
