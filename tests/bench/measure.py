"""One measurement: start a contestant's server if it has one, then its client processes, and let all begin at one moment.

The first second does not count: interpreters start, caches fill, the first WAL grows. In the time that counts the
processor's time of clients and server is taken apart, the syncs of all are counted, and the pressure on the machine is
noted, because nobody else's load should be taken for a contestant's.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from . import machine, syncs
from .client import Schedule, Tally
from .contestants import Server, contestant, runhistd

ROOT = Path(__file__).parent.parent.parent
WARM_S = 1.0


class Workload(NamedTuple):
    """How many processes record, and in what way: `one` event at a time, `flight` or `request`."""

    name: str
    title: str
    kind: str
    processes: int


WORKLOADS = (
    Workload("one", "8 processes, one event at a time", "one", 8),
    Workload("lone", "a lone writer, one event at a time", "one", 1),
    Workload("flight", "8 processes, 100 events in flight each", "flight", 8),
    Workload("request", "8 processes, 100 events per request", "request", 8),
)


class Place(NamedTuple):
    """Where contestants record: in a new folder of that directory, each sync so much slower than the disk's."""

    directory: Path
    slowsync: Path | None
    slower_us: int = 0


class Measured(NamedTuple):
    """What a measurement found; `None` where the machine does not tell."""

    events_s: float
    p50_us: int
    p99_us: int
    worst_us: int
    slowest_events_s: float
    fastest_events_s: float
    client_cpu_us: float
    """For each event, of all clients."""
    server_cpu_us: float | None
    """For each event; None where there is no server."""
    server_rss: int | None
    """Bytes, at the end, of the server's first process."""
    events_per_sync: float | None
    cpu_pressure: float | None
    """The part of the time in which some task of the machine waited for a processor."""
    io_pressure: float | None
    """The part of the time in which some task waited for the disk."""


@contextmanager
def folder(place: Place) -> Iterator[Path]:
    """A new folder with a short path, which servers running as another user can enter."""
    made = Path(tempfile.mkdtemp(prefix="rb", dir=place.directory))
    made.chmod(0o755)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


class Arena(NamedTuple):
    """A contestant that was started: its folder, the environment of its clients, its server, and what is synced."""

    name: str
    directory: Path
    env: dict[str, str]
    server: Server | None
    counted: syncs.Syncs


@contextmanager
def started(name: str, place: Place, prepare: Callable[[Path], None] = lambda directory: None) -> Iterator[Arena]:
    """Start the contestant of that name in a new folder, after `prepare` has put into it what shall be there before."""
    one = contestant(name)
    with folder(place) as outside:
        directory = outside / "it"
        directory.mkdir(mode=0o755)
        prepare(directory)
        counted = syncs.Syncs(place.slowsync, outside, place.slower_us)
        env = {**os.environ, **counted.env, "PYTHONPATH": str(ROOT)}
        server = one.start(directory, env)
        try:
            yield Arena(name, directory, runhistd.settings(directory, env), server, counted)
        finally:
            if server is not None:
                server.stop()


def measure(name: str, workload: Workload, place: Place, seconds: float, warm_s: float = WARM_S) -> Measured:
    """Let the contestant of that name do this once, from nothing. What a client raises is in the error."""
    with started(name, place) as arena:
        return compete(arena, workload, seconds, warm_s)


def compete(arena: Arena, workload: Workload, seconds: float, warm_s: float = WARM_S) -> Measured:
    """Let clients do this in an arena, and return what it took."""
    server = arena.server
    processes = 1 if contestant(arena.name).WITHIN_ONE else workload.processes
    command = [sys.executable, "-m", "tests.bench.client", arena.name, workload.kind, str(arena.directory)]
    clients = [child([*command, str(i)], arena.env) for i in range(processes)]
    try:
        for client in clients:
            read_line(client)
        now_s = time.monotonic() + 0.05
        schedule = Schedule(now_s, now_s + warm_s, now_s + warm_s + seconds)
        for client in clients:
            client.stdin.write(json.dumps(schedule) + "\n")
            client.stdin.flush()
        before = _look(schedule.count_from_s, server, arena.counted)
        after = _look(schedule.end_s, server, arena.counted)
        tallies = [Tally(*json.loads(read_line(client))) for client in clients]
        rss = None if server is None else machine.rss_bytes(server.pid)
    finally:
        for client in clients:
            client.kill()
            client.communicate()
    return _sum_up(tallies, before, after, rss, seconds)


def child(command: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[str]:
    """A process of ours, which is written to and read from in lines."""
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, text=True, cwd=ROOT)


def read_line(client: subprocess.Popen[str]) -> str:
    """The next line that it prints. RuntimeError: it ended."""
    line = client.stdout.readline()
    if not line:
        raise RuntimeError(f"a client ended with {client.wait()}")
    return str(line)


class _Moment(NamedTuple):
    """What the machine says at one moment."""

    cpu_s: dict[int, float]
    syncs: int | None
    pressure_us: dict[str, int]
    at_s: float


def _look(at_s: float, server: Server | None, counted: syncs.Syncs) -> _Moment:
    time.sleep(max(0.0, at_s - time.monotonic()))
    used_s = {} if server is None else machine.cpu_s(server.pid)
    return _Moment(used_s, counted.count(), machine.pressure_us(), time.monotonic())


def _sum_up(tallies: list[Tally], before: _Moment, after: _Moment, rss: int | None, seconds: float) -> Measured:
    events = sum(tally.events for tally in tallies)
    latencies_us = sorted(latency for tally in tallies for latency in tally.latencies_us)
    rates = sorted(tally.events / seconds for tally in tallies)
    synced = None if before.syncs is None or after.syncs is None else after.syncs - before.syncs
    waited = {what: (after.pressure_us[what] - before.pressure_us[what]) / 1e6 for what in after.pressure_us}
    looked_s = after.at_s - before.at_s
    served_s = sum(used_s - before.cpu_s.get(pid, 0.0) for pid, used_s in after.cpu_s.items())
    count = max(events, 1)
    return Measured(
        events_s=events / seconds,
        p50_us=percentile(latencies_us, 50),
        p99_us=percentile(latencies_us, 99),
        worst_us=percentile(latencies_us, 100),
        slowest_events_s=rates[0],
        fastest_events_s=rates[-1],
        client_cpu_us=sum(tally.cpu_s for tally in tallies) / count * 1e6,
        server_cpu_us=served_s / count * 1e6 if after.cpu_s else None,
        server_rss=rss,
        events_per_sync=events / synced if synced else None,
        cpu_pressure=waited["cpu"] / looked_s if "cpu" in waited else None,
        io_pressure=waited["io"] / looked_s if "io" in waited else None,
    )


def percentile(ordered: Sequence[int], percent: float) -> int:
    """The value below which that percentage of the sorted values lies; 100 is the largest. 0 of nothing."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0
