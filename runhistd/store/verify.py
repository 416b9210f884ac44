"""Recompute everything that is derived from the events, and say what differs.

It reads one run at a time, each in a short transaction of its own, so that it works beside a live daemon and in bounded
memory. It shares the fold with the log and nothing else: what it compares is what lies in the tables.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import apsw
import msgspec
from attrs import define, field, frozen
from msgspec import Raw

from ..model.events import Accepted, Event, payload_of
from ..model.quota import Stored
from ..model.run import ZERO, Head, fold
from . import sql
from .blobs import used_by
from .contents import BLOBS_NAME, path_of
from .database import open_reader, snapshot
from .heads import CachedRun, run_from_row
from .rows import blob_of, usage_of
from .tally import load

OF_ANY_SIZE = "of any size"  # content that an artifact uses, which need not tell its size


@frozen
class Difference:
    """Something that is not as the events say. `what` is the table's column or row; run_id is None for the whole file."""

    namespace: str | None
    run_id: str | None
    what: str
    expected: str
    found: str


@define
class Verdict:
    """What was checked, and what differs."""

    runs: int = 0
    events: int = 0
    differences: list[Difference] = field(factory=list)


def verify(database: Path, progress: Callable[[int, int], None]) -> Verdict:
    """Check the whole history; `progress(checked, of)` is called as runs are done. The database is not changed.

    Raises apsw.Error where SQLite cannot read the file at all.
    """
    connection = open_reader(database)
    verdict = Verdict()
    try:
        ((of,),) = connection.execute(sql.COUNT_ALL_RUNS)
        for number in _run_numbers(connection):
            _verify_run(connection, number, verdict)
            progress(verdict.runs, of)
        _verify_file(connection, verdict)
        _verify_blobs(connection, database.parent / BLOBS_NAME, verdict)
    finally:
        connection.close()
    return verdict


def _run_numbers(connection: apsw.Connection) -> Iterator[int]:
    last = 0
    while numbers := [row[0] for row in connection.execute(sql.RUN_NUMBERS, (last,))]:
        yield from numbers
        last = numbers[-1]


def _verify_file(connection: apsw.Connection, verdict: Verdict) -> None:
    for (message,) in connection.execute("PRAGMA integrity_check"):
        if message != "ok":
            verdict.differences.append(Difference(None, None, "integrity_check", "ok", str(message)))
    for table, rows in connection.execute(sql.ORPHANED_ROWS):
        if rows:
            verdict.differences.append(Difference(None, None, f"{table} without a run", "0", str(rows)))
    _verify_users(connection, verdict)
    ((counted, newest),) = connection.execute(sql.VERIFY_POSITION)
    if newest > counted:
        verdict.differences.append(Difference(None, None, "position counter", f">= {newest}", str(counted)))


def _verify_users(connection: apsw.Connection, verdict: Verdict) -> None:
    """What is told of how much each user has must be so."""
    with snapshot(connection):
        rows: list[Any] = connection.execute(sql.COUNT_USERS).fetchall()
        found = load(connection)
    expected = {uid: Stored(runs, size) for uid, runs, size in rows}
    for uid in sorted(expected.keys() | found.keys()):
        pair = [figures.get(uid, Stored()) for figures in (expected, found)]
        if pair[0] != pair[1]:
            verdict.differences.append(Difference(None, None, f"runs and bytes of user {uid}", *map(repr, pair)))


def _verify_blobs(connection: apsw.Connection, directory: Path, verdict: Verdict) -> None:
    """Every content that a run uses must be there, and be what its name says."""
    rows: list[Any] = connection.execute(sql.VERIFY_BLOBS).fetchall()
    for sha256, size in rows:
        name = sha256.hex()
        found = _measure(path_of(directory, name))
        if found != f"{size} bytes, {name}" and connection.execute(sql.HOLDERS_OF_BLOB, (sha256,)).get:
            verdict.differences.append(Difference(None, None, f"content {name[:12]}", f"{size} bytes, {name}", found))


def _measure(path: Path) -> str:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return f"{file.tell()} bytes, {digest}"
    except OSError as error:
        return str(error.strerror)


def _verify_run(connection: apsw.Connection, number: int, verdict: Verdict) -> None:
    with snapshot(connection):
        rows = connection.execute(sql.VERIFY_RUN, (number,)).fetchall()
        if not rows:
            return  # deleted since the numbers were read
        run = run_from_row(rows[0])
        recomputed = Recomputed(number, connection.execute(sql.COMPACTIONS_OF_RUN, (number,)).fetchall())
        for row in connection.execute(sql.VERIFY_EVENTS, (number,)):
            recomputed.add(row)
        expected, found = recomputed.tables(), _stored_tables(connection, run)
    verdict.runs += 1
    verdict.events += recomputed.head.last_seq
    _, namespace, run_id = run.name
    for what in sorted(expected.keys() | found.keys()):
        if not _agree(what, expected.get(what), found.get(what)):
            verdict.differences.append(
                Difference(namespace, run_id, what, repr(expected.get(what)), repr(found.get(what)))
            )


def _agree(what: str, expected: Any, found: Any) -> bool:
    if what.startswith("writer "):  # an n whose event was a duplicate by key counts, and left no event
        return (found or 0) >= (expected or 0)
    if expected == OF_ANY_SIZE:
        return isinstance(found, int)
    return bool(expected == found)


class Recomputed:
    """One run as its events say, built from the rows of VERIFY_EVENTS. `compactions` tell which may be missing."""

    def __init__(self, number: int, compactions: list[Any]) -> None:
        self.missing = sum(events for _, events, *_ in compactions)
        self.gaps = [(from_seq, to_seq) for _, _, from_seq, to_seq, *_ in compactions]
        self.number = number
        self.head = Head()
        self.writers: dict[bytes, int] = {}
        self.keys: dict[str, int] = {}
        self.uses: dict[str, int | str] = {}
        self.faults: dict[str, Any] = {}
        self.position = 0

    def add(self, row: tuple[Any, ...]) -> None:
        position, seq, epoch, type_, kind, key, writer, n, step_id, attempt, usage, time_us, received_us, data, *blob = row
        head = self.head
        self._skip_gap(seq)
        if seq != head.last_seq + 1:
            self.faults[f"event {seq}"] = f"seq {head.last_seq + 1}"
        if position <= self.position or epoch < head.epoch:
            self.faults[f"event {seq} order"] = f"position > {self.position}, epoch >= {head.epoch}"
        self.position = position
        head.epoch = epoch
        event = Event(
            type=type_,
            step_id=step_id,
            attempt=attempt,
            usage=usage_of(usage),
            time_us=time_us,
            data=Raw(data),
            data_blob=blob_of(*blob),
        )
        new = Accepted(event, kind, payload_of(kind, event.data, "data"), n)
        head.last_seq = seq - 1
        fold(head, [new], received_us)
        self._note_uses(new)
        if writer is not None:
            self.writers[writer] = max(self.writers.get(writer, 0), n)
        if key is not None:
            self.keys[key] = seq

    def _note_uses(self, new: Accepted) -> None:
        """Take note of the content that the event needs, and of its size where the event tells that."""
        for sha256, size in used_by([new]):
            if size is None:
                self.uses.setdefault(sha256, OF_ANY_SIZE)
            else:
                self.uses[sha256] = size

    def _skip_gap(self, seq: int) -> None:
        """Take the events before `seq` for dropped, as far as a compaction may have dropped them."""
        head = self.head
        while head.last_seq + 1 < seq:
            skipped = max((last for first, last in self.gaps if first <= head.last_seq + 1 <= last), default=None)
            if skipped is None:
                return
            skipped = min(skipped, seq - 1)
            self.missing -= skipped - head.last_seq
            head.last_seq = skipped

    def tables(self) -> dict[str, Any]:
        """What the tables must hold, by a name that tells a person where it is."""
        head = self.head
        names = msgspec.structs.asdict(head)
        tables = {f"run {name}": names[name] for name in _RUN_COLUMNS}
        tables.update({f"document {name}": document for name, document in head.documents.items()})
        for attempts in head.steps.values():
            for step in attempts.values():
                tables[f"step {step.step_id} attempt {step.attempt}"] = msgspec.structs.astuple(step)
        tables.update({f"usage {key}": added for key, added in head.usage_added.items()})
        tables.update({f"usage mark {scope!r}": mark for scope, mark in head.marks.items() if mark != ZERO})
        tables.update({f"writer {UUID(bytes=writer)}": n for writer, n in self.writers.items()})
        tables.update({f"key {key}": seq for key, seq in self.keys.items()})
        tables.update({f"use of {sha256}": size for sha256, size in self.uses.items()})
        if self.missing:
            self.faults["dropped events"] = f"{self.missing} more are said to be dropped than are missing"
        return {**tables, **self.faults}


_RUN_COLUMNS = (
    *("status", "workflow", "agent_id", "parent_run_id", "title", "current_step", "error", "gate_seq", "gate_name"),
    *("gate_prompt", "gate_answer_seq", "epoch", "last_seq", "checkpoint_seq", "started_us", "ended_us", "created_us"),
    *("updated_us", "closed_us", "totals"),
)


def _stored_tables(connection: apsw.Connection, run: CachedRun) -> dict[str, Any]:
    number = run.number
    columns = msgspec.structs.asdict(run.head)
    tables: dict[str, Any] = {f"run {name}": columns[name] for name in _RUN_COLUMNS}
    for name, document in connection.execute(sql.DOCUMENTS, (number,)):
        tables[f"document {name}"] = msgspec.json.decode(document)
    for step_id, attempt, *rest in connection.execute(sql.VERIFY_STEPS, (number,)):
        tables[f"step {step_id} attempt {attempt}"] = (step_id, attempt, *rest)
    for step_id, attempt, provider, model, *figures in connection.execute(sql.VERIFY_USAGE, (number,)):
        tables[f"usage {(step_id, attempt, provider, model)}"] = tuple(figures)
    for scope, *figures in connection.execute(sql.VERIFY_MARKS, (number,)):
        if tuple(figures) != ZERO:
            tables[f"usage mark {scope!r}"] = tuple(figures)
    for writer, last_n in connection.execute(sql.VERIFY_WRITERS, (number,)):
        tables[f"writer {UUID(bytes=writer)}"] = last_n
    for key, seq in connection.execute(sql.VERIFY_KEYS, (number,)):
        tables[f"key {key}"] = seq
    for sha256, size in connection.execute(sql.VERIFY_USES, (number,)):
        tables[f"use of {sha256.hex()}"] = "content that nobody has given" if size is None else size
    return tables
