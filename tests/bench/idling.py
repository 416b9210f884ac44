"""What a daemon costs that has nothing to do: how often it is woken, and its memory, with connections that are open."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from uuid import uuid4

from . import machine
from .contestants import runhistd
from .measure import Place, started

CONNECTIONS = 64


def run(place: Place, seconds: float, settle_s: float = 8.0) -> dict[str, float]:
    """Wake-ups a second, the processor's time in milliseconds a second, and MB. Each connection has a live run.

    What the connections began is given `settle_s` to come to rest, the checkpoint of an idle daemon included.
    """
    with started("runhistd", place) as arena, ExitStack() as stack:
        assert arena.server is not None
        for i in range(CONNECTIONS):
            history = stack.enter_context(closing(runhistd.History(arena.directory)))
            history.call("BeginRun", run={"run_id": f"idle-{i}"}, lease_key=str(uuid4()))
        time.sleep(settle_s)
        pid = arena.server.pid
        switches, used_s, begun_s = machine.switches(pid), sum(machine.cpu_s(pid).values()), time.monotonic()
        time.sleep(seconds)
        passed_s = time.monotonic() - begun_s
        woken = (machine.switches(pid) - switches) / passed_s
        used_ms = (sum(machine.cpu_s(pid).values()) - used_s) / passed_s * 1000
        return {"wakeups": woken, "cpu_ms": used_ms, "memory": machine.rss_bytes(pid) / 1e6}
