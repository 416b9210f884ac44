"""Which events may be recorded, and which of a request are new."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import pytest
from msgspec import Raw

from runhistd.model.decide import Append, StoredKey, content_of, decide
from runhistd.model.errors import (
    Conflict,
    InvalidParameter,
    NotAllowed,
    Refusal,
    RunClosed,
    SequenceGap,
    StaleEpoch,
)
from runhistd.model.events import DAEMON_KINDS, Event
from runhistd.model.run import Head

WRITER = uuid4()
RUNNING = Head(status="running", epoch=4, last_seq=10)


def event(type: str = "note", data: dict[str, Any] | None = None, **members: Any) -> Event:
    return Event(type=type, data=Raw(json.dumps(data or {}).encode()), **members)


def numbered(*events: Event, first_n: int = 1, epoch: int | None = 4) -> Append:
    return Append(1000, "default", "r", epoch, WRITER, first_n, list(events))


def keyed(*events: Event, epoch: int | None = 4) -> Append:
    return Append(1000, "default", "r", epoch, None, None, list(events))


def refused(head: Head, request: Append, last_n: int = 0, stored: dict[str, StoredKey] | None = None) -> Refusal:
    with pytest.raises(Refusal) as caught:
        decide(head, request, last_n, stored or {})
    return caught.value


def test_an_n_at_or_below_the_writers_last_is_left_out() -> None:
    fresh = decide(RUNNING, numbered(event("a"), event("b"), event("c"), first_n=3), 4, {})
    assert [(new.event.type, new.n) for new in fresh] == [("c", 5)]


def test_what_is_stored_already_is_success_under_any_epoch_and_after_the_end() -> None:
    closed = Head(status="completed", epoch=9)
    assert decide(closed, numbered(event("a"), first_n=1, epoch=4), 1, {}) == []


def test_a_hole_in_the_writers_count_names_what_is_expected() -> None:
    refusal = refused(RUNNING, numbered(event(), first_n=7), last_n=4)
    assert (type(refusal), refusal.parameters) == (SequenceGap, {"expected": 5, "last_n": 4})


def test_another_epoch_than_the_current_is_stale_and_learns_what_is_stored() -> None:
    for epoch in (3, 5):
        refusal = refused(RUNNING, numbered(event(), first_n=3, epoch=epoch), last_n=2)
        assert (type(refusal), refusal.parameters) == (StaleEpoch, {"epoch": 4, "owner_pid": None, "last_n": 2})


def test_the_epoch_is_checked_before_the_status_and_the_status_before_the_gap() -> None:
    closed = Head(status="failed", epoch=4)
    assert type(refused(closed, numbered(event(), first_n=9, epoch=3))) is StaleEpoch
    assert type(refused(closed, numbered(event(), first_n=9))) is RunClosed


def test_without_the_lease_a_live_run_takes_nothing() -> None:
    refusal = refused(RUNNING, keyed(event(key="k"), epoch=None))
    assert type(refusal) is NotAllowed and refusal.parameters["parameter"] == "epoch"


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
def test_an_ended_run_takes_notes_and_artifacts_by_key_only(status: str) -> None:
    closed = Head(status=status, epoch=4)
    for epoch in (4, None):
        assert len(decide(closed, keyed(event("note", key="a"), event("artifact", key="b"), epoch=epoch), 0, {})) == 2
    for sent in (event("output", key="k"), event("run.failed", key="k"), event("step.started", key="k", step_id="s")):
        refusal = refused(closed, keyed(sent))
        assert (type(refusal), refusal.parameters) == (RunClosed, {"status": status})
    assert type(refused(closed, numbered(event("note")))) is RunClosed


def test_nothing_but_a_keyed_note_may_follow_the_end_within_one_request() -> None:
    assert len(decide(RUNNING, numbered(event("run.completed"), event("note", key="k")), 0, {})) == 2
    assert type(refused(RUNNING, numbered(event("run.completed"), event("output")))) is RunClosed
    assert type(refused(RUNNING, numbered(event("run.completed"), event("run.failed")))) is RunClosed


@pytest.mark.parametrize("kind", sorted(DAEMON_KINDS))
def test_what_only_the_daemon_records_is_refused_from_an_engine(kind: str) -> None:
    refusal = refused(RUNNING, numbered(event(), event("x", kind=kind)))
    assert type(refusal) is NotAllowed and refusal.parameters["parameter"] == "events[1].kind"


@pytest.mark.parametrize("status", ["pending", "paused", "incomplete"])
def test_a_run_whose_lease_ended_must_be_claimed_before_it_goes_on(status: str) -> None:
    with pytest.raises(NotAllowed) as caught:
        decide(Head(status=status, epoch=4), numbered(event("output")), 0, {}, "ended")
    assert status in str(caught.value.parameters["reason"])


def test_what_an_orphaned_runs_owner_left_is_taken_under_its_epoch_up_to_an_end() -> None:
    orphaned = Head(status="incomplete", epoch=4)
    assert len(decide(orphaned, numbered(event("output"), event("run.completed")), 0, {})) == 2
    assert type(refused(orphaned, numbered(event("run.completed"), event("output")))) is RunClosed
    assert type(refused(orphaned, numbered(event(), epoch=3))) is StaleEpoch


def test_a_run_without_a_lease_is_written_by_key_alone() -> None:
    sent = keyed(event(key="a"), event("run.completed", key="b"), epoch=None)
    assert len(decide(RUNNING, sent, 0, {}, "none")) == 2
    for unnamed in (numbered(event()), numbered(event(), epoch=None)):
        with pytest.raises(InvalidParameter) as caught:
            decide(RUNNING, unnamed, 0, {}, "none")
        assert caught.value.parameters == {"parameter": "events[0].key"}
    with pytest.raises(StaleEpoch):
        decide(RUNNING, keyed(event(key="a"), epoch=3), 0, {}, "none")


def test_nothing_but_the_answer_follows_a_pause() -> None:
    assert type(refused(RUNNING, numbered(event("run.paused"), event("output")))) is NotAllowed


def test_a_gate_is_answered_without_a_lease_once() -> None:
    paused = Head(status="paused", epoch=4, last_seq=7, gate_seq=7)
    answer = event("gate.answered", {"gate_seq": 7, "answer": True}, key="k")
    assert len(decide(paused, keyed(answer, epoch=None), 0, {})) == 1
    answered = Head(status="paused", epoch=4, last_seq=8, gate_seq=7, gate_answer_seq=8)
    assert refused(answered, keyed(answer, epoch=None)).parameters == {"seq": 8}
    second = event("gate.answered", {"gate_seq": 7}, key="k2")
    assert refused(paused, keyed(answer, second, epoch=None)).parameters == {"seq": 8}


def test_an_answer_to_another_gate_or_to_none_is_refused() -> None:
    answer = event("gate.answered", {"gate_seq": 5}, key="k")
    other = refused(Head(status="paused", epoch=4, gate_seq=7), keyed(answer, epoch=None))
    assert other.parameters["parameter"] == "events[0].data.gate_seq"
    assert type(refused(RUNNING, keyed(answer, epoch=None))) is NotAllowed


def test_the_same_content_under_a_known_key_is_a_duplicate_whatever_its_time() -> None:
    sent = event("turn", {"a": 1}, key="k", time_us=5)
    stored = {"k": StoredKey(3, content_of(sent, "note"))}
    again = event("turn", {"a": 1}, key="k", time_us=99)
    assert decide(RUNNING, keyed(again), 0, stored) == []


@pytest.mark.parametrize(
    "changed",
    [
        event("turn", {"a": 2}, key="k"),
        event("other", {"a": 1}, key="k"),
        event("turn", {"a": 1}, key="k", kind="output"),
        event("turn", {"a": 1}, key="k", step_id="s"),
        event("turn", {"a": 1}, key="k", attempt=2),
    ],
)
def test_other_content_under_a_known_key_is_a_conflict(changed: Event) -> None:
    stored = {"k": StoredKey(3, content_of(event("turn", {"a": 1}, key="k"), "note"))}
    refusal = refused(RUNNING, keyed(changed), stored=stored)
    assert (type(refusal), refusal.parameters) == (Conflict, {"seq": 3})


def test_a_key_twice_in_one_request_is_one_event_or_a_fault() -> None:
    same = event("turn", {"a": 1}, key="k")
    assert len(decide(RUNNING, keyed(same, same), 0, {})) == 1
    refusal = refused(RUNNING, keyed(same, event("turn", {"a": 2}, key="k")))
    assert (type(refusal), refusal.parameters) == (InvalidParameter, {"parameter": "events[1].key"})


def test_an_event_that_nothing_names_is_refused() -> None:
    assert refused(RUNNING, keyed(event(key="k"), event())).parameters == {"parameter": "events[1].key"}


def test_writer_and_first_n_come_together() -> None:
    only_writer = Append(1000, "default", "r", 4, WRITER, None, [event()])
    only_n = Append(1000, "default", "r", 4, None, 1, [event()])
    assert refused(RUNNING, only_writer).parameters == {"parameter": "first_n"}
    assert refused(RUNNING, only_n).parameters == {"parameter": "writer"}


def test_a_type_that_is_a_kind_has_it_another_is_a_note_and_an_unknown_kind_is_a_fault() -> None:
    fresh = decide(RUNNING, numbered(event("output"), event("turn"), event("turn", kind="output")), 0, {})
    assert [new.kind for new in fresh] == ["output", "note", "output"]
    assert refused(RUNNING, numbered(event("a", kind="turn"))).parameters == {"parameter": "events[0].kind"}


@pytest.mark.parametrize("kind", ["step.started", "step.retrying", "step.completed", "step.failed", "step.skipped"])
def test_a_step_event_needs_its_step(kind: str) -> None:
    assert refused(RUNNING, numbered(event(kind))).parameters == {"parameter": "events[0].step_id"}


@pytest.mark.parametrize(
    ("kind", "data", "path"),
    [
        ("run.updated", {"title": 5}, "title"),
        ("run.updated", {"state": []}, "state"),
        ("run.paused", {"prompt": {}}, "prompt"),
        ("gate.answered", {"gate_seq": "7"}, "gate_seq"),
        ("gate.answered", {}, "gate_seq"),
        ("run.failed", {"error": {"message": "x"}}, "error"),
        ("step.started", {"name": ["x"]}, "name"),
        ("step.failed", {"error": 2}, "error"),
    ],
)
def test_ill_typed_data_that_a_kind_gives_a_meaning_to_is_named(kind: str, data: dict[str, Any], path: str) -> None:
    refusal = refused(RUNNING, numbered(event(), event(kind, data, step_id="s")))
    assert (type(refusal), refusal.parameters) == (InvalidParameter, {"parameter": f"events[1].data.{path}"})


def test_members_of_data_that_no_kind_knows_are_the_engines_own() -> None:
    assert len(decide(RUNNING, numbered(event("run.failed", {"error": "x", "mine": [1]})), 0, {})) == 1
