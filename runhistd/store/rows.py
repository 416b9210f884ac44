"""Events as rows of their table, with all columns in their order: what is inserted is what followers get and readers find.

`data` stays the bytes that came: SQLite is told that they are text, and nobody makes a string of them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Raw

from ..model.artifacts import DataBlob
from ..model.events import Accepted, StoredEvent, Usage

Row = tuple[Any, ...]
"""The columns of INSERT_EVENT."""
POSITION, RUN, SEQ, TYPE, KIND, DATA = 0, 1, 2, 4, 5, 14
WRITERS = 1000  # whose ids are kept as they are read: making a UUID takes as long as all else of an event

_decode_usage = msgspec.json.Decoder(Usage).decode
_encode = msgspec.json.Encoder().encode


def rows_of(
    accepted: Iterable[Accepted], run: int, position: int, seq: int, epoch: int, writer: bytes | None, received_us: int
) -> list[Row]:
    """The rows of events that were decided on, behind that position and seq. A view of their data would keep all of the
    frame in memory, so it becomes bytes."""
    return [
        (
            position + i,
            run,
            seq + i,
            epoch,
            event.type,
            new.kind,
            event.key,
            writer,
            new.n,
            event.step_id,
            event.attempt,
            None if event.usage is None else _encode(event.usage).decode(),
            event.time_us,
            received_us,
            bytes(event.data),
            None if event.data_blob is None else bytes.fromhex(event.data_blob.sha256),
            None if event.data_blob is None else event.data_blob.size,
        )
        for i, new in enumerate(accepted, 1)
        for event in (new.event,)
    ]


def stored_event(namespace: str, run_id: str, row: Row) -> StoredEvent:
    """What readers and followers get of a row of that run."""
    (position, _, seq, epoch, type_, kind, key, writer, n, step_id, attempt, usage, time_us, received_us, data, *blob) = row
    return StoredEvent(
        position,
        namespace,
        run_id,
        seq,
        epoch,
        type_,
        kind,
        received_us,
        Raw(data),
        key,
        None if writer is None else _writer(writer),
        n,
        step_id,
        attempt,
        usage_of(usage),
        time_us,
        blob_of(*blob),
    )


@functools.lru_cache(WRITERS)
def _writer(key: bytes) -> UUID:
    return UUID(bytes=key)


def usage_of(usage: str | None) -> Usage | None:
    """What the column `usage` says."""
    return None if usage is None else _decode_usage(usage)


def blob_of(sha256: bytes | None, size: int | None) -> DataBlob | None:
    """What data_blob and data_size of a row say."""
    return None if sha256 is None or size is None else DataBlob(sha256.hex(), size)
