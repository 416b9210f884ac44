"""Reading runs: lists, filters and names, and what belongs to a run."""

from __future__ import annotations

from collections.abc import Iterator

import apsw
import pytest

from runhistd.model.errors import NoSuchRun
from runhistd.model.events import Usage
from runhistd.model.removal import Delete
from runhistd.model.views import EventFilter, RunFilter, StatusCount
from runhistd.store import event_reader, run_reader
from runhistd.store.database import open_reader
from runhistd.store.tally import SAVE_EVENTS
from tests.store.histories import UID, History, append, begin, event

OTHER = UID + 1


@pytest.fixture
def connection(history: History) -> Iterator[apsw.Connection]:
    opened = open_reader(history.database)
    yield opened
    opened.close()


def ids(page: run_reader.RunPage) -> list[str]:
    return [run.run_id for run in page.runs]


def listed(connection: apsw.Connection, limit: int = 100, **wanted: object) -> list[str]:
    return ids(run_reader.list_runs(connection, UID, RunFilter(**wanted), None, limit))  # type: ignore[arg-type]


def test_runs_are_listed_newest_first_in_pages_without_a_gap(history: History, connection: apsw.Connection) -> None:
    for i in range(5):
        history.begin(f"r{i}")
    first = run_reader.list_runs(connection, UID, RunFilter(), None, 2)
    assert (ids(first), first.total) == (["r4", "r3"], 5)
    history.begin("r5")  # a run that begins between two pages moves nothing
    second = run_reader.list_runs(connection, UID, RunFilter(), first.next_page, 2)
    third = run_reader.list_runs(connection, UID, RunFilter(), second.next_page, 2)
    assert (ids(second), ids(third), third.next_page) == (["r2", "r1"], ["r0"], None)


def test_the_total_is_right_whichever_figures_of_users_are_written(history: History, connection: apsw.Connection) -> None:
    def totals() -> list[int]:
        return [run_reader.list_runs(connection, uid, RunFilter(), None, 1).total for uid in (UID, OTHER, None)]

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
    run_reader.list_runs(connection, UID, RunFilter(), None, 50)
    steps_of_some = steps
    for i in range(300, 3000):
        history.begin(f"r{i}")
    steps = 0
    run_reader.list_runs(connection, UID, RunFilter(), None, 50)
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
    first = run_reader.list_runs(connection, UID, RunFilter(parent_run_id="top"), None, 2)
    second = run_reader.list_runs(connection, UID, RunFilter(parent_run_id="top"), first.next_page, 2)
    assert ids(first) + ids(second) == ["r2", "r1", "r0"]


def test_several_statuses_are_merged_newest_first_also_over_pages(history: History, connection: apsw.Connection) -> None:
    for i in range(6):
        history.begin(f"r{i}")
        if i % 2:
            history.append(f"r{i}", i + 1, 1, event("run.completed"))
    wanted = RunFilter(status=("running", "completed"))
    first = run_reader.list_runs(connection, UID, wanted, None, 4)
    second = run_reader.list_runs(connection, UID, wanted, first.next_page, 4)
    assert ids(first) + ids(second) == ["r5", "r4", "r3", "r2", "r1", "r0"]


def test_nobody_sees_the_runs_of_another_user(history: History, connection: apsw.Connection) -> None:
    history.begin("mine")
    history.begin("other", uid=OTHER)
    assert listed(connection) == ["mine"]
    assert [run_reader.list_runs(connection, uid, RunFilter(), None, 1).total for uid in (UID, OTHER)] == [1, 1]
    assert listed(connection, name="other") == []
    with pytest.raises(NoSuchRun):
        run_reader.get_run(connection, UID, "default", "other")
    found, _, _ = event_reader.events_after(connection, UID, EventFilter(), 0, limit=10, limit_bytes=10**6)
    assert [e.run_id for e in found] == ["mine"]
    assert run_reader.count_statuses(connection, UID) == [StatusCount("running", 1)]


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
    page = run_reader.list_runs(connection, UID, RunFilter(), None, 10)
    assert [run.short_id for run in page.runs] == ["3-other", "2-common-end", "1-common-end"]
    for run in page.runs:
        assert listed(connection, name=run.short_id) == [run.run_id]


def test_steps_come_in_the_order_in_which_they_began(history: History, connection: apsw.Connection) -> None:
    epoch = history.begin("r")
    for n, step_id in enumerate(["z", "a", "m"], 1):
        history.append("r", epoch, n, event("step.started", step_id=step_id))
    steps, page = run_reader.get_steps(connection, UID, "default", "r", None, 2)
    rest, end = run_reader.get_steps(connection, UID, "default", "r", page, 2)
    assert ([step.step_id for step in steps + rest], end) == (["z", "a", "m"], None)


def test_usage_rows_add_up_to_the_total_over_pages(history: History, connection: apsw.Connection) -> None:
    epoch = history.begin("r")
    for n in range(1, 6):
        history.append("r", epoch, n, event("usage", step_id=f"s{n % 3}", usage=Usage(input_tokens=n, model=f"m{n % 2}")))
    history.append("r", epoch, 6, event("usage", usage=Usage(input_tokens=100)))
    seen, page = [], None
    while True:
        total, rows, page = run_reader.get_usage(connection, UID, "default", "r", page, 2)
        seen += rows
        if page is None:
            break
    assert sum(row.usage.input_tokens for row in seen) == total.input_tokens == 115
    assert len({(row.step_id, row.model) for row in seen}) == len(seen) == 6
