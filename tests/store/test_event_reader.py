"""Reading events: pages, filters and cursors."""

from __future__ import annotations

from collections.abc import Iterator

import apsw
import pytest

from runhistd.model.views import EventFilter
from runhistd.store import event_reader
from runhistd.store.database import open_reader
from tests.store.histories import UID, History, event


@pytest.fixture
def connection(history: History) -> Iterator[apsw.Connection]:
    opened = open_reader(history.database)
    yield opened
    opened.close()


def test_events_of_a_run_come_in_pages_and_by_type(history: History, connection: apsw.Connection) -> None:
    epoch = history.begin("r")
    history.append("r", epoch, 1, *(event("turn", {"i": i}) for i in range(4)), event("output"))

    def page(after_seq: int, **wanted: frozenset[str]) -> tuple[list[int], int | None]:
        events, more, _ = event_reader.get_events(
            connection,
            UID,
            "default",
            "r",
            after_seq=after_seq,
            from_checkpoint=False,
            limit=2,
            types=wanted.get("types"),
            kinds=wanted.get("kinds"),
        )
        return [e.seq for e in events], more

    assert [page(0), page(2), page(4)] == [([1, 2], 2), ([3, 4], 4), ([5, 6], None)]
    assert page(0, types=frozenset({"turn"})) == ([2, 3], 3)
    assert page(0, kinds=frozenset({"output", "run.started"})) == ([1, 6], None)


def test_reading_can_begin_at_the_last_checkpoint(history: History, connection: apsw.Connection) -> None:
    epoch = history.begin("r")
    history.append("r", epoch, 1, event("a"), event("checkpoint"), event("b"))
    events, _, _ = event_reader.get_events(
        connection, UID, "default", "r", after_seq=0, from_checkpoint=True, types=None, kinds=None, limit=10
    )
    assert [e.type for e in events] == ["checkpoint", "b"]


def test_a_page_holds_at_least_one_event_however_large(history: History, connection: apsw.Connection) -> None:
    epoch = history.begin("r")
    history.append("r", epoch, 1, event("output", {"text": "x" * 5000}), event("output", {"text": "y" * 5000}))
    events, looked_at, _ = event_reader.events_after(connection, UID, EventFilter(), 1, limit=100, limit_bytes=100)
    assert ([e.position for e in events], looked_at) == ([2], 2)


def test_following_looks_at_everything_once_in_position_order(history: History, connection: apsw.Connection) -> None:
    for i in range(3):
        history.begin(f"r{i}", agent_id=f"a{i % 2}")
    for n in range(1, 6):
        for i in range(3):
            history.append(f"r{i}", i + 1, n, event("turn" if n % 2 else "output"))
    for wanted, expected in (
        (EventFilter(), 18),
        (EventFilter(namespace="default", run_id="r1"), 6),
        (EventFilter(run_id="r1"), 6),
        (EventFilter(agent_id="a0"), 12),
        (EventFilter(types=frozenset({"turn"})), 9),
        (EventFilter(namespace="default", run_id="r2", kinds=frozenset({"output"})), 2),
    ):
        positions, cursor = [], 0
        while cursor < history.log.position:
            found, cursor, _ = event_reader.events_after(connection, UID, wanted, cursor, limit=4, limit_bytes=10**6)
            positions += [e.position for e in found]
        assert len(positions) == expected == len(set(positions)), wanted
        assert positions == sorted(positions)


def test_a_cursor_moves_over_what_does_not_match(history: History, connection: apsw.Connection) -> None:
    history.begin("r")
    elsewhere = EventFilter(run_id="x", namespace="default")
    assert event_reader.events_after(connection, UID, elsewhere, 0, limit=9, limit_bytes=9) == ([], 1, [])
    assert event_reader.events_after(connection, UID, EventFilter(agent_id="x"), 0, limit=9, limit_bytes=9) == ([], 1, [])


@pytest.mark.parametrize("position", range(0, 13))
def test_following_one_run_starts_right_behind_any_position(
    history: History, connection: apsw.Connection, position: int
) -> None:
    history.begin("r")
    history.begin("s")
    for n in range(1, 6):
        history.append("r", 1, n, event())
        history.append("s", 2, n, event())
    wanted = EventFilter(namespace="default", run_id="r")
    found, _, _ = event_reader.events_after(connection, UID, wanted, position, limit=100, limit_bytes=10**6)
    assert [e.position for e in found] == [p for p in (1, 3, 5, 7, 9, 11) if p > position]


def test_the_tail_is_counted_in_matching_events(history: History, connection: apsw.Connection) -> None:
    history.begin("r")
    history.begin("s")
    for n in range(1, 4):
        history.append("r", 1, n, event())
        history.append("s", 2, n, event())

    def tail(wanted: EventFilter, count: int) -> list[int]:
        position = event_reader.tail_position(connection, UID, wanted, count)
        found, _, _ = event_reader.events_after(connection, UID, wanted, position, limit=100, limit_bytes=10**6)
        return [e.position for e in found]

    assert tail(EventFilter(), 3) == [6, 7, 8]
    assert tail(EventFilter(namespace="default", run_id="r"), 2) == [5, 7]
    assert tail(EventFilter(), 100) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert tail(EventFilter(), 0) == []
