"""What can be read of a damaged history, row by row.

Rows are known by their shape, because the pages that say whose they are may be the damaged ones. A row counts only when
all that its columns promise holds, so that noise, and rows of other tables, are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import msgspec
from attrs import define, field
from msgspec import Raw

from ..model.errors import Refusal
from ..model.events import KINDS, STATUSES, Usage, payload_of
from . import sql
from .pages import Pages, Row, Value

# The columns of a table: n is the rowid's (NULL), i an integer, s text, b bytes; a capital one may be NULL. Columns that a
# later schema added are missing in older rows.
EVENT, OLDEST_EVENT = "niiissSBISISIisBI", 15
RUN, OLDEST_RUN = "nisssbIsSSSSSSISSIiiIiIiiIiiiiiisSSSI", 32
TOMBSTONE = "nissSSbiiisii"
COMPACTION = "isiIIIIi"
HISTORY, OLDEST_HISTORY = "nsiiii", 5
PIN = "ni"
TYPES = {"i": int, "s": str, "b": bytes}
ROWS_AT_ONCE = 2000
LOST = "lost"  # the kind under which a compaction tells of events that a recovery did not find
COMPACTED_KINDS = ("output", "note", LOST)

_decode_usage = msgspec.json.Decoder(Usage).decode
Progress = Callable[[int, int], None]


@define
class Found:
    """What was found but for the events, which are in the new database already; keyed by the number of the run."""

    runs: dict[int, list[Value]] = field(factory=dict)
    tombstones: dict[int, list[Value]] = field(factory=dict)
    compactions: dict[tuple[int, str], list[Value]] = field(factory=dict)
    pins: dict[int, Value] = field(factory=dict)
    history: list[Value] | None = None
    pages: int = 0
    unusable: int = 0
    """Pages, and rows in pages, that could not be read."""


def scan(damaged: Path, connection: apsw.Connection, progress: Progress) -> Found:
    """Read all pages of `damaged`; events go into the new database at once. `progress(pages, of)` is called as it goes."""
    found = Found()
    pages = Pages(damaged)
    try:
        found.pages = pages.count
        events: list[list[Value]] = []
        for number in range(1, pages.count + 1):
            for row in pages.rows(number):
                if is_event(row):
                    events.append([row.rowid, *row.columns[1:]])
                else:
                    _take(row, found)
            if len(events) >= ROWS_AT_ONCE:
                _save(connection, events)
            progress(number, pages.count)
        _save(connection, events)
        found.unusable = pages.unusable
    finally:
        pages.close()
    return found


def _save(connection: apsw.Connection, events: list[list[Value]]) -> None:
    padded = [event + [None] * (len(EVENT) - len(event)) for event in events]
    with connection:
        connection.executemany(sql.SALVAGE_EVENT, padded)
    events.clear()


def has_shape(columns: list[Value], shape: str, least: int) -> bool:
    """Whether the columns are of these types, and at least so many."""
    if not least <= len(columns) <= len(shape):
        return False
    for value, kind in zip(columns, shape, strict=False):
        if value is None:
            if kind != "n" and kind.islower():
                return False
        elif kind == "n" or not isinstance(value, TYPES[kind.lower()]):
            return False
    return True


def is_event(row: Row) -> bool:
    """Whether the row is an event that can be folded."""
    columns: list[Any] = row.columns
    if row.rowid is None or row.rowid < 1 or not has_shape(columns, EVENT, OLDEST_EVENT):
        return False
    _, run, seq, epoch, type_, kind, _, writer, n, _, _, usage, _, _, data, *blob = columns
    if run < 1 or seq < 1 or epoch < 0 or not type_ or kind not in KINDS or (writer is None) != (n is None):
        return False
    if (writer is not None and len(writer) != 16) or (blob and blob[0] is not None and len(blob[0]) != 32):
        return False
    try:
        payload_of(kind, Raw(data.encode()), "data")
        msgspec.json.decode(data)
        if usage is not None:
            _decode_usage(usage)
    except (Refusal, msgspec.MsgspecError, ValueError, RecursionError):
        return False
    return True


def _take(row: Row, found: Found) -> None:
    columns: list[Any] = row.columns
    if row.rowid is None:
        if has_shape(columns, COMPACTION, len(COMPACTION)) and columns[1] in COMPACTED_KINDS:
            found.compactions[(columns[0], columns[1])] = columns
    elif has_shape(columns, RUN, OLDEST_RUN):
        newer = row.rowid not in found.runs or columns[19] >= found.runs[row.rowid][19]
        if newer and columns[4] == columns[3][::-1] and columns[7] in STATUSES and len(columns[5]) == 16:
            found.runs[row.rowid] = columns
    elif has_shape(columns, TOMBSTONE, len(TOMBSTONE)):
        found.tombstones[row.rowid] = columns
    elif has_shape(columns, HISTORY, OLDEST_HISTORY) and row.rowid == 1 and len(columns[1]) == 36:
        found.history = columns
    elif has_shape(columns, PIN, len(PIN)):
        found.pins[row.rowid] = columns[1]
