"""Reading runs: one, lists of them, and their steps and usage.

Every function runs one short read transaction on a read-only connection and returns the wire's own types. The daemon calls
them at once or in threads. Rows come back as they were committed: a reader never sees half a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import apsw
import msgspec
from attrs import evolve, frozen
from msgspec import Raw

from ..model.errors import NoSuchRun
from ..model.ids import shortest_ending
from ..model.views import (
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
from .database import snapshot
from .names import run_number
from .paging import NEWEST, Row, page_of

_encode = msgspec.json.Encoder().encode


class _Spec(msgspec.Struct):
    """What is read again of a RunSpec."""

    root: str | None = None
    dir: str | None = None
    traceparent: str | None = None


_decode_spec = msgspec.json.Decoder(_Spec).decode


@frozen
class RunPage:
    """One page of a list. `next_page` is None at the end; `total` counts all runs of the user, whatever the filters."""

    runs: list[Run]
    next_page: str | None
    total: int


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


def get_steps(
    connection: apsw.Connection, uid: int, namespace: str, run_id: str, page: str | None, limit: int
) -> tuple[list[Step], str | None]:
    """One page of a run's step attempts, in the order in which they began. Raises NoSuchRun."""
    with snapshot(connection):
        run = run_number(connection, (uid, namespace, run_id))
        rows, more = page_of(_fetch(connection, sql.STEPS, (run, int(page or 0), limit + 1)), limit)
    steps = [Step(*row) for row in rows]
    return steps, str(steps[-1].first_seq) if more else None


def get_usage(
    connection: apsw.Connection, uid: int, namespace: str, run_id: str, page: str | None, limit: int
) -> tuple[UsageTotals, list[UsageRow], str | None]:
    """The total, and one page of the rows that add up to it. Raises NoSuchRun."""
    after = ("", -1, "", "") if page is None else tuple(msgspec.json.decode(page))
    with snapshot(connection):
        run = run_number(connection, (uid, namespace, run_id))
        (totals,) = connection.execute(sql.USAGE_TOTALS, (run,))
        rows, more = page_of(_fetch(connection, sql.USAGE, (run, *after, limit + 1)), limit)
    found = [
        UsageRow(step_id or None, attempt or None, provider or None, model or None, UsageTotals(*figures))
        for step_id, attempt, provider, model, *figures in rows
    ]
    return UsageTotals.of(totals), found, _encode(rows[-1][:4]).decode() if more else None


def count_statuses(connection: apsw.Connection, uid: int) -> list[StatusCount]:
    """How many runs the user has in each status."""
    return [StatusCount(status, runs) for status, runs in connection.execute(sql.COUNT_STATUSES, (uid,))]


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
        "statuses": None if filter.status is None else _encode(filter.status).decode(),
        "limit": limit + 1,
    }
    rows, more = page_of(_listed_rows(connection, filter, wanted), limit)
    return rows, str(rows[-1][0]) if more and filter.name is None else None


def _listed_rows(
    connection: apsw.Connection, filter: RunFilter, wanted: dict[str, str | int | None]
) -> list[tuple[Any, ...]]:
    if wanted["uid"] is None:
        return _fetch(connection, sql.LIST_ALL_RUNS, wanted)
    if filter.name is not None:
        named = {**wanted, "name": filter.name, "ending": filter.name[::-1]}
        return _fetch(connection, sql.LIST_RUNS_NAMED, named)
    if filter.team_run_id is not None or filter.parent_run_id is not None:
        few = sql.LIST_RUNS_OF_PARENT if filter.team_run_id is None else sql.LIST_RUNS_OF_TEAM
        return _fetch(connection, few, wanted)
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


def _raw(text: str | None) -> Raw | None:
    return None if text is None else Raw(text.encode())


def _fetch(connection: apsw.Connection, statement: str, bindings: apsw.Bindings) -> list[tuple[Any, ...]]:
    return connection.execute(statement, bindings).fetchall()
