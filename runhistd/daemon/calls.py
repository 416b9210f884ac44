"""From bytes to requests: what a peer may say, checked before anything else sees it.

The calls that write are decoded by msgspec straight into frozen Structs, their `data` kept as the bytes that came.
Everything else is a control call: cattrs builds it, with hooks that convert nothing. Either way what does not fit the
interface is InvalidParameter with the path of the member. msgspec does not look into `data`; `json_text` does.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any, Literal, TypeVar
from uuid import UUID

import cattrs
import msgspec
from attrs import field, frozen
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError
from msgspec import Raw, Struct

from runhistd.model.decide import Append
from runhistd.model.errors import InvalidParameter, TooLarge
from runhistd.model.events import EMPTY, MAX_COUNT, STATUSES, Count, Event, Pid, Positive, RunSpec, fault_path
from runhistd.model.holder import Holder
from runhistd.model.ids import check_name
from runhistd.model.importing import Import, ImportedEvent
from runhistd.model.lease import Release
from runhistd.model.publish import Publish, check_published
from runhistd.model.removal import check_directory

from . import json_text

MAX_EVENTS = 10_000  # of one call, so that storing it holds nobody up for long; at 16 bytes each a frame brings a million
MAX_LISTED = 1000  # names in a list of a control call
COUNTED_BYTES = 1024 * 1024  # parameters above this are counted before they are decoded, which takes ten times their bytes
T = TypeVar("T")
E = TypeVar("E", bound=Event)


class MalformedCall(Exception):
    """The frame is no varlink call; the peer gets `parameter` as its fault, and the connection is closed."""

    def __init__(self, parameter: str) -> None:
        super().__init__(parameter)
        self.parameter = parameter


class Envelope(Struct, frozen=True, forbid_unknown_fields=True):
    """A varlink call."""

    method: str
    parameters: Raw = EMPTY
    more: bool = False
    oneway: bool = False
    upgrade: bool = False

    @property
    def size(self) -> int:
        """About the bytes of the frame."""
        return len(memoryview(self.parameters))


class BeginCall(Struct, frozen=True, forbid_unknown_fields=True):
    """BeginRun."""

    run: Raw
    lease_key: UUID
    lease: Literal["owned", "none"] = "owned"
    owner_pid: Pid | None = None
    caller_pid: Pid | None = None


class AppendCall(Struct, frozen=True, forbid_unknown_fields=True):
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


_decode_envelope = msgspec.json.Decoder(Envelope).decode
_decode_begin = msgspec.json.Decoder(BeginCall).decode
_decode_claim = msgspec.json.Decoder(ClaimCall).decode
_decode_import = msgspec.json.Decoder(ImportCall).decode
_decode_release = msgspec.json.Decoder(ReleaseCall).decode
_decode_publish = msgspec.json.Decoder(PublishCall).decode
_decode_append = msgspec.json.Decoder(AppendCall).decode
_decode_counted = msgspec.json.Decoder(Counted).decode
_decode_spec = msgspec.json.Decoder(RunSpec).decode
_decode_shallow = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_any = msgspec.json.Decoder().decode


def decode_envelope(frame: bytes) -> Envelope:
    """The call in a frame. Raises MalformedCall; InvalidParameter where only a text in its parameters is no text."""
    try:
        text = str(frame, "utf-8")
        del text  # msgspec does not look at the bytes of what it keeps raw
        return _decode_envelope(frame)
    except msgspec.ValidationError as error:
        raise MalformedCall(fault_path(error).removeprefix(".") or "call") from error
    except (ValueError, RecursionError) as error:
        call, _, path = json_text.path_of_fault(frame).partition(".parameters")
        if path and not call:
            raise InvalidParameter(_place(path)) from error
        raise MalformedCall("call") from error


def decode_begin(parameters: Raw, event_bytes: int) -> tuple[BeginCall, RunSpec]:
    """BeginRun's parameters and its RunSpec, which becomes an event's data. Raises InvalidParameter, TooLarge."""
    call = _decoded(_decode_begin, parameters)
    text = bytes(call.run)
    if len(text) > event_bytes:
        raise TooLarge("run", event_bytes)
    spec = _decoded(_decode_spec, call.run, "run")
    _check_json(text, "run")
    _check_nul(text, "run")
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
    return Append(*name, call.epoch, call.writer, call.first_n, events, holder, lease_key=call.lease_key)


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
    if len(memoryview(parameters)) > COUNTED_BYTES:
        with contextlib.suppress(msgspec.MsgspecError, RecursionError):  # decoding it names the fault
            if len(_decode_counted(parameters).events or ()) > MAX_EVENTS:
                raise TooLarge("events", MAX_EVENTS)


def _check_events(events: list[E], parameters: Raw, event_bytes: int) -> list[E]:
    if len(events) > MAX_EVENTS:
        raise TooLarge("events", MAX_EVENTS)
    checked = [_check_event(event, i, event_bytes) for i, event in enumerate(events)]
    _check_nul(bytes(parameters))
    return checked


def _check_event(event: E, i: int, event_bytes: int) -> E:
    data = bytes(event.data)
    if len(data) > event_bytes:
        raise TooLarge(f"events[{i}].data", event_bytes)
    if not data.startswith(b"{"):
        if data != b"null":
            raise InvalidParameter(f"events[{i}].data")
        return msgspec.structs.replace(event, data=EMPTY)
    if not json_text.is_sound(data):
        raise InvalidParameter(f"events[{i}].data")
    return msgspec.structs.replace(event, data=Raw(data))  # a view would keep the whole frame in memory


def _check_json(text: bytes, path: str) -> None:
    if not json_text.is_sound(text):
        raise InvalidParameter(path)


def _check_nul(text: bytes, where: str = "") -> None:
    if json_text.holds_nul(text):
        raise InvalidParameter(_place(where + json_text.path_of_fault(text)))


def _place(path: str) -> str:
    """A path as it stands in an error; without one the parameters as a whole are meant."""
    return path.removeprefix(".") or "parameters"


def _decoded(decode: Callable[[Raw], T], text: Raw, where: str = "") -> T:
    """What `decode` makes of the text; `where` is its own place in the call. Raises InvalidParameter."""
    try:
        return decode(text)
    except msgspec.ValidationError as error:
        raise InvalidParameter(_place(where + fault_path(error))) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidParameter(_place(where + json_text.path_of_fault(bytes(text)))) from error


# --- control calls ---


@frozen
class Describe:
    """Describe."""


@frozen
class GetStatus:
    """GetStatus."""


@frozen
class GetInfo:
    """org.varlink.service.GetInfo."""


@frozen
class GetInterfaceDescription:
    """org.varlink.service.GetInterfaceDescription."""

    interface: str


@frozen
class DeleteRun:
    """DeleteRun."""

    run_id: str
    namespace: str | None = None


@frozen
class PinRun:
    """PinRun."""

    run_id: str
    namespace: str | None = None


@frozen
class UnpinRun:
    """UnpinRun."""

    run_id: str
    namespace: str | None = None


@frozen
class CollectGarbage:
    """CollectGarbage."""

    dry_run: bool | None = None


@frozen
class GetArtifacts:
    """GetArtifacts."""

    run_id: str
    namespace: str | None = None
    name: str | None = None
    page: str | None = None
    limit: int | None = None
    uid: int | None = None


@frozen
class PutBlob:
    """PutBlob."""

    upload: str
    offset: int
    base64: str
    done: bool | None = None


@frozen
class GetBlob:
    """GetBlob."""

    run_id: str
    sha256: str
    namespace: str | None = None
    uid: int | None = None


@frozen
class GetRun:
    """GetRun."""

    run_id: str
    namespace: str | None = None
    uid: int | None = None


@frozen
class ListRuns:
    """ListRuns."""

    namespace: str | None = None
    status: list[str] | None = None
    agent_id: str | None = None
    workflow: str | None = None
    team_id: str | None = None
    team_run_id: str | None = None
    parent_run_id: str | None = None
    since_us: int | None = None
    name: str | None = None
    page: str | None = None
    limit: int | None = None
    uid: int | None = None
    all_users: bool | None = None


@frozen
class ListInterrupted:
    """ListInterrupted."""

    namespace: str | None = None
    agent_id: str | None = None
    workflow: str | None = None
    page: str | None = None
    limit: int | None = None
    uid: int | None = None


@frozen
class GetSteps:
    """GetSteps."""

    run_id: str
    namespace: str | None = None
    page: str | None = None
    limit: int | None = None
    uid: int | None = None


@frozen
class GetUsage:
    """GetUsage."""

    run_id: str
    namespace: str | None = None
    page: str | None = None
    limit: int | None = None
    uid: int | None = None


@frozen
class GetEvents:
    """GetEvents."""

    run_id: str
    namespace: str | None = None
    after_seq: int | None = None
    from_checkpoint: bool | None = None
    types: list[str] | None = None
    kinds: list[str] | None = None
    limit: int | None = None
    uid: int | None = None


@frozen
class Cursor:
    """A place in a history."""

    position: int
    instance_id: str | None = None


@frozen
class Follow:
    """Follow."""

    cursor: Cursor | None = None
    tail: int | None = None
    namespace: str | None = None
    run_id: str | None = None
    agent_id: str | None = None
    team_run_id: str | None = None
    types: list[str] | None = field(default=None)
    kinds: list[str] | None = None
    heartbeat_us: int | None = None
    published: bool | None = None
    uid: int | None = None


def structure(parameters: Raw, cls: type[Any]) -> Any:
    """A control call of that class. Raises InvalidParameter with the path of the first member that does not fit."""
    try:
        members = _members_of(parameters)
        if not isinstance(members, dict):
            raise InvalidParameter("parameters")
        _check_nul(bytes(parameters))
        return _converter.structure(members, cls)
    except ClassValidationError as error:
        raise InvalidParameter(_place(_path(error))) from error
    except (ValueError, RecursionError) as error:
        raise InvalidParameter("parameters") from error


def _members_of(parameters: Raw) -> Any:
    _check_large_members(parameters)
    try:
        return _decode_any(parameters)
    except msgspec.ValidationError:  # a number that it takes for none; as a float it is no integer, and named
        return json.loads(bytes(parameters), parse_int=lambda digits: int(digits) if len(digits) < 20 else float(digits))


def _check_large_members(parameters: Raw) -> None:
    """Of a control call only a text may be large: content. Anything else would take many times its bytes in memory."""
    if len(memoryview(parameters)) > COUNTED_BYTES:
        for name, value in _decode_shallow(parameters).items():
            if len(memoryview(value)) > COUNTED_BYTES and bytes(memoryview(value)[:1]) != b'"':
                raise InvalidParameter(name)


def _path(error: BaseException) -> str:
    if isinstance(error, ForbiddenExtraKeysError):
        return f".{min(error.extra_fields)}"
    if isinstance(error, ClassValidationError):
        members, others = error.group_exceptions()
        if members:
            fault, note = members[0]
            return f".{note.name}{_path(fault)}"
        return _path(others[0])
    if isinstance(error, IterableValidationError):
        (fault, at), *_ = error.group_exceptions()[0]
        return f"[{at.index}]{_path(fault)}"
    return ""


def _only(cls: type) -> Any:
    def hook(value: object, _: type) -> object:
        if type(value) is not cls or (cls is int and not 0 <= value <= MAX_COUNT):  # type: ignore[operator]
            raise ValueError(f"not {cls.__name__}")
        return value

    return hook


def _strict_list(value: object, _: type) -> list[str]:
    if not isinstance(value, list) or len(value) > MAX_LISTED:
        raise ValueError("not a list of reasonable length")
    return _list_converter.structure(value, list[str])


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=True)
    for cls in (int, str, bool):
        converter.register_structure_hook(cls, _only(cls))
    return converter


_list_converter = _make_converter()
_converter = _make_converter()
_converter.register_structure_hook_func(lambda cls: cls == list[str], _strict_list)
