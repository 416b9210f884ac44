"""Building a new history of what a damaged one still tells.

A run is its events, so the events are salvaged, and everything else of a run is folded from them again. What only the
run's own row tells (whose it is, its lease, how many events it had) is taken from there where it is left. What is lost is
never passed over: a hole in a run's seqs is kept as a gap that readers and followers are told of (rule `events.lost`), a
note at the run's end names it, and a seq that was given once is not given again, though its event is gone.

The new history is another one, for the reasons that `restore` gives: runs that went on are incomplete (`recovered`). The
damaged files are only read, and moved aside as they are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from uuid import uuid4

import apsw
import msgspec
from attrs import define, field, frozen

from ..model.events import TERMINAL, RunSpec
from ..model.lease import ENDED, Lease
from . import sql
from .backup import Content, copy_contents
from .contents import BLOBS_NAME, path_of
from .database import open_reader, open_writer
from .heads import CachedRun, Heads
from .restore import renew, staging
from .salvage import LOST, Found, Progress, scan
from .verify import Recomputed, Verdict, verify

RUNS_AT_ONCE = 200
_decode_spec = msgspec.json.Decoder(RunSpec).decode


@frozen
class Loss:
    """Events of a run that were not found: `ranges` of seqs, both ends included. Those before a compaction of the run may
    have been dropped by it."""

    namespace: str
    run_id: str
    events: int
    ranges: list[tuple[int, int]]


@define
class Recovered:
    """What was saved, and what is lost."""

    instance_id: str = ""
    pages: int = 0
    unusable: int = 0
    losses: list[Loss] = field(factory=list)
    incomplete: list[tuple[str, str]] = field(factory=list)
    verdict: Verdict = field(factory=Verdict)


def is_sound(database: Path) -> bool:
    """Whether SQLite finds no fault in the file at all."""
    try:
        connection = open_reader(database)
        try:
            return bool(connection.execute("PRAGMA integrity_check(1)").get == "ok")
        finally:
            connection.close()
    except apsw.Error:
        return False


def recover(source: Path, state_dir: Path, now_us: int, *, before: Callable[[], None], progress: Progress) -> Recovered:
    """Salvage the history in the directory `source` and put it into the state directory, which the caller holds.

    `before` is called when everything is ready to take its place, to make room there. Raises BackupFault; then the state
    directory holds what it held.
    """
    with staging(source, state_dir, "nothing was recovered", before) as stage:
        return build(source, stage, now_us, progress)


def build(source: Path, stage: Path, now_us: int, progress: Progress) -> Recovered:
    """Make the new history in `stage`."""
    database = stage / "history.db"
    connection = open_writer(database)
    try:
        found = scan(source / "history.db", connection, progress)
        builder = _Builder(connection, found, now_us)
        builder.run()
        contents = keep_contents(connection, source / BLOBS_NAME, now_us)
    finally:
        connection.close()
    copy_contents(source / BLOBS_NAME, stage / BLOBS_NAME, contents, 0, lambda done, of: None)
    made = Recovered(pages=found.pages, unusable=found.unusable, losses=builder.losses)
    made.instance_id, made.incomplete = renew(database, now_us, "recovered")
    made.verdict = verify(database, lambda checked, of: None)
    return made


def keep_contents(connection: apsw.Connection, directory: Path, now_us: int) -> Content:
    """Note which content is used and there, and then what each user has; returns the names and sizes of the content."""
    with connection:
        connection.execute(sql.SALVAGE_USES)
        for uid, sha256 in connection.execute(sql.SALVAGED_USES).fetchall():
            path = path_of(directory, bytes(sha256).hex())  # type: ignore[arg-type]
            if path.is_file():
                connection.execute(sql.KEEP_BLOB, (uid, sha256, path.stat().st_size, now_us))
        connection.execute(sql.RECOUNT_USERS)
        rows: list[Any] = connection.execute(sql.VERIFY_BLOBS).fetchall()
    return [(sha256.hex(), size) for sha256, size in rows]


class _Builder:
    """Makes the runs of the events that are in the new database already."""

    def __init__(self, connection: apsw.Connection, found: Found, now_us: int) -> None:
        self.losses: list[Loss] = []
        self._connection = connection
        self._found = found
        self._now_us = now_us
        self._heads = Heads(connection)
        self._position = 0

    def run(self) -> None:
        """Build all runs, each with what is lost of it."""
        execute, found = self._connection.execute, self._found
        with self._connection:
            for number, tombstone in found.tombstones.items():
                execute(sql.SALVAGE_TOMBSTONE, [number, *tombstone[1:12], 1])
            execute(sql.DELETE_DELETED)
        self._position = self._newest()
        salvaged = {int(row[0]) for row in execute(sql.SALVAGED_RUNS)}
        numbers = sorted(salvaged | (found.runs.keys() - found.tombstones.keys()))
        for start in range(0, len(numbers), RUNS_AT_ONCE):
            with self._connection:
                for number in numbers[start : start + RUNS_AT_ONCE]:
                    self._build(number)
        history = found.history or [None, "", 0, 0, 0, 0]
        epochs = [int(row[18]) for row in found.runs.values()]  # type: ignore[arg-type]
        with self._connection:
            low_water = history[5] if len(history) > 5 else 0
            counters = (max(self._position, as_int(history[2])), max([as_int(history[3]), *epochs]))
            execute(sql.SAVE_HISTORY, (*counters, max([as_int(history[4]), *numbers, *found.tombstones]), low_water))

    def _newest(self) -> int:
        tombstones = [as_int(row[9]) for row in self._found.tombstones.values()]
        gaps = [as_int(row[6]) for row in self._found.compactions.values() if row[6] is not None]
        newest = as_int(self._connection.execute(sql.NEWEST_POSITION).get)
        return max([newest, *tombstones, *gaps, as_int(self._found.history[2]) if self._found.history else 0])

    def _build(self, number: int) -> None:
        row: list[Any] | None = self._found.runs.get(number)
        seqs = self._ordered(number)
        name = self._name(number, row, seqs)
        if 1 not in seqs:
            self._begin_again(number, name, row, seqs)
        last_seq = max([row[19] if row else 0, *seqs])
        ranges = holes(seqs, last_seq)
        self._tell(number, name, seqs, ranges, last_seq)
        self._fold(number, name, row)

    def _ordered(self, number: int) -> dict[int, int]:
        """The positions of the run's events by seq, without those that can be none of it because of their order."""
        seqs: dict[int, int] = {}
        last, last_epoch = 0, 0
        rows: list[Any] = self._connection.execute(sql.SALVAGED_SEQS, (number,)).fetchall()
        for seq, position, epoch in rows:
            if position <= last or epoch < last_epoch:
                self._connection.execute(sql.DELETE_EVENT, (position,))
                continue
            last, last_epoch = position, epoch
            seqs[seq] = position
        return seqs

    def _name(self, number: int, row: list[Any] | None, seqs: dict[int, int]) -> tuple[int, str, str]:
        """Whose run it is, by its row, else by how it began; else it gets a name of its own."""
        if row is not None:
            return row[1], row[2], row[3]
        namespace, run_id = "recovered", f"run-{number}"
        if 1 in seqs:
            spec = _decode_spec(str(self._connection.execute(sql.DATA_OF_SEQ, (number, 1)).get))
            namespace, run_id = spec.namespace or "default", spec.run_id
        if self._heads.find((os.geteuid(), namespace, run_id)) is not None:
            run_id = f"{run_id}#{number}"
        return os.geteuid(), namespace, run_id

    def _begin_again(self, number: int, name: tuple[int, str, str], row: list[Any] | None, seqs: dict[int, int]) -> None:
        """Make the run's first event again of its row. It lies at a position that a lost event had."""
        _, namespace, run_id = name
        spec = RunSpec(run_id=run_id, namespace=namespace)
        if row is not None:
            members = dict(zip(("workflow", "agent_id", "parent_run_id", "title"), row[8:12], strict=True))
            members.update(zip(("team_id", "team_run_id", "team_epoch"), row[34:37], strict=False))
            spec = msgspec.structs.replace(spec, **members, time_us=row[21])
        first = min(seqs.values(), default=None)
        position = self._next() if first is None else self._unused_below(first)
        epoch = as_int(self._connection.execute(sql.OLDEST_EPOCH, (number,)).get or (row[18] if row else 0))
        data = msgspec.json.encode(spec).decode()
        self._insert(number, 1, position, "run.started", data, at_us=row[21] if row else None, epoch=epoch)
        seqs[1] = position

    def _unused_below(self, position: int) -> int:
        unused = position - 1
        for (used,) in self._connection.execute(sql.POSITIONS_BELOW, (position,)):
            if used != unused:
                break
            unused -= 1
        return unused

    def _next(self) -> int:
        self._position += 1
        return self._position

    def _insert(
        self,
        number: int,
        seq: int,
        position: int,
        kind: str,
        data: str,
        *,
        at_us: int | None = None,
        epoch: int | None = None,
    ) -> None:
        """Store an event of ours; under the run's newest epoch, unless another is given."""
        if epoch is None:
            epoch = as_int(self._connection.execute(sql.NEWEST_EPOCH, (number,)).get)
        row = (position, number, seq, epoch, kind, kind, *(None,) * 6, at_us, self._now_us, data, None, None)
        self._connection.execute(sql.SALVAGE_EVENT, row)

    def _tell(
        self, number: int, name: tuple[int, str, str], seqs: dict[int, int], ranges: list[tuple[int, int]], last_seq: int
    ) -> None:
        """Keep what was dropped on purpose, and note what is lost beyond that."""
        compactions: list[Any] = [one for (run, _), one in self._found.compactions.items() if run == number]
        for one in compactions:
            self._connection.execute(sql.SALVAGE_COMPACTION, one)
        _, namespace, run_id = name
        missing = sum(last - first + 1 for first, last in ranges)
        lost = missing - sum(one[2] for one in compactions if one[1] != LOST)
        if lost <= 0:
            return
        self.losses.append(Loss(namespace, run_id, lost, ranges))
        told = ", ".join(f"{first} to {last}" if last > first else str(first) for first, last in ranges)
        data = json.dumps({"text": f"the history was recovered from a damaged database; lost are the events {told}"})
        self._insert(number, last_seq + 1, self._next(), "note", data)
        seqs[last_seq + 1] = self._position
        first, last = ranges[0][0], ranges[-1][1]
        between = (seqs[max(seq for seq in seqs if seq < first)] + 1, seqs[min(seq for seq in seqs if seq > last)] - 1)
        self._connection.execute(sql.SAVE_COMPACTION, (number, LOST, lost, first, last, *between, 1))

    def _fold(self, number: int, name: tuple[int, str, str], row: list[Any] | None) -> None:
        """Make the run's rows of its events."""
        execute, executemany = self._connection.execute, self._connection.executemany
        folded = Recomputed(number, execute(sql.COMPACTIONS_OF_RUN, (number,)).fetchall())
        for event in execute(sql.VERIFY_EVENTS, (number,)).fetchall():
            folded.add(event)
        if row is not None and row[7] in TERMINAL and folded.head.status not in TERMINAL:
            folded.add(self._end_again(number, folded.head.last_seq + 1, row))
        state = row[32] if row is not None and len(row) > 32 else ENDED
        lease = Lease(row[5] if row is not None else uuid4().bytes, row[6] if row is not None else None, state)
        run = CachedRun(number, name, lease, folded.head)
        self._heads.add(run)
        if row is not None and len(row) > 33:
            run.evidence = row[33]
        if folded.head.team_run_id is not None:
            team = (name[0], folded.head.team_run_id)
            self._heads.raise_team_epoch(*team, max(self._heads.team_epoch(*team), folded.head.team_epoch or 0))
        self._heads.save()
        self._heads.saved()
        executemany(sql.SAVE_WRITER, [(number, writer, n) for writer, n in folded.writers.items()])
        executemany(sql.INSERT_KEY, [(number, key, seq) for key, seq in folded.keys.items()])
        if number in self._found.pins:
            execute(sql.INSERT_PIN, (number, self._found.pins[number]))

    def _end_again(self, number: int, seq: int, row: list[Any]) -> tuple[Any, ...]:
        """Make the run's last event again of its row: what has ended stays so."""
        data = json.dumps({} if row[13] is None else {"error": row[13]})
        self._insert(number, seq, self._next(), f"run.{row[7]}", data, at_us=row[22])
        events: list[Any] = self._connection.execute(sql.VERIFY_EVENTS, (number,)).fetchall()
        return tuple(events[-1])


def holes(seqs: Iterable[int], last_seq: int) -> list[tuple[int, int]]:
    """The ranges from 1 to `last_seq` that are not among the seqs."""
    ranges = []
    expected = 1
    for seq in [*sorted(seqs), last_seq + 1]:
        if seq > expected:
            ranges.append((expected, seq - 1))
        expected = seq + 1
    return ranges


def as_int(value: object) -> int:
    """A value that its row's shape promises to be a number."""
    return value if isinstance(value, int) else 0
