"""Deleting runs from the log."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import apsw
import pytest

from runhistd.model.errors import NoSuchRun, RunDeleted, RunLive, StaleEpoch, TooLarge
from runhistd.model.events import STATUSES, Usage
from runhistd.model.removal import Clear, Compact, Delete, Pin, check_deletable
from runhistd.model.views import EventFilter, Gap, RunFilter
from runhistd.store import event_reader, heads, prune, run_reader
from runhistd.store.database import open_reader
from runhistd.store.leases import Begun
from runhistd.store.log import Appended, Failed, Request
from runhistd.store.prune import Cleared, Compacted, Deleted
from runhistd.store.rows import POSITION
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
    found = event_reader.events_after(connection, UID, EventFilter(**wanted), position, limit=1000, limit_bytes=MANY)  # type: ignore[arg-type]
    return [e.run_id for e in found.events], [(gap.run_id, gap.from_position, gap.to_position) for gap in found.gaps]


def test_a_deleted_run_is_gone_for_every_reader_at_once(history: History, connection: apsw.Connection) -> None:
    closed_run(history, "r", notes=2000)
    assert history.apply(delete("r")) == [Deleted(True)]
    with pytest.raises(NoSuchRun):
        run_reader.get_run(connection, UID, "default", "r")
    assert run_reader.list_runs(connection, UID, RunFilter(), None, 10).runs == []
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
    assert clear_all(history) > 2000 / prune.PIECE_ROWS
    history.log.checkpoint(truncate=True)
    assert connection.execute("SELECT DISTINCT run FROM events").fetchall() == [(2,)]
    assert "pins" not in rows_left(connection)
    assert all(count < kept[part] for part, count in rows_left(connection).items())
    assert history.database.stat().st_size < before + 50_000
    assert history.differences() == []


def test_many_small_runs_are_cleared_away_together(
    history: History, connection: apsw.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prune, "PIECE_S", 60)
    for i in range(50):
        closed_run(history, f"r{i}")
    history.apply(*(delete(f"r{i}") for i in range(50)))
    assert clear_all(history) <= 10
    assert rows_left(connection) == {}
    assert history.differences() == []


def test_a_slow_disk_ends_a_clearing_earlier_but_never_before_something_is_gone(
    history: History, connection: apsw.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prune, "PIECE_S", 0)
    closed_run(history, "r")
    history.apply(delete("r"))
    while rows := rows_left(connection):
        history.apply(Clear())
        assert sum(count != rows_left(connection).get(part, 0) for part, count in rows.items()) == 1
        assert history.differences() == []
    clear_all(history)


def test_each_clearing_is_small(history: History, connection: apsw.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prune, "PIECE_S", 60)
    closed_run(history, "r", notes=2000)
    history.apply(delete("r"))
    before = rows_left(connection)["events"]
    history.apply(Clear())
    assert before - rows_left(connection)["events"] == prune.PIECE_ROWS


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
    found = event_reader.events_after(connection, UID, EventFilter(), 0, limit=1, limit_bytes=MANY)
    assert (found.looked_at, found.gaps) == (2, []), "a gap comes with the page that its end is on"
    (gap,) = event_reader.events_after(connection, UID, EventFilter(), 2, limit=1, limit_bytes=MANY).gaps
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
        found = event_reader.events_after(connection, UID, EventFilter(), position, limit=3, limit_bytes=MANY)
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
    found = event_reader.events_after(connection, UID, EventFilter(), 0, limit=100, limit_bytes=MANY)
    low_water = connection.execute("SELECT low_water FROM history").get
    assert found.gaps[0] == Gap(None, None, 1, low_water, "forgotten")
    assert 2 <= len(found.gaps) - 1 <= 4
    assert low_water < found.gaps[1].from_position
    behind = event_reader.events_after(connection, UID, EventFilter(), low_water, limit=100, limit_bytes=MANY)
    assert behind.gaps == found.gaps[1:]
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


class Commits:
    """Counts the transactions of a log."""

    def __init__(self, history: History) -> None:
        self.count = 0
        history.log._connection.set_commit_hook(self._note)

    def _note(self) -> bool:
        self.count += 1
        return False


def test_removals_share_a_transaction_with_the_appends_around_them(history: History, connection: apsw.Connection) -> None:
    closed_us = {}
    for run_id in ("r", "s", "t"):
        closed_run(history, run_id)
        closed_us[run_id] = history.now_us
    history.begin("live")
    commits = Commits(history)
    outcomes = history.apply(
        append("live", 4, 1, event()),
        delete("r", closed_us=closed_us["r"]),
        delete("live"),
        delete("s", closed_us=closed_us["s"] - 1),
        Clear(),
        append("live", 4, 2, event()),
        delete("t"),
    )
    assert commits.count == 1
    assert [outcomes[i] for i in (1, 3, 6)] == [Deleted(True), Deleted(False), Deleted(True)]
    assert isinstance(outcomes[2], RunLive)
    assert [found.run_id for found in run_reader.list_runs(connection, UID, RunFilter(), None, 10).runs] == ["live", "s"]
    assert history.differences() == []
    clear_all(history)
    assert history.differences() == []


def test_a_name_goes_through_several_runs_in_one_batch(history: History, connection: apsw.Connection) -> None:
    def life(epoch: int, last: str = "run.completed") -> list[Request]:
        used = event("usage", key="k", usage=USAGE, step_id="s")
        events = (event("step.started", step_id="s"), used, event(last))
        return [begin("r", title=str(epoch)), append("r", epoch, 1, *events), keyed("r", None, event(key="k2"))]

    commits = Commits(history)
    done = history.log.apply([*life(1), delete("r"), *life(2), delete("r"), Clear(), *life(3, "note")], 5)
    assert commits.count == 1
    assert [row[0] for committed in done.events for row in committed.rows] == list(range(1, 15))
    assert [bool(held.holders) for held in done.held] == [False] * 4 + [True], "no process holds what ended, or is gone"
    assert done.gaps
    assert after(connection, 0) == (["r"] * 4, [("r", 1, 5), ("r", 6, 10)])
    assert run_reader.get_run(connection, UID, "default", "r")[0].title == "3"
    clear_all(history)
    assert history.differences() == []
    history.reopen(clean=False)
    assert history.differences() == []


def test_a_batch_without_anything_to_remove_or_to_store_makes_no_transaction(history: History) -> None:
    closed_run(history, "r")
    clear_all(history)
    commits = Commits(history)
    history.apply(delete("x"), append("r", 1, 1, event("step.started", step_id="s")), Clear())
    assert commits.count == 0


def test_a_removal_that_fails_takes_no_other_with_it(history: History, connection: apsw.Connection) -> None:
    for run_id in ("r", "bad", "s"):
        closed_run(history, run_id)
    history.begin("live")
    writer = apsw.Connection(str(history.database))
    writer.execute("CREATE TRIGGER t BEFORE DELETE ON runs WHEN old.run_id = 'bad' BEGIN SELECT raise(ABORT, 'no'); END")
    writer.close()
    batch: list[Request] = [delete("r"), append("live", 4, 1, event()), delete("bad"), delete("s")]
    done = history.apply(*batch)
    assert done[0] == done[3] == Deleted(True)
    assert isinstance(done[1], Appended) and isinstance(done[2], Failed)
    assert [found.run_id for found in run_reader.list_runs(connection, UID, RunFilter(), None, 10).runs] == ["live", "bad"]
    assert history.differences() == []


def test_a_crash_between_any_two_pieces_leaves_the_figures_right(history: History) -> None:
    for i in range(40):
        closed_run(history, f"r{i}", notes=10)
    epoch = history.begin("live")
    history.apply(*(delete(f"r{i}") for i in range(40)))
    n, more = 0, True
    while more:
        n += 1
        _, cleared = history.apply(append("live", epoch, n, event()), Clear())
        assert isinstance(cleared, Cleared)
        stored, more = history.log.tally.of(UID), cleared.more
        history.reopen(clean=False)
        assert history.log.tally.of(UID) == stored
        assert history.differences() == []
    assert n > 4


def test_compaction_and_deletion_of_one_batch_see_each_other(history: History) -> None:
    closed_run(history, "r", notes=5)
    closed_us = history.now_us
    drop = Compact(UID, "default", "r", "note", closed_us)
    assert history.apply(drop, delete("r"), drop) == [Compacted(False, 0), Deleted(True), Compacted(False)]
    clear_all(history)
    assert history.differences() == []


def test_positions_whose_events_are_gone_are_never_given_again(history: History, connection: apsw.Connection) -> None:
    closed_run(history, "r")
    newest = history.log.position
    history.apply(Delete(UID, "default", "r"))
    clear_all(history)
    history.reopen(clean=False)
    assert connection.execute("SELECT count(*) FROM events").get == 0
    assert (history.log.position, event_reader.tail_position(connection, UID, EventFilter(), 0)) == (newest, newest)
    assert history.log.apply([begin("s")], 5).events[0].rows[0][POSITION] == newest + 1
    assert history.differences() == []


def test_what_is_refused_when_it_is_written_leaves_nothing_and_the_removal_behind_it_is_carried_out(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed_run(history, "r")
    epoch = history.begin("live")
    monkeypatch.setattr(heads, "MAX_DOCUMENT_BYTES", 100)
    large = event("run.updated", {"state": {"text": "x" * 200}})
    outcomes = history.apply(append("live", epoch, 1, event(), large), delete("r"), append("live", epoch, 1, event()))
    assert isinstance(outcomes[0], TooLarge) and outcomes[1] == Deleted(True)
    assert isinstance(outcomes[2], Appended) and outcomes[2].stored == 1
    assert history.differences() == []
