"""Runs in memory: loading a run's head, keeping it while it is written to, and saving what a batch changed.

A cached run holds its open steps and what its last requests touched. `whole` says that nothing of its steps and marks
lies only on the disk, which is so from its beginning until something is dropped, and saves the look-ups. Rows are
written once a batch, however many events changed them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from uuid import UUID

import apsw
import msgspec
from msgspec import Struct

from ..model.decide import StoredKey
from ..model.errors import TooLarge
from ..model.events import Accepted, Event
from ..model.holder import Holder
from ..model.lease import Lease
from ..model.run import ZERO, Head, Step
from . import sql

MAX_RUNS = 1000
MAX_STEPS = 1000  # step ids (or marks) of a run that are kept beyond a batch; more are read again when needed
MAX_PARTS = 100_000  # steps and marks of all runs together
MAX_WRITERS = 100
MAX_DOCUMENT_BYTES = 3 * 1024 * 1024  # of what patches amount to; a run's four fit one reply of GetRun

Name = tuple[int, str, str]
"""uid, namespace, run_id."""

encode = msgspec.json.Encoder().encode


class Held(Struct, frozen=True):
    """All the processes that hold a run's lease."""

    uid: int
    namespace: str
    run_id: str
    holders: frozenset[Holder]


class CachedRun:
    """One run and everything about it that the next request may need."""

    def __init__(self, number: int, name: Name, lease: Lease, head: Head) -> None:
        self.number = number
        self.name = name
        self.lease = lease
        self.head = head
        self.evidence: str | None = None  # of this batch, not yet in the table
        self.writers: dict[int, int] = {}  # by the UUID's int, because UUIDs hash and compare in Python
        self.touched_writers: set[int] = set()
        self.new_keys: dict[str, StoredKey] = {}  # of this batch, not yet in the table
        self.parts = 0  # steps and marks in memory after the last batch
        self.has_documents = False  # in the head, as the next patch needs them
        self.is_new = False
        self.lease_changed = False
        self.whole = False
        self.saved_status: tuple[object, ...] = ()

    def status_columns(self) -> tuple[object, ...]:
        """The columns of SAVE_STATUS, without the run."""
        head = self.head
        return (
            *(head.status, head.title, head.error, head.gate_seq, head.gate_name, head.gate_prompt),
            *(head.gate_answer_seq, head.epoch, head.checkpoint_seq, head.ended_us, head.closed_us),
        )

    def columns(self) -> tuple[object, ...]:
        """The columns of INSERT_RUN."""
        head = self.head
        return (
            *(self.number, *self.name, self.lease.key, self.lease.owner_pid),
            *(head.status, head.workflow, head.agent_id),
            *(head.parent_run_id, head.title, head.current_step, head.error, head.gate_seq, head.gate_name),
            *(head.gate_prompt, head.gate_answer_seq, head.epoch, head.last_seq, head.checkpoint_seq),
            *(head.started_us, head.ended_us, head.created_us, head.updated_us, head.closed_us, *head.totals),
            *(self.lease.state, head.team_id, head.team_run_id, head.team_epoch),
            self.name[2][::-1],
        )


def run_from_row(row: tuple[object, ...]) -> CachedRun:
    """A run from the columns that FIND_RUN and its like select; its documents, steps, marks and holders are
    left empty."""
    (number, uid, namespace, run_id, lease_key, owner_pid, *rest, state, team_id, team_run_id, team_epoch) = row
    names = (
        *("status", "workflow", "agent_id", "parent_run_id", "title", "current_step", "error", "gate_seq"),
        *("gate_name", "gate_prompt", "gate_answer_seq", "epoch", "last_seq", "checkpoint_seq", "started_us"),
        *("ended_us", "created_us", "updated_us", "closed_us"),
    )
    fields = dict(zip(names, rest, strict=False), team_id=team_id, team_run_id=team_run_id, team_epoch=team_epoch)
    head = Head(**fields, totals=tuple(rest[len(names) :]))  # type: ignore[arg-type]
    lease = Lease(lease_key, owner_pid, state)  # type: ignore[arg-type]
    return CachedRun(number, (uid, namespace, run_id), lease, head)  # type: ignore[arg-type]


class Heads:
    """The runs in memory, least recently used first. After a failed transaction, `clear` makes it read afresh."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._cursor = connection.cursor()
        self._runs: OrderedDict[Name, CachedRun] = OrderedDict()
        self.parts = 0  # steps and marks in memory, of all runs
        self._touched: dict[int, CachedRun] = {}
        self._teams: dict[tuple[int, str], int] = {}
        self._touched_teams: set[tuple[int, str]] = set()

    @property
    def changed(self) -> bool:
        """Whether there is something to save."""
        return bool(self._touched)

    def clear(self) -> None:
        """Forget everything, because it may differ from what is stored."""
        self._runs.clear()
        self.parts = 0
        self._touched.clear()
        self._teams.clear()
        self._touched_teams.clear()

    def add(self, run: CachedRun) -> None:
        """Take in a run that begins in this batch."""
        run.is_new = run.whole = run.has_documents = True
        self._runs[run.name] = run
        self.touch(run)

    def drop(self, name: Name) -> None:
        """Forget a run that is deleted; nothing of it is unsaved."""
        run = self._runs.pop(name, None)
        if run is not None:
            self.parts -= run.parts

    def touch(self, run: CachedRun) -> None:
        """Note that the run changes in this batch."""
        self._touched[run.number] = run

    def touch_lease(self, run: CachedRun) -> None:
        """Note that the run's lease, or who holds it, changes in this batch."""
        run.lease_changed = True
        self.touch(run)

    def team_epoch(self, uid: int, team_run_id: str | None) -> int:
        """The highest epoch seen of a team's execution; 0 for none."""
        if team_run_id is None:
            return 0
        team = (uid, team_run_id)
        if team not in self._teams:
            row = self._connection.execute(sql.LOAD_TEAM, team).fetchone()
            self._teams[team] = row[0] if row else 0
        return self._teams[team]

    def raise_team_epoch(self, uid: int, team_run_id: str, team_epoch: int) -> None:
        """Note that a newer execution of the team has begun."""
        self._teams[(uid, team_run_id)] = team_epoch
        self._touched_teams.add((uid, team_run_id))

    def find(self, name: Name) -> CachedRun | None:
        """The run of that name, from memory or disk."""
        run = self._runs.get(name)
        if run is not None:
            self._runs.move_to_end(name)
            return run
        row = self._connection.execute(sql.FIND_RUN, name).fetchone()
        if row is None:
            return None
        run = run_from_row(row)
        run.saved_status = run.status_columns()
        self._take_steps(run, self._connection.execute(sql.LOAD_OPEN_STEPS, (run.number,)))
        run.lease.holders = {Holder(*row) for row in self._connection.execute(sql.LOAD_HOLDERS, (run.number,))}
        self._runs[name] = run
        self._count_parts(run)
        return run

    def last_n(self, run: CachedRun, writer: UUID) -> int:
        """How many events of the writer the run has."""
        known = run.writers.get(writer.int)
        if known is None:
            row = None
            if not run.is_new:
                row = self._connection.execute(sql.LOAD_WRITER, (run.number, writer.bytes)).fetchone()
            known = run.writers[writer.int] = row[0] if row else 0
        return known

    def prepare(self, run: CachedRun, accepted: Iterable[Accepted]) -> None:
        """Load the documents, steps and marks that these events touch."""
        for new in accepted:
            if new.kind == "run.updated" and not run.has_documents:
                self._take_documents(run)
            if not run.whole:
                self._take_touched(run, new.event)

    def _take_touched(self, run: CachedRun, event: Event) -> None:
        head = run.head
        if event.step_id is not None and event.step_id not in head.steps:
            self._take_steps(run, self._connection.execute(sql.LOAD_STEP, (run.number, event.step_id)))
        if event.usage is not None:
            scope = event.usage.response_id or ("" if event.usage.cumulative else None)
            if scope is not None and scope not in head.marks:
                row = self._connection.execute(sql.LOAD_MARK, (run.number, scope)).fetchone()
                head.marks[scope] = row or ZERO

    def save(self) -> None:
        """Write every row that changed since the last save. The caller commits."""
        execute, executemany = self._cursor.execute, self._cursor.executemany
        progress: list[tuple[object, ...]] = []
        writers: list[tuple[object, ...]] = []
        for run in self._touched.values():
            head, status = run.head, run.status_columns()
            if run.is_new:
                execute(sql.INSERT_RUN, run.columns())
            else:
                progress.append((head.last_seq, head.updated_us, head.current_step, *head.totals, run.number))
                if status != run.saved_status:
                    execute(sql.SAVE_STATUS, (*status, run.number))
            run.saved_status = status
            if run.lease_changed:
                self._save_lease(run)
            if run.evidence is not None:
                execute(sql.SAVE_EVIDENCE, (run.evidence, run.number))
            if run.new_keys:
                keys = [(run.number, key, stored.seq) for key, stored in run.new_keys.items()]
                executemany(sql.INSERT_KEY, keys)
            writers += [(run.number, key.to_bytes(16, "big"), run.writers[key]) for key in run.touched_writers]
            self._save_parts(run.number, head)
        executemany(sql.SAVE_PROGRESS, progress)
        executemany(sql.SAVE_WRITER, writers)
        for team in self._touched_teams:
            execute(sql.SAVE_TEAM, (*team, self._teams[team]))

    def _save_lease(self, run: CachedRun) -> None:
        lease = run.lease
        self._connection.execute(sql.SAVE_LEASE, (lease.key, lease.owner_pid, lease.state, run.number))
        self._connection.execute(sql.DELETE_HOLDERS, (run.number,))
        holders = [(run.number, holder.pid, holder.identity, holder.boot_id) for holder in lease.holders]
        self._connection.executemany(sql.INSERT_HOLDER, holders)

    def _save_parts(self, number: int, head: Head) -> None:
        execute, executemany = self._connection.execute, self._connection.executemany
        if head.touched_steps:
            steps = (head.steps[step_id][attempt] for step_id, attempt in head.touched_steps)
            executemany(sql.SAVE_STEP, [(number, *msgspec.structs.astuple(step)) for step in steps])
        if head.usage_added:
            executemany(sql.ADD_USAGE, [(number, *key, *added) for key, added in head.usage_added.items()])
        if head.touched_marks:
            executemany(sql.SAVE_MARK, [(number, scope, *head.marks[scope]) for scope in head.touched_marks])
        for name in head.touched_documents:
            if name in head.documents:
                document = encode(head.documents[name])
                if len(document) > MAX_DOCUMENT_BYTES:
                    raise TooLarge(f"data.{name}", MAX_DOCUMENT_BYTES)
                execute(sql.SAVE_DOCUMENT, (number, name, document.decode()))
            else:
                execute(sql.DELETE_DOCUMENT, (number, name))

    def saved(self) -> list[Held]:
        """What changed is in the tables: start a new account, and hold the bounds of memory. Who holds now the runs of
        which that has changed."""
        held = []
        for run in self._touched.values():
            if run.lease_changed:
                held.append(Held(*run.name, frozenset(run.lease.holders)))
            run.is_new = run.lease_changed = False
            run.evidence = None
            run.touched_writers.clear()
            run.new_keys.clear()
            run.head.forget_touched()
            run.head.documents = {}  # a thousand runs may have large ones; few are patched again soon
            run.has_documents = False
            _shrink(run)
            self._count_parts(run)
        self._touched.clear()
        self._touched_teams.clear()
        if len(self._teams) > MAX_RUNS:
            self._teams.clear()
        self.hold_bounds()
        return held

    def hold_bounds(self) -> None:
        """Forget those not used for long where there are too many. Between batches: what one changes must stay."""
        while len(self._runs) > MAX_RUNS or self.parts > MAX_PARTS:
            _, run = self._runs.popitem(last=False)
            self.parts -= run.parts

    def _count_parts(self, run: CachedRun) -> None:
        parts = sum(map(len, run.head.steps.values())) + len(run.head.marks)
        self.parts += parts - run.parts
        run.parts = parts

    def _take_documents(self, run: CachedRun) -> None:
        head = run.head
        for name, document in self._connection.execute(sql.LOAD_DOCUMENTS, (run.number,)):
            if name not in head.touched_documents:
                head.documents[name] = msgspec.json.decode(document)
        run.has_documents = True

    def _take_steps(self, run: CachedRun, rows: Iterable[tuple[object, ...]]) -> None:
        for row in rows:
            step = Step(*row)  # type: ignore[arg-type]
            run.head.steps.setdefault(step.step_id, {})[step.attempt] = step


def _shrink(run: CachedRun) -> None:
    head = run.head
    if len(run.writers) > MAX_WRITERS:
        run.writers.clear()
    if len(head.marks) > MAX_STEPS:
        head.marks.clear()
        run.whole = False
    if len(head.steps) > MAX_STEPS:
        still_open = {
            step_id: attempts
            for step_id, attempts in head.steps.items()
            if any(step.status == "running" for step in attempts.values())
        }
        run.whole = run.whole and len(still_open) == len(head.steps)
        head.steps = still_open
