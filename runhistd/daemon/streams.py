"""The methods that answer with many replies: a run's events, an artifact's content, and what happens from now on."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING

import msgspec
import trio

from runhistd.model.errors import InvalidParameter, NoSuchRun, PositionExpired, ShuttingDown
from runhistd.model.views import EventFilter
from runhistd.store import blobs, event_reader

from . import control_calls
from .follow import PAGE_BYTES, PAGE_EVENTS, Page, encode_event, encode_gap, follow
from .queries import check_kinds, name_of, read_events
from .server import Connection
from .users import whose

if TYPE_CHECKING:
    from .service import Service

HEARTBEAT_S = 3600.0  # of followers that asked for none: the cursor of a quiet filter still moves

_encode = msgspec.json.Encoder().encode


async def stream_events(service: Service, connection: Connection, call: control_calls.GetEvents) -> None:
    """GetEvents with `more`: page after page up to where the run is now."""
    first = await read_events(service.read, connection.peer, call, call.after_seq or 0)  # may still refuse

    async def pages() -> None:
        page = first
        while (next_after_seq := page["next_after_seq"]) is not None:
            await connection.send_now(connection.machine.send_reply(page, continues=True))
            try:
                page = await read_events(service.read, connection.peer, call, next_after_seq)
            except NoSuchRun as refusal:  # it was deleted meanwhile
                connection.add_reply().refuse(refusal)
                await connection.sent(0)
                return
        await connection.send_now(connection.machine.send_reply(page))

    await connection.stream_until_closed(pages)


async def stream_blob(service: Service, connection: Connection, call: control_calls.GetBlob) -> None:
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


async def stream_follow(service: Service, connection: Connection, call: control_calls.Follow) -> None:
    """Follow: until the peer closes or the daemon stops."""
    tail, uid = service.tail, whose(connection.peer, call.uid)
    wanted = filter_of(call)
    position = tail.position
    if call.cursor is not None:
        position = call.cursor.position
        if call.cursor.instance_id not in (None, service.instance_id) or position > tail.position:
            raise PositionExpired(service.instance_id, tail.position)
    elif call.tail:
        position = await service.read(event_reader.tail_position, uid, wanted, call.tail)
    inbox = tail.open_inbox(uid, wanted) if call.published else None

    async def read(behind: int) -> Page:
        options = {"limit": PAGE_EVENTS, "limit_bytes": PAGE_BYTES}
        found = await service.read(event_reader.events_after, uid, wanted, behind, **options)
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


def filter_of(call: control_calls.Follow) -> EventFilter:
    """Which events a follower wants."""
    check_kinds(call.kinds)
    types = None if call.types is None else frozenset(call.types)
    kinds = None if call.kinds is None else frozenset(call.kinds)
    return EventFilter(call.namespace, call.run_id, call.agent_id, call.team_run_id, types, kinds)
