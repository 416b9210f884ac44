"""The methods that change a history: what the committer is asked for, in the caller's name.

The calls that write become requests, which the service queues at once; so does what is only shown. The others are carried
out here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Raw

from runhist.identity import user_of
from runhistd.model.decide import Append
from runhistd.model.errors import InvalidParameter
from runhistd.model.holder import Holder
from runhistd.model.ids import check_name
from runhistd.model.importing import Import
from runhistd.model.lease import Begin, Claim, Release
from runhistd.model.publish import Publish
from runhistd.model.removal import Delete, Pin
from runhistd.model.views import Retained

from . import control_calls, write_calls
from .inbox import INBOX_BYTES
from .peer import Peer
from .queries import name_of

if TYPE_CHECKING:
    from .service import Service

MAX_SHOWN_BYTES = INBOX_BYTES // 2


def append_request(service: Service, peer: Peer, parameters: Raw) -> Append:
    """Append as a request."""
    return write_calls.decode_append(parameters, peer.uid, peer.sender, service.config.event_bytes)


def publish_request(service: Service, peer: Peer, parameters: Raw) -> Publish:
    """Publish as a request. More than fits an inbox could never be seen."""
    return write_calls.decode_publish(parameters, peer.uid, min(service.config.event_bytes, MAX_SHOWN_BYTES))


def begin_request(service: Service, peer: Peer, parameters: Raw) -> Begin:
    """BeginRun as a request. The owner is the peer, or a process of its user that it names."""
    call, spec = write_calls.decode_begin(parameters, service.config.event_bytes)
    owner, namespace = owner_of(service, peer, call), spec.namespace or "default"
    return Begin(peer.uid, namespace, spec.run_id, call.lease_key, owner, bytes(call.run), spec.time_us, call.lease)


def claim_request(service: Service, peer: Peer, parameters: Raw) -> Claim:
    """ClaimRun as a request; its owner as in BeginRun."""
    namespace, call = write_calls.decode_claim(parameters, service.config.event_bytes)
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
    return write_calls.decode_release(parameters, peer.uid)


def import_request(service: Service, peer: Peer, parameters: Raw) -> Import:
    """ImportEvents as a request."""
    return write_calls.decode_import(parameters, peer.uid, service.config.event_bytes)


def owner_of(service: Service, peer: Peer, call: write_calls.BeginCall | write_calls.ClaimCall) -> Holder:
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


async def delete_run(service: Service, peer: Peer, call: control_calls.DeleteRun) -> Any:
    deleted = await service.sweeper.ask(Delete(peer.uid, *name_of(call)))
    service.sweeper.wake()
    return deleted


async def pin_run(service: Service, peer: Peer, call: control_calls.PinRun) -> Any:
    await service.sweeper.ask(Pin(peer.uid, *name_of(call), pinned=True))
    return {}


async def unpin_run(service: Service, peer: Peer, call: control_calls.UnpinRun) -> Any:
    await service.sweeper.ask(Pin(peer.uid, *name_of(call), pinned=False))
    return {}


async def collect_garbage(service: Service, peer: Peer, call: control_calls.CollectGarbage) -> Any:
    decisions, skipped = await service.collector.collect(dry_run=bool(call.dry_run))
    runs = [
        Retained(one.run.namespace, one.run.run_id, one.run.status, one.run.ended_us, one.bytes, one.rule)
        for one in decisions
        if one.run.uid == peer.uid
    ]
    return {"decisions": runs, "skipped": skipped}


async def put_blob(service: Service, peer: Peer, call: control_calls.PutBlob) -> Any:
    check_name("upload", call.upload)
    done = bool(call.done)
    size, sha256 = await service.blobs.put(peer.uid, call.upload, call.offset, call.base64, done=done)
    return {"size": size, "sha256": sha256}
