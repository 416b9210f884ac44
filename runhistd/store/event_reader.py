"""Reading events: of one run, and of all behind a position, with the gaps that removals have left.

As in `run_reader` each function is one short read transaction.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import apsw
import msgspec

from ..model.events import StoredEvent
from ..model.views import EventFilter, Gap
from . import sql
from .database import snapshot
from .names import find_number, run_number
from .paging import NEWEST
from .rows import stored_event

SCAN_POSITIONS = 50_000  # of the log in one read transaction, however few of its events match

_encode = msgspec.json.Encoder().encode


class FollowPage(NamedTuple):
    """What lies behind a position: events and gaps, each in the order of their positions, and up to where was looked."""

    events: list[StoredEvent]
    looked_at: int
    gaps: list[Gap]


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
        run = run_number(connection, (uid, namespace, run_id))
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
            run = find_number(connection, (uid, filter.namespace, filter.run_id))
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


def tail_position(connection: apsw.Connection, uid: int, filter: EventFilter, count: int) -> int:
    """The position behind which the newest `count` matching events lie; 0 if there are fewer."""
    with snapshot(connection):
        ((head,),) = connection.execute(sql.HEAD_POSITION)
        if count <= 0:
            return int(head)
        wanted = {**_event_bindings(uid, filter), "skip": count}
        statement = sql.TAIL
        if filter.run_id is not None and filter.namespace is not None and filter.agent_id is None:
            run = find_number(connection, (uid, filter.namespace, filter.run_id))
            statement, wanted = sql.TAIL_OF_RUN, {**wanted, "run": run}
        row = connection.execute(statement, wanted).fetchone()
        return int(row[0]) if row else 0


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
