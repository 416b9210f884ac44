"""Verdicts over hours of clock: real processes, and time that passes only when everybody waits."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, cast

import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from runhistd.daemon import liveness as module
from runhistd.daemon.commit import Slot
from runhistd.daemon.liveness import Clock, Liveness
from runhistd.daemon.peer import Peer
from runhistd.daemon.processes import Process, Processes
from runhistd.daemon.server import Connection
from runhistd.model.errors import StorageFull
from runhistd.model.holder import Holder
from runhistd.model.lease import Death
from runhistd.store.heads import Held
from runhistd.store.leases import Buried

UID = 1000
GRACE_S = 900.0
HOUR_S = 3600.0


@pytest.fixture
def clock() -> MockClock:
    """Time jumps to the next timeout when nothing else can happen."""
    return MockClock(autojump_threshold=0)


@pytest.fixture
def children() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Three processes that live until they are killed."""
    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    started = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(3)]
    yield started
    for child in started:
        child.kill()
        child.communicate()


class Watch:
    """A Liveness and what stands around it: verdicts are stored at once, unless they are to be refused."""

    def __init__(self, max_pidfds: int = 100) -> None:
        self.slept_s = 0.0
        clock = Clock(
            awake_s=trio.current_time,
            boot_s=lambda: trio.current_time() + self.slept_s,
            now_us=lambda: int(trio.current_time() * 1_000_000),
        )
        self.processes = Processes()
        self.liveness = Liveness(grace_s=GRACE_S, max_pidfds=max_pidfds, processes=self.processes, clock=clock)
        self.deaths: list[tuple[str, dict[str, Any]]] = []
        self.died = trio.Event()
        self.refusals = 0

    def hold(self, run_id: str, *holders: Holder) -> None:
        """Let these processes, and no others, hold the run."""
        self.liveness.leases_changed([Held(UID, "default", run_id, frozenset(holders))])

    def holder(self, child: subprocess.Popen[bytes]) -> Holder:
        """A process as a holder."""
        found = self.processes.find(child.pid)
        assert found is not None
        found.close()
        return found.holder

    def submit(self, death: Death, slot: Slot, size: int) -> None:
        """What the committer does with a verdict."""
        if self.refusals:
            self.refusals -= 1
            slot.settle(StorageFull())
            return
        self.deaths.append((death.run_id, msgspec.json.decode(death.evidence)))
        self.hold(death.run_id)
        self.died.set()
        slot.settle(Buried(True))

    async def run(self) -> None:
        """Watch until cancelled."""
        await self.liveness.run(self.submit, trio.lowlevel.checkpoint)

    async def wait_deaths(self, count: int) -> None:
        """Return when so many verdicts were stored."""
        while len(self.deaths) < count:
            self.died = trio.Event()
            await self.died.wait()


@pytest.fixture
async def watch(nursery: trio.Nursery) -> Watch:
    started = Watch()
    nursery.start_soon(started.run)
    return started


@pytest.mark.parametrize("max_pidfds", [100, 0])
async def test_who_exists_is_alive_for_ever_stopped_silent_or_never_connected(
    nursery: trio.Nursery, clock: MockClock, children: list[subprocess.Popen[bytes]], max_pidfds: int
) -> None:
    watch = Watch(max_pidfds)
    nursery.start_soon(watch.run)
    stopped, _, dying = children
    os.kill(stopped.pid, signal.SIGSTOP)
    for child in children:
        watch.hold(f"of {child.pid}", watch.holder(child))
    await trio.sleep(HOUR_S)
    dying.kill()
    await watch.wait_deaths(1)
    ((run_id, evidence),) = watch.deaths
    assert run_id == f"of {dying.pid}" and (evidence["evidence"], evidence["by"]) == ("exited", "pidfd")
    await trio.sleep(HOUR_S)
    assert len(watch.deaths) == 1


async def test_watching_wakes_nobody_where_the_kernel_tells_of_exits(
    watch: Watch, children: list[subprocess.Popen[bytes]]
) -> None:
    for child in children:
        watch.hold(f"of {child.pid}", watch.holder(child))
    await wait_all_tasks_blocked()
    assert trio.lowlevel.current_statistics().seconds_to_next_deadline == float("inf")


def untold(watch: Watch) -> Holder:
    """A process in another pid namespace, of which the kernel tells nothing once its connection is gone."""
    return Holder(0, "pidfd:1", watch.processes.boot_id)


async def test_of_whom_nothing_is_told_the_grace_begins_with_the_daemon(watch: Watch, clock: MockClock) -> None:
    began_s = trio.current_time()
    watch.hold("r", untold(watch))
    await watch.wait_deaths(1)
    assert GRACE_S <= trio.current_time() - began_s < GRACE_S + 2 * module.POLL_S
    ((_, evidence),) = watch.deaths
    assert (evidence["pid"], evidence["evidence"], evidence["by"]) == (None, "disconnected", "grace")


async def test_a_connection_keeps_alive_and_the_grace_begins_at_its_end(watch: Watch, clock: MockClock) -> None:
    holder = untold(watch)
    watch.hold("r", holder)
    ours, theirs = socket.socketpair()
    with theirs:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        connection = Connection(stream, Peer(UID, Process(holder)), cast(Any, None), 1000)
        watch.liveness.connected(connection)
        await trio.sleep(HOUR_S)
        watch.liveness.disconnected(connection)
        await stream.aclose()
    ended_s = trio.current_time()
    assert watch.deaths == []
    await watch.wait_deaths(1)
    assert GRACE_S <= trio.current_time() - ended_s < GRACE_S + 2 * module.POLL_S


async def test_the_grace_begins_anew_when_the_machine_wakes(watch: Watch, clock: MockClock) -> None:
    watch.hold("r", untold(watch))
    await trio.sleep(GRACE_S - 3 * module.POLL_S)
    watch.slept_s = HOUR_S
    woke_s = trio.current_time()
    await watch.wait_deaths(1)
    assert GRACE_S <= trio.current_time() - woke_s < GRACE_S + 3 * module.POLL_S


async def test_a_run_is_orphaned_by_every_death_of_its_holders_and_let_go_at_its_end(
    watch: Watch, clock: MockClock, children: list[subprocess.Popen[bytes]]
) -> None:
    one, other, third = map(watch.holder, children)
    watch.hold("shared", one, other)
    watch.hold("ended", third)
    watch.hold("ended")
    children[2].kill()
    children[0].kill()
    await watch.wait_deaths(1)
    assert [run_id for run_id, _ in watch.deaths] == ["shared"]


async def test_a_verdict_that_cannot_be_stored_is_tried_again_and_the_status_says_why(
    watch: Watch, clock: MockClock, children: list[subprocess.Popen[bytes]]
) -> None:
    watch.refusals = 3
    watch.hold("r", watch.holder(children[0]))
    children[0].kill()
    children[0].wait()
    await trio.sleep(2 * module.RETRY_S)
    (delayed,) = watch.liveness.delayed()
    assert (delayed.pid, delayed.runs) == (children[0].pid, 1)
    assert delayed.why == "the verdict cannot be stored: StorageFull"
    await watch.wait_deaths(1)
    assert watch.liveness.delayed() == []


async def test_the_dead_of_before_the_start_are_judged_without_watching(
    clock: MockClock, children: list[subprocess.Popen[bytes]]
) -> None:
    watch = Watch()
    dead, alive = watch.holder(children[0]), watch.holder(children[1])
    children[0].kill()
    children[0].wait()
    runs = [Held(UID, "default", f"r{i}", frozenset({dead})) for i in range(3)]
    found = watch.liveness.take_over([*runs, Held(UID, "default", "alive", frozenset({alive}))])
    assert found == [dead]
    watch.liveness.submit_verdicts(watch.submit)
    assert sorted(run_id for run_id, _ in watch.deaths) == ["r0", "r1", "r2"]
    watch.liveness.submit_verdicts(watch.submit)
    assert len(watch.deaths) == 3
    watch.liveness.close()
