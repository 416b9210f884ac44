"""What all connections share: the settings, the committer, the readers, and by which methods a call is carried out."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import trio

from runhist.protocol import INTERFACE, SERVICE
from runhistd.config import Config
from runhistd.model.decide import Append
from runhistd.model.errors import Damaged, InvalidParameter, Refusal, ShuttingDown
from runhistd.model.importing import Import
from runhistd.model.lease import Claim
from runhistd.model.retention import Decision, Policy
from runhistd.store import blobs, garbage
from runhistd.store.database import DamagedDatabase
from runhistd.store.log import Request

from . import control_calls
from .blobs import Blobs
from .budget import Budget
from .clocks import NAME as CLOCKS_NAME
from .clocks import Clocks, RememberedClocks
from .collect import Collector
from .commit import Committer, Outcome, now_us
from .envelope import Envelope
from .follow import Tail
from .instance import Instance
from .intake import Intake
from .json_stream import Unsound
from .liveness import Liveness
from .methods import ANSWERED_WHEN_DAMAGED, METHODS, STREAMS, WRITES
from .peer import Peer
from .reading import Readers
from .reload import Reload
from .reply import Reply
from .server import Connection
from .shares import check_content
from .spool import Spools
from .sweep import Asked, Sweeper
from .users import Users

EVENT_OVERHEAD_BYTES = 400  # of an event in the queue beside its text
SPOOLED_BYTES = 32 * 1024  # of one spooled request in the queue: a part of at most 1 MiB is 32 of them
T = TypeVar("T")


class Service:
    """What all connections share."""

    def __init__(
        self,
        instance: Instance,
        reload: Reload,
        instance_id: str,
        committer: Committer,
        tail: Tail,
        liveness: Liveness,
        serves_all: bool,
    ) -> None:
        self.recover = "runhistd recover --system" if serves_all else "runhistd recover"
        """The command that saves what can be read of a damaged history."""
        self.users = Users(serves_all=serves_all, admin_group=lambda: self.config.admin_group)
        self.instance = instance
        self.reload = reload
        self.instance_id = instance_id
        self.committer = committer
        self.intake = Intake(committer)
        self.tail = tail
        self.liveness = liveness
        self.sweeper = Sweeper(committer, self._collect_blobs)
        self.blobs = Blobs(instance.state_dir, self.sweeper, functools.partial(check_content, self))
        self.blobs.on_full = lambda: committer.space.note_refused(1, now_us())
        clocks = RememberedClocks(Clocks(), instance.state_dir / CLOCKS_NAME)
        self.collector = Collector(lambda: self.config, self._garbage, self.sweeper, clocks.trusted)
        self._blobs_cleaned = False
        event_bytes = lambda: self.config.event_bytes  # noqa: E731 - it may be changed while the daemon serves
        self.spools = Spools(instance.state_dir / "spool", instance_id, liveness.processes, event_bytes, self._keep_and_ask)
        liveness.drain_spools = self.spools.drain
        self.connections: set[Connection] = set()
        self.sockets: list[str] = []
        self.state = "recording"
        self.damage: DamagedDatabase | None = None
        self._damaged = trio.Event()
        self.large_frame = trio.Lock()
        self.large_frame_of: defaultdict[int, trio.Lock] = defaultdict(trio.Lock)
        self.budget = Budget(self.config.queue_bytes // 2)
        self.stopping = trio.Event()
        self.started_us = now_us()
        self.readers = Readers(instance.database)

    @property
    def config(self) -> Config:
        """The settings in force."""
        return self.reload.current

    async def _check_content(self, request: Append | Claim | Import) -> None:
        """Refuse content that is no data. What its user has not given is refused later, and nobody is told more of it."""
        for i, event in enumerate(request.events):
            blob = event.data_blob
            if blob is not None and await self.read(blobs.is_given, request.uid, blob.sha256):
                try:
                    await self.blobs.check_data(blob.sha256)
                except Unsound as fault:
                    raise InvalidParameter(f"events[{i}].data_blob") from fault

    async def _keep_and_ask(self, requests: list[Request]) -> list[Outcome]:
        """Have requests committed, their large data kept first, and wait for what became of them."""
        kept = []
        for request in requests:
            try:
                kept.append(await self._keep_large(request))
            except Refusal as refusal:
                return [*await self._ask_in_order(kept), refusal]
        return await self._ask_in_order(kept)

    async def _ask_in_order(self, requests: list[Request]) -> list[Outcome]:
        await self.committer.wait_room()
        asked = [Asked() for _ in requests]
        for request, slot in zip(requests, asked, strict=True):
            self.committer.submit(request, slot, SPOOLED_BYTES)
        outcomes = []
        for slot in asked:
            await slot.settled.wait()
            assert slot.outcome is not None
            outcomes.append(slot.outcome)
        return outcomes

    def is_write(self, call: Envelope) -> bool:
        """Whether the call is one for the committer."""
        return call.method in WRITES

    def submit(self, peer: Peer, call: Envelope, reply: Reply) -> bool:
        """Queue a write; False for other calls, and where large data is to be kept before. Raises Refusal."""
        if call.method not in WRITES or call.size > self.config.inline_limit:
            return False
        request = self._request(peer, call)
        if names_content(request):
            return False
        self._queue(request, call, reply)
        return True

    def _request(self, peer: Peer, call: Envelope) -> Request:
        self._refuse_when_unable(call.method)
        return WRITES[call.method](self, peer, call.parameters)

    def _queue(self, request: Request, call: Envelope, reply: Reply) -> None:
        events = len(request.events) if isinstance(request, Append | Claim | Import) else 0
        self.committer.submit(request, reply, call.size + events * EVENT_OVERHEAD_BYTES)

    async def _keep_large(self, request: Request) -> Request:
        if isinstance(request, Append | Claim | Import):
            await self._check_content(request)
            return await self.blobs.keep_large(request, self.config.inline_limit)
        return request

    async def answer(self, connection: Connection, call: Envelope, reply: Reply) -> None:
        """Carry out what `submit` does not. Raises Refusal."""
        if self.is_write(call):
            self._queue(await self._keep_large(self._request(connection.peer, call)), call, reply)
            return
        interface, _, method = call.method.rpartition(".")
        if interface not in (INTERFACE, SERVICE):
            reply.fail("InterfaceNotFound", interface=interface)
            return
        found = METHODS.get(call.method)
        if found is None:
            reply.fail("MethodNotFound", method=method)
            return
        cls, handle = found
        self._refuse_when_unable(call.method)
        asked = control_calls.structure(call.parameters, cls)
        if connection.is_broken and method.startswith(("Describe", "Get", "List", "Follow")):
            reply.frame = b""  # nobody takes what would be read; what changes something was meant, and is carried out
        elif method in STREAMS and call.more:
            await STREAMS[method](self, connection, asked)
        elif handle is None:
            reply.fail("ExpectedMore")
        else:
            reply.frame = connection.machine.send_reply(await handle(self, connection.peer, asked))

    def note_damage(self, damage: DamagedDatabase) -> None:
        """The database was seen to be damaged; whoever waits for that hears of it."""
        self.damage = self.damage or damage
        self._damaged.set()

    async def wait_damage(self) -> None:
        """Raise DamagedDatabase when somebody has read what cannot be."""
        await self._damaged.wait()
        assert self.damage is not None
        raise self.damage

    def _refuse_when_unable(self, method: str) -> None:
        if self.stopping.is_set():
            raise ShuttingDown
        if self.damage is not None and method not in ANSWERED_WHEN_DAMAGED:
            raise Damaged(self.recover)

    async def read(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Call a function of the reader with a connection of its own, in a thread. Raises Busy, Damaged."""
        with self._noting_damage():
            return await self.readers.read(function, *arguments, **options)

    async def read_page(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """The same for what reads a page: at once, if that takes no longer than a commit may."""
        with self._noting_damage():
            return await self.readers.read_page(function, *arguments, **options)

    @contextmanager
    def _noting_damage(self) -> Iterator[None]:
        try:
            yield
        except DamagedDatabase as damage:
            self.note_damage(damage)
            raise Damaged(self.recover) from damage

    async def _garbage(self, policy: Policy, at_us: int, trust_clock: bool) -> list[Decision]:
        return await self.read(garbage.find, policy, at_us, trust_clock=trust_clock)

    async def _collect_blobs(self) -> int:
        if not self._blobs_cleaned:  # what a crash left
            self._blobs_cleaned = True
            known = await self.read(blobs.known)
            await trio.to_thread.run_sync(self.blobs.clean, known, now_us())
        return await self.blobs.collect(await self.read(blobs.unused, now_us()))

    def close(self) -> None:
        """Close the read-only connections, give up what is being uploaded, and read no sockets any more."""
        self.intake.close()
        self.blobs.close()
        self.readers.close()


def names_content(request: Request) -> bool:
    """Whether the data of one of its events is content that was given before."""
    return isinstance(request, Append | Claim | Import) and any(event.data_blob is not None for event in request.events)
