"""Data that is too large to travel with its event: given to the daemon in chunks before it, and fetched behind it.

The event then says `data_blob`, and its `data` has what the daemon must know of it: the members that its kind gives a
meaning to. Where those alone are too large the event cannot be recorded, because what a run amounts to is kept with it.

The data is encoded while it is sent, piece by piece, so that beside the engine's own object there are never more than
some chunks of it. There is no second copy to send again: what cannot be given now, because the daemon is away, is lost,
and counted as a fault. The spool takes nothing that is this large. Who reads gets the data of one event at a time.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Final, FrozenSet, Iterable, Iterator, List, Mapping, Optional

from .connection import Connection, again_if_lost
from .encoding import MAX_DEPTH, Unencodable, encode
from .paths import SocketChoice
from .protocol.errors import TooLarge
from .records import Event

SENT_WHOLE_BYTES = 1024 * 1024  # of data at most with its event, which may have to wait in memory and in the spool
OTHERS_BYTES = 64 * 1024  # of an event around its data: names of at most 255 characters, and numbers
CHUNK_BYTES = 256 * 1024  # of content in one message: neither side ever holds more of it
PIECE_CHARS = 64 * 1024
_ENDED: Final = frozenset({"error", "reason", "output"})
_STEP_ENDED: Final = frozenset({"error", "reason"})
MEANINGFUL: Final[Mapping[str, FrozenSet[str]]] = {
    "run.updated": frozenset({"title", "current_step", "metadata", "state", "output"}),
    "run.paused": frozenset({"name", "prompt"}),
    **dict.fromkeys(("run.completed", "run.failed", "run.cancelled"), _ENDED),
    "step.started": frozenset({"name", "parent_step_id"}),
    **dict.fromkeys(("step.completed", "step.failed", "step.retrying", "step.skipped"), _STEP_ENDED),
    "artifact": frozenset({"name", "path", "kind", "size", "mtime_us", "sha256", "blob"}),
}
STAYS_WHOLE: Final = frozenset({"gate.answered"})

Give = Callable[[Any], Dict[str, Any]]


def encode_event(event: Mapping[str, Any], limit_bytes: int, give: Give) -> bytes:
    """The event as it is sent: with its data, or, when that has more than `limit_bytes`, with what `give` makes of it.

    Raises Unencodable, TooLarge, and what `give` raises.
    """
    data: Any = event.get("data")
    if not is_longer(data, limit_bytes):
        encoded = encode(event)
        if len(encoded) <= limit_bytes:
            return encoded
        data_bytes = len(encode(data))
        if len(encoded) - data_bytes > OTHERS_BYTES:
            raise TooLarge(parameter="the event around its data", limit=OTHERS_BYTES)
        if data_bytes <= limit_bytes:
            return encoded
    kind = str(event.get("kind") or event["type"])
    part = {name: data[name] for name in MEANINGFUL.get(kind, ()) if name in data}
    if kind in STAYS_WHOLE or is_longer(part, limit_bytes) or len(encode(part)) > limit_bytes:
        raise TooLarge(parameter="data", limit=limit_bytes)
    start = encode({**event, "data": part})  # before anything is sent for an event that is none
    return b'%s,"data_blob":%s}' % (start[:-1], encode(give(data)))


def encode_whole(event: Mapping[str, Any]) -> bytes:
    """The event as it is sent by who cannot give large data before it. Raises Unencodable, TooLarge."""

    def refuse(data: Any) -> Dict[str, Any]:
        raise TooLarge(parameter="data", limit=SENT_WHOLE_BYTES)

    return encode_event(event, SENT_WHOLE_BYTES, refuse)


def give_to(choice: Optional[SocketChoice], seconds: float) -> Give:
    """A function that gives data to the daemon, again when that is restarted meanwhile; returns the `data_blob`.

    `choice` None is the usual one; `seconds` to connect. It raises Unencodable, Refusal, Unreachable.
    """

    def give(data: Any) -> Dict[str, Any]:
        from .artifacts import put

        kept = again_if_lost(lambda connection: put(connection, chunks(pieces(data))), choice, seconds)
        return {"sha256": kept["blob"], "size": kept["size"]}

    return give


def whole(connection: Connection, event: Event) -> Event:
    """The event with all its data. Raises NoSuchRun and NoSuchBlob for what was deleted, and Unreachable."""
    if event.data_blob is None:
        return event
    from .artifacts import content

    run = {"namespace": event.namespace, "run_id": event.run_id}
    return with_data(event, content(connection, run, event.data_blob.sha256))


def with_data(event: Event, content: Iterable[bytes]) -> Event:
    """The event with that JSON as its data."""
    import json

    return event._replace(data=json.loads(b"".join(content)))


def is_longer(value: Any, limit: int) -> bool:
    """Whether the JSON of the value is surely longer than so many bytes; it looks no further than it must."""
    left = limit
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            left -= len(one)
        elif isinstance(one, (dict, list, tuple)):
            left -= len(one)
            if left >= 0:
                waiting += one
                if isinstance(one, dict):
                    waiting += one.values()
        if left < 0:
            return True
    return False


def pieces(value: Any, path: str = "data", depth: int = 1) -> Iterator[bytes]:
    """The JSON of the value, in pieces of a bounded size, as `encode` would make it. Raises Unencodable."""
    if not is_longer(value, PIECE_CHARS):
        yield encode(value, path, depth)
    elif depth > MAX_DEPTH:
        raise Unencodable(path[:200], f"is nested deeper than {MAX_DEPTH}")
    elif isinstance(value, str):
        yield b'"'
        for start in range(0, len(value), PIECE_CHARS):
            yield encode(value[start : start + PIECE_CHARS], path, depth)[1:-1]
        yield b'"'
    elif isinstance(value, dict):
        separator = b"{"
        for key, member in value.items():
            yield separator + encode({key: 0}, path, depth)[1:-2]
            yield from pieces(member, f"{path}.{key}", depth + 1)
            separator = b","
        yield b"}"
    else:
        separator = b"["
        for i, item in enumerate(value):
            yield separator
            yield from pieces(item, f"{path}[{i}]", depth + 1)
            separator = b","
        yield b"]"


def chunks(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in parts of at least CHUNK_BYTES, but for the last."""
    gathered: List[bytes] = []
    size = 0
    for part in parts:
        gathered.append(part)
        size += len(part)
        if size >= CHUNK_BYTES:
            yield b"".join(gathered)
            gathered, size = [], 0
    yield b"".join(gathered)
