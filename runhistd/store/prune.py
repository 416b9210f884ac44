"""Deleting runs: hide at once, clear away in small pieces, and keep what must be remembered.

    Delete: tombstone in, row of `runs` out, one transaction       every reader goes through `runs`: it is gone
    Compact: up to CHUNK_ROWS events of one kind of one closed run, and what is remembered of the gap
    Clear:  up to CHUNK_ROWS of one part of one deleted run        again and again, between appends, also after a crash
            then free pages go back to the file system, FREE_PAGES at a time

Each is a transaction of its own. Beyond MAX_TOMBSTONES the oldest are merged: the history then only knows that up to
`low_water` something may be missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import apsw
from msgspec import Struct

from ..model.artifacts import DropBlob, KeepBlob
from ..model.errors import NoSuchRun, RunDeleted
from ..model.events import TERMINAL
from ..model.removal import Clear, Compact, Delete, Pin, check_deletable
from . import blobs, sql
from .heads import Name

if TYPE_CHECKING:
    from .log import EventLog

CHUNK_ROWS = 500  # a few milliseconds of a transaction
CHUNK_PAGES = 256  # 1 MiB
MAX_TOMBSTONES = 10_000
MERGE_AT_ONCE = 1000  # so that not every deletion merges one

Removal = Delete | Clear | Compact | Pin | KeepBlob | DropBlob
"""The requests that are carried out in transactions of their own."""


class Deleted(Struct, frozen=True):
    """The run is gone; `deleted` is False when there was none."""

    deleted: bool


class Cleared(Struct, frozen=True):
    """Some rows are gone. `more` is True while there is something left to clear or to give back."""

    more: bool
    bytes: int = 0
    pages: int = 0


class Compacted(Struct, frozen=True):
    """So many events were dropped. `more` is True while there may be others."""

    more: bool
    events: int = 0


class Pinned(Struct, frozen=True):
    """The mark is as it was asked for."""


Outcome = Deleted | Cleared | Compacted | Pinned | blobs.BlobKept | blobs.BlobDropped


def carry_out(log: EventLog, connection: apsw.Connection, request: Removal, now_us: int) -> Outcome:
    """Do it inside the caller's transaction. Raises a Refusal before anything is changed."""
    if isinstance(request, Delete):
        return _delete(log, connection, request, now_us)
    if isinstance(request, KeepBlob):
        return blobs.keep(connection, log.tally, request, now_us)
    if isinstance(request, DropBlob):
        return blobs.drop(connection, log.tally, request, now_us)
    if isinstance(request, Compact):
        return _compact(log, connection, request)
    if isinstance(request, Pin):
        return _pin(log, connection, request, now_us)
    return _clear(log, connection)


def check_not_deleted(connection: apsw.Connection, name: Name, lease_key: bytes | None = None) -> None:
    """Refuse who means a deleted run: an append, or with `lease_key` the begin or claim that this key had made."""
    for key, rule, deleted_us in connection.execute(sql.FIND_TOMBSTONE, name):
        if lease_key is None or key == lease_key:
            raise RunDeleted(name[1], name[2], rule, deleted_us)


def _delete(log: EventLog, connection: apsw.Connection, request: Delete, now_us: int) -> Deleted:
    run = log.heads.find((request.uid, request.namespace, request.run_id))
    if run is None:
        return Deleted(False)
    if request.closed_us is not None:
        ((pinned,),) = connection.execute(sql.PINNED, (run.number,))
        if pinned or (run.head.closed_us or run.head.updated_us) != request.closed_us:
            return Deleted(False)
    check_deletable(run.head.status)
    connection.execute(sql.INSERT_TOMBSTONE, (request.rule, now_us, run.number))
    connection.execute(sql.DELETE_RUN, (run.number,))
    connection.execute(sql.DELETE_PIN, (run.number,))
    log.heads.drop(run)
    log.tally.add(request.uid, -1, 0)
    return Deleted(True)


def _compact(log: EventLog, connection: apsw.Connection, request: Compact) -> Compacted:
    run = log.heads.find((request.uid, request.namespace, request.run_id))
    if run is None or run.head.status not in TERMINAL or run.head.closed_us != request.closed_us:
        return Compacted(False)
    if connection.execute(sql.PINNED, (run.number,)).get:
        return Compacted(False)
    after_seq = connection.execute(sql.COMPACTED_UP_TO, (run.number, request.kind)).get or 0
    wanted = {"run": run.number, "kind": request.kind, "after_seq": after_seq, "limit": CHUNK_ROWS}
    rows: list[Any] = sorted(connection.execute(sql.DROP_EVENTS, wanted).fetchall(), key=lambda row: int(row[0]))
    more = len(rows) == CHUNK_ROWS
    nothing = (None, None, None)
    (first_seq, first_position, *_), (last_seq, last_position, *_) = (rows[0], rows[-1]) if rows else (nothing, nothing)
    gap = (first_seq, last_seq, first_position, last_position)
    blobs.end_uses(connection, run, [sha256 for _, _, sha256, _ in rows if sha256 is not None])
    log.tally.add(request.uid, 0, -sum(size for *_, size in rows))
    connection.execute(sql.SAVE_COMPACTION, (run.number, request.kind, len(rows), *gap, not more))
    return Compacted(more, len(rows))


def _pin(log: EventLog, connection: apsw.Connection, request: Pin, now_us: int) -> Pinned:
    run = log.heads.find((request.uid, request.namespace, request.run_id))
    if run is None:
        raise NoSuchRun(request.namespace, request.run_id)
    if request.pinned:
        connection.execute(sql.INSERT_PIN, (run.number, now_us))
    else:
        connection.execute(sql.DELETE_PIN, (run.number,))
    return Pinned()


def _clear(log: EventLog, connection: apsw.Connection) -> Cleared:
    row: Any = connection.execute(sql.UNCLEARED).fetchone()
    if row is None:
        return _shrink(connection)
    run, uid = row
    for part in sql.CLEAR_PARTS:
        rows: list[Any] = connection.execute(part, {"run": run, "limit": CHUNK_ROWS}).fetchall()
        if rows:
            size = sum(row[0] for row in rows)
            if part == sql.CLEAR_EVENTS:
                log.tally.add(uid, 0, -size)
            return Cleared(True, size)
    connection.execute(sql.SET_CLEARED, (run,))
    _merge_tombstones(connection)
    return Cleared(True)


def _shrink(connection: apsw.Connection) -> Cleared:
    """Give free pages back to the file system."""
    ((before,),) = connection.execute(sql.FREE_PAGES)
    if before == 0:
        return Cleared(False)
    connection.execute(f"PRAGMA incremental_vacuum({CHUNK_PAGES})").fetchall()
    ((after,),) = connection.execute(sql.FREE_PAGES)
    return Cleared(after > 0 and after < before, pages=before - after)


def _merge_tombstones(connection: apsw.Connection) -> None:
    row = connection.execute(sql.MERGED_UP_TO, (MAX_TOMBSTONES + MERGE_AT_ONCE,)).fetchone()
    if row is None:
        return
    ((up_to,),) = connection.execute(sql.MERGED_UP_TO, (MAX_TOMBSTONES,))
    connection.execute(sql.MERGE_TOMBSTONES, (up_to,))
    connection.execute(sql.RAISE_LOW_WATER, (up_to,))
