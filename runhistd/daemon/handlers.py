"""What each method does: one function a method, found by a table.

Writes only make a request for the committer, and so does what is only shown. Everything else reads, in a thread with one
of a few read-only connections, and answers with the wire's own types.
"""

from __future__ import annotations

import base64
import functools
import re
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

import cattrs
import msgspec
import trio
from msgspec import Raw

import runhistd
from runhist.identity import user_of
from runhist.protocol import INTERFACE, SERVICE, interface_text
from runhistd.config import Config
from runhistd.model.decide import Append
from runhistd.model.errors import (
    Damaged,
    InvalidParameter,
    NoSuchRun,
    PermissionDenied,
    PositionExpired,
    Refusal,
    ShuttingDown,
)
from runhistd.model.events import KINDS, MAX_COUNT, STATUSES
from runhistd.model.holder import Holder
from runhistd.model.ids import check_name
from runhistd.model.importing import Import
from runhistd.model.lease import Begin, Claim, Release
from runhistd.model.publish import Publish
from runhistd.model.removal import Delete, Pin
from runhistd.model.retention import Decision, Policy
from runhistd.model.views import EventFilter, Retained, RunFilter
from runhistd.store import blobs, reader
from runhistd.store.database import SCHEMA_VERSION, DamagedDatabase
from runhistd.store.log import Request

from . import calls
from .blobs import Blobs
from .budget import Budget
from .clocks import NAME as CLOCKS_NAME
from .clocks import Clocks, RememberedClocks
from .collect import Collector
from .commit import Committer, Outcome, now_us
from .follow import PAGE_BYTES, PAGE_EVENTS, Page, Tail, encode_event, encode_gap, follow
from .inbox import INBOX_BYTES
from .instance import Instance
from .json_stream import Unsound
from .liveness import Liveness
from .reading import Readers
from .reload import Reload
from .server import PUBLISH, Connection, Peer, Reply
from .shares import check_content
from .spool import Spools
from .status import get_status
from .sweep import Asked, Sweeper
from .users import Users, whose

LIST_LIMIT = 50
MAX_LIST_LIMIT = 1000
MAX_SHOWN_BYTES = INBOX_BYTES // 2
HEARTBEAT_S = 3600.0  # of followers that asked for none: the cursor of a quiet filter still moves
EVENT_OVERHEAD_BYTES = 400  # of an event in the queue beside its text
SPOOLED_BYTES = 32 * 1024  # of one spooled request in the queue: a part of at most 1 MiB is 32 of them
FEATURES = ["publish"]
ANSWERED_WHEN_DAMAGED = {f"{SERVICE}.GetInfo", f"{SERVICE}.GetInterfaceDescription", f"{INTERFACE}.GetStatus"}
T = TypeVar("T")

_views = cattrs.Converter()
_views.register_unstructure_hook(Raw, lambda raw: raw)
_encode = msgspec.json.Encoder().encode


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
        self.tail = tail
        self.liveness = liveness
        self.sweeper = Sweeper(committer.submit, self._collect_blobs)
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

    async def submit(self, connection: Connection, call: calls.Envelope, reply: Reply) -> bool:
        """Queue a write, at once unless it has large data to be kept first; False when the call is none. Raises Refusal."""
        make_request = WRITES.get(call.method)
        if make_request is None:
            return False
        self._refuse_when_stopping()
        self._refuse_when_damaged(call.method)
        request = make_request(self, connection.peer, call.parameters)
        if call.size > self.config.inline_limit or names_content(request):
            request = await self._keep_large(request)
        events = len(request.events) if isinstance(request, Append | Claim | Import) else 0
        self.committer.submit(request, reply, call.size + events * EVENT_OVERHEAD_BYTES)
        return True

    async def _keep_large(self, request: Request) -> Request:
        if isinstance(request, Append | Claim | Import):
            await self._check_content(request)
            return await self.blobs.keep_large(request, self.config.inline_limit)
        return request

    async def answer(self, connection: Connection, call: calls.Envelope, reply: Reply) -> None:
        """Carry out any other call. Raises Refusal."""
        interface, _, method = call.method.rpartition(".")
        if interface not in (INTERFACE, SERVICE):
            reply.fail("InterfaceNotFound", interface=interface)
            return
        found = METHODS.get(call.method)
        if found is None:
            reply.fail("MethodNotFound", method=method)
            return
        cls, handle = found
        self._refuse_when_stopping()
        self._refuse_when_damaged(call.method)
        asked = calls.structure(call.parameters, cls)
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

    def _refuse_when_damaged(self, method: str) -> None:
        if self.damage is not None and method not in ANSWERED_WHEN_DAMAGED:
            raise Damaged(self.recover)

    async def read(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Call a function of the reader with a connection of its own, in a thread. Raises Busy, Damaged."""
        try:
            return await self.readers.read(function, *arguments, **options)
        except DamagedDatabase as damage:
            self.note_damage(damage)
            raise Damaged(self.recover) from damage

    async def _garbage(self, policy: Policy, at_us: int, trust_clock: bool) -> list[Decision]:
        return await self.read(reader.garbage, policy, at_us, trust_clock=trust_clock)

    async def _collect_blobs(self) -> int:
        if not self._blobs_cleaned:  # what a crash left
            self._blobs_cleaned = True
            known = await self.read(blobs.known)
            await trio.to_thread.run_sync(self.blobs.clean, known, now_us())
        return await self.blobs.collect(await self.read(blobs.unused, now_us()))

    def close(self) -> None:
        """Close the read-only connections, and give up what is being uploaded."""
        self.blobs.close()
        self.readers.close()

    def _refuse_when_stopping(self) -> None:
        if self.stopping.is_set():
            raise ShuttingDown


def names_content(request: Request) -> bool:
    """Whether the data of one of its events is content that was given before."""
    return isinstance(request, Append | Claim | Import) and any(event.data_blob is not None for event in request.events)


def append_request(service: Service, peer: Peer, parameters: Raw) -> Append:
    """Append as a request."""
    return calls.decode_append(parameters, peer.uid, peer.sender, service.config.event_bytes)


def publish_request(service: Service, peer: Peer, parameters: Raw) -> Publish:
    """Publish as a request. More than fits an inbox could never be seen."""
    return calls.decode_publish(parameters, peer.uid, min(service.config.event_bytes, MAX_SHOWN_BYTES))


def begin_request(service: Service, peer: Peer, parameters: Raw) -> Begin:
    """BeginRun as a request. The owner is the peer, or a process of its user that it names."""
    call, spec = calls.decode_begin(parameters, service.config.event_bytes)
    owner, namespace = owner_of(service, peer, call), spec.namespace or "default"
    return Begin(peer.uid, namespace, spec.run_id, call.lease_key, owner, bytes(call.run), spec.time_us, call.lease)


def claim_request(service: Service, peer: Peer, parameters: Raw) -> Claim:
    """ClaimRun as a request; its owner as in BeginRun."""
    namespace, call = calls.decode_claim(parameters, service.config.event_bytes)
    return Claim(
        uid=peer.uid,
        namespace=namespace,
        run_id=call.run_id,
        lease_key=call.lease_key,
        holder=owner_of(service, peer, call),
        expect_status=None if call.expect_status is None else tuple(call.expect_status),
        expect_seq=call.expect_seq,
        takeover=bool(call.takeover),
        writer=call.writer,
        first_n=call.first_n,
        events=call.events or [],
    )


def release_request(service: Service, peer: Peer, parameters: Raw) -> Release:
    """ReleaseRun as a request."""
    return calls.decode_release(parameters, peer.uid)


def import_request(service: Service, peer: Peer, parameters: Raw) -> Import:
    """ImportEvents as a request."""
    return calls.decode_import(parameters, peer.uid, service.config.event_bytes)


def owner_of(service: Service, peer: Peer, call: calls.BeginCall | calls.ClaimCall) -> Holder:
    """The process that a lease is granted to: the peer, or one of its user that it names. Raises InvalidParameter."""
    if call.owner_pid is None:
        return peer.holder
    if call.caller_pid != peer.pid:
        raise InvalidParameter("caller_pid")  # it counts processes otherwise than we do: owner_pid means another
    owner = service.liveness.processes.find(call.owner_pid)
    if owner is None or user_of(call.owner_pid) != peer.uid:
        raise InvalidParameter("owner_pid")
    owner.close()
    return owner.holder


async def get_info(service: Service, peer: Peer, call: calls.GetInfo) -> Any:
    return {
        "vendor": "runhist",
        "product": "runhistd",
        "version": runhistd.__version__,
        "url": "https://varlink.org",
        "interfaces": [SERVICE, INTERFACE],
    }


async def get_interface_description(service: Service, peer: Peer, call: calls.GetInterfaceDescription) -> Any:
    if call.interface not in (INTERFACE, SERVICE):
        raise InvalidParameter("interface")
    return {"description": interface_text() if call.interface == INTERFACE else SERVICE_TEXT}


async def describe(service: Service, peer: Peer, call: calls.Describe) -> Any:
    return {
        "version": runhistd.__version__,
        "features": FEATURES,
        "limits": {
            "frame_bytes": service.config.frame_bytes,
            "event_bytes": service.config.event_bytes,
            "inline_limit": service.config.inline_limit,
            "events": calls.MAX_EVENTS,
        },
        "instance_id": service.instance_id,
        "schema": SCHEMA_VERSION,
        "database": str(service.instance.database),
    }


async def delete_run(service: Service, peer: Peer, call: calls.DeleteRun) -> Any:
    deleted = await service.sweeper.ask(Delete(peer.uid, *name_of(call)))
    service.sweeper.wake()
    return deleted


async def pin_run(service: Service, peer: Peer, call: calls.PinRun) -> Any:
    await service.sweeper.ask(Pin(peer.uid, *name_of(call), pinned=True))
    return {}


async def unpin_run(service: Service, peer: Peer, call: calls.UnpinRun) -> Any:
    await service.sweeper.ask(Pin(peer.uid, *name_of(call), pinned=False))
    return {}


async def collect_garbage(service: Service, peer: Peer, call: calls.CollectGarbage) -> Any:
    decisions, skipped = await service.collector.collect(dry_run=bool(call.dry_run))
    runs = [
        Retained(one.run.namespace, one.run.run_id, one.run.status, one.run.ended_us, one.bytes, one.rule)
        for one in decisions
        if one.run.uid == peer.uid
    ]
    return _views.unstructure({"decisions": runs, "skipped": skipped})


async def get_artifacts(service: Service, peer: Peer, call: calls.GetArtifacts) -> Any:
    page = whole_page(call.page)
    arguments = (call.name, int(page or 0), limit_of(call.limit, MAX_LIST_LIMIT))
    rows, next_after_seq = await service.read(blobs.artifacts, whose(peer, call.uid), *name_of(call), *arguments)
    next_page = None if next_after_seq is None else str(next_after_seq)
    return _views.unstructure({"artifacts": rows, "next_page": next_page})


async def put_blob(service: Service, peer: Peer, call: calls.PutBlob) -> Any:
    check_name("upload", call.upload)
    done = bool(call.done)
    size, sha256 = await service.blobs.put(peer.uid, call.upload, call.offset, call.base64, done=done)
    return {"size": size, "sha256": sha256}


async def get_run(service: Service, peer: Peer, call: calls.GetRun) -> Any:
    run, detail = await service.read(reader.get_run, whose(peer, call.uid), *name_of(call))
    return _views.unstructure({"run": run, "detail": detail})


async def list_runs(service: Service, peer: Peer, call: calls.ListRuns) -> Any:
    for i, wanted_status in enumerate(call.status or ()):
        if wanted_status not in STATUSES:
            raise InvalidParameter(f"status[{i}]")
    if call.name is not None:
        check_name("name", call.name)
    status = None if call.status is None else tuple(call.status)
    wanted = RunFilter(
        namespace=call.namespace,
        status=status,
        agent_id=call.agent_id,
        workflow=call.workflow,
        team_id=call.team_id,
        team_run_id=call.team_run_id,
        parent_run_id=call.parent_run_id,
        since_us=call.since_us,
        name=call.name,
    )
    uid = whose(peer, call.uid)
    if call.all_users:
        if not peer.is_admin:
            raise PermissionDenied
        for member in ("uid", "name", "team_run_id", "parent_run_id"):
            if getattr(call, member) is not None:
                raise InvalidParameter(member)  # they name within one user's runs
    everyone = None if call.all_users else uid
    page = await service.read(reader.list_runs, everyone, wanted, whole_page(call.page), limit_of(call.limit))
    return _views.unstructure({"runs": page.runs, "next_page": page.next_page, "total": page.total})


async def list_interrupted(service: Service, peer: Peer, call: calls.ListInterrupted) -> Any:
    wanted = RunFilter(namespace=call.namespace, agent_id=call.agent_id, workflow=call.workflow)
    arguments = (whose(peer, call.uid), wanted, whole_page(call.page), limit_of(call.limit))
    runs, next_page = await service.read(reader.list_interrupted, *arguments)
    return _views.unstructure({"runs": runs, "next_page": next_page})


async def get_steps(service: Service, peer: Peer, call: calls.GetSteps) -> Any:
    arguments = (whose(peer, call.uid), *name_of(call), whole_page(call.page), limit_of(call.limit, MAX_LIST_LIMIT))
    steps, next_page = await service.read(reader.get_steps, *arguments)
    return _views.unstructure({"steps": steps, "next_page": next_page})


async def get_usage(service: Service, peer: Peer, call: calls.GetUsage) -> Any:
    if call.page is not None:
        check_usage_page(call.page)
    arguments = (whose(peer, call.uid), *name_of(call), call.page, limit_of(call.limit, MAX_LIST_LIMIT))
    total, rows, next_page = await service.read(reader.get_usage, *arguments)
    return _views.unstructure({"total": total, "rows": rows, "next_page": next_page})


async def get_events(service: Service, peer: Peer, call: calls.GetEvents) -> Any:
    return await read_events(service, peer, call, call.after_seq or 0)


async def stream_events(service: Service, connection: Connection, call: calls.GetEvents) -> None:
    """GetEvents with `more`: page after page up to where the run is now."""
    first = await read_events(service, connection.peer, call, call.after_seq or 0)  # may still refuse

    async def pages() -> None:
        page = first
        while (next_after_seq := page["next_after_seq"]) is not None:
            await connection.send_now(connection.machine.send_reply(page, continues=True))
            try:
                page = await read_events(service, connection.peer, call, next_after_seq)
            except NoSuchRun as refusal:  # it was deleted meanwhile
                connection.add_reply().refuse(refusal)
                await connection.sent(0)
                return
        await connection.send_now(connection.machine.send_reply(page))

    await connection.stream_until_closed(pages)


async def stream_blob(service: Service, connection: Connection, call: calls.GetBlob) -> None:
    """GetBlob: chunk after chunk."""
    if re.fullmatch("[0-9a-f]{64}", call.sha256) is None:
        raise InvalidParameter("sha256")
    size = await service.read(blobs.size_of, whose(connection.peer, call.uid), *name_of(call), call.sha256)
    chunk_at = await service.blobs.read(call.sha256)

    async def chunks() -> None:
        offset = 0
        while True:
            chunk = await trio.to_thread.run_sync(chunk_at, offset)
            parameters = {"offset": offset, "base64": base64.b64encode(chunk).decode(), "size": size}
            offset += len(chunk)
            more = offset < size and bool(chunk)
            await connection.send_now(connection.machine.send_reply(parameters, continues=more))
            if not more:
                return

    await connection.stream_until_closed(chunks)


async def stream_follow(service: Service, connection: Connection, call: calls.Follow) -> None:
    """Follow: until the peer closes or the daemon stops."""
    tail, uid = service.tail, whose(connection.peer, call.uid)
    wanted = filter_of(call)
    position = tail.position
    if call.cursor is not None:
        position = call.cursor.position
        if call.cursor.instance_id not in (None, service.instance_id) or position > tail.position:
            raise PositionExpired(service.instance_id, tail.position)
    elif call.tail:
        position = await service.read(reader.tail_position, uid, wanted, call.tail)
    inbox = tail.open_inbox(uid, wanted) if call.published else None

    async def read(behind: int) -> Page:
        options = {"limit": PAGE_EVENTS, "limit_bytes": PAGE_BYTES}
        found = await service.read(reader.events_after, uid, wanted, behind, **options)
        events = ((event.position, encode_event(event)) for event in found.events)
        return Page.of(events, found.looked_at, map(encode_gap, found.gaps))

    async def send(page: Page) -> None:
        await connection.send_now(follow_frame(page, service.instance_id))

    async def until_stop() -> None:
        async with trio.open_nursery() as nursery:
            heartbeat_s = HEARTBEAT_S if call.heartbeat_us is None else max(call.heartbeat_us / 1e6, 0.001)
            nursery.start_soon(follow, tail, uid, wanted, position, heartbeat_s, inbox, read, send)
            await service.stopping.wait()
            nursery.cancel_scope.cancel()
        reply = connection.add_reply()
        reply.refuse(ShuttingDown())
        await connection.sent(0)

    try:
        await connection.stream_until_closed(until_stop, endless=True)
    finally:
        if inbox is not None:
            tail.close_inbox(uid, wanted, inbox)


def follow_frame(page: Page, instance_id: str) -> bytes:
    """A reply of Follow, put together from events that are encoded already."""
    gaps = (b'{"gap":%b}' % gap for gap in page.gaps)  # before the events: whoever reads them in order knows what to expect
    items = b",".join((*gaps, *(item for _, item in page.items)))
    cursor = b'{"instance_id":%b,"position":%d}' % (_encode(instance_id), page.looked_at)
    members = (items, cursor, page.dropped)
    return b'{"parameters":{"items":[%b],"cursor":%b,"dropped":%d},"continues":true}\0' % members


async def read_events(service: Service, peer: Peer, call: calls.GetEvents, after_seq: int) -> dict[str, Any]:
    """The reply with one page of a run's events behind that seq."""
    check_kinds(call.kinds)
    events, next_after_seq, gaps = await service.read(
        reader.get_events,
        whose(peer, call.uid),
        *name_of(call),
        after_seq=after_seq,
        from_checkpoint=bool(call.from_checkpoint),
        types=None if call.types is None else frozenset(call.types),
        kinds=None if call.kinds is None else frozenset(call.kinds),
        limit=limit_of(call.limit, PAGE_EVENTS),
        limit_bytes=PAGE_BYTES,
    )
    return {"events": events, "next_after_seq": next_after_seq, "gaps": gaps}


def name_of(call: Any) -> tuple[str, str]:
    """The namespace and run_id of a call about one run."""
    namespace = "default" if call.namespace is None else check_name("namespace", call.namespace)
    return namespace, check_name("run_id", call.run_id)


def filter_of(call: calls.Follow) -> EventFilter:
    """Which events a follower wants."""
    check_kinds(call.kinds)
    types = None if call.types is None else frozenset(call.types)
    kinds = None if call.kinds is None else frozenset(call.kinds)
    return EventFilter(call.namespace, call.run_id, call.agent_id, call.team_run_id, types, kinds)


def check_kinds(kinds: list[str] | None) -> None:
    """An unknown kind is a fault: it would match nothing, for ever."""
    for i, kind in enumerate(kinds or ()):
        if kind not in KINDS:
            raise InvalidParameter(f"kinds[{i}]")


def limit_of(limit: int | None, default: int = LIST_LIMIT) -> int:
    """How many to give: what was asked for, within reason."""
    return min(default if limit is None else max(limit, 1), MAX_LIST_LIMIT)


def whole_page(page: str | None) -> str | None:
    """A page token that is a number."""
    if page is not None and not (page.isascii() and page.isdigit() and len(page) < 19):
        raise InvalidParameter("page")
    return page


UsagePage = tuple[str, Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)], str, str]


def check_usage_page(page: str) -> None:
    """A page token of GetUsage: the key of the last row."""
    try:
        msgspec.json.decode(page, type=UsagePage)
    except (msgspec.DecodeError, ValueError) as error:
        raise InvalidParameter("page") from error


Handler = Callable[[Service, Peer, Any], Awaitable[Any]]

WRITES: dict[str, Callable[[Service, Peer, Raw], Request]] = {
    f"{INTERFACE}.Append": append_request,
    f"{INTERFACE}.BeginRun": begin_request,
    f"{INTERFACE}.ClaimRun": claim_request,
    f"{INTERFACE}.ReleaseRun": release_request,
    f"{INTERFACE}.ImportEvents": import_request,
    PUBLISH: publish_request,
}

METHODS: dict[str, tuple[type[Any], Handler | None]] = {
    f"{SERVICE}.GetInfo": (calls.GetInfo, get_info),
    f"{SERVICE}.GetInterfaceDescription": (calls.GetInterfaceDescription, get_interface_description),
    f"{INTERFACE}.Describe": (calls.Describe, describe),
    f"{INTERFACE}.DeleteRun": (calls.DeleteRun, delete_run),
    f"{INTERFACE}.PinRun": (calls.PinRun, pin_run),
    f"{INTERFACE}.UnpinRun": (calls.UnpinRun, unpin_run),
    f"{INTERFACE}.CollectGarbage": (calls.CollectGarbage, collect_garbage),
    f"{INTERFACE}.GetArtifacts": (calls.GetArtifacts, get_artifacts),
    f"{INTERFACE}.PutBlob": (calls.PutBlob, put_blob),
    f"{INTERFACE}.GetBlob": (calls.GetBlob, None),
    f"{INTERFACE}.GetRun": (calls.GetRun, get_run),
    f"{INTERFACE}.ListRuns": (calls.ListRuns, list_runs),
    f"{INTERFACE}.ListInterrupted": (calls.ListInterrupted, list_interrupted),
    f"{INTERFACE}.GetSteps": (calls.GetSteps, get_steps),
    f"{INTERFACE}.GetUsage": (calls.GetUsage, get_usage),
    f"{INTERFACE}.GetEvents": (calls.GetEvents, get_events),
    f"{INTERFACE}.Follow": (calls.Follow, None),
    f"{INTERFACE}.GetStatus": (calls.GetStatus, get_status),
}
STREAMS: dict[str, Callable[[Service, Connection, Any], Awaitable[None]]] = {
    "GetEvents": stream_events,
    "Follow": stream_follow,
    "GetBlob": stream_blob,
}
SERVICE_TEXT = """\
# What every varlink service answers, see https://varlink.org/Service
interface org.varlink.service

method GetInfo() -> (vendor: string, product: string, version: string, url: string, interfaces: []string)
method GetInterfaceDescription(interface: string) -> (description: string)

error InterfaceNotFound (interface: string)
error MethodNotFound (method: string)
error MethodNotImplemented (method: string)
error InvalidParameter (parameter: string)
error PermissionDenied ()
error ExpectedMore ()
"""
