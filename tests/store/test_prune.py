"""Deleting runs from the log."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import apsw
import pytest

from runhistd.model.errors import NoSuchRun, RunDeleted, RunLive, StaleEpoch
from runhistd.model.events import STATUSES, Usage
from runhistd.model.removal import Clear, Delete, Pin, check_deletable
from runhistd.model.views import EventFilter, Gap, RunFilter
from runhistd.store import prune, reader
from runhistd.store.database import open_reader
from runhistd.store.leases import Begun
from runhistd.store.prune import Cleared, Deleted
from tests.store.histories import UID, History, append, begin, claim, event, keyed

MANY = 10**9
USAGE = Usage(input_tokens=3, cumulative=True)
PARTS = (
    *("events", "documents", "steps", "usage", "usage_marks", "writers", "keys", "holders", "pins"),
    *("compactions", "blob_uses"),
)


@pytest.fixture
def connection(history: History) -> Iterator[apsw.Connection]:
    opened = open_reader(history.database)
    yield opened
    opened.close()


def delete(run_id: str, **members: object) -> Delete:
    return Delete(UID, "default", run_id, **members)  # type: ignore[arg-type]


def closed_run(history: History, run_id: str, notes: int = 1) -> int:
    epoch = history.begin(run_id, metadata={"a": 1})
    events = [event(key=f"k{i}", data={"text": "x" * 100}) for i in range(notes)]
    used = event("usage", usage=USAGE, step_id="s")
    history.append(run_id, epoch, 1, event("step.started", step_id="s"), *events, used, event("run.completed"))
    return epoch


def clear_all(history: History) -> int:
    """How many transactions it took."""
    for i in range(100_000):
        (outcome,) = history.apply(Clear())
        assert isinstance(outcome, Cleared)
        if not outcome.more:
            return i + 1
    raise AssertionError("it never ends")


def rows_left(connection: apsw.Connection) -> dict[str, int]:
    counts = {part: connection.execute(f"SELECT count(*) FROM {part}").get for part in PARTS}  # noqa: S608
    return {part: count for part, count in counts.items() if count}


def after(connection: apsw.Connection, position: int, **wanted: str) -> tuple[list[str], list[tuple[str | None, int, int]]]:
    found = reader.events_after(connection, UID, EventFilter(**wanted), position, limit=1000, limit_bytes=MANY)  # type: ignore[arg-type]
    return [e.run_id for e in found.events], [(gap.run_id, gap.from_position, gap.to_position) for gap in found.gaps]


def test_a_deleted_run_is_gone_for_every_reader_at_once(history: History, connection: apsw.Connection) -> None:
    closed_run(history, "r", notes=2000)
    assert history.apply(delete("r")) == [Deleted(True)]
    with pytest.raises(NoSuchRun):
        reader.get_run(connection, UID, "default", "r")
    assert reader.list_runs(connection, UID, RunFilter(), None, 10).runs == []
    assert after(connection, 0)[0] == []
    assert rows_left(connection)["events"] > 2000


def test_clearing_leaves_no_row_of_it_and_gives_the_space_back(history: History, connection: apsw.Connection) -> None:
    history.apply(Clear())
    history.log.checkpoint(truncate=True)
    before = history.database.stat().st_size
    closed_run(history, "r", notes=2000)
    closed_run(history, "s")
    kept = rows_left(connection)
    history.apply(Pin(UID, "default", "r", True), delete("r"))
    assert clear_all(history) > 2000 / prune.CHUNK_ROWS
    history.log.checkpoint(truncate=True)
    assert connection.execute("SELECT DISTINCT run FROM events").fetchall() == [(2,)]
    assert "pins" not in rows_left(connection)
    assert all(count < kept[part] for part, count in rows_left(connection).items())
    assert history.database.stat().st_size < before + 50_000
    assert history.differences() == []


def test_each_clearing_is_small(history: History, connection: apsw.Connection) -> None:
    closed_run(history, "r", notes=2000)
    history.apply(delete("r"))
    before = rows_left(connection)["events"]
    history.apply(Clear())
    assert before - rows_left(connection)["events"] == prune.CHUNK_ROWS


def test_a_crash_between_two_clearings_loses_nothing_of_the_work(history: History, connection: apsw.Connection) -> None:
    closed_run(history, "r", notes=2000)
    history.apply(delete("r"))
    history.apply(Clear())
    assert history.differences() == []
    history.reopen(clean=False)
    assert history.differences() == []
    clear_all(history)
    assert rows_left(connection) == {}


@pytest.mark.parametrize("status", ["running", "paused"])
def test_a_live_run_is_not_deleted(history: History, status: str) -> None:
    epoch = history.begin("r")
    if status == "paused":
        history.append("r", epoch, 1, event("run.paused"))
    refusal = history.refused(delete("r"))
    assert isinstance(refusal, RunLive)
    assert refusal.parameters == {"status": status}
    assert history.differences() == []


@pytest.mark.parametrize("status", STATUSES)
def test_only_what_is_closed_or_incomplete_may_be_deleted(status: str) -> None:
    if status in ("pending", "running", "paused"):
        with pytest.raises(RunLive):
            check_deletable(status)
    else:
        check_deletable(status)


def test_deleting_again_or_what_never_was_does_nothing(history: History) -> None:
    closed_run(history, "r")
    assert history.apply(delete("r"), delete("r"), delete("x")) == [Deleted(True), Deleted(False), Deleted(False)]


def test_an_append_just_before_in_the_same_batch_goes_with_the_run(history: History, connection: apsw.Connection) -> None:
    epoch = history.begin("r")
    _, deleted, late = history.apply(
        append("r", epoch, 1, event("run.completed")), delete("r"), append("r", epoch, 2, event())
    )
    assert deleted == Deleted(True)
    assert isinstance(late, RunDeleted)
    clear_all(history)
    assert rows_left(connection) == {}


def test_whoever_still_means_a_deleted_run_is_refused(history: History) -> None:
    key = uuid4()
    history.apply(begin("r", lease_key=key), append("r", 1, 1, event("run.completed")), delete("r"))
    for _ in range(2):
        stale = (append("r", 1, 2, event()), keyed("r", None, event(key="k")), claim("r"), begin("r", lease_key=key))
        assert {type(history.refused(request)) for request in stale} == {RunDeleted}
        clear_all(history)
        history.reopen(clean=False)


def test_another_begin_takes_the_name_under_a_higher_epoch(history: History, connection: apsw.Connection) -> None:
    key = uuid4()
    history.apply(begin("r", lease_key=key), append("r", 1, 1, event("run.completed")), delete("r"))
    (begun,) = history.apply(begin("r"))
    assert isinstance(begun, Begun) and begun.epoch == 2
    assert isinstance(history.refused(append("r", 1, 2, event())), StaleEpoch)
    clear_all(history)
    assert after(connection, 0, namespace="default", run_id="r") == (["r"], [("r", 1, 2)])
    assert history.differences() == []


def test_followers_hear_of_the_gap_once_and_in_its_place(history: History, connection: apsw.Connection) -> None:
    epoch = history.begin("r")  # position 1
    history.begin("s")  # 2
    history.append("r", epoch, 1, event("run.completed"))  # 3
    history.begin("t")  # 4
    history.apply(delete("r", rule="max_age_days"))
    assert after(connection, 0) == (["s", "t"], [("r", 1, 3)])
    assert after(connection, 2) == (["t"], [("r", 1, 3)])
    assert after(connection, 3) == (["t"], [])
    assert after(connection, 0, run_id="s") == (["s"], [])
    assert after(connection, 0, namespace="default", run_id="r") == ([], [("r", 1, 3)])
    found = reader.events_after(connection, UID, EventFilter(), 0, limit=1, limit_bytes=MANY)
    assert (found.looked_at, found.gaps) == (2, []), "a gap comes with the page that its end is on"
    (gap,) = reader.events_after(connection, UID, EventFilter(), 2, limit=1, limit_bytes=MANY).gaps
    assert gap.rule == "max_age_days"


def test_gaps_of_other_users_are_not_told(history: History, connection: apsw.Connection) -> None:
    history.apply(begin("r", uid=UID + 1), append("r", 1, 1, event("run.failed"), uid=UID + 1))
    history.apply(Delete(UID + 1, "default", "r"))
    assert after(connection, 0) == ([], [])


def test_more_gaps_than_a_page_holds_come_one_page_after_the_other(history: History, connection: apsw.Connection) -> None:
    for i in range(7):
        closed_run(history, f"r{i}")
    history.begin("s")
    history.apply(*(delete(f"r{i}") for i in range(7)))
    seen, runs, position = [], [], 0
    while position < history.log.position:
        found = reader.events_after(connection, UID, EventFilter(), position, limit=3, limit_bytes=MANY)
        seen += [gap.run_id for gap in found.gaps]
        runs += [e.run_id for e in found.events]
        position = found.looked_at
    assert seen == [f"r{i}" for i in range(7)]
    assert runs == ["s"]


def test_old_tombstones_merge_into_one_low_water_gap(
    history: History, connection: apsw.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prune, "MAX_TOMBSTONES", 2)
    monkeypatch.setattr(prune, "MERGE_AT_ONCE", 2)
    for i in range(6):
        epoch = history.begin(f"r{i}")
        history.append(f"r{i}", epoch, 1, event("run.completed"))
        history.apply(delete(f"r{i}"))
        clear_all(history)
    history.begin("s")
    found = reader.events_after(connection, UID, EventFilter(), 0, limit=100, limit_bytes=MANY)
    low_water = connection.execute("SELECT low_water FROM history").get
    assert found.gaps[0] == Gap(None, None, 1, low_water, "forgotten")
    assert 2 <= len(found.gaps) - 1 <= 4
    assert low_water < found.gaps[1].from_position
    assert reader.events_after(connection, UID, EventFilter(), low_water, limit=100, limit_bytes=MANY).gaps == found.gaps[1:]
    (alone,) = [after(connection, 0, namespace="default", run_id="s")]
    assert alone == (["s"], []), "a run that exists has lost nothing"


def test_a_decision_that_no_longer_holds_deletes_nothing(history: History) -> None:
    closed_run(history, "r")
    closed_us = history.now_us
    assert history.apply(delete("r", closed_us=closed_us - 1)) == [Deleted(False)]
    history.apply(Pin(UID, "default", "r", True))
    assert history.apply(delete("r", closed_us=closed_us)) == [Deleted(False)]
    history.apply(Pin(UID, "default", "r", False))
    assert history.apply(delete("r", closed_us=closed_us)) == [Deleted(True)]
