"""Storing imported events, inside the log's transaction: what is there already is compared, what is new comes behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from uuid import UUID

from msgspec import Raw, Struct

from ..model.errors import Conflict, InvalidParameter, RunExists
from ..model.events import TERMINAL
from ..model.importing import Import, ImportedEvent, accept_imported, is_same
from ..model.lease import NONE, Lease
from .heads import CachedRun
from .rows import Row, blob_of, usage_of
from .salvage import LOST

if TYPE_CHECKING:
    from .log import EventLog



class Imported(Struct, frozen=True):
    """Events are stored, or were there already. `last_seq` is the run's newest event."""

    last_seq: int
    stored: int
    duplicates: int


def take_in(log: EventLog, request: Import) -> Imported:
    """Store what is new of the request. Raises Conflict where something else is stored, RunExists, QuotaExceeded,
    and the like."""
    name = (request.uid, request.namespace, request.run_id)
    run = log.heads.find(name)
    last_seq = 0 if run is None else run.head.last_seq
    known = [event for event in request.events if event.seq <= last_seq]
    fresh = [event for event in request.events if event.seq > last_seq]
    for event in known if run is not None else ():
        _compare(log, run, event)
    if not fresh:
        return Imported(last_seq, 0, len(known))
    if run is not None and run.lease.key != request.import_key.bytes:
        raise RunExists(request.namespace, request.run_id)
    accepted = accept_imported(request, fresh, last_seq, run is not None and run.head.status in TERMINAL)
    if run is None:
        log.tally.check_run(request.uid, 0)
    log.tally.check_events(request.uid, accepted)
    log.check_blobs(request.uid, accepted)
    _check_keys(log, run, fresh)
    if run is None:
        log.check_not_deleted(name, request.import_key.bytes)
        run = log.add_run(name, Lease(request.import_key.bytes, None, NONE))
    for event, new in zip(fresh, accepted, strict=True):
        if event.seq > run.head.last_seq + 1:
            _note_hole(log, run, event.seq)
        log.store_all(run, [new], event.writer, event.received_us)
        _count(log, run, event)
        if new.kind == "run.incomplete":
            run.evidence = str(event.data, "utf-8")
    return Imported(run.head.last_seq, len(fresh), len(known))


def _compare(log: EventLog, run: CachedRun | None, event: ImportedEvent) -> None:
    """Raise Conflict where another event is stored at that seq; one that was dropped here since is none."""
    assert run is not None
    stored = log.event_at(run, event.seq)
    if stored is not None and not is_same(event, stored):
        raise Conflict(event.seq)


def _check_keys(log: EventLog, run: CachedRun | None, fresh: Sequence[ImportedEvent]) -> None:
    """A key names one event of its run. Raises Conflict."""
    stored = {} if run is None else log.stored_keys(run, fresh)
    for known in stored.values():
        raise Conflict(known.seq)
    seen: set[str] = set()
    for i, event in enumerate(fresh):
        if event.key is not None and event.key in seen:
            raise InvalidParameter(f"events[{i}].key")
        seen.update(() if event.key is None else (event.key,))


def _note_hole(log: EventLog, run: CachedRun, seq: int) -> None:
    """Events before `seq` were dropped, or lost, where the run comes from: a gap here too, at a position of its own."""
    first, last = run.head.last_seq + 1, seq - 1
    position = log.skip_position()
    log.tell_gap(run, (run.number, LOST, last - first + 1, first, last, position, position, 1))
    run.head.last_seq = last


def _count(log: EventLog, run: CachedRun, event: ImportedEvent) -> None:
    if event.writer is not None and event.n is not None and event.n > log.last_n(run, event.writer):
        log.count(run, event.writer, event.n, 1, event.n - 1)


def from_row(row: Row) -> ImportedEvent:
    """The event of a row, as it would be imported."""
    (_, _, seq, _, type_, kind, key, writer, n, step_id, attempt, usage, time_us, received_us, data, *blob) = row
    return ImportedEvent(
        seq=seq,
        type=type_,
        kind=kind,
        key=key,
        writer=None if writer is None else UUID(bytes=writer),
        n=n,
        step_id=step_id,
        attempt=attempt,
        usage=usage_of(usage),
        time_us=time_us,
        received_us=received_us,
        data=Raw(data),
        data_blob=blob_of(*blob),
    )
