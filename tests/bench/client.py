"""One client process: it connects, says that it is ready, waits for the moment that all begin, and records until the end.

    python -m tests.bench.client CONTESTANT KIND DIRECTORY INDEX

It prints "ready", reads a Schedule as JSON from its input, prints a Tally as JSON, and stays until its input ends, so that
what serves it can still be looked at. Times are of the monotonic clock,
which all processes of a machine share. Whatever begins before the end is waited for, however long that takes: who is
never served would otherwise have no latency at all.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from pathlib import Path
from typing import NamedTuple

from .contestants import Client, contestant


class Schedule(NamedTuple):
    """When to begin, from when on it counts, and when to end, in seconds of the monotonic clock."""

    begin_s: float
    count_from_s: float
    end_s: float


class Tally(NamedTuple):
    """What one client did in the time that counts: events on disk, what each request took, and the processor's time."""

    events: int
    latencies_us: list[int]
    cpu_s: float


Done = list[tuple[float, float, int]]
"""Of each request: when it began, when it ended, and how many events it brought to the disk."""


def ping_pong(client: Client, kind: str, schedule: Schedule) -> tuple[Done, float]:
    """Each request when the one before is answered. Also the processor's time in the time that counts."""
    record = client.one if kind == "one" else client.request
    done: Done = []
    cpu_s: list[float] = []
    now_s = time.monotonic()
    while now_s < schedule.end_s:
        if now_s >= schedule.count_from_s and not cpu_s:
            cpu_s.append(time.process_time())
        events = record()
        ended_s = time.monotonic()
        done.append((now_s, ended_s, events))
        now_s = ended_s
    return done, time.process_time() - (cpu_s or [0.0])[0]


def in_flight(client: Client, schedule: Schedule) -> tuple[Done, float]:
    """As many requests on the way as the client's window has; each answer lets another go."""
    done: Done = []
    cpu_s: list[float] = []
    now_s = time.monotonic()
    begun = deque([now_s] * client.window)
    client.send(client.window)
    while now_s < schedule.end_s:
        if now_s >= schedule.count_from_s and not cpu_s:
            cpu_s.append(time.process_time())
        events = client.receive()
        now_s = time.monotonic()
        done += [(begun.popleft(), now_s, 1) for _ in range(events)]
        client.send(events)
        begun.extend([now_s] * events)
    return done, time.process_time() - (cpu_s or [0.0])[0]


def tally(done: Done, cpu_s: float, schedule: Schedule) -> Tally:
    """What counts: events on the disk between the two moments, and the latency of all that ended after the first."""
    counted = [entry for entry in done if entry[1] >= schedule.count_from_s]
    events = sum(events for _, ended_s, events in counted if ended_s <= schedule.end_s)
    return Tally(events, [int((ended_s - begun_s) * 1e6) for begun_s, ended_s, _ in counted], cpu_s)


def main(arguments: list[str]) -> None:
    """Take part once."""
    name, kind, directory, index = arguments
    client = contestant(name).connect(Path(directory), int(index))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    schedule = Schedule(*json.loads(sys.stdin.readline()))
    time.sleep(max(0.0, schedule.begin_s - time.monotonic()))
    done, cpu_s = in_flight(client, schedule) if kind == "flight" else ping_pong(client, kind, schedule)
    sys.stdout.write(json.dumps(tally(done, cpu_s, schedule)) + "\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1:])
