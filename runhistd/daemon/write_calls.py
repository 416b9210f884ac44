"""The calls that write: from their parameters to requests, checked before anything else sees them.

msgspec decodes them straight into frozen Structs, their `data` kept as the bytes that came. What does not fit the interface
is InvalidParameter with the path of the member. msgspec does not look into `data`; `json_text` does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Literal, TypeVar
from uuid import UUID

import msgspec
from msgspec import Raw, Struct

from runhistd.model.decide import Append
from runhistd.model.errors import InvalidParameter, TooLarge
from runhistd.model.events import EMPTY, STATUSES, Count, Event, Pid, Positive, RunSpec, fault_path
from runhistd.model.holder import Holder
from runhistd.model.ids import check_name
from runhistd.model.importing import Import, ImportedEvent
from runhistd.model.lease import Release
from runhistd.model.publish import Publish, check_published
from runhistd.model.removal import check_directory

from . import json_text

MAX_EVENTS = 10_000  # of one call, so that storing it holds nobody up for long; at 16 bytes each a frame brings a million
T = TypeVar("T")
E = TypeVar("E", bound=Event)


class BeginCall(Struct, frozen=True, forbid_unknown_fields=True):
    """BeginRun."""

    run: Raw
    lease_key: UUID
    lease: Literal["owned", "none"] = "owned"
    owner_pid: Pid | None = None
    caller_pid: Pid | None = None


class AppendCall(Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """Append."""

    run_id: str
    events: list[Event]
    namespace: str | None = None
    epoch: Count | None = None
    lease_key: UUID | None = None
    writer: UUID | None = None
    first_n: Positive | None = None


class PublishCall(Struct, frozen=True, forbid_unknown_fields=True):
    """Publish."""

    run_id: str
    events: list[Event]
    namespace: str | None = None
    epoch: Count | None = None


class ClaimCall(Struct, frozen=True, forbid_unknown_fields=True):
    """ClaimRun."""

    run_id: str
    lease_key: UUID
    namespace: str | None = None
    expect_status: list[str] | None = None
    expect_seq: Count | None = None
    takeover: bool | None = None
    owner_pid: Pid | None = None
    caller_pid: Pid | None = None
    writer: UUID | None = None
    first_n: Positive | None = None
    events: list[Event] | None = None


class Counted(Struct, frozen=True):
    """How many events a call has."""

    events: list[Raw] | None = None


class ImportCall(Struct, frozen=True, forbid_unknown_fields=True):
    """ImportEvents."""

    run_id: str
    import_key: UUID
    events: list[ImportedEvent]
    namespace: str | None = None


class ReleaseCall(Struct, frozen=True, forbid_unknown_fields=True):
    """ReleaseRun."""

    run_id: str
    epoch: Count
    namespace: str | None = None


_decode_begin = msgspec.json.Decoder(BeginCall).decode
_decode_claim = msgspec.json.Decoder(ClaimCall).decode
_decode_import = msgspec.json.Decoder(ImportCall).decode
_decode_release = msgspec.json.Decoder(ReleaseCall).decode
_decode_publish = msgspec.json.Decoder(PublishCall).decode
_decode_append = msgspec.json.Decoder(AppendCall).decode
_decode_counted = msgspec.json.Decoder(Counted).decode
_decode_spec = msgspec.json.Decoder(RunSpec).decode


def decode_begin(parameters: Raw, event_bytes: int) -> tuple[BeginCall, RunSpec]:
    """BeginRun's parameters and its RunSpec, which becomes an event's data. Raises InvalidParameter, TooLarge."""
    call = _decoded(_decode_begin, parameters)
    text = bytes(call.run)
    if len(text) > event_bytes:
        raise TooLarge("run", event_bytes)
    spec = _decoded(_decode_spec, call.run, "run")
    _check_json(text, "run")
    json_text.check_nul(text, "run")
    check_name("run.run_id", spec.run_id)
    if spec.namespace is not None:
        check_name("run.namespace", spec.namespace)
    if spec.team_epoch is not None and spec.team_run_id is None:
        raise InvalidParameter("run.team_run_id")
    check_directory(spec.root, spec.dir)
    return call, spec


def decode_append(parameters: Raw, uid: int, holder: Holder | None, event_bytes: int) -> Append:
    """Append's parameters as a request of that user and process. Raises InvalidParameter, TooLarge."""
    _check_count(parameters)
    call = _decoded(_decode_append, parameters)
    if not call.events:
        raise InvalidParameter("events")
    if call.epoch is not None and call.lease_key is not None:
        raise InvalidParameter("lease_key")
    namespace, events = _check_name(call), _check_events(call.events, parameters, event_bytes)
    name = (uid, namespace, call.run_id)
    return Append(*name, call.epoch, call.writer, call.first_n, events, holder, call.lease_key)


def decode_publish(parameters: Raw, uid: int, event_bytes: int) -> Publish:
    """Publish's parameters as a request of that user. Raises InvalidParameter, NotAllowed, TooLarge."""
    _check_count(parameters)
    call = _decoded(_decode_publish, parameters)
    namespace, events = _check_name(call), _check_events(call.events, parameters, event_bytes)
    check_published(events)
    return Publish(uid, namespace, call.run_id, call.epoch, events)


def decode_claim(parameters: Raw, event_bytes: int) -> tuple[str, ClaimCall]:
    """ClaimRun's parameters and the namespace. Raises InvalidParameter, TooLarge."""
    _check_count(parameters)
    call = _decoded(_decode_claim, parameters)
    for i, status in enumerate(call.expect_status or ()):
        if status not in STATUSES:
            raise InvalidParameter(f"expect_status[{i}]")
    events = _check_events(call.events or [], parameters, event_bytes)
    return _check_name(call), msgspec.structs.replace(call, events=events)


def decode_import(parameters: Raw, uid: int, event_bytes: int) -> Import:
    """ImportEvents' parameters as a request of that user. Raises InvalidParameter, TooLarge."""
    _check_count(parameters)
    call = _decoded(_decode_import, parameters)
    if not call.events:
        raise InvalidParameter("events")
    return Import(uid, _check_name(call), call.run_id, call.import_key, _check_events(call.events, parameters, event_bytes))


def decode_release(parameters: Raw, uid: int) -> Release:
    """ReleaseRun's parameters as a request of that user. Raises InvalidParameter."""
    call = _decoded(_decode_release, parameters)
    return Release(uid, _check_name(call), call.run_id, call.epoch)


def _check_name(call: AppendCall | PublishCall | ClaimCall | ImportCall | ReleaseCall) -> str:
    check_name("run_id", call.run_id)
    return "default" if call.namespace is None else check_name("namespace", call.namespace)


def _check_count(parameters: Raw) -> None:
    if len(memoryview(parameters)) > json_text.COUNTED_BYTES:
        with contextlib.suppress(msgspec.MsgspecError, RecursionError):  # decoding it names the fault
            if len(_decode_counted(parameters).events or ()) > MAX_EVENTS:
                raise TooLarge("events", MAX_EVENTS)


def _check_events(events: list[E], parameters: Raw, event_bytes: int) -> list[E]:
    if len(events) > MAX_EVENTS:
        raise TooLarge("events", MAX_EVENTS)
    all_data = b",".join([event.data for event in events])  # without ids, in which many numbers seem to be large
    is_sound = json_text.is_shallow if json_text.has_plain_numbers(all_data) else json_text.is_sound
    for i, event in enumerate(events):
        data = bytes(event.data)
        if len(data) > event_bytes:
            raise TooLarge(f"events[{i}].data", event_bytes)
        if not data.startswith(b"{"):
            if data != b"null":
                raise InvalidParameter(f"events[{i}].data")
            events[i] = msgspec.structs.replace(event, data=EMPTY)
        elif not is_sound(data):
            raise InvalidParameter(f"events[{i}].data")
    json_text.check_nul(bytes(parameters))
    return events


def _check_json(text: bytes, path: str) -> None:
    if not json_text.is_sound(text):
        raise InvalidParameter(path)


def _decoded(decode: Callable[[Raw], T], text: Raw, where: str = "") -> T:
    """What `decode` makes of the text; `where` is its own place in the call. Raises InvalidParameter."""
    try:
        return decode(text)
    except msgspec.ValidationError as error:
        raise InvalidParameter(json_text.place(where + fault_path(error))) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidParameter(json_text.place(where + json_text.path_of_fault(bytes(text)))) from error
