"""The control calls, all that do not write events: what a peer may say, checked before anything else sees it.

cattrs builds them, with hooks that convert nothing. What does not fit the interface is InvalidParameter with the path of the
member.
"""

from __future__ import annotations

import json
from typing import Any

import cattrs
import msgspec
from attrs import frozen
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError
from msgspec import Raw

from runhistd.model.errors import InvalidParameter
from runhistd.model.events import MAX_COUNT

from .json_text import COUNTED_BYTES, check_nul, place

MAX_LISTED = 1000  # names in a list of a control call

_decode_shallow = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_any = msgspec.json.Decoder().decode


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
    types: list[str] | None = None
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
        check_nul(bytes(parameters))
        return _converter.structure(members, cls)
    except ClassValidationError as error:
        raise InvalidParameter(place(_path(error))) from error
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
