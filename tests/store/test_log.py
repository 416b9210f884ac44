"""One batch in, one transaction, one outcome for each request."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import uuid4

import apsw
import pytest
from msgspec import Raw

from runhistd.model.errors import Conflict, InvalidParameter, NoSuchRun, RunExists, SequenceGap, StorageFull
from runhistd.model.events import Accepted, Event, Usage
from runhistd.model.run import Head, fold
from runhistd.store import heads, log, sql
from runhistd.store.leases import Begun
from runhistd.store.log import Appended, Failed
from runhistd.store.rows import stored_event
from tests.store.histories import UID, WRITER, History, append, begin, event, keyed


def rows(history: History, statement: str) -> list[tuple[object, ...]]:
    reader = apsw.Connection(str(history.database), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return reader.execute(statement).fetchall()
    finally:
        reader.close()


def test_a_run_begins_with_its_spec_at_seq_1(history: History) -> None:
    (outcome,) = history.apply(begin("r", workflow="w"))
    assert outcome == Begun("default", "r", epoch=1, position=1)
    assert rows(history, "SELECT seq, kind, data FROM events") == [(1, "run.started", '{"run_id": "r", "workflow": "w"}')]


def test_the_same_lease_key_begins_once_also_after_a_restart(history: History) -> None:
    key = uuid4()
    (first,) = history.apply(begin("r", lease_key=key))
    assert history.apply(begin("r", lease_key=key)) == [first]
    history.reopen(clean=False)
    (again,) = history.apply(begin("r", lease_key=key))
    assert isinstance(again, Begun) and again.epoch == 1
    assert rows(history, "SELECT count(*) FROM events") == [(1,)]


def test_another_lease_key_on_a_taken_name_is_refused(history: History) -> None:
    history.begin("r")
    assert isinstance(history.refused(begin("r")), RunExists)


def test_a_name_is_free_in_another_namespace_and_for_another_user(history: History) -> None:
    history.begin("r")
    outcomes = history.apply(begin("r", namespace="other"), begin("r", uid=UID + 1))
    assert [type(outcome) for outcome in outcomes] == [Begun, Begun]


def test_epochs_and_positions_only_grow_over_all_runs(history: History) -> None:
    epochs = [history.begin(f"r{i}") for i in range(3)]
    history.reopen(clean=True)
    epochs.append(history.begin("r4"))
    assert epochs == [1, 2, 3, 4]
    assert history.append("r4", 4, 1, event()).position == 5


def test_sending_again_stores_nothing_and_says_so(history: History) -> None:
    epoch = history.begin("r")
    first = history.append("r", epoch, 1, event("a"), event("b"))
    assert (first.first_seq, first.last_seq, first.stored, first.duplicates) == (2, 3, 2, 0)
    again = history.append("r", epoch, 1, event("a"), event("b"))
    assert (again.first_seq, again.last_seq, again.stored, again.duplicates) == (None, None, 0, 2)


def test_a_request_that_is_part_duplicate_stores_the_rest(history: History) -> None:
    epoch = history.begin("r")
    history.append("r", epoch, 1, event("a"))
    rest = history.append("r", epoch, 1, event("a"), event("b"), event("c"))
    assert (rest.first_seq, rest.last_seq, rest.stored, rest.duplicates) == (3, 4, 2, 1)


def test_the_writers_count_survives_a_restart(history: History) -> None:
    epoch = history.begin("r")
    history.append("r", epoch, 1, event("a"), event("b"))
    history.reopen(clean=False)
    assert history.append("r", epoch, 2, event("b")).duplicates == 1
    refusal = history.refused(append("r", epoch, 5, event()))
    assert isinstance(refusal, SequenceGap) and refusal.parameters == {"expected": 3, "last_n": 2}


def test_each_writer_of_a_run_has_its_own_count_and_seq_has_no_gap(history: History) -> None:
    epoch = history.begin("r")
    other = uuid4()
    history.append("r", epoch, 1, event("a"))
    history.append("r", epoch, 1, event("b"), writer=other)
    history.append("r", epoch, 2, event("c"), writer=other)
    history.append("r", epoch, 2, event("d"))
    assert rows(history, "SELECT seq, type, n FROM events WHERE seq > 1 ORDER BY seq") == [
        (2, "a", 1),
        (3, "b", 1),
        (4, "c", 2),
        (5, "d", 2),
    ]


def test_two_requests_of_one_batch_see_each_other(history: History) -> None:
    outcomes = history.apply(
        begin("r"), append("r", 1, 1, event("a")), append("r", 1, 2, event("b")), append("r", 1, 1, event("a"))
    )
    assert [outcome.stored for outcome in outcomes if isinstance(outcome, Appended)] == [1, 1, 0]


def test_a_refusal_touches_only_its_own_request(history: History) -> None:
    epoch = history.begin("r")
    outcomes = history.apply(
        append("r", epoch, 1, event("a")), append("nobody", epoch, 1, event()), append("r", epoch, 2, event("b"))
    )
    assert [type(outcome) for outcome in outcomes] == [Appended, NoSuchRun, Appended]
    assert history.differences() == []


def test_a_key_is_stored_once_even_within_one_batch(history: History) -> None:
    epoch = history.begin("r")
    same = event("turn", {"a": 1}, key="k")
    outcomes = history.apply(
        keyed("r", epoch, same), keyed("r", epoch, same), keyed("r", epoch, event("turn", {"a": 2}, key="k"))
    )
    assert [type(outcome) for outcome in outcomes] == [Appended, Appended, Conflict]
    assert history.append("r", epoch, 1, event("x")).last_seq == 3


def test_a_key_is_known_after_a_restart_with_its_content(history: History) -> None:
    epoch = history.begin("r")
    same = event("turn", {"a": 1}, key="k", usage=Usage(input_tokens=3, model="m"))
    history.apply(keyed("r", epoch, same))
    history.reopen(clean=False)
    (again,) = history.apply(keyed("r", epoch, same))
    assert isinstance(again, Appended) and again.duplicates == 1
    assert history.refused(keyed("r", epoch, event("turn", {"a": 1}, key="k"))).parameters == {"seq": 2}


def test_duplicates_by_key_still_count_for_their_writer(history: History) -> None:
    epoch = history.begin("r")
    history.apply(keyed("r", epoch, event("turn", key="k")))
    assert history.append("r", epoch, 1, event("turn", key="k")).stored == 0
    assert history.append("r", epoch, 2, event("turn")).stored == 1
    history.reopen(clean=False)
    assert history.append("r", epoch, 3, event("turn")).stored == 1
    assert history.differences() == []


def test_data_is_kept_byte_for_byte(history: History) -> None:
    strange = '{ "b" : 1.0,\t"a":"ü\\u00fc", "b" : 12345678901234567890 }'
    epoch = history.begin("r")
    history.append("r", epoch, 1, Event(type="x", data=Raw(strange.encode())))
    assert rows(history, "SELECT data FROM events WHERE seq = 2") == [(strange,)]


def test_a_batch_is_committed_before_it_is_answered(history: History) -> None:
    """The commit runs when the outcomes are there: another process sees all of it."""
    history.apply(begin("r"), append("r", 1, 1, event("a")))
    assert rows(history, "SELECT count(*) FROM events") == [(2,)]


def test_what_no_request_of_a_batch_changed_is_not_written(history: History) -> None:
    epoch = history.begin("r")
    history.append("r", epoch, 1, event())
    history.log.checkpoint(truncate=True)
    history.append("r", epoch, 1, event())
    assert history.log.wal_bytes == 0


def test_a_fault_of_ours_costs_only_the_request_that_brings_it(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    epoch = history.begin("r")
    history.begin("s")

    def faulty(head: Head, accepted: Sequence[Accepted], received_us: int) -> None:
        fold(head, accepted, received_us)
        if accepted[-1].kind == "checkpoint":
            raise ZeroDivisionError("planted")

    monkeypatch.setattr(log, "fold", faulty)
    outcomes = history.apply(
        append("r", epoch, 1, event("a")),
        append("s", 2, 1, event("b"), event("checkpoint")),
        append("r", epoch, 2, event("c")),
    )
    assert [type(outcome) for outcome in outcomes] == [Appended, Failed, Appended]
    monkeypatch.undo()
    assert history.append("s", 2, 1, event("b")).stored == 1
    assert rows(history, "SELECT run, seq, type FROM events WHERE seq > 1 ORDER BY position") == [
        (1, 2, "a"),
        (1, 3, "c"),
        (2, 2, "b"),
    ]
    assert history.differences() == []


def test_a_full_disk_refuses_the_whole_batch_and_nothing_is_half_written(history: History) -> None:
    epoch = history.begin("r")
    connection = history.log._connection
    connection.pragma("max_page_count", int(connection.pragma("page_count")))
    large = event("output", {"text": "x" * 100_000})
    outcomes = history.apply(append("r", epoch, 1, event("a")), append("r", epoch, 2, large))
    assert [type(outcome) for outcome in outcomes] == [StorageFull, StorageFull]
    assert rows(history, "SELECT count(*) FROM events") == [(1,)]
    connection.pragma("max_page_count", 1_000_000)
    assert history.append("r", epoch, 1, event("a"), large).stored == 2
    assert history.differences() == []


def test_a_request_whose_spec_does_not_fit_is_refused_by_the_path(history: History) -> None:
    assert history.refused(begin("r", workflow=5)).parameters == {"parameter": "run.workflow"}
    assert isinstance(history.refused(begin("r", surprise=1)), InvalidParameter)
    assert rows(history, "SELECT count(*) FROM runs") == [(0,)]


def test_memory_keeps_a_bounded_number_of_runs_and_steps(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "MAX_RUNS", 3)
    monkeypatch.setattr(heads, "MAX_STEPS", 2)
    for i in range(5):
        history.begin(f"r{i}")
    kept = history.log.heads._runs
    assert len(kept) == 3
    for n, step in enumerate(["a", "b", "c", "d"]):
        history.append("r0", 1, 2 * n + 1, event("step.started", step_id=step), event("step.completed", step_id=step))
    assert len(kept[(UID, "default", "r0")].head.steps) <= 2
    history.append("r0", 1, 9, event("step.started", step_id="a"), event("usage", step_id="b", usage=Usage(input_tokens=1)))
    assert rows(history, "SELECT step_id, attempt FROM steps WHERE run = 1 ORDER BY 1, 2") == [
        ("a", 1),
        ("a", 2),
        ("b", 1),
        ("c", 1),
        ("d", 1),
    ]
    assert history.differences() == []


def test_a_terminal_event_closes_steps_that_are_no_longer_in_memory(history: History) -> None:
    epoch = history.begin("r")
    history.append("r", epoch, 1, event("step.started", step_id="a"))
    history.reopen(clean=False)
    history.append("r", epoch, 2, event("run.completed"))
    assert rows(history, "SELECT status FROM steps") == [("unfinished",)]


def test_snapshots_of_usage_are_remembered_over_a_restart(history: History) -> None:
    epoch = history.begin("r")
    history.append("r", epoch, 1, event("usage", usage=Usage(input_tokens=100, cumulative=True)))
    history.append("r", epoch, 2, event("usage", usage=Usage(output_tokens=5, response_id="m")))
    history.reopen(clean=False)
    history.append("r", epoch, 3, event("usage", usage=Usage(input_tokens=120, cumulative=True)))
    history.append("r", epoch, 4, event("usage", usage=Usage(output_tokens=5, response_id="m")))
    assert rows(history, "SELECT input_tokens, output_tokens FROM runs") == [(120, 5)]
    assert history.differences() == []


def test_committed_events_come_back_in_position_order_for_followers(history: History) -> None:
    batch = history.log.apply([begin("r", agent_id="me"), append("r", 1, 1, event("a"), event("b"))], 5)
    events = [(c, stored_event(c.namespace, c.run_id, row)) for c in batch.events for row in c.rows]
    assert [(c.uid, c.agent_id, event.position, event.type) for c, event in events] == [
        (UID, "me", 1, "run.started"),
        (UID, "me", 2, "a"),
        (UID, "me", 3, "b"),
    ]
    assert WRITER == events[1][1].writer


def test_the_newest_position_is_that_of_the_newest_event_so_that_an_append_need_not_write_it(history: History) -> None:
    epoch = history.begin("r")
    before = rows(history, "SELECT * FROM history")
    for n in range(1, 5):
        history.append("r", epoch, n, event())
    assert rows(history, "SELECT * FROM history") == before
    history.reopen(clean=False)
    assert history.log.position == 5
    assert rows(history, sql.HEAD_POSITION) == [(5,)]
