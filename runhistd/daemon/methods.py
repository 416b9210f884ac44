"""Which function carries out which method, and the class of its parameters."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from msgspec import Raw

from runhist.protocol import INTERFACE, SERVICE
from runhistd.store.log import Request

from . import changes, control_calls, introspection, queries, streams
from .peer import Peer
from .server import PUBLISH, Connection
from .status import get_status

if TYPE_CHECKING:
    from .service import Service

Write = Callable[["Service", Peer, Raw], Request]
Handler = Callable[["Service", Peer, Any], Awaitable[Any]]
Stream = Callable[["Service", Connection, Any], Awaitable[None]]

ANSWERED_WHEN_DAMAGED = {f"{SERVICE}.GetInfo", f"{SERVICE}.GetInterfaceDescription", f"{INTERFACE}.GetStatus"}

WRITES: dict[str, Write] = {
    f"{INTERFACE}.Append": changes.append_request,
    f"{INTERFACE}.BeginRun": changes.begin_request,
    f"{INTERFACE}.ClaimRun": changes.claim_request,
    f"{INTERFACE}.ReleaseRun": changes.release_request,
    f"{INTERFACE}.ImportEvents": changes.import_request,
    PUBLISH: changes.publish_request,
}

METHODS: dict[str, tuple[type[Any], Handler | None]] = {
    f"{SERVICE}.GetInfo": (control_calls.GetInfo, introspection.get_info),
    f"{SERVICE}.GetInterfaceDescription": (control_calls.GetInterfaceDescription, introspection.get_interface_description),
    f"{INTERFACE}.Describe": (control_calls.Describe, introspection.describe),
    f"{INTERFACE}.DeleteRun": (control_calls.DeleteRun, changes.delete_run),
    f"{INTERFACE}.PinRun": (control_calls.PinRun, changes.pin_run),
    f"{INTERFACE}.UnpinRun": (control_calls.UnpinRun, changes.unpin_run),
    f"{INTERFACE}.CollectGarbage": (control_calls.CollectGarbage, changes.collect_garbage),
    f"{INTERFACE}.GetArtifacts": (control_calls.GetArtifacts, queries.get_artifacts),
    f"{INTERFACE}.PutBlob": (control_calls.PutBlob, changes.put_blob),
    f"{INTERFACE}.GetBlob": (control_calls.GetBlob, None),
    f"{INTERFACE}.GetRun": (control_calls.GetRun, queries.get_run),
    f"{INTERFACE}.ListRuns": (control_calls.ListRuns, queries.list_runs),
    f"{INTERFACE}.ListInterrupted": (control_calls.ListInterrupted, queries.list_interrupted),
    f"{INTERFACE}.GetSteps": (control_calls.GetSteps, queries.get_steps),
    f"{INTERFACE}.GetUsage": (control_calls.GetUsage, queries.get_usage),
    f"{INTERFACE}.GetEvents": (control_calls.GetEvents, queries.get_events),
    f"{INTERFACE}.Follow": (control_calls.Follow, None),
    f"{INTERFACE}.GetStatus": (control_calls.GetStatus, get_status),
}

STREAMS: dict[str, Stream] = {
    "GetEvents": streams.stream_events,
    "Follow": streams.stream_follow,
    "GetBlob": streams.stream_blob,
}
