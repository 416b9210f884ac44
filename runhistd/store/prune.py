"""Deleting runs: hide at once, clear away in small pieces, and keep what must be remembered.

    Delete: tombstone in, row of `runs` out                        every reader goes through `runs`: it is gone
    Compact: up to PIECE_ROWS events of one kind of one closed run, and what is remembered of the gap
    Clear:  up to PIECE_ROWS rows of up to PIECE_RUNS deleted runs  again and again, between appends, also after a crash
            then the oldest tombstones are merged, MERGE_AT_ONCE at a time
            then free pages go back to the file system, PIECE_PAGES at a time

Each is a small part of the transaction that carries it out, with which the appends of the same batch wait. What a removal
costs is mostly not its rows: a transaction of its own syncs, and writes all pages again that the one before had written, and
a statement for each part of a run is mostly spent on parts that it has not. Hence many in one. Beyond MAX_TOMBSTONES the
oldest are merged: the history then only knows that up to `low_water` something may be missing.
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any, get_args

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

PIECE_ROWS = 200  # about a millisecond; so is each of the others
PIECE_RUNS = 12  # whose rows are cleared away together
PIECE_S = 0.002  # after which clearing stops before its rows are through, where the disk is slow
PIECE_PAGES = 64
MAX_TOMBSTONES = 10_000
MERGE_AT_ONCE = 100  # so that not every deletion merges one

Removal = Delete | Clear | Compact | Pin | KeepBlob | DropBlob
"""The requests that change the tables at once, and not what is in memory of runs."""
REMOVALS = frozenset(get_args(Removal))


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
    name = (request.uid, request.namespace, request.run_id)
    found: Any = connection.execute(sql.TO_DELETE, name).fetchone()  # one that is in memory has nothing unsaved
    if found is None:
        return Deleted(False)
    run, status, closed_us, pinned = found
    if request.closed_us is not None and (pinned or closed_us != request.closed_us):
        return Deleted(False)
    check_deletable(status)
    connection.execute(sql.INSERT_TOMBSTONE, (request.rule, now_us, run))
    connection.execute(sql.DELETE_RUN, (run,))
    if pinned:
        connection.execute(sql.DELETE_PIN, (run,))
    log.heads.drop(name)
    log.tally.add(request.uid, -1, 0)
    return Deleted(True)


def _compact(log: EventLog, connection: apsw.Connection, request: Compact) -> Compacted:
    run = log.heads.find((request.uid, request.namespace, request.run_id))
    if run is None or run.head.status not in TERMINAL or run.head.closed_us != request.closed_us:
        return Compacted(False)
    if connection.execute(sql.PINNED, (run.number,)).get:
        return Compacted(False)
    after_seq = connection.execute(sql.COMPACTED_UP_TO, (run.number, request.kind)).get or 0
    wanted = {"run": run.number, "kind": request.kind, "after_seq": after_seq, "limit": PIECE_ROWS}
    rows: list[Any] = sorted(connection.execute(sql.DROP_EVENTS, wanted).fetchall(), key=lambda row: int(row[0]))
    more = len(rows) == PIECE_ROWS
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
    """Clear away rows of some deleted runs; when nothing is left of any, merge tombstones, then give pages back."""
    deleted: Any = connection.execute(sql.UNCLEARED, (PIECE_RUNS,)).fetchall()
    if not deleted:
        return Cleared(True) if _merge_tombstones(connection) else _shrink(connection)
    ends_s, left, cleared_bytes = time.perf_counter() + PIECE_S, PIECE_ROWS, 0
    last_run, uids = deleted[-1][0], dict(deleted)
    there: Any = connection.execute(sql.UNCLEARED_PARTS, {"last_run": last_run}).fetchone()
    for part in itertools.compress(sql.CLEAR_PARTS.values(), there):
        rows: list[Any] = connection.execute(part, {"last_run": last_run, "limit": left}).fetchall()
        cleared_bytes += sum(size for _, size in rows)
        if part == sql.CLEAR_EVENTS:
            for run, size in rows:
                log.tally.add(uids[run], 0, -size)
        left -= len(rows)
        if left == 0 or (left < PIECE_ROWS and time.perf_counter() >= ends_s):
            return Cleared(True, cleared_bytes)
    connection.execute(sql.SET_CLEARED, {"last_run": last_run})
    return Cleared(True, cleared_bytes)


def _shrink(connection: apsw.Connection) -> Cleared:
    """Give free pages back to the file system."""
    ((before,),) = connection.execute(sql.FREE_PAGES)
    if before == 0:
        return Cleared(False)
    connection.execute(f"PRAGMA incremental_vacuum({PIECE_PAGES})").fetchall()
    ((after,),) = connection.execute(sql.FREE_PAGES)
    return Cleared(after > 0 and after < before, pages=before - after)


def _merge_tombstones(connection: apsw.Connection) -> bool:
    """Merge the oldest where there are too many; False when there are not."""
    if connection.execute(sql.TOMBSTONES).get < MAX_TOMBSTONES + MERGE_AT_ONCE:
        return False
    merged: list[Any] = connection.execute(sql.MERGE_TOMBSTONES, (MERGE_AT_ONCE,)).fetchall()
    connection.execute(sql.RAISE_LOW_WATER, (max(position for (position,) in merged),))
    return True
