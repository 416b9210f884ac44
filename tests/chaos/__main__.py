"""Kills, stops and restarts engines and their daemon at random, and then holds the history against what they were told.

    python -m tests.chaos --minutes 5 --seed 1

At the end everything goes on, the engines finish, and the daemon has judged the dead. Then: every event that a receipt
called committed or spooled is there once, seqs have no gap, only processes that were over were declared dead, with
evidence, each unfinished run is paused or incomplete, the spool is empty, and what is derived agrees with the events.
What is done, and when, is drawn from the seed; what the machine makes of it is its own affair.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import itertools
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from runhist.connection import Connection
from runhist.paths import SocketChoice
from runhist.protocol.errors import RunhistError
from runhist.reading import Reader
from runhistd.store.verify import verify
from tests.chaos.findings import Findings
from tests.chaos.journal import Life, Told
from tests.conftest import Daemon, wait_until

SETTINGS = "[retention]\nmax_runs_per_agent = 1_000_000\n"
ENGINE = Path(__file__).with_name("engine.py")
CALM_S = 60.0  # for engines to finish and verdicts to be stored


class Subject:
    """One engine process, and the file of what it tells."""

    def __init__(self, daemon: Daemon, directory: Path, seed: str) -> None:
        self.file = directory / f"engine-{seed}"
        with self.file.open("ab") as told, (directory / "engines.log").open("ab") as log:
            command = [sys.executable, str(ENGINE), seed]
            self.process = subprocess.Popen(command, env=daemon.env, stdin=subprocess.DEVNULL, stdout=told, stderr=log)
        self.life = Life(self.process.pid)

    def over(self, how: signal.Signals) -> None:
        """Send what ends it."""
        if self.process.poll() is None:
            self.life.over_us = time.time_ns() // 1000
            self.process.send_signal(how)


class Chaos:
    """One daemon, its engines, and what is done to them. `due` is what is to be undone, and when."""

    def __init__(self, directory: Path, engines: int, seed: int) -> None:
        self.random = random.Random(seed)
        self.directory = directory
        self.daemon = Daemon(directory / "state")
        self.daemon.config_file.write_text(SETTINGS)
        self.counts: Counter[str] = Counter()
        self.seed = seed
        self.numbers = itertools.count(1)
        self.subjects: list[Subject] = []
        self.gone: list[Subject] = []
        self.due: list[tuple[float, int, Callable[[], None]]] = []
        self.daemon.start()
        for _ in range(engines):
            self.add()

    # what is done

    def add(self) -> None:
        """One more engine."""
        self.subjects.append(Subject(self.daemon, self.directory, f"{self.seed}-{next(self.numbers)}"))

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        """Do something then."""
        heapq.heappush(self.due, (time.monotonic() + seconds, next(self.numbers), what))

    def replace(self, subject: Subject) -> None:
        """Another one for one that is over."""
        subject.process.wait()
        self.subjects.remove(subject)
        self.gone.append(subject)
        self.add()

    def kill_engine(self) -> None:
        """SIGKILL."""
        subject = self.random.choice(self.subjects)
        subject.over(signal.SIGKILL)
        self.counts["engines killed"] += 1
        self.replace(subject)

    def stop_engine(self) -> None:
        """SIGSTOP for a while."""
        process = self.random.choice(self.subjects).process
        process.send_signal(signal.SIGSTOP)
        self.counts["engines stopped"] += 1
        self.later(self.random.uniform(0.05, 3.0), lambda: process.send_signal(signal.SIGCONT))

    def kill_daemon(self) -> None:
        """SIGKILL, and a start after a while."""
        process = self.daemon.process
        wait = self.random.uniform(0, 2.0)
        if process is not None and process.poll() is None:
            self.note_drained()
            self.daemon.kill()
            self.counts["daemon killed"] += 1
            self.later(wait, self.restart)

    def restart(self) -> None:
        """Start the daemon again; it may be killed before it answers."""
        self.daemon.launch()
        self.counts["daemon restarts"] += 1

    def stop_daemon(self) -> None:
        """SIGSTOP for a while, no longer than engines wait for an answer."""
        process, wait = self.daemon.process, self.random.uniform(0.05, 1.5)
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGSTOP)
            self.counts["daemon stopped"] += 1
            self.later(wait, lambda: process.send_signal(signal.SIGCONT))

    def note_drained(self) -> None:
        """Add up what the daemon that runs now took from the spool, if it answers soon."""
        choice = SocketChoice((self.daemon.socket,), "the chaos run's own", True)
        with contextlib.suppress(RunhistError), Connection.open(choice, timeout=0.5) as connection:
            self.counts["requests drained"] += connection.call("GetStatus", {}, timeout=0.5)["spool"]["drained"]

    def rage(self, seconds: float) -> None:
        """For so long."""
        end = time.monotonic() + seconds
        doings = [self.kill_engine] * 5 + [self.stop_engine] * 8 + [self.kill_daemon] * 2 + [self.stop_daemon]
        while time.monotonic() < end:
            self.random.choice(doings)()
            pause = time.monotonic() + self.random.uniform(0.05, 0.6)
            while time.monotonic() < pause:
                self.undo_due()
                time.sleep(0.02)
            for subject in [one for one in self.subjects if one.process.poll() is not None]:
                self.replace(subject)

    def undo_due(self, *, all_of_it: bool = False) -> None:
        """Do what is due."""
        while self.due and (all_of_it or self.due[0][0] <= time.monotonic()):
            heapq.heappop(self.due)[2]()

    # the end

    def calm(self) -> None:
        """Everything goes on, and comes to its end: the engines finish, and the daemon judges those that did not."""
        self.undo_due(all_of_it=True)
        choice = self.choice()

        def answers() -> bool:
            with contextlib.suppress(RunhistError), Connection.open(choice, timeout=1.0) as connection:
                return bool(connection.call("GetStatus", {}, timeout=5.0))
            return False

        wait_until(answers, "the daemon answers", CALM_S)
        for subject in self.subjects:
            subject.over(signal.SIGTERM)
        for subject in self.subjects:
            subject.process.wait(CALM_S)
        self.gone += self.subjects
        self.subjects = []
        reader = Reader(choice)
        end = time.monotonic() + CALM_S
        while time.monotonic() < end and not self.settled(reader):
            time.sleep(0.1)
        self.note_drained()

    def choice(self) -> SocketChoice:
        """Where the daemon is."""
        return SocketChoice((self.daemon.socket,), "the chaos run's own", True)

    def settled(self, reader: Reader) -> bool:
        """Whether no run is live, and nothing waits in the spool."""
        status = reader.call("GetStatus", {})
        live = sum(one["runs"] for one in status["runs"] if one["status"] in ("pending", "running"))
        return live == 0 and not status["delayed"] and status["spool"]["files"] == 0

    def findings(self) -> Findings:
        """Hold the history against what was told."""
        told = Told()
        for subject in self.gone:
            told.read(subject.file, subject.life)
        found = Findings(told)
        found.hold_against(Reader(self.choice()))
        found.look_at_spool(self.daemon.state_dir / "spool")
        self.daemon.stop()
        verdict = verify(self.daemon.database, lambda checked, of: None)
        found.counts["verified runs"] = verdict.runs
        found.lines += [f"verify: {difference}" for difference in verdict.differences]
        return found

    def end(self) -> None:
        """Leave no process behind."""
        for subject in self.subjects:
            subject.process.kill()
            subject.process.wait()
        self.daemon.kill()


def main(arguments: Sequence[str] | None = None) -> int:
    """Rage, print what was done and seen, and return 1 when something is not as it was promised."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=None, help="draw the same again")
    parser.add_argument("--engines", type=int, default=12)
    chosen = parser.parse_args(arguments)
    seed = random.randrange(1_000_000) if chosen.seed is None else chosen.seed
    sys.stdout.write(f"seed {seed}, {chosen.engines} engines, {chosen.minutes:g} minutes\n")
    sys.stdout.flush()
    directory = Path(tempfile.mkdtemp(prefix="rh"))
    chaos = Chaos(directory, chosen.engines, seed)
    try:
        chaos.rage(chosen.minutes * 60)
        chaos.calm()
        found = chaos.findings()
    finally:
        chaos.end()
    report(chaos.counts, found)
    if found.lines:
        sys.stdout.write(f"what there is to look at is kept in {directory}\n")
        return 1
    shutil.rmtree(directory)
    return 0


def report(done: Counter[str], found: Findings) -> None:
    """Print what was done, what was told, what was found, and every difference."""
    for title, counts in (("done", done), ("told", found.told.counts), ("found", found.counts)):
        sys.stdout.write(f"{title}: " + ", ".join(f"{name} {counts[name]:,}" for name in sorted(counts)) + "\n")
    for line in found.lines:
        sys.stdout.write(f"DIFFERS {line}\n")
    sys.stdout.write(f"{len(found.lines)} differences\n")


if __name__ == "__main__":
    sys.exit(main())
