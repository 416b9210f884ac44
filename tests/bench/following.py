"""How long after its commit an event is with those who follow: one writer at a steady rate, and several followers.

An event is stamped (`received_us`) when the daemon begins to commit it, so what is measured holds the commit itself.

    python -m tests.bench.following follow DIRECTORY SECONDS
    python -m tests.bench.following write DIRECTORY SECONDS EVENTS_S
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from .contestants import runhistd
from .measure import Place, child, percentile, read_line, started

FOLLOWERS = 8
EVENTS_S = 1000
WARM_S = 0.5


def run(place: Place, seconds: float) -> dict[str, float]:
    """The median, the 99th percentile and the worst in milliseconds, and the events a second that each follower got."""
    with started("runhistd", place) as arena:
        me = [sys.executable, "-m", "tests.bench.following"]
        at, period = str(arena.directory), str(seconds)
        followers = [child([*me, "follow", at, period], arena.env) for _ in range(FOLLOWERS)]
        writer = child([*me, "write", at, period, str(EVENTS_S)], arena.env)
        try:
            for one in (*followers, writer):
                read_line(one)
            writer.stdin.write("\n")
            writer.stdin.flush()
            latencies_us = sorted(latency for one in followers for latency in json.loads(read_line(one)))
        finally:
            for one in (*followers, writer):
                one.kill()
                one.communicate()
    found = {f"p{percent}": percentile(latencies_us, percent) / 1000 for percent in (50, 99)}
    return {**found, "worst": percentile(latencies_us, 100) / 1000, "events_s": len(latencies_us) / FOLLOWERS / seconds}


def write(directory: Path, seconds: float, events_s: int) -> None:
    """Send at that rate, whatever the answers; receive them now and then."""
    writer = runhistd.connect(directory, 0)
    _ready()
    sys.stdin.readline()
    begun_s, sent, answered = time.monotonic(), 0, 0
    while sent < events_s * (seconds + 2 * WARM_S):
        due = int((time.monotonic() - begun_s) * events_s) - sent
        if due > 0:
            writer.send(due)
            sent += due
        if sent - answered > runhistd.Writer.window:
            answered += writer.receive()
        time.sleep(1 / events_s)
    sys.stdin.read()


def follow(directory: Path, seconds: float) -> None:
    """Follow everything, and print what each event took that came in the time that counts, in microseconds."""
    history = runhistd.History(directory)
    history.send("Follow", {}, more=True)
    history.receive()
    _ready()
    latencies_us: list[int] = []
    first_s = 0.0
    while not first_s or time.monotonic() < first_s + WARM_S + seconds:
        items = history.receive()["items"]
        now_us, now_s = time.time_ns() // 1000, time.monotonic()
        events = [item["event"] for item in items if item["event"]["type"] == "tool:result"]
        first_s = first_s or (now_s if events else 0.0)
        if now_s > first_s + WARM_S:
            latencies_us += [now_us - event["received_us"] for event in events]
    sys.stdout.write(json.dumps(latencies_us) + "\n")


def _ready() -> None:
    sys.stdout.write("ready\n")
    sys.stdout.flush()


if __name__ == "__main__":
    what, where, for_s, *rate = sys.argv[1:]
    if what == "write":
        write(Path(where), float(for_s), int(rate[0]))
    else:
        follow(Path(where), float(for_s))
