"""Appends, follows, deletes and collects for some minutes, and prints whether anything grows without end.

    python -m tests.bench.soak --minutes 5

A private daemon in a temporary directory keeps five runs of each agent and looks every second. Writers begin runs, keep an
artifact, fill and end them and time every append; a follower reads everything and checks the order; one more deletes runs
by name. The most that the daemon takes in the first half is the measure; in the second half it must not be more than half
as much again, and the history must agree with its events.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from uuid import uuid4

from runhist import artifacts
from runhist.connection import Connection
from runhist.paths import SOCKET_NAME, SocketChoice
from runhist.protocol.errors import NoSuchRun, RunhistError, RunLive
from runhistd.store.verify import verify

SETTINGS = "[retention]\nmax_runs_per_agent = 5\nmax_bytes = 20_000_000\ninterval_s = 1\n"
WRITERS = 3
RUN_EVENTS = 50
CONTENTS = [bytes([i]) * 100_000 for i in range(20)]  # few, because unused ones stay for an hour
EVENT_BYTES = 2000
GROWTH = 1.5  # of what was taken halfway; more is a leak
SLACK = {"database": 8_000_000, "wal": 8_000_000, "blobs": 5, "memory": 16_000_000, "descriptors": 5}
"""What each may grow by in any case: the pages that wait to be given back, the log between two checkpoints."""


class Soak:
    """One daemon, and what is done to it until `stop`."""

    def __init__(self, directory: Path) -> None:
        self.state_dir = directory
        (directory / "config.toml").write_text(SETTINGS)
        environment = {**os.environ, "RUNHIST_STATE_DIR": str(directory), "RUNHIST_CONFIG": str(directory / "config.toml")}
        self.log = (directory / "log").open("wb")
        command = [sys.executable, "-m", "runhistd", "serve"]
        self.process = subprocess.Popen(command, env=environment, stdout=self.log, stderr=self.log)
        self.stop = threading.Event()
        self.latencies_us: list[int] = []
        self.counts = dict.fromkeys(("appended", "followed", "gaps", "deleted"), 0)
        self.faults: list[BaseException] = []

    def connect(self) -> Connection:
        """A connection, once the daemon answers."""
        while True:
            try:
                return Connection.open(SocketChoice((self.state_dir / SOCKET_NAME,), "the soak's own", True))
            except RunhistError:
                if self.process.poll() is not None:
                    raise
                time.sleep(0.05)

    def write(self, writer: int) -> None:
        """Run after run, each filled and ended."""
        with self.connect() as connection:
            while not self.stop.is_set():
                run_id = str(uuid4())
                spec = {"run_id": run_id, "agent_id": f"agent-{writer}"}
                epoch = connection.call("BeginRun", {"run": spec, "lease_key": str(uuid4())})["epoch"]
                kept = artifacts.put(connection, [random.choice(CONTENTS)])
                artifact = {"type": "artifact", "key": "a", "data": {"name": "a", **kept}}
                connection.call("Append", {"run_id": run_id, "epoch": epoch, "events": [artifact]})
                for i in range(RUN_EVENTS + 1):
                    kind = "run.completed" if i == RUN_EVENTS else "output"
                    event = {"type": kind, "key": str(i), "data": {"text": "x" * EVENT_BYTES}}
                    began = time.perf_counter()
                    connection.call("Append", {"run_id": run_id, "epoch": epoch, "events": [event]})
                    self.latencies_us.append(int((time.perf_counter() - began) * 1_000_000))
                self.counts["appended"] += RUN_EVENTS + 3

    def follow(self) -> None:
        """Everything from the beginning; positions must grow."""
        last = 0
        with self.connect() as connection:
            for reply in connection.stream("Follow", {"cursor": {"position": 0}, "heartbeat_us": 200_000}):
                for item in reply["items"]:
                    self.counts["gaps" if item.get("gap") else "followed"] += 1
                    if item.get("event"):
                        assert item["event"]["position"] > last, "a follower must never see a position again"
                        last = item["event"]["position"]
                if self.stop.is_set():
                    return

    def delete(self) -> None:
        """The newest ended run, again and again."""
        with self.connect() as connection:
            while not self.stop.wait(0.05):
                for found in connection.call("ListRuns", {"status": ["completed"], "limit": 1})["runs"]:
                    try:
                        name = {"run_id": found["run_id"]}
                        self.counts["deleted"] += bool(connection.call("DeleteRun", name)["deleted"])
                    except (NoSuchRun, RunLive):
                        pass

    def guarded(self, work: Callable[..., None], *arguments: int) -> threading.Thread:
        """A thread that ends the soak when it fails."""

        def run() -> None:
            try:
                work(*arguments)
            except BaseException as error:  # noqa: BLE001 - it is told at the end
                self.faults.append(error)
                self.stop.set()

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def taken(self) -> dict[str, int]:
        """What the daemon takes now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        memory_kib = re.search(r"VmRSS:\s*(\d+)", status)
        wal = self.state_dir / "history.db-wal"
        return {
            "database": (self.state_dir / "history.db").stat().st_size,
            "wal": wal.stat().st_size if wal.exists() else 0,
            "blobs": sum(path.is_file() for path in (self.state_dir / "blobs").rglob("*")),
            "memory": int(memory_kib[1]) * 1024 if memory_kib else 0,
            "descriptors": len(list(Path(f"/proc/{self.process.pid}/fd").iterdir())),
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak, print, and return 1 when something grows or a follower was lied to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    seconds = parser.parse_args(arguments).minutes * 60
    with tempfile.TemporaryDirectory(prefix="rh") as directory:
        soak = Soak(Path(directory))
        try:
            return report(soak, *work_for(soak, seconds))
        finally:
            soak.process.kill()
            soak.process.wait()
            soak.log.close()


def work_for(soak: Soak, seconds: float) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Do everything at once; the most that was taken in each half, and what retention did."""
    threads = [soak.guarded(soak.write, writer) for writer in range(WRITERS)]
    threads += [soak.guarded(soak.follow), soak.guarded(soak.delete)]
    halves: tuple[dict[str, int], dict[str, int]] = ({}, {})
    began = time.monotonic()
    with soak.connect() as connection:
        while (passed := time.monotonic() - began) < seconds and not soak.stop.wait(0.1):
            half = halves[passed > seconds / 2]
            for name, amount in soak.taken().items():
                half[name] = max(half.get(name, 0), amount)
        soak.stop.set()
        for thread in threads:
            thread.join()
        retention = connection.call("GetStatus", {})["retention"]
    soak.process.send_signal(signal.SIGTERM)
    soak.process.wait()
    return halves[0], halves[1], retention


def growing(first: dict[str, int], second: dict[str, int]) -> list[str]:
    """What was taken so much more of in the second half that it will grow on."""
    return [name for name in first if second.get(name, 0) > first[name] * GROWTH + SLACK[name]]


def report(soak: Soak, first: dict[str, int], second: dict[str, int], retention: dict[str, int]) -> int:
    """Print what there is to know; 1 when it is bad."""
    latencies = sorted(soak.latencies_us) or [0]
    p50, p99 = latencies[len(latencies) // 2], latencies[len(latencies) * 99 // 100]
    say = sys.stdout.write
    say(f"appended {soak.counts['appended']:,} events, p50 {p50 / 1000:.1f} ms, p99 {p99 / 1000:.1f} ms while collecting\n")
    say(f"followed {soak.counts['followed']:,} events and {soak.counts['gaps']:,} gaps\n")
    say(f"removed  {soak.counts['deleted']:,} runs by name, {retention['removed']:,} by retention, ")
    say(f"{retention['freed_bytes'] / 1_000_000:,.1f} MB freed\n")
    say(f"{'':12}{'first half':>14}{'second half':>14}\n")
    grown = growing(first, second)
    for name in first:
        say(f"{name:12}{first[name]:14,}{second.get(name, 0):14,}{'  GROWS' if name in grown else ''}\n")
    verdict = verify(soak.state_dir / "history.db", lambda checked, of: None)
    say(f"verify: {verdict.runs} runs, {len(verdict.differences)} differences\n")
    for fault in soak.faults:
        say(f"fault: {fault!r}\n")
    return 1 if grown or verdict.differences or soak.faults else 0


if __name__ == "__main__":
    sys.exit(main())
