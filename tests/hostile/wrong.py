"""Calls with exactly one fault, for every member of every method, made from the interface file."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple
from uuid import UUID

from varlink.scanner import Interface  # type: ignore[import-untyped]

from runhist.protocol import interface_text

INTERFACE = Interface(interface_text())
METHODS = sorted(name for name, member in INTERFACE.members.items() if type(member).__name__ == "_Method")
SOUND = {
    "lease_key": str(UUID(int=1)),
    "writer": str(UUID(int=2)),
    "namespace": "default",
    "first_n": 1,
    "type": "note",
    "kind": "note",
    "lease": "owned",
    "import_key": str(UUID(int=3)),
    "traceparent": f"00-{1:032x}-{1:016x}-01",
    "root": "/tmp",
    "dir": "d",
    "sha256": "0" * 64,
    "size": 2048,
}
"""Values of members that not every text or number fits."""
SOUND_ITEMS = {"status": "running", "expect_status": "running", "kinds": "note"}

DIGITS = "a number of 5,000 digits"
"""Stands for one, which Python does not write; see `encoded`."""

NOT_TEXT = [7, 1.5, True, [], {}, "a\0b", "\0", "\ud800", "a\udc00b", "\ud800\ud800\udc00"]
NOT_INT = ["7", 1.5, 1.0, -0.0, 1e300, True, [], {}, -1, 2**63, 2**64, -(2**63), 10**400, DIGITS]
NOT_BOOL = ["true", "", 0, 1, 0.0, [], {}]
NOT_OBJECT = [[], [{}], "{}", "", 7, True]
NOT_ARRAY = [{}, "[]", "", 7, True]


class Wrong(NamedTuple):
    """Parameters with one fault, and the path of the member that an error must name."""

    parameters: dict[str, Any]
    path: str


def encoded(call: bytes) -> bytes:
    """The call with the number in place of what stands for it."""
    return call.replace(f'"{DIGITS}"'.encode(), b"1" * 5000)


def sound_call(method: str) -> dict[str, Any]:
    """Parameters without a fault, every member among them."""
    fields = INTERFACE.members[method].in_type.fields
    return {name: _full(name, kind.element_type if _is_maybe(kind) else kind) for name, kind in fields.items()}


def wrong_calls(method: str) -> Iterator[Wrong]:
    """One fault at a time, everything else as it should be."""
    fields = INTERFACE.members[method].in_type.fields
    sound = {name: _sample(name, kind) for name, kind in fields.items() if not _is_maybe(kind)}
    yield Wrong({**sound, "surprise": 1}, "surprise")
    for name, kind in fields.items():
        if not _is_maybe(kind):
            yield Wrong({other: value for other, value in sound.items() if other != name}, name)
        for value, path in _faults(name, kind):
            yield Wrong({**copy.deepcopy(sound), name: value}, name + path)


def _faults(name: str, kind: Any) -> Iterator[tuple[Any, str]]:
    """Values that do not fit, each with the rest of the path to its fault."""
    if _is_maybe(kind):
        yield from _faults(name, kind.element_type)
        return
    yield from ((value, "") for value in _misfits(kind))
    if (inner := _struct(kind)) is not None:
        yield from _member_faults(inner)
    elif type(kind).__name__ == "_Array":
        sound = SOUND_ITEMS.get(name) or _sample(name, kind.element_type)
        for value, path in _faults(name, kind.element_type):
            yield [value], f"[0]{path}"
            yield [sound, sound, value], f"[2]{path}"
        yield [None], "[0]"
    elif type(kind).__name__ == "_Object":
        yield {"a": {"b": ["", "\0"]}}, ".a.b[1]"
        yield {"a": {"\0": 1}}, ".a"
        yield {"a": ["\udfff"]}, ".a[0]"


def _member_faults(fields: dict[str, Any]) -> Iterator[tuple[Any, str]]:
    sound = {name: _sample(name, kind) for name, kind in fields.items() if not _is_maybe(kind)}
    yield {**sound, "surprise": 1}, ".surprise"
    for name, kind in fields.items():
        if not _is_maybe(kind):
            yield {other: value for other, value in sound.items() if other != name}, f".{name}"
        for value, path in _faults(name, kind):
            yield {**sound, name: value}, f".{name}{path}"


def _misfits(kind: Any) -> list[Any]:
    if type(kind) is str:
        return NOT_TEXT
    if type(kind) is bool:
        return NOT_BOOL
    if type(kind) is int:
        return NOT_INT
    return NOT_ARRAY if type(kind).__name__ == "_Array" else NOT_OBJECT


def _sample(name: str, kind: Any) -> Any:
    """A value that fits."""
    if name in SOUND:
        return SOUND[name]
    if type(kind) in (str, int, bool):
        return "x" if kind == "" else 1 if type(kind) is int else kind
    if type(kind).__name__ == "_Array":
        return [_sample(name, kind.element_type)]
    fields = _struct(kind) or {}
    return {inner: _sample(inner, part) for inner, part in fields.items() if not _is_maybe(part)}


def _full(name: str, kind: Any) -> Any:
    """A value that fits, with the members that may be left out."""
    if type(kind).__name__ == "_Array":
        return [SOUND_ITEMS.get(name) or _full(name, kind.element_type)]
    if type(kind).__name__ == "_Object":
        return {"a": 1, "b": ["text", 1.5, None, {"c": True}]}
    fields = _struct(kind)
    if fields is None:
        return _sample(name, kind)
    return {inner: _full(inner, part.element_type if _is_maybe(part) else part) for inner, part in fields.items()}


def _struct(kind: Any) -> dict[str, Any] | None:
    if type(kind).__name__ == "_CustomType":
        fields: dict[str, Any] = INTERFACE.members[kind.name].type.fields
        return fields
    return None


def _is_maybe(kind: Any) -> bool:
    return type(kind).__name__ == "_Maybe"
