"""Reading: pages, filters, names and cursors."""

from __future__ import annotations

from collections.abc import Iterator

import apsw
import pytest

from runhistd.model.errors import NoSuchRun
from runhistd.model.events import Usage
from runhistd.model.removal import Delete
from runhistd.model.views import EventFilter, RunFilter, StatusCount
from runhistd.store import reader
from runhistd.store.tally import SAVE_EVENTS
from tests.store.histories import UID, History, append, begin, event

OTHER = UID + 1


@pytest.fixture
def connection(history: History) -> Iterator[apsw.Connection]:
    opened = reader.open_reader(history.database)
    yield opened
    opened.close()


def ids(page: reader.RunPage) -> list[str]:
    return [run.run_id for run in page.runs]


def listed(connection: apsw.Connection, limit: int = 100, **wanted: object) -> list[str]:
    return ids(reader.list_runs(connection, UID, RunFilter(**wanted), None, limit))  # type: ignore[arg-type]


def test_runs_are_listed_newest_first_in_pages_without_a_gap(history: History, connection: apsw.Connection) -> None:
    for i in range(5):
        history.begin(f"r{i}")
    first = reader.list_runs(connection, UID, RunFilter(), None, 2)
    assert (ids(first), first.total) == (["r4", "r3"], 5)
    history.begin("r5")  # a run that begins between two pages moves nothing
    second = reader.list_runs(connection, UID, RunFilter(), first.next_page, 2)
    third = reader.list_runs(connection, UID, RunFilter(), second.next_page, 2)
    assert (ids(second), ids(third), third.next_page) == (["r2", "r1"], ["r0"], None)


def test_the_total_is_right_whichever_figures_of_users_are_written(history: History, connection: apsw.Connection) -> None:
    def totals() -> list[int]:
        return [reader.list_runs(connection, uid, RunFilter(), None, 1).total for uid in (UID, OTHER, None)]

    assert totals() == [0, 0, 0]
    epoch = history.begin("a")
    history.apply(begin("b", uid=OTHER))
    assert totals() == [1, 1, 2]
    history.apply(append("a", epoch, 1, *[event()] * SAVE_EVENTS, event("run.completed")))
    assert totals() == [1, 1, 2]
    history.begin("c")
    assert totals() == [2, 1, 3]
    history.apply(Delete(UID, "default", "a"))
    assert totals() == [1, 1, 2]


@pytest.mark.long
def test_a_page_of_the_newest_runs_looks_at_no_others(history: History, connection: apsw.Connection) -> None:
    for i in range(300):
        history.begin(f"r{i}")
    steps = 0

    def count() -> bool:
        nonlocal steps
        steps += 1
        return False  # go on

    connection.set_progress_handler(count, 10)
    reader.list_runs(connection, UID, RunFilter(), None, 50)
    steps_of_some = steps
    for i in range(300, 3000):
        history.begin(f"r{i}")
    steps = 0
    reader.list_runs(connection, UID, RunFilter(), None, 50)
    assert 0 < steps < 1.2 * steps_of_some


def test_filters_restrict_and_may_be_combined(history: History, connection: apsw.Connection) -> None:
    history.begin("a", agent_id="x", workflow="w")
    history.begin("b", agent_id="y", workflow="w", parent_run_id="a")
    history.begin("c", agent_id="x")
    history.append("b", 2, 1, event("run.failed"))
    assert listed(connection, agent_id="x") == ["c", "a"]
    assert listed(connection, workflow="w", agent_id="y") == ["b"]
    assert listed(connection, parent_run_id="a") == ["b"]
    assert listed(connection, status=("failed",)) == ["b"]
    assert listed(connection, status=("running", "failed"), workflow="w") == ["b", "a"]
    assert listed(connection, namespace="elsewhere") == []
    assert listed(connection, since_us=1_000_002) == ["c", "b"]


def test_the_children_of_a_run_are_found_without_a_look_at_every_run(history: History, connection: apsw.Connection) -> None:
    for i in range(3):
        history.begin(f"r{i}", parent_run_id="top", team_run_id="t" if i == 1 else None)
    history.append("r2", 3, 1, event("run.failed"))
    history.begin("other", parent_run_id="another")
    history.begin("other user's", uid=UID + 1, parent_run_id="top")
    assert listed(connection, parent_run_id="top") == ["r2", "r1", "r0"]
    assert listed(connection, parent_run_id="top", status=("running",)) == ["r1", "r0"]
    assert listed(connection, parent_run_id="top", team_run_id="t") == ["r1"]
    assert listed(connection, parent_run_id="top", namespace="elsewhere") == []
    first = reader.list_runs(connection, UID, RunFilter(parent_run_id="top"), None, 2)
    second = reader.list_runs(connection, UID, RunFilter(parent_run_id="top"), first.next_page, 2)
    assert ids(first) + ids(second) == ["r2", "r1", "r0"]


def test_several_statuses_are_merged_newest_first_also_over_pages(history: History, connection: apsw.Connection) -> None:
    for i in range(6):
        history.begin(f"r{i}")
        if i % 2:
            history.append(f"r{i}", i + 1, 1, event("run.completed"))
    wanted = RunFilter(status=("running", "completed"))
    first = reader.list_runs(connection, UID, wanted, None, 4)
    second = reader.list_runs(connection, UID, wanted, first.next_page, 4)
    assert ids(first) + ids(second) == ["r5", "r4", "r3", "r2", "r1", "r0"]


def test_nobody_sees_the_runs_of_another_user(history: History, connection: apsw.Connection) -> None:
    history.begin("mine")
    history.begin("other", uid=OTHER)
    assert listed(connection) == ["mine"]
    assert [reader.list_runs(connection, uid, RunFilter(), None, 1).total for uid in (UID, OTHER)] == [1, 1]
    assert listed(connection, name="other") == []
    with pytest.raises(NoSuchRun):
        reader.get_run(connection, UID, "default", "other")
    found, _, _ = reader.events_after(connection, UID, EventFilter(), 0, limit=10, limit_bytes=10**6)
    assert [e.run_id for e in found] == ["mine"]
    assert reader.count_statuses(connection, UID) == [StatusCount("running", 1)]


def test_a_name_is_a_whole_id_a_beginning_or_an_ending(history: History, connection: apsw.Connection) -> None:
    for run_id in ("build-1", "build-10", "x-build-1", "üb%_\\"):
        history.begin(run_id)
    assert listed(connection, name="build-1") == ["build-1", "x-build-1", "build-10"]
    assert listed(connection, 1, name="build-1") == ["build-1"]
    assert listed(connection, name="-10") == ["build-10"]
    assert listed(connection, name="%_\\") == ["üb%_\\"]
    assert listed(connection, name="%") == []


def test_the_short_id_names_its_run_alone(history: History, connection: apsw.Connection) -> None:
    for run_id in ("aaaaaaaa-1-common-end", "aaaaaaaa-2-common-end", "aaaaaaaa-3-other"):
        history.begin(run_id)
    page = reader.list_runs(connection, UID, RunFilter(), None, 10)
    assert [run.short_id for run in page.runs] == ["3-other", "2-common-end", "1-common-end"]
    for run in page.runs:
        assert listed(connection, name=run.short_id) == [run.run_id]


def test_steps_come_in_the_order_in_which_they_began(history: History, connection: apsw.Connection) -> None:
    epoch = history.begin("r")
    for n, step_id in enumerate(["z", "a", "m"], 1):
        history.append("r", epoch, n, event("step.started", step_id=step_id))
    steps, page = reader.get_steps(connection, UID, "default", "r", None, 2)
    rest, end = reader.get_steps(connection, UID, "default", "r", page, 2)
    assert ([step.step_id for step in steps + rest], end) == (["z", "a", "m"], None)


def test_usage_rows_add_up_to_the_total_over_pages(history: History, connection: apsw.Connection) -> None:
    epoch = history.begin("r")
    for n in range(1, 6):
        history.append("r", epoch, n, event("usage", step_id=f"s{n % 3}", usage=Usage(input_tokens=n, model=f"m{n % 2}")))
    history.append("r", epoch, 6, event("usage", usage=Usage(input_tokens=100)))
    seen, page = [], None
    while True:
        total, rows, page = reader.get_usage(connection, UID, "default", "r", page, 2)
        seen += rows
        if page is None:
            break
    assert sum(row.usage.input_tokens for row in seen) == total.input_tokens == 115
    assert len({(row.step_id, row.model) for row in seen}) == len(seen) == 6


def test_events_of_a_run_come_in_pages_and_by_type(history: History, connection: apsw.Connection) -> None:
    epoch = history.begin("r")
    history.append("r", epoch, 1, *(event("turn", {"i": i}) for i in range(4)), event("output"))

    def page(after_seq: int, **wanted: frozenset[str]) -> tuple[list[int], int | None]:
        events, more, _ = reader.get_events(
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
    events, _, _ = reader.get_events(
        connection, UID, "default", "r", after_seq=0, from_checkpoint=True, types=None, kinds=None, limit=10
    )
    assert [e.type for e in events] == ["checkpoint", "b"]


def test_a_page_holds_at_least_one_event_however_large(history: History, connection: apsw.Connection) -> None:
    epoch = history.begin("r")
    history.append("r", epoch, 1, event("output", {"text": "x" * 5000}), event("output", {"text": "y" * 5000}))
    events, looked_at, _ = reader.events_after(connection, UID, EventFilter(), 1, limit=100, limit_bytes=100)
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
            found, cursor, _ = reader.events_after(connection, UID, wanted, cursor, limit=4, limit_bytes=10**6)
            positions += [e.position for e in found]
        assert len(positions) == expected == len(set(positions)), wanted
        assert positions == sorted(positions)


def test_a_cursor_moves_over_what_does_not_match(history: History, connection: apsw.Connection) -> None:
    history.begin("r")
    assert reader.events_after(connection, UID, EventFilter(run_id="x", namespace="default"), 0, limit=9, limit_bytes=9) == (
        [],
        1,
        [],
    )
    assert reader.events_after(connection, UID, EventFilter(agent_id="x"), 0, limit=9, limit_bytes=9) == ([], 1, [])


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
    found, _, _ = reader.events_after(connection, UID, wanted, position, limit=100, limit_bytes=10**6)
    assert [e.position for e in found] == [p for p in (1, 3, 5, 7, 9, 11) if p > position]


def test_the_tail_is_counted_in_matching_events(history: History, connection: apsw.Connection) -> None:
    history.begin("r")
    history.begin("s")
    for n in range(1, 4):
        history.append("r", 1, n, event())
        history.append("s", 2, n, event())

    def tail(wanted: EventFilter, count: int) -> list[int]:
        position = reader.tail_position(connection, UID, wanted, count)
        found, _, _ = reader.events_after(connection, UID, wanted, position, limit=100, limit_bytes=10**6)
        return [e.position for e in found]

    assert tail(EventFilter(), 3) == [6, 7, 8]
    assert tail(EventFilter(namespace="default", run_id="r"), 2) == [5, 7]
    assert tail(EventFilter(), 100) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert tail(EventFilter(), 0) == []
