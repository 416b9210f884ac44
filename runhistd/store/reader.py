"""Reading. Every function runs one short read transaction on a read-only connection and returns the wire's own types.

The daemon calls these at once or in threads. Rows come back as they were committed: a reader never sees half a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import apsw
import msgspec
from attrs import evolve, frozen
from msgspec import Raw

from ..model.errors import NoSuchRun
from ..model.events import StoredEvent
from ..model.ids import shortest_ending
from ..model.retention import CLOSED, Candidate, Decision, Policy, decide, decide_events
from ..model.views import (
    EventFilter,
    Gap,
    Gate,
    Interrupted,
    Run,
    RunDetail,
    RunFilter,
    StatusCount,
    Step,
    UsageRow,
    UsageTotals,
)
from . import sql
from .database import open_reader
from .heads import Name
from .paging import Row, page_of
from .rows import stored_event

NEWEST = 2**63 - 1
SCAN_POSITIONS = 50_000  # of the log in one read transaction, however few of its events match

_encode = msgspec.json.Encoder().encode


class _Spec(msgspec.Struct):
    """What is read again of a RunSpec."""

    root: str | None = None
    dir: str | None = None
    traceparent: str | None = None


_decode_spec = msgspec.json.Decoder(_Spec).decode

__all__ = ["RunPage", "open_reader"]


@frozen
class RunPage:
    """One page of a list. `next_page` is None at the end; `total` counts all runs of the user, whatever the filters."""

    runs: list[Run]
    next_page: str | None
    total: int


class FollowPage(NamedTuple):
    """What lies behind a position: events and gaps, each in the order of their positions, and up to where was looked."""

    events: list[StoredEvent]
    looked_at: int
    gaps: list[Gap]


@contextmanager
def snapshot(connection: apsw.Connection) -> Iterator[None]:
    """One read transaction: everything read inside belongs to the same commit."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")


def get_run(connection: apsw.Connection, uid: int, namespace: str, run_id: str) -> tuple[Run, RunDetail]:
    """One run with its large parts. Raises NoSuchRun."""
    with snapshot(connection):
        row = connection.execute(sql.VIEW_RUN, (uid, namespace, run_id)).fetchone()
        if row is None:
            raise NoSuchRun(namespace, run_id)
        number, evidence, checkpoint_seq, *_ = row
        found = {name: Raw(text.encode()) for name, text in connection.execute(sql.DOCUMENTS, (number,))}
        ((data, pinned),) = connection.execute(sql.SPEC_AND_PIN, (number,))
        spec = _decode_spec(data)
        detail = RunDetail(
            found.get("definition"),
            found.get("metadata"),
            found.get("state"),
            found.get("output"),
            checkpoint_seq,
            _raw(evidence),
            spec.root,
            spec.dir,
            spec.traceparent,
            bool(pinned),
        )
        (view,) = _views(connection, [row])
        return view, detail


def list_runs(connection: apsw.Connection, uid: int | None, filter: RunFilter, page: str | None, limit: int) -> RunPage:
    """The newest runs that match, newest first, of all users without `uid`. `page` is the `next_page` of the one before."""
    with snapshot(connection):
        rows, next_page = _list(connection, uid, filter, page, limit)
        ((total,),) = connection.execute(sql.COUNT_RUNS, {"uid": uid})
        return RunPage(_views(connection, rows), next_page, total)


def list_interrupted(
    connection: apsw.Connection, uid: int, filter: RunFilter, page: str | None, limit: int
) -> tuple[list[Interrupted], str | None]:
    """Paused and incomplete runs that match, newest first. A paused one can go on once its gate is answered."""
    with snapshot(connection):
        rows, next_page = _list(connection, uid, evolve(filter, status=("paused", "incomplete")), page, limit)
        found = [
            Interrupted(run, run.status == "incomplete" or (run.gate is not None and run.gate.answered), _raw(evidence))
            for (_, evidence, *_), run in zip(rows, _views(connection, rows), strict=True)
        ]
    return found, next_page


def _list(
    connection: apsw.Connection, uid: int | None, filter: RunFilter, page: str | None, limit: int
) -> tuple[Sequence[Row], str | None]:
    """The rows of a page, and the token of the next one."""
    wanted: dict[str, str | int | None] = {
        "uid": uid,
        "before": NEWEST if page is None else int(page),
        "namespace": filter.namespace,
        "agent_id": filter.agent_id,
        "workflow": filter.workflow,
        "team_id": filter.team_id,
        "team_run_id": filter.team_run_id,
        "parent_run_id": filter.parent_run_id,
        "since_us": filter.since_us,
        "limit": limit + 1,
    }
    rows, more = page_of(_listed_rows(connection, filter, wanted), limit)
    return rows, str(rows[-1][0]) if more and filter.name is None else None


def _raw(text: str | None) -> Raw | None:
    return None if text is None else Raw(text.encode())


def get_steps(
    connection: apsw.Connection, uid: int, namespace: str, run_id: str, page: str | None, limit: int
) -> tuple[list[Step], str | None]:
    """One page of a run's step attempts, in the order in which they began. Raises NoSuchRun."""
    with snapshot(connection):
        run = _run_number(connection, (uid, namespace, run_id))
        rows, more = page_of(_fetch(connection, sql.STEPS, (run, int(page or 0), limit + 1)), limit)
    steps = [Step(*row) for row in rows]
    return steps, str(steps[-1].first_seq) if more else None


def get_usage(
    connection: apsw.Connection, uid: int, namespace: str, run_id: str, page: str | None, limit: int
) -> tuple[UsageTotals, list[UsageRow], str | None]:
    """The total, and one page of the rows that add up to it. Raises NoSuchRun."""
    after = ("", -1, "", "") if page is None else tuple(msgspec.json.decode(page))
    with snapshot(connection):
        run = _run_number(connection, (uid, namespace, run_id))
        (totals,) = connection.execute(sql.USAGE_TOTALS, (run,))
        rows, more = page_of(_fetch(connection, sql.USAGE, (run, *after, limit + 1)), limit)
    found = [
        UsageRow(step_id or None, attempt or None, provider or None, model or None, UsageTotals(*figures))
        for step_id, attempt, provider, model, *figures in rows
    ]
    return UsageTotals.of(totals), found, _encode(rows[-1][:4]).decode() if more else None


def get_events(
    connection: apsw.Connection,
    uid: int,
    namespace: str,
    run_id: str,
    *,
    after_seq: int,
    from_checkpoint: bool,
    types: frozenset[str] | None,
    kinds: frozenset[str] | None,
    limit: int,
    limit_bytes: int = NEWEST,
) -> tuple[list[StoredEvent], int | None, list[Gap]]:
    """One page of a run's events behind `after_seq`, the seq to go on behind, None at the end, and the gaps that end there.

    Raises NoSuchRun.

    With `from_checkpoint` the page begins at the run's last checkpoint, if that is later.
    """
    with snapshot(connection):
        run = _run_number(connection, (uid, namespace, run_id))
        if from_checkpoint:
            ((checkpoint_seq,),) = connection.execute(sql.CHECKPOINT_SEQ, (run,))
            after_seq = max(after_seq, (checkpoint_seq or 1) - 1)
        wanted = EventFilter(namespace, run_id, types=types, kinds=kinds)
        events, more = _events_of_run(connection, run, wanted, after_seq, limit, limit_bytes)
        next_after_seq = events[-1].seq if more else None
        page = {"run": run, "after_seq": after_seq, "until_seq": next_after_seq or NEWEST, **_kind_bindings(None, kinds)}
        gaps = [Gap(*row) for row in connection.execute(sql.COMPACTIONS_OF_PAGE, page)]
    return events, next_after_seq, gaps


def events_after(
    connection: apsw.Connection, uid: int, filter: EventFilter, position: int, *, limit: int, limit_bytes: int
) -> FollowPage:
    """The next events behind `position` that match, and the gaps that end there, all of one commit."""
    with snapshot(connection):
        ((head,),) = connection.execute(sql.HEAD_POSITION)
        run = None
        if filter.run_id is not None and filter.namespace is not None and filter.agent_id is None:
            run = _find_number(connection, (uid, filter.namespace, filter.run_id))
            if run is None:
                return _with_gaps(connection, uid, filter, position, [], head, limit)
            after_seq = _last_seq_before(connection, run, position)
            events, more = _events_of_run(connection, run, filter, after_seq, limit, limit_bytes)
            until = head
        else:
            until = min(head, position + SCAN_POSITIONS)
            wanted = {**_event_bindings(uid, filter), "position": position, "until": until, "limit": limit + 1}
            rows = connection.execute(sql.EVENTS_AFTER, wanted)
            events, more = _take((stored_event(row[0], row[1], row[2:]) for row in rows), limit, limit_bytes)
        until = events[-1].position if more else until
        return _with_gaps(connection, uid, filter, position, events, until, limit, is_whole=run is not None)


def _with_gaps(
    connection: apsw.Connection,
    uid: int,
    filter: EventFilter,
    position: int,
    events: list[StoredEvent],
    until: int,
    limit: int,
    *,
    is_whole: bool = False,
) -> FollowPage:
    """The page with what deletions have taken from it. A run that `is_whole` lost nothing to forgotten ones."""
    wanted = {**_event_bindings(uid, filter), "position": position, "until": until, "limit": limit}
    gaps = [Gap(*row) for row in connection.execute(sql.GAPS, wanted)]
    if len(gaps) == limit:  # the rest comes with the next page
        until = gaps[-1].to_position
        events = [event for event in events if event.position <= until]
    ((low_water,),) = connection.execute(sql.LOW_WATER)
    if position < low_water <= until and not is_whole:
        gaps.insert(0, Gap(None, None, 1, low_water, "forgotten"))
    return FollowPage(events, until, gaps)


def tail_position(connection: apsw.Connection, uid: int, filter: EventFilter, count: int) -> int:
    """The position behind which the newest `count` matching events lie; 0 if there are fewer."""
    with snapshot(connection):
        ((head,),) = connection.execute(sql.HEAD_POSITION)
        if count <= 0:
            return int(head)
        wanted = {**_event_bindings(uid, filter), "skip": count}
        statement = sql.TAIL
        if filter.run_id is not None and filter.namespace is not None and filter.agent_id is None:
            run = _find_number(connection, (uid, filter.namespace, filter.run_id))
            statement, wanted = sql.TAIL_OF_RUN, {**wanted, "run": run}
        row = connection.execute(statement, wanted).fetchone()
        return int(row[0]) if row else 0


def count_statuses(connection: apsw.Connection, uid: int) -> list[StatusCount]:
    """How many runs the user has in each status."""
    return [StatusCount(status, runs) for status, runs in connection.execute(sql.COUNT_STATUSES, (uid,))]


def _listed_rows(
    connection: apsw.Connection, filter: RunFilter, wanted: dict[str, str | int | None]
) -> list[tuple[Any, ...]]:
    if wanted["uid"] is None:
        statuses = None if filter.status is None else _encode(filter.status).decode()
        return _fetch(connection, sql.LIST_ALL_RUNS, {**wanted, "statuses": statuses})
    if filter.name is not None:
        statuses = None if filter.status is None else _encode(filter.status).decode()
        named = {**wanted, "name": filter.name, "ending": filter.name[::-1], "statuses": statuses}
        return _fetch(connection, sql.LIST_RUNS_NAMED, named)
    if filter.team_run_id is not None or filter.parent_run_id is not None:
        statuses = None if filter.status is None else _encode(filter.status).decode()
        few = sql.LIST_RUNS_OF_PARENT if filter.team_run_id is None else sql.LIST_RUNS_OF_TEAM
        return _fetch(connection, few, {**wanted, "statuses": statuses})
    if filter.status is None:
        return _fetch(connection, sql.LIST_RUNS, wanted)
    rows: list[tuple[Any, ...]] = []
    for status in dict.fromkeys(filter.status):  # one index walk each, so that a rare status is found at once
        rows += _fetch(connection, sql.LIST_RUNS_OF_STATUS, {**wanted, "status": status})
    rows.sort(key=lambda row: int(row[0]), reverse=True)
    return rows


def _views(connection: apsw.Connection, rows: Sequence[Row]) -> list[Run]:
    """The runs of these rows, their short names told from those of all runs of their users."""
    numbers = _encode([row[0] for row in rows]).decode()
    neighbours = {run: endings for run, *endings in connection.execute(sql.NEIGHBOURS, (numbers,))}
    return [_view(row, [ending[::-1] for ending in neighbours[row[0]] if ending is not None]) for row in rows]


def _view(row: Row, neighbours: list[str]) -> Run:
    """By place, not by name: a list may ask for a thousand."""
    _, _, _, gate_seq, gate_name, gate_prompt, gate_answer_seq, uid, namespace, run_id, status, *rest = row
    gate = None
    if status == "paused" and gate_seq is not None:
        gate = Gate(gate_seq, gate_name, gate_prompt, gate_answer_seq is not None)
    short_id = shortest_ending(run_id, neighbours)
    members = (uid, namespace, run_id, short_id, status, *rest[:9], gate, *rest[9:18], UsageTotals(*rest[18:]))
    return Run(*members)


def _fetch(connection: apsw.Connection, statement: str, bindings: apsw.Bindings) -> list[tuple[Any, ...]]:
    return connection.execute(statement, bindings).fetchall()


def _find_number(connection: apsw.Connection, name: Name) -> int | None:
    row = connection.execute(sql.RUN_NUMBER, name).fetchone()
    return row[0] if row else None


def _run_number(connection: apsw.Connection, name: Name) -> int:
    number = _find_number(connection, name)
    if number is None:
        raise NoSuchRun(name[1], name[2])
    return number


def _event_bindings(uid: int, filter: EventFilter) -> dict[str, str | int | None]:
    return {
        "uid": uid,
        "namespace": filter.namespace,
        "run_id": filter.run_id,
        "agent_id": filter.agent_id,
        "team_run_id": filter.team_run_id,
        **_kind_bindings(filter.types, filter.kinds),
    }


def _kind_bindings(types: frozenset[str] | None, kinds: frozenset[str] | None) -> dict[str, str | int | None]:
    return {
        "types": None if types is None else _encode(sorted(types)).decode(),
        "kinds": None if kinds is None else _encode(sorted(kinds)).decode(),
    }


def _events_of_run(
    connection: apsw.Connection,
    run: int,
    filter: EventFilter,
    after_seq: int,
    limit: int,
    limit_bytes: int,
) -> tuple[list[StoredEvent], bool]:
    """Events of the one run that the filter names."""
    assert filter.namespace is not None and filter.run_id is not None
    namespace, run_id = filter.namespace, filter.run_id
    wanted = {"run": run, "after_seq": after_seq, "limit": limit + 1, **_kind_bindings(filter.types, filter.kinds)}
    rows = connection.execute(sql.EVENTS_OF_RUN, wanted)
    return _take((stored_event(namespace, run_id, row) for row in rows), limit, limit_bytes)


def _take(found: Iterable[StoredEvent], limit: int, limit_bytes: int) -> tuple[list[StoredEvent], bool]:
    """Events up to the limits, at least one if there is one, and whether more follow."""
    events: list[StoredEvent] = []
    taken_bytes = 0
    for event in found:
        taken_bytes += len(memoryview(event.data))
        if events and (len(events) == limit or taken_bytes > limit_bytes):
            return events, True
        events.append(event)
    return events, False


def _last_seq_before(connection: apsw.Connection, run: int, position: int) -> int:
    """The run's last seq at or before a log position, by halving: its seqs and positions grow together."""
    ((high,),) = connection.execute(sql.LAST_SEQ, (run,))
    low = 0  # every seq up to here lies at or before `position`
    while low < high:
        middle = (low + high + 1) // 2
        row = connection.execute(sql.POSITION_OF_SEQ, (run, middle)).fetchone()
        if row is not None and row[1] <= position:
            low = row[0]
        else:
            high = middle - 1
    return int(low)


def garbage(connection: apsw.Connection, policy: Policy, now_us: int, *, trust_clock: bool) -> list[Decision]:
    """What retention would take now, of one commit."""

    def size_of(run: Candidate) -> int:
        return int(connection.execute(sql.SIZE_OF_RUN, (run.run,)).get or 0)

    def size_of_kind(run: Candidate, kind: str) -> int:
        return int(connection.execute(sql.DROPPABLE_BYTES, {"run": run.run, "kind": kind}).get or 0)

    with snapshot(connection):
        used_bytes = int(connection.execute(sql.USED_BYTES).get)
        candidates = [Candidate(*row) for row in _fetch(connection, sql.CANDIDATES, (_encode(CLOSED).decode(),))]
        runs = decide(candidates, policy, now_us, used_bytes=used_bytes, size_of=size_of, trust_clock=trust_clock)
        gone = {decision.run for decision in runs}
        left = [run for run in candidates if run not in gone]
        done = set(_fetch(connection, sql.COMPACTIONS_DONE, ()))
        return runs + decide_events(left, policy, now_us, done=done, size_of=size_of_kind, trust_clock=trust_clock)
