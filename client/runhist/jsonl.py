"""The lines of `runhist export`, which `runhist import jsonl` takes in again: one JSON object a line, version 1.

    {"v":1,"run":{"namespace","run_id","status","last_seq","pinned"}}
        begins a run; its other lines follow, up to the next run. status and last_seq are what its events amount to.
    {"v":1,"event":{"namespace","run_id","seq","type","kind","received_us", then as far as the event has them
        "key","writer","n","step_id","attempt","usage","time_us","data","data_blob"}}
        in the order of seq, the first a run.started whose data is the RunSpec. Missing seqs were dropped by retention.
        data is the JSON that was recorded, byte for byte. Where that has line breaks, `data_text` has it as a string.
    {"v":1,"artifact":{"namespace","run_id","sha256","offset","size","base64"}}
        content that events behind it name (`blob` of an artifact, `data_blob`), in chunks.

What the interface says of StoredEvent and Event holds for the members. Positions, epochs, leases and owners belong to one
history and are not exported; two histories with the same runs export the same lines.

The data of events passes through untouched, so it must not be decoded and encoded again: objects are taken apart into the
texts of their members.
"""

from __future__ import annotations

import json
from json.decoder import WHITESPACE  # type: ignore[attr-defined]  # what JSON calls so
from typing import Any, Dict, Iterator, List, Mapping, Tuple

VERSION = 1
_scan = json.JSONDecoder().raw_decode
_MEMBERS = (
    *("type", "kind", "received_us", "key", "writer", "n", "step_id", "attempt", "usage", "time_us"),
    *("data", "data_blob"),
)


class BadLine(ValueError):
    """A line that is none of an export. The text says what is wrong with it."""


def members(text: str, at: int = 0) -> Tuple[Dict[str, str], int]:
    """The members of the object that begins there, each as its own text, and where it ends. Raises ValueError."""
    found: Dict[str, str] = {}
    at = _expect(text, at, "{")
    if text[at : at + 1] == "}":
        return found, at + 1
    while True:
        name, at = _scan(text, at)
        if not isinstance(name, str) or name in found:
            raise ValueError(f"no name of a member, or one that is there twice: {name!r}")
        start = _expect(text, _skip(text, at), ":")
        _, at = _scan(text, start)
        found[name] = text[start:at]
        at = _skip(text, at)
        if text[at : at + 1] == "}":
            return found, at + 1
        at = _expect(text, at, ",")


def elements(text: str) -> Iterator[str]:
    """The texts of the elements of an array. Raises ValueError."""
    at = _expect(text, 0, "[")
    if text[at : at + 1] == "]":
        return
    while True:
        _, end = _scan(text, at)
        yield text[at:end]
        at = _skip(text, end)
        if text[at : at + 1] == "]":
            return
        at = _expect(text, at, ",")


def _skip(text: str, at: int) -> int:
    return int(WHITESPACE.match(text, at).end())


def _expect(text: str, at: int, sign: str) -> int:
    """Behind that sign and what is blank behind it."""
    at = _skip(text, at)
    if text[at : at + 1] != sign:
        raise ValueError(f"{sign} is missing at {at}")
    return _skip(text, at + 1)


def line(kind: str, texts: Mapping[str, str]) -> str:
    """A line of that kind, of the texts of its members."""
    inner = ",".join(f"{json.dumps(name)}:{text}" for name, text in texts.items())
    return f'{{"v":{VERSION},"{kind}":{{{inner}}}}}\n'


def plain_line(kind: str, values: Mapping[str, Any]) -> str:
    """A line of that kind, of plain values."""
    return line(kind, {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()})


def event_line(texts: Mapping[str, str]) -> str:
    """The line of a StoredEvent, of the texts of its members."""
    kept = {name: texts[name] for name in ("namespace", "run_id", "seq")}
    kept.update((name, texts[name]) for name in _MEMBERS if texts.get(name, "null") != "null")
    data = kept.get("data", "")
    if "\n" in data or "\r" in data:
        del kept["data"]
        kept["data_text"] = json.dumps(data, ensure_ascii=False)
    return line("event", kept)


def read_line(text: str) -> Tuple[str, Dict[str, str]]:
    """The kind of a line, and the texts of its members. Raises BadLine."""
    try:
        outer, end = members(text)
        if text[end:].strip():
            raise ValueError("something stands behind it")
        version = json.loads(outer.pop("v", "null"))
        if version != VERSION:
            raise BadLine(f"it is of version {version!r}, and this runhist knows version {VERSION}; a newer one may read it")
        ((kind, inner),) = outer.items()
        if kind not in ("run", "event", "artifact"):
            raise BadLine(f"{kind!r} is no kind of line")
        found, _ = members(inner)
    except BadLine:
        raise
    except (ValueError, RecursionError) as error:
        raise BadLine(f"it is no line of an export: {error}") from None
    return kind, found


def event_text(texts: Mapping[str, str]) -> str:
    """The ImportedEvent of an event's line. Raises BadLine."""
    kept = {name: text for name, text in texts.items() if name not in ("namespace", "run_id", "data_text")}
    if "data_text" in texts:
        data = json.loads(texts["data_text"])
        if not isinstance(data, str):
            raise BadLine("event.data_text is no string")
        kept["data"] = data
    return "{" + ",".join(f"{json.dumps(name)}:{text}" for name, text in kept.items()) + "}"


def text_of(texts: Mapping[str, str], name: str) -> str:
    """A member that must be a string. Raises BadLine."""
    value = value_of(texts, name)
    if not isinstance(value, str):
        raise BadLine(f"{name} is no string")
    return value


def value_of(texts: Mapping[str, str], name: str) -> Any:
    """A member that must be there. Raises BadLine."""
    if name not in texts:
        raise BadLine(f"{name} is missing")
    return json.loads(texts[name])


def contents_of(texts: Mapping[str, str]) -> List[str]:
    """The SHA-256 of the content that an event names."""
    names = []
    if texts.get("data_blob", "null") != "null":
        names.append(str(json.loads(texts["data_blob"])["sha256"]))
    if json.loads(texts["kind"]) == "artifact":
        blob = json.loads(texts["data"]).get("blob")
        if isinstance(blob, str):
            names.append(blob)
    return names
