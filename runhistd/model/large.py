"""Large data: which of it stays with its event, and which goes into the blob store.

An event whose data is content of the blob store (`data_blob`) keeps, as its `data`, the members that its kind gives a
meaning to, and no others: so the fold and the lists need no file, and who reads the event finds there what it did to the
run. What it was sent with is in the blob, byte for byte.

The answer of a gate is handed to whoever goes on with the run, by the transaction that lets them, so it stays whole. So
does all data whose meaningful members alone are too large: a row would not become smaller, and what a run amounts to
must be in the database.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Raw

from .events import Event, kind_of, meaningful_members

STAYS_WHOLE: Final = frozenset({"gate.answered"})

_decode_members = msgspec.json.Decoder(dict[str, Raw]).decode
_encode = msgspec.json.Encoder().encode


def part_to_keep(event: Event, limit_bytes: int, i: int) -> bytes | None:
    """What stays of the data of the i-th event, which is sent with all of it; None when it stays whole.

    Raises InvalidParameter for an unknown kind.
    """
    if event.data_blob is not None or len(memoryview(event.data)) <= limit_bytes:
        return None
    kind = kind_of(event, i)
    if kind in STAYS_WHOLE:
        return None
    meaningful = meaningful_members(kind)
    part = _encode({name: value for name, value in _decode_members(event.data).items() if name in meaningful})
    return part if len(part) <= limit_bytes else None
