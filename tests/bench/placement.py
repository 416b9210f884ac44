"""Where should the commit run? `python -m tests.bench.placement` measures three places, side by side.

A real daemon, changed only in where it calls `EventLog.apply`: on the event loop's thread (as it does), in a thread of
trio's pool, and in a thread of its own that is handed batches through a queue. Writers are processes that send one event
and wait for its receipt; syncs are as fast as this disk's, and 2 ms slower. Prints receipts a second, and the worst
latency that any writer saw, which holds the checkpoints.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from runhist.paths import SOCKET_NAME
from runhistd.daemon import main as daemon
from runhistd.daemon.commit import Committer
from runhistd.store.log import Batch
from tests.bench import syncs

SLOW_US = 2000
WARM_S = 1.0  # does not count


class InPool(Committer):
    """Commits in a thread of trio's pool."""

    def commit_after(self, fill: Callable[[], None]) -> None:
        fill()

    async def run(self) -> None:
        while True:
            while not self._queue:
                await self._arrived.park()
            await self._gather()
            assert self._log is not None
            taken, started_s = self._take(), time.perf_counter()
            requests = [request for request, _, _ in taken.waiting]
            self._hand_out(taken, await self._apply(requests), started_s)

    async def _apply(self, requests: list[Any]) -> Batch:
        assert self._log is not None
        return await trio.to_thread.run_sync(self._log.apply, requests, self._last_now_us)


class InOwnThread(InPool):
    """Commits in one thread that waits for batches."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._batches: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
        self._done: list[Batch] = []
        self._ready = trio.Event()

    async def run(self) -> None:
        token = trio.lowlevel.current_trio_token()
        threading.Thread(target=self._commit_all, args=(token,), daemon=True).start()
        await super().run()

    def _commit_all(self, token: trio.lowlevel.TrioToken) -> None:
        assert self._log is not None
        while True:
            self._done.append(self._log.apply(self._batches.get(), self._last_now_us))
            token.run_sync_soon(lambda: self._ready.set())

    async def _apply(self, requests: list[Any]) -> Batch:
        self._ready = trio.Event()
        self._batches.put(requests)
        await self._ready.wait()
        return self._done.pop()


PLACES: dict[str, type[Committer]] = {"loop": Committer, "pool": InPool, "own thread": InOwnThread}


def serve(place: str) -> int:
    """A daemon that commits there."""
    from runhistd.cli import main

    setattr(daemon, "Committer", PLACES[place])  # noqa: B010 - a type is replaced, which an assignment may not
    return main(["serve"])


def write(path: str, seconds: float) -> None:
    """One writer: prints how many receipts it got in the time, and the longest that it waited for one."""
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(path)
    name = f"w{os.getpid()}"
    key = f"00000000-0000-4000-8000-{os.getpid():012d}"

    def call(method: str, **parameters: Any) -> Any:
        peer.sendall(json.dumps({"method": f"dev.runhist.History.{method}", "parameters": parameters}).encode() + b"\0")
        reply = b""
        while not reply.endswith(b"\0"):
            reply += peer.recv(65536)
        return json.loads(reply[:-1])["parameters"]

    epoch = call("BeginRun", run={"run_id": name}, lease_key=key)["epoch"]
    event = {"type": "turn", "data": {"text": "x" * 250}}
    n = counted = 0
    worst_s = 0.0
    begun_s = time.perf_counter()
    while (now_s := time.perf_counter()) < begun_s + WARM_S + seconds:
        n += 1
        call("Append", run_id=name, epoch=epoch, writer=key, first_n=n, events=[event])
        if now_s > begun_s + WARM_S:
            counted += 1
            worst_s = max(worst_s, time.perf_counter() - now_s)
    sys.stdout.write(json.dumps([counted / seconds, worst_s]) + "\n")


def measure(place: str, writers: int, slow: Path | None, seconds: float) -> tuple[float, float]:
    """Receipts a second of all writers, and the worst latency in milliseconds."""
    me = [sys.executable, "-m", "tests.bench.placement"]
    with tempfile.TemporaryDirectory() as directory:
        state = Path(directory) / "state"
        env = {**os.environ, "RUNHIST_STATE_DIR": str(state), "RUNHIST_CONFIG": str(Path(directory) / "none.toml")}
        slowed = {} if slow is None else {"LD_PRELOAD": str(slow), "SLOWSYNC_US": str(SLOW_US)}
        server = subprocess.Popen([*me, "serve", place], env={**env, **slowed}, stderr=subprocess.DEVNULL)
        try:
            path = state / SOCKET_NAME
            while not path.exists():
                time.sleep(0.01)
                assert server.poll() is None, "the daemon did not start"
            command = [*me, "write", str(path), str(seconds)]
            clients = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE) for _ in range(writers)]
            said = [json.loads(client.communicate()[0]) for client in clients]
        finally:
            server.kill()
            server.wait()
    return sum(rate for rate, _ in said), max(worst for _, worst in said) * 1000


def main() -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement (default: 4)")
    parser.add_argument("--repeats", type=int, default=3, help="of each measurement, whose median counts (default: 3)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        slow = syncs.build(Path(directory))
        for title, shim in (("this disk", None), ("syncs 2 ms slower", slow)):
            for writers in (8, 1):
                for place in PLACES:
                    found = [measure(place, writers, shim, args.seconds) for _ in range(args.repeats)]
                    rates = [rate for rate, _ in found]
                    rate, spread = statistics.median(rates), f"{min(rates):6.0f} … {max(rates):6.0f}"
                    worst = statistics.median(worst for _, worst in found)
                    line = f"{title:18} {writers} writers  {place:10} {rate:6.0f}/s ({spread})  worst {worst:5.1f} ms\n"
                    sys.stdout.write(line)
                    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        sys.exit(serve(sys.argv[2]))
    if sys.argv[1:2] == ["write"]:
        write(sys.argv[2], float(sys.argv[3]))
        sys.exit(0)
    sys.exit(main())
