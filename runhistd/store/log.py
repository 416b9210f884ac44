"""The log: one batch of requests in, one transaction, one outcome for each request out.

    for each request: find its run, decide, fold; then insert the events, save the heads, COMMIT

Removals look at the tables and change them at once. So where a batch has some, what the requests before them brought is
written first, in the same transaction.

Nothing that a batch brought is visible, in memory or outside, before its COMMIT returned. When a batch fails on a fault
of ours it is rolled back and tried again request by request, so that only the guilty one fails. A full disk refuses the
whole batch. When the storage itself fails the commit is indeterminate: StorageFault, or DamagedDatabase where SQLite cannot
make sense of what it reads, and the log must be abandoned.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from uuid import UUID

import apsw
import msgspec
from msgspec import Raw, Struct

from ..model.decide import Append, StoredKey, content_of, decide
from ..model.errors import NoSuchRun, Refusal, StorageFull
from ..model.events import TERMINAL, Accepted, Event, payload_of
from ..model.holder import Holder
from ..model.importing import Import, ImportedEvent
from ..model.lease import Begin, Claim, Death, Fence, Lease, Release, check_team, resumed_event
from ..model.publish import Publish
from ..model.quota import bytes_of
from ..model.removal import Delete
from ..model.run import Head, fold
from . import blobs, imports, leases, live, prune, sql
from .database import (
    PAGE_BYTES,
    SCHEMA_VERSION,
    DamagedDatabase,
    StorageFault,
    is_full,
    open_writer,
    read_history,
    telling_damage,
)
from .heads import CachedRun, Heads, Held, Name
from .rows import DATA, RUN, SEQ, Row, blob_of, rows_of, usage_of
from .tally import Tally

_STORAGE_ERRORS = (apsw.IOError, apsw.ReadOnlyError, apsw.CantOpenError)
FOREIGN_EPOCH = 0  # never granted: of a lease_key that is not that of the run's newest lease
_LEASE_ENDS = TERMINAL | {"paused"}


class Appended(Struct, frozen=True, gc=False):
    """Events are stored. first_seq and last_seq are None when all of them had been stored before."""

    first_seq: int | None
    last_seq: int | None
    position: int
    stored: int
    duplicates: int


class Failed(Struct, frozen=True):
    """A fault of ours that this request alone brings about; nothing of it was stored."""

    error: Exception


class Committed(Struct, frozen=True, gc=False):
    """Events of one run, stored one behind the other, with what followers are chosen by."""

    uid: int
    namespace: str
    run_id: str
    agent_id: str | None
    team_run_id: str | None
    rows: list[Row]


Request = Append | Begin | Claim | Release | Death | Fence | Import | Publish | prune.Removal
Granted = leases.Begun | leases.Claimed | leases.Released | leases.Buried
Outcome = Appended | Granted | imports.Imported | live.Shown | prune.Outcome | Refusal | Failed


class Batch(Struct):
    """What became of a batch: an outcome for each request, in their order, the new events by position, and who holds now
    the runs of which that has changed."""

    outcomes: list[Outcome]
    events: list[Committed] = []
    held: list[Held] = []
    gaps: bool = False
    """Whether there are new positions, or old ones, without an event: the database tells followers of them."""
    shown: list[live.Live] = []
    """What is not stored but shown, in order."""

    def add(self, later: Batch) -> None:
        """Take in what became of the requests behind these."""
        self.outcomes += later.outcomes
        self.events += later.events
        self.held += later.held
        self.gaps |= later.gaps
        self.shown += later.shown


class EventLog:
    """The single writer of a history. Not thread-safe: one caller at a time."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._cursor = connection.cursor()
        self.heads = Heads(connection)
        self.instance_id, self._counters = read_history(connection)
        self._pending = copy(self._counters)
        self._events: list[Committed] = []
        self._gaps = False
        self._shown: list[live.Live] = []
        self.tally = Tally(connection)
        self.wal_bytes = 0
        connection.set_wal_hook(self._measure_wal)

    @classmethod
    def open(cls, database: Path) -> EventLog:
        """Open or make the database. Raises NewerSchema, DamagedDatabase, StorageFault."""
        connection = open_writer(database)
        try:
            with telling_damage():
                return cls(connection)
        except BaseException:
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            connection.close()
            raise

    @property
    def position(self) -> int:
        """The newest committed position."""
        return self._counters.position

    @property
    def schema(self) -> int:
        """The version of the tables."""
        return SCHEMA_VERSION

    def apply(self, batch: Sequence[Request], now_us: int) -> Batch:
        """Store a batch and return after COMMIT: one transaction, or none for a batch that only shows events.

        StorageFault, DamagedDatabase: it is unknown what is stored, and the log must be abandoned.
        """
        try:
            return self._transaction(batch, now_us)
        except (apsw.CorruptError, apsw.NotADBError) as error:
            raise DamagedDatabase(str(error)) from error
        except (*_STORAGE_ERRORS, apsw.FullError) as error:
            if not is_full(error):
                raise StorageFault(str(error)) from error
            self._roll_back()
            return Batch([StorageFull() for _ in batch])
        except Exception as error:  # noqa: BLE001 - the fault is handed on, to the one request that causes it
            self._roll_back()
            if len(batch) == 1:
                return Batch([error if isinstance(error, Refusal) else Failed(error)])
        merged = Batch([])
        for request in batch:
            merged.add(self.apply([request], now_us))
        return merged

    def held(self) -> list[Held]:
        """All runs that are held, with their holders."""
        runs: dict[Name, set[Holder]] = {}
        with telling_damage():
            for uid, namespace, run_id, *holder in self._connection.execute(sql.ALL_HOLDERS):
                runs.setdefault((uid, namespace, run_id), set()).add(Holder(*holder))
        return [Held(*name, frozenset(holders)) for name, holders in runs.items()]

    def look(self) -> None:
        """Read something from the files, to see that they can be read. Raises StorageFault, DamagedDatabase."""
        try:
            with telling_damage():
                read_history(self._connection)
        except _STORAGE_ERRORS as error:
            raise StorageFault(f"read: {error}") from error

    def checkpoint(self, *, truncate: bool) -> None:
        """Move the WAL's content into the database; with `truncate`, also give its space back if no reader needs it.

        On a full disk, and beside a reader of an older snapshot, the WAL keeps what could not be moved, for the next time.
        """
        mode = apsw.SQLITE_CHECKPOINT_TRUNCATE if truncate else apsw.SQLITE_CHECKPOINT_PASSIVE
        try:
            with telling_damage():
                frames, moved = self._connection.wal_checkpoint(mode=mode)
        except apsw.BusyError:
            return
        except (*_STORAGE_ERRORS, apsw.FullError) as error:
            if is_full(error):
                return
            raise StorageFault(f"checkpoint: {error}") from error
        if frames == moved:
            self.wal_bytes = 0  # the next commit starts the WAL anew

    def close(self) -> None:
        """End cleanly: everything moves from the WAL into the database."""
        if self.tally.is_behind(self._counters.position):
            with contextlib.suppress(apsw.FullError):  # then the next start counts
                self._connection.execute("BEGIN IMMEDIATE")
                self._commit(removes=True)
            self._roll_back()
        self.checkpoint(truncate=True)
        self._connection.close()

    def abandon(self) -> None:
        """End without touching the files, after a StorageFault: the next start reads what the disk really holds."""
        self._connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        self._connection.close()

    def _transaction(self, batch: Sequence[Request], now_us: int) -> Batch:
        if not {Publish}.issuperset(map(type, batch)):
            self._cursor.execute("BEGIN IMMEDIATE")
        done, recorded, removed = Batch([]), False, False
        for request in batch:
            removes = type(request) in prune.REMOVALS
            if removes:
                recorded |= self._write(done)  # so that the removal finds it
            try:
                if removes:
                    removed |= self._remove(request, now_us, done)
                else:
                    done.outcomes.append(self._carry_out(request, now_us))
            except Refusal as refusal:
                done.outcomes.append(refusal)
        recorded |= self._write(done)
        if recorded or removed:
            self._commit(removes=removed)
        elif self._connection.in_transaction:
            self._connection.execute("ROLLBACK")  # only duplicates and refusals, or there was nothing to remove
        self.heads.hold_bounds()
        return done

    def _commit(self, *, removes: bool) -> None:
        self.tally.save(self._pending.position, removes=removes)
        pending, counters = self._pending, self._counters
        if removes or (pending.epoch, pending.run) != (counters.epoch, counters.run):  # see sql.READ_HISTORY
            self._connection.execute(sql.SAVE_COUNTERS, msgspec.structs.astuple(pending))
        self._cursor.execute("COMMIT")
        self.tally.committed(self._pending.position)
        self._counters = copy(self._pending)

    def _write(self, done: Batch) -> bool:
        """Write what the requests so far have brought; False when it was nothing new."""
        done.shown += self._shown
        self._shown = []
        if not self.heads.changed:
            return False
        rows = itertools.chain.from_iterable(committed.rows for committed in self._events)
        self._cursor.executemany(sql.INSERT_EVENT, rows)
        self.heads.save()
        done.events += self._events
        done.held += self.heads.saved()
        done.gaps |= self._gaps
        self._events, self._gaps = [], False
        return True

    def _remove(self, request: Request, now_us: int, done: Batch) -> bool:
        """Carry out a removal; False when there was nothing to remove, and is nothing to sync. Raises a Refusal."""
        assert isinstance(request, prune.Removal)
        changes, gave_back = self._connection.total_changes(), False
        outcome = prune.carry_out(self, self._connection, request, now_us)
        done.outcomes.append(outcome)
        if isinstance(outcome, prune.Cleared):
            gave_back = outcome.pages > 0  # which is no change of a row
        elif isinstance(outcome, prune.Compacted):
            done.gaps |= outcome.events > 0
        elif isinstance(request, Delete) and isinstance(outcome, prune.Deleted) and outcome.deleted:
            done.gaps = True
            done.held.append(Held(request.uid, request.namespace, request.run_id, frozenset()))
        return gave_back or self._connection.total_changes() != changes

    def _carry_out(self, request: Request, now_us: int) -> Outcome:
        if isinstance(request, Append):
            return self._append(request, now_us)
        if isinstance(request, Publish):
            self._shown += live.publish(self, request, now_us)
            return live.Shown()
        if isinstance(request, Begin):
            return leases.begin(self, request, now_us)
        if isinstance(request, Claim):
            return leases.claim(self, request, now_us)
        if isinstance(request, Release):
            return leases.release(self, request, now_us)
        if isinstance(request, Fence):
            return leases.fence(self, request, now_us)
        if isinstance(request, Import):
            return imports.take_in(self, request)
        assert isinstance(request, Death)  # removals: see _remove
        return leases.bury(self, request, now_us)

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        self.heads.clear()
        self.tally.roll_back()
        self._pending = copy(self._counters)
        self._events, self._gaps, self._shown = [], False, []

    def find(self, uid: int, namespace: str, run_id: str) -> CachedRun:
        """A run by its name. Raises NoSuchRun."""
        run = self.heads.find((uid, namespace, run_id))
        if run is None:
            self.check_not_deleted((uid, namespace, run_id))
            raise NoSuchRun(namespace, run_id)
        return run

    def check_not_deleted(self, name: Name, lease_key: bytes | None = None) -> None:
        """Refuse who means a run that was deleted; a begin means it only with that run's own lease key."""
        prune.check_not_deleted(self._connection, name, lease_key)

    def add_run(self, name: Name, lease: Lease) -> CachedRun:
        """A new run under a new epoch, without an event yet."""
        self._pending.run += 1
        run = CachedRun(self._pending.run, name, lease, Head(epoch=self.next_epoch()))
        self.heads.add(run)
        self.tally.add(run.name[0], 1, 0)
        return run

    def next_epoch(self) -> int:
        """Take the next epoch from the history's counter."""
        self._pending.epoch += 1
        return self._pending.epoch

    @property
    def pending_epoch(self) -> int:
        """The newest epoch that was given, committed or not."""
        return self._pending.epoch

    @property
    def pending_position(self) -> int:
        """The newest position that was given, committed or not."""
        return self._pending.position

    def skip_position(self) -> int:
        """A position that no event gets; one that comes with the batch gets a later one."""
        self._pending.position += 1
        return self._pending.position

    def tell_gap(self, run: CachedRun, compaction: tuple[object, ...]) -> None:
        """Have readers and followers told that events of the run are not here; `compaction`: see SAVE_COMPACTION."""
        self._connection.execute(sql.SAVE_COMPACTION, compaction)
        self._gaps = True
        self.heads.touch(run)

    def event_at(self, run: CachedRun, seq: int) -> ImportedEvent | None:
        """What is stored at that seq, before or in this batch; None where events were dropped."""
        row = self._row_at(run, seq) or self._connection.execute(sql.EVENT_AT, (run.number, seq)).fetchone()
        return None if row is None else imports.from_row(row)

    def _row_at(self, run: CachedRun, seq: int) -> Row | None:
        """What this batch stores at that seq."""
        for committed in reversed(self._events):
            for row in committed.rows:
                if row[RUN] == run.number and row[SEQ] == seq:
                    return row
        return None

    def join(self, run: CachedRun, holder: Holder | None) -> None:
        """Let a process that acts under the run's lease be one of its holders."""
        if holder is not None and run.lease.state == "owned" and holder not in run.lease.holders:
            run.lease.holders.add(holder)
            self.heads.touch_lease(run)

    def _append(self, request: Append, now_us: int) -> Appended:
        run = self.find(request.uid, request.namespace, request.run_id)
        lease = run.lease
        if request.lease_key is not None:
            holds = lease.key == request.lease_key.bytes
            request = msgspec.structs.replace(request, epoch=run.head.epoch if holds else FOREIGN_EPOCH)
        last_n = self.last_n(run, request.writer)
        fresh = decide(run.head, request, last_n, self.stored_keys(run, request.events), lease.state, lease.owner_pid)
        if fresh:
            self.tally.check_events(request.uid, fresh)
            self.check_blobs(request.uid, fresh)
            check_team(run.head, self.heads.team_epoch(request.uid, run.head.team_run_id))
            self.join(run, request.holder if request.epoch is not None else None)
            if run.head.status == "incomplete" and request.reopens:
                self.store_own(run, resumed_event(leases.resumed_data(run, request.holder)), now_us)
            self.store_all(run, fresh, request.writer, now_us)
        self.count(run, request.writer, request.first_n, len(request.events), last_n)
        last_seq, duplicates = run.head.last_seq, len(request.events) - len(fresh)
        if not fresh:
            return Appended(None, None, self._pending.position, 0, duplicates)
        return Appended(last_seq - len(fresh) + 1, last_seq, self._pending.position, len(fresh), duplicates)

    def last_n(self, run: CachedRun, writer: UUID | None) -> int:
        """How many events of the writer the run has; 0 without a writer."""
        return 0 if writer is None else self.heads.last_n(run, writer)

    def store_all(self, run: CachedRun, accepted: Sequence[Accepted], writer: UUID | None, now_us: int) -> None:
        """Fold events that were decided on, in their order, and keep their rows for the end of the batch.

        It must not fail halfway: what can be refused was refused before.
        """
        if not accepted:
            return
        self.heads.touch(run)
        self.heads.prepare(run, accepted)
        head, seq = run.head, run.head.last_seq
        key = None if writer is None else writer.bytes
        rows = rows_of(accepted, run.number, self._pending.position, seq, head.epoch, key, now_us)
        fold(head, accepted, now_us)
        for sha256, _ in blobs.used_by(accepted):
            blobs.note_use(self._connection, run, sha256)
        for i, new in enumerate(accepted, seq + 1):
            if new.event.key is not None:
                run.new_keys[new.event.key] = StoredKey(i, content_of(new.event, new.kind))
        if head.status in _LEASE_ENDS and run.lease.state == "owned":
            run.lease.end()
            self.heads.touch_lease(run)
        self._pending.position += len(rows)
        self.tally.add(run.name[0], 0, bytes_of(accepted))
        self._events.append(Committed(*run.name, head.agent_id, head.team_run_id, rows))

    def store_own(self, run: CachedRun, event: Event, now_us: int) -> None:
        """Store an event that the daemon itself makes; its type is its kind."""
        self.store_all(run, [Accepted(event, event.type, payload_of(event.type, event.data, "data"), None)], None, now_us)

    def count(self, run: CachedRun, writer: UUID | None, first_n: int | None, events: int, last_n: int) -> None:
        """Keep the writer's last n, also where its events were duplicates by key. `last_n` is what it was before."""
        if writer is None or first_n is None or not events or first_n > last_n + 1:
            return
        newest = first_n + events - 1
        if newest > run.writers[writer.int]:
            run.writers[writer.int] = newest
            run.touched_writers.add(writer.int)
            self.heads.touch(run)

    def stored_keys(self, run: CachedRun, events: Sequence[Event]) -> dict[str, StoredKey]:
        """What the run has under the keys of these events."""
        found: dict[str, StoredKey] = {}
        for event in events:
            if event.key is None:
                continue
            if event.key in run.new_keys:
                found[event.key] = run.new_keys[event.key]
                continue
            row = self._connection.execute(sql.FIND_KEY, (run.number, event.key)).fetchone()
            if row is not None:
                seq, type_, kind, step_id, attempt, usage, data, *blob = row
                known = Event(
                    type=type_,
                    step_id=step_id,
                    attempt=attempt,
                    usage=usage_of(usage),
                    data=Raw(data),
                    data_blob=blob_of(*blob),
                )
                found[event.key] = StoredKey(seq, content_of(known, kind))
        return found

    def check_blobs(self, uid: int, accepted: Sequence[Accepted]) -> None:
        """Refuse artifacts and data whose content the user has not given."""
        blobs.check_uses(self._connection, uid, accepted)

    def data_of(self, run: CachedRun, seq: int) -> bytes:
        """The data of one of the run's events, stored before or in this batch."""
        row = self._row_at(run, seq)
        if row is None:
            ((data,),) = self._connection.execute(sql.DATA_OF_SEQ, (run.number, seq))
            return str(data).encode()
        found: bytes = row[DATA]
        return found

    def _measure_wal(self, connection: apsw.Connection, database: str, pages: int) -> int:
        self.wal_bytes = pages * PAGE_BYTES
        return apsw.SQLITE_OK
