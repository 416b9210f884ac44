"""Who is alive: a run may be declared orphaned only when the last process that holds it is known to be dead.

A verdict rests on the kernel alone. A process is dead when its pidfd says that it has ended (a zombie has), when the pid
that was recorded belongs to nobody or to another process now, or when it was recorded before the machine's last boot. One
that exists is alive for ever, connected or not, however long it was silent or stopped. Only of one that the kernel tells
nothing about (it lives in another pid namespace, and we hold nothing of it since we were started) is it believed that it
is dead, after it was unconnected for `grace_s`; that time starts anew with the daemon, and when the machine wakes.

Last words come before the verdict. What a dead process had written is still in its sockets, some of which may not even
be accepted yet, and in its spools; all that is queued with the committer first, and the verdict behind it, so that an
end which the process had recorded itself is found by the verdict and wins. Where that cannot be finished the verdict
waits, and `delayed` says why.

The kernel tells of exits through one descriptor for all processes. Of a process that it cannot tell about that way (no
pidfds, or no descriptors to spare) we ask again every POLL_S, and only then does an idle daemon wake.
"""

from __future__ import annotations

import logging
import resource
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

import msgspec
import trio
from attrs import define, field, frozen

from runhistd.model.errors import Refusal
from runhistd.model.holder import Holder
from runhistd.model.lease import Death
from runhistd.model.views import Delayed
from runhistd.store.heads import Held

from .processes import Evidence, Exits, Process, Processes

if TYPE_CHECKING:
    from .commit import Outcome, Slot
    from .server import Connection

logger = logging.getLogger("runhistd.liveness")

POLL_S = 5.0
RETRY_S = 5.0  # after a verdict could not be stored, because the disk was full
DELAYED_US = 2_000_000  # what it may take to hear a dead process out, before somebody is told
SUSPENDED_S = 1.0  # by how much the two clocks must differ for a sleep of the machine

DISCONNECTED = Evidence("disconnected", "grace")

RunName = tuple[int, str, str]
"""uid, namespace, run_id."""
Submit = Callable[[Death, "Slot", int], None]

encode = msgspec.json.Encoder().encode


def boot_time_s() -> float:
    """Seconds since the boot, those counted in which the machine slept."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def wall_us() -> int:
    """The wall clock in microseconds."""
    return time.time_ns() // 1000


@frozen
class Clock:
    """The clocks that verdicts need: one that stands still while the machine sleeps, one that does not, and the date."""

    awake_s: Callable[[], float] = time.monotonic
    boot_s: Callable[[], float] = boot_time_s
    now_us: Callable[[], int] = wall_us


@define(eq=False)
class _Held:
    """A process that holds runs. `process` is None while the kernel tells nothing of it."""

    holder: Holder
    process: Process | None = None
    runs: set[RunName] = field(factory=set)
    grace_ends_s: float = 0.0
    evidence: Evidence | None = None
    dead_since_us: int = 0
    why_delayed: str = ""


class _Verdicts:
    """The committer's answers to the verdicts on one process."""

    connection = None

    def __init__(self, count: int) -> None:
        self._missing = count
        self.refusal: Refusal | None = None
        self.settled = trio.Event()

    def settle(self, outcome: Outcome) -> None:
        """Take the answer to one of them."""
        if isinstance(outcome, Refusal):
            self.refusal = outcome
        self._missing -= 1
        if self._missing == 0:
            self.settled.set()


class Liveness:
    """Watches the processes that hold runs, and has those of the dead declared orphaned.

    No more than `max_pidfds` are kept open; of the processes beyond that it is asked.
    """

    def __init__(
        self,
        *,
        grace_s: float,
        max_pidfds: int,
        processes: Processes | None = None,
        clock: Clock = Clock(),
    ) -> None:
        self.processes = processes or Processes()
        self._grace_s = grace_s
        self._max_pidfds = max_pidfds
        self._clock = clock
        self._asleep_s = clock.boot_s() - clock.awake_s()
        self._exits = Exits()
        self._holders: dict[RunName, frozenset[Holder]] = {}
        self._held: dict[Holder, _Held] = {}
        self._watched: set[Holder] = set()
        self._asked: set[Holder] = set()  # whom the kernel does not tell about by itself
        self._connections: defaultdict[Holder, set[Connection]] = defaultdict(set)
        self._dead: deque[_Held] = deque()
        self.drain_spools: Callable[[], Awaitable[str]] = _nothing_spooled
        self._dead_found = trio.Event()
        self._asking_needed = trio.Event()

    # --- what is told to us ---

    def leases_changed(self, leases: Iterable[Held]) -> None:
        """These runs are held by these processes now, and by no others."""
        for held in leases:
            self._lease_changed((held.uid, held.namespace, held.run_id), held.holders)

    def _lease_changed(self, name: RunName, holders: frozenset[Holder]) -> None:
        before = self._holders.get(name, frozenset())
        if holders:
            self._holders[name] = holders
        else:
            self._holders.pop(name, None)
        for holder in before - holders:
            self._let_go(holder, name)
        for holder in holders - before:
            held = self._held.get(holder)
            if held is None:
                held = self._held[holder] = _Held(holder)
                self._look(held)
            held.runs.add(name)

    def connected(self, connection: Connection) -> None:
        """A process has connected; it may hold runs already."""
        process = connection.peer.process
        self._connections[process.holder].add(connection)
        held = self._held.get(process.holder)
        if held is not None and held.evidence is None and held.holder in self._asked:
            self._look(held)

    def disconnected(self, connection: Connection) -> None:
        """The connection is at its end, and all that it brought is with the committer."""
        holder = connection.peer.process.holder
        connections = self._connections[holder]
        connections.discard(connection)
        if not connections:
            del self._connections[holder]
            if holder in self._held:
                self._held[holder].grace_ends_s = self._clock.awake_s() + self._grace_s

    def configure(self, *, grace_s: float, max_pidfds: int) -> None:
        """Other settings from now on. What is open stays open, and a grace that has begun ends as it would have."""
        self._grace_s = grace_s
        self._max_pidfds = max_pidfds

    def delayed(self) -> list[Delayed]:
        """The verdicts that have waited for a while, and what for."""
        now_us = self._clock.now_us()
        return [
            Delayed(held.holder.pid or None, len(held.runs), held.dead_since_us, held.why_delayed)
            for held in self._held.values()
            if held.why_delayed and now_us - held.dead_since_us >= DELAYED_US
        ]

    # --- looking ---

    def _look(self, held: _Held) -> None:
        """Find out about a process, and arrange for news of it."""
        found = self._find(held.holder)
        if isinstance(found, Evidence):
            self._is_dead(held, found)
            return
        if found is None and held.process is None and not held.grace_ends_s:
            held.grace_ends_s = self._clock.awake_s() + self._grace_s
        if held.process is not None:
            held.process.close()
        held.process = found
        if found is not None and len(self._watched) < self._max_pidfds and self._exits.watch(found):
            self._watched.add(held.holder)
            self._asked.discard(held.holder)
            return
        if found is not None:
            found.close()
        self._asked.add(held.holder)
        self._asking_needed.set()

    def _find(self, holder: Holder) -> Process | Evidence | None:
        for connection in self._connections.get(holder, ()):
            if connection.peer.process.is_dead():
                return Evidence("exited", "pidfd")
            if connection.peer.process.pidfd is not None:
                return connection.peer.process.share()
        return self.processes.find_again(holder)

    def _is_dead(self, held: _Held, evidence: Evidence) -> None:
        held.evidence = evidence
        held.dead_since_us = self._clock.now_us()
        held.why_delayed = "what it left in its connections is still read"
        self._stop_looking(held)
        for connection in self._connections.get(held.holder, ()):
            connection.peer_died()
        self._dead.append(held)
        self._dead_found.set()

    def _stop_looking(self, held: _Held) -> None:
        self._asked.discard(held.holder)
        self._watched.discard(held.holder)
        if held.process is not None:
            self._exits.forget(held.process)
            held.process.close()

    def _let_go(self, holder: Holder, name: RunName) -> None:
        held = self._held[holder]
        held.runs.discard(name)
        if not held.runs:
            self._stop_looking(held)
            del self._held[holder]

    # --- at the start ---

    def take_over(self, leases: Iterable[Held]) -> list[Holder]:
        """Take in all leases of the history at the daemon's start; returns the processes that are known to be dead."""
        self.leases_changed(leases)
        return [held.holder for held in self._dead]

    def submit_verdicts(self, submit: Submit) -> None:
        """Queue the verdicts on all that are known to be dead; their last words were taken before."""
        for held in self._dead:
            queue_verdicts(held, submit)

    # --- while the daemon serves ---

    async def run(self, submit: Submit, all_accepted: Callable[[], Awaitable[None]]) -> None:
        """Watch until cancelled.

        `submit` queues a request with the committer; `all_accepted` returns when everyone who had connected before it was
        called is `connected` here.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._notice_exits)
            nursery.start_soon(self._ask)
            while True:
                while self._dead:
                    held = self._dead.popleft()
                    if held.runs:
                        nursery.start_soon(self._bury, held, submit, all_accepted)
                self._dead_found = trio.Event()
                await self._dead_found.wait()

    def close(self) -> None:
        """Give all descriptors back."""
        for held in self._held.values():
            self._stop_looking(held)
        self._exits.close()

    async def _notice_exits(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._exits.fileno())
            for process in self._exits.take():
                held = self._held.get(process.holder)
                if held is not None and held.evidence is None:
                    self._is_dead(held, Evidence("exited", "pidfd"))

    async def _ask(self) -> None:
        """Ask about those of whom we are not told, as long as there are any."""
        while True:
            self._asking_needed = trio.Event()
            if not self._asked:
                await self._asking_needed.wait()
            await trio.sleep(POLL_S)
            self._restart_grace_after_sleep()
            now_s = self._clock.awake_s()
            for holder in list(self._asked):
                held = self._held[holder]
                self._look(held)
                is_untold = held.evidence is None and held.process is None and holder not in self._connections
                if is_untold and now_s >= held.grace_ends_s:
                    self._is_dead(held, DISCONNECTED)

    def _restart_grace_after_sleep(self) -> None:
        asleep_s = self._clock.boot_s() - self._clock.awake_s()
        if asleep_s > self._asleep_s + SUSPENDED_S:
            logger.info("the machine slept", extra={"fields": {"seconds": round(asleep_s - self._asleep_s)}})
            for holder in self._asked:
                self._held[holder].grace_ends_s = self._clock.awake_s() + self._grace_s
        self._asleep_s = asleep_s

    async def _bury(self, held: _Held, submit: Submit, all_accepted: Callable[[], Awaitable[None]]) -> None:
        """Hear the dead process out, then have its runs declared orphaned."""
        await all_accepted()
        if held.evidence == DISCONNECTED and held.holder in self._connections:
            held.evidence, held.why_delayed = None, ""  # it came back meanwhile
            self._look(held)
            return
        for connection in list(self._connections.get(held.holder, ())):
            connection.peer_died()
            await connection.heard_out()
        while why := await self.drain_spools():
            held.why_delayed = why
            await trio.sleep(RETRY_S)
        while held.runs:
            verdicts = queue_verdicts(held, submit)
            await verdicts.settled.wait()
            if verdicts.refusal is not None:
                held.why_delayed = f"the verdict cannot be stored: {type(verdicts.refusal).__name__}"
                await trio.sleep(RETRY_S)


async def _nothing_spooled() -> str:
    return ""


def queue_verdicts(held: _Held, submit: Submit) -> _Verdicts:
    """Queue a verdict for every run that the process holds."""
    verdicts = _Verdicts(len(held.runs))
    told = evidence_of(held)
    evidence = encode(told)
    for name in list(held.runs):
        _, namespace, run_id = name
        seen = {"peer_pid": told["pid"], "evidence": told["evidence"], "by": told["by"]}
        fields = {"namespace": namespace, "run_id": run_id, **seen}
        logger.info("the process that held a run is dead", extra={"fields": fields})
        submit(Death(*name, held.holder, evidence), verdicts, len(evidence))
    return verdicts


def evidence_of(held: _Held) -> dict[str, str | int | None]:
    """What a run.incomplete says of why its run is taken for orphaned."""
    assert held.evidence is not None
    return {
        "reason": "orphaned",
        "pid": held.holder.pid or None,
        "evidence": held.evidence.found,
        "by": held.evidence.by,
        "seen_us": held.dead_since_us,
    }


def descriptors_to_spare(connections: int) -> int:
    """How many pidfds may be held when so many connections, with two descriptors each, are allowed.

    Raises the process's soft limit to the hard one first: nothing here uses select(2), which the soft one is low for.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):  # macOS: the hard limit may be "unlimited", and is not
            pass
    if soft == resource.RLIM_INFINITY:
        soft = 2**20
    return max(soft - 2 * connections - 100, soft // 4)
