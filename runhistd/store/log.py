"""The log: one batch of requests in, one transaction, one outcome for each request out.

    for each request: find its run, decide, fold; then insert the events, save the heads, COMMIT

Nothing that a batch brought is visible, in memory or outside, before its COMMIT returned. When a batch fails on a fault
of ours it is rolled back and tried again request by request, so that only the guilty one fails. A full disk refuses the
whole batch. When the storage itself fails the commit is indeterminate: StorageFault, and the log must be abandoned.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import apsw
import msgspec
from msgspec import Raw, Struct

from ..model.decide import Accepted, Append, Begin, Content, StoredKey, content_of, decide
from ..model.errors import NoSuchRun, Refusal, RunExists, StorageFull
from ..model.events import Event, StoredEvent, Usage, payload_of
from ..model.run import Head, applied, fold
from . import sql
from .database import PAGE_BYTES, SCHEMA_VERSION, Counters, StorageFault, open_writer, read_history
from .heads import CachedRun, Heads, encode

_STORAGE_ERRORS = (apsw.IOError, apsw.CorruptError, apsw.NotADBError, apsw.ReadOnlyError, apsw.CantOpenError)
_decode_usage = msgspec.json.Decoder(Usage).decode


class Begun(Struct, frozen=True):
    """A run was begun, now or by the same lease_key before."""

    namespace: str
    run_id: str
    epoch: int
    position: int


class Appended(Struct, frozen=True):
    """Events are stored. first_seq and last_seq are None when all of them had been stored before."""

    first_seq: int | None
    last_seq: int | None
    position: int
    stored: int
    duplicates: int


class Failed(Struct, frozen=True):
    """A fault of ours that this request alone brings about; nothing of it was stored."""

    error: Exception


class Committed(Struct, frozen=True):
    """A stored event with what followers are chosen by."""

    uid: int
    run: int
    agent_id: str | None
    event: StoredEvent


Request = Begin | Append
Outcome = Begun | Appended | Refusal | Failed


class Batch(Struct):
    """What became of a batch: an outcome for each request, in their order, and the new events by position."""

    outcomes: list[Outcome]
    events: list[Committed]


class EventLog:
    """The single writer of a history. Not thread-safe: one caller at a time."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._heads = Heads(connection)
        self.instance_id, self._counters = read_history(connection)
        self._pending = self._counters
        self._events: list[Committed] = []
        self._rows: list[tuple[object, ...]] = []
        self.wal_bytes = 0
        connection.set_wal_hook(self._measure_wal)

    @classmethod
    def open(cls, database: Path) -> EventLog:
        """Open or make the database. Raises NewerSchema, DamagedDatabase, StorageFault."""
        return cls(open_writer(database))

    @property
    def position(self) -> int:
        """The newest committed position."""
        return self._counters.position

    @property
    def schema(self) -> int:
        """The version of the tables."""
        return SCHEMA_VERSION

    def apply(self, batch: Sequence[Request], now_us: int) -> Batch:
        """Store a batch in one transaction and return after COMMIT. StorageFault: it is unknown what is stored."""
        try:
            return self._transaction(batch, now_us)
        except apsw.FullError:
            self._roll_back()
            return Batch([StorageFull() for _ in batch], [])
        except _STORAGE_ERRORS as error:
            raise StorageFault(str(error)) from error
        except Exception as error:  # noqa: BLE001 - the fault is handed on, to the one request that causes it
            self._roll_back()
            if len(batch) == 1:
                return Batch([Failed(error)], [])
        merged = Batch([], [])
        for request in batch:
            one = self.apply([request], now_us)
            merged.outcomes += one.outcomes
            merged.events += one.events
        return merged

    def checkpoint(self, *, truncate: bool) -> None:
        """Move the WAL's content into the database; with `truncate`, also give its space back if no reader needs it."""
        mode = apsw.SQLITE_CHECKPOINT_TRUNCATE if truncate else apsw.SQLITE_CHECKPOINT_PASSIVE
        try:
            frames, moved = self._connection.wal_checkpoint(mode=mode)
        except apsw.BusyError:
            return  # a reader holds an older snapshot; the next checkpoint goes on
        except (*_STORAGE_ERRORS, apsw.FullError) as error:
            raise StorageFault(f"checkpoint: {error}") from error
        if frames == moved:
            self.wal_bytes = 0  # the next commit starts the WAL anew

    def close(self) -> None:
        """End cleanly: everything moves from the WAL into the database."""
        self.checkpoint(truncate=True)
        self._connection.close()

    def abandon(self) -> None:
        """End without touching the files, after a StorageFault: the next start reads what the disk really holds."""
        self._connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        self._connection.close()

    def _transaction(self, batch: Sequence[Request], now_us: int) -> Batch:
        self._connection.execute("BEGIN IMMEDIATE")
        outcomes: list[Outcome] = []
        for request in batch:
            try:
                if isinstance(request, Append):
                    outcomes.append(self._append(request, now_us))
                else:
                    outcomes.append(self._begin(request, now_us))
            except Refusal as refusal:
                outcomes.append(refusal)
        if not self._heads.changed:
            self._connection.execute("ROLLBACK")  # only duplicates and refusals
            return Batch(outcomes, [])
        self._connection.executemany(sql.INSERT_EVENT, self._rows)
        self._heads.save()
        self._connection.execute(sql.SAVE_COUNTERS, msgspec.structs.astuple(self._pending))
        self._connection.execute("COMMIT")
        self._heads.committed()
        self._counters = self._pending
        events = self._events
        self._events, self._rows = [], []
        return Batch(outcomes, events)

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        self._heads.clear()
        self._pending = self._counters
        self._events, self._rows = [], []

    def _begin(self, request: Begin, now_us: int) -> Begun:
        name = (request.uid, request.namespace, request.run_id)
        run = self._heads.find(name)
        if run is not None:
            if run.lease_key != request.lease_key.bytes:
                raise RunExists(request.namespace, request.run_id)
            return Begun(request.namespace, request.run_id, run.head.epoch, self._pending.position)
        start = Event(type="run.started", time_us=request.time_us, data=Raw(request.spec))
        accepted = Accepted(start, start.type, payload_of(start.type, request.spec, "run"), None)
        counters = self._pending
        self._pending = Counters(counters.position, counters.epoch + 1, counters.run + 1)
        head = Head(epoch=self._pending.epoch)
        run = CachedRun(self._pending.run, name, request.lease_key.bytes, request.owner_pid, head)
        self._heads.add(run)
        self._store(run, accepted, None, now_us)
        return Begun(request.namespace, request.run_id, run.head.epoch, self._pending.position)

    def _append(self, request: Append, now_us: int) -> Appended:
        run = self._heads.find((request.uid, request.namespace, request.run_id))
        if run is None:
            raise NoSuchRun(request.namespace, request.run_id)
        writer = request.writer
        last_n = 0 if writer is None else self._heads.last_n(run, writer)
        fresh = decide(run.head, request, last_n, self._stored_keys(run, request))
        first_seq = run.head.last_seq + 1
        if fresh:
            self._heads.touch(run)
            self._heads.prepare(run, request.events)
            for new in fresh:
                self._store(run, new, writer, now_us)
        if writer is not None and request.first_n is not None and request.first_n <= last_n + 1:
            self._count(run, writer, request.first_n + len(request.events) - 1)
        return Appended(
            first_seq=first_seq if fresh else None,
            last_seq=run.head.last_seq if fresh else None,
            position=self._pending.position,
            stored=len(fresh),
            duplicates=len(request.events) - len(fresh),
        )

    def _count(self, run: CachedRun, writer: UUID, last_n: int) -> None:
        """Keep the writer's last n, also where its events were duplicates by key."""
        if last_n > run.writers[writer]:
            run.writers[writer] = last_n
            run.touched_writers.add(writer)
            self._heads.touch(run)

    def _store(self, run: CachedRun, accepted: Accepted, writer: UUID | None, now_us: int) -> None:
        """Fold an event and keep its row for the end of the batch. It must not fail halfway: decide came before."""
        sent, head = accepted.event, run.head
        uid, namespace, run_id = run.name
        event = StoredEvent(
            position=self._pending.position + 1,
            namespace=namespace,
            run_id=run_id,
            seq=head.last_seq + 1,
            epoch=head.epoch,
            type=sent.type,
            kind=accepted.kind,
            received_us=now_us,
            data=sent.data,
            key=sent.key,
            writer=writer,
            n=accepted.n,
            step_id=sent.step_id,
            attempt=sent.attempt,
            usage=sent.usage,
            time_us=sent.time_us,
        )
        fold(head, applied(event, accepted.payload))
        self._pending = Counters(event.position, self._pending.epoch, self._pending.run)
        if event.key is not None:
            run.new_keys[event.key] = StoredKey(event.seq, content_of(sent, event.kind))
        self._rows.append(event_row(run.number, event))
        self._events.append(Committed(uid, run.number, head.agent_id, event))

    def _stored_keys(self, run: CachedRun, request: Append) -> dict[str, StoredKey]:
        found: dict[str, StoredKey] = {}
        for event in request.events:
            if event.key is None:
                continue
            if event.key in run.new_keys:
                found[event.key] = run.new_keys[event.key]
                continue
            row = self._connection.execute(sql.FIND_KEY, (run.number, event.key)).fetchone()
            if row is not None:
                seq, type_, kind, step_id, attempt, usage, data = row
                figures = None if usage is None else _decode_usage(usage)
                found[event.key] = StoredKey(seq, Content(type_, kind, step_id, attempt, figures, data.encode()))
        return found

    def _measure_wal(self, connection: apsw.Connection, database: str, pages: int) -> int:
        self.wal_bytes = pages * PAGE_BYTES
        return apsw.SQLITE_OK


def event_row(run: int, event: StoredEvent) -> tuple[object, ...]:
    """The columns of INSERT_EVENT."""
    writer: UUID | None = event.writer
    return (
        event.position,
        run,
        event.seq,
        event.epoch,
        event.type,
        event.kind,
        event.key,
        None if writer is None else writer.bytes,
        event.n,
        event.step_id,
        event.attempt,
        None if event.usage is None else encode(event.usage).decode(),
        event.time_us,
        event.received_us,
        str(event.data, "utf-8"),
    )
