"""Who may write to a run: claims, takeovers, releases, deaths, and teams."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from runhistd.model.errors import (
    Conflict,
    LeaseHeld,
    NoSuchRun,
    NotAllowed,
    RunClosed,
    RunExists,
    StaleEpoch,
    StaleTeamEpoch,
    StatusChanged,
)
from runhistd.model.holder import Holder
from runhistd.model.lease import Release
from runhistd.model.views import EventFilter, Interrupted, Run, RunDetail, RunFilter
from runhistd.store import event_reader, run_reader
from runhistd.store.database import open_reader
from runhistd.store.leases import Begun, Buried, Claimed, Released
from runhistd.store.log import Appended, Batch
from tests.store.histories import OWNER, UID, History, append, begin, claim, death, event, keyed

OTHER = Holder(43, "start:2", "boot")
WRITER_2 = UUID(int=8)


def run(history: History, run_id: str = "r") -> Run:
    return both(history, run_id)[0]


def both(history: History, run_id: str = "r") -> tuple[Run, RunDetail]:
    connection = open_reader(history.database)
    try:
        return run_reader.get_run(connection, UID, "default", run_id)
    finally:
        connection.close()


def events(history: History, run_id: str = "r") -> list[tuple[str, dict[str, Any]]]:
    connection = open_reader(history.database)
    try:
        options: dict[str, Any] = {"after_seq": 0, "from_checkpoint": False, "types": None, "kinds": None, "limit": 1000}
        found, _, _ = event_reader.get_events(connection, UID, "default", run_id, **options)
        return [(one.kind, json.loads(bytes(one.data))) for one in found]
    finally:
        connection.close()


def interrupted(history: History) -> list[Interrupted]:
    connection = open_reader(history.database)
    try:
        return run_reader.list_interrupted(connection, UID, RunFilter(), None, 100)[0]
    finally:
        connection.close()


def granted(history: History, run_id: str = "r", **members: Any) -> int:
    (outcome,) = history.apply(claim(run_id, **members))
    assert isinstance(outcome, Claimed), outcome
    return outcome.epoch


def holders(history: History) -> list[tuple[str, Holder]]:
    return [(held.run_id, holder) for held in history.log.held() for holder in sorted(held.holders)]


def apply(history: History, *requests: Any) -> Batch:
    history.now_us += 1
    return history.log.apply(requests, history.now_us)


def paused(history: History, **gate: Any) -> int:
    epoch = history.begin("r")
    history.append("r", epoch, 1, event("checkpoint", {"at": 1}), event("run.paused", {"name": "approve", **gate}))
    return epoch


def answer(gate_seq: int, value: Any = True, key: str | None = None) -> Any:
    return event("gate.answered", {"gate_seq": gate_seq, "answer": value}, key=key)


def test_a_live_owners_run_is_not_claimed_without_a_takeover(history: History) -> None:
    epoch = history.begin("r")
    refusal = history.refused(claim("r"))
    assert type(refusal) is LeaseHeld and refusal.parameters == {"owner_pid": 42, "epoch": epoch}
    assert run(history).last_seq == 1


def test_a_takeover_is_recorded_and_fences_the_owner_out(history: History) -> None:
    first = history.begin("r")
    second = granted(history, takeover=True)
    assert second > first
    assert events(history)[-1] == (
        "run.resumed",
        {"pid": 43, "from_epoch": first, "from_status": "running", "takeover": True},
    )
    refusal = history.refused(append("r", first, 1, event(), holder=OWNER))
    assert type(refusal) is StaleEpoch and refusal.parameters == {"epoch": second, "owner_pid": 43, "last_n": 0}
    history.append("r", second, 1, event(), writer=WRITER_2)
    assert holders(history) == [("r", OTHER)]


def test_a_paused_run_needs_no_owner_and_is_claimed_by_one_only(history: History) -> None:
    first = paused(history)
    assert (run(history).lease, holders(history)) == ("ended", [])
    assert type(history.refused(append("r", first, 3, event()))) is NotAllowed
    outcomes = history.apply(*(claim("r", Holder(100 + i, "start:1", "boot")) for i in range(8)))
    assert [type(outcome) for outcome in outcomes] == [Claimed, *[LeaseHeld] * 7]
    assert [kind for kind, _ in events(history)].count("run.resumed") == 1
    assert (run(history).status, run(history).owner_pid, run(history).gate) == ("running", 100, None)


def test_a_claim_stores_answer_and_first_events_in_one_transaction(history: History) -> None:
    paused(history)
    granted(
        history,
        expect_status=("paused",),
        expect_seq=3,
        writer=WRITER_2,
        first_n=1,
        events=[answer(3, {"go": [1, None]}), event("step.started", step_id="s")],
    )
    assert [kind for kind, _ in events(history)][3:] == ["gate.answered", "run.resumed", "step.started"]
    resumed = events(history)[4][1]
    assert (resumed["gate_seq"], resumed["answer"], resumed["from_status"]) == (3, {"go": [1, None]}, "paused")
    history.append("r", 2, 3, event(), writer=WRITER_2)
    assert history.differences() == []


def test_a_refused_claim_stores_nothing_of_it(history: History) -> None:
    paused(history)
    bad = history.refused(claim("r", writer=WRITER_2, first_n=1, events=[answer(3), event("step.started")]))
    assert bad.parameters == {"parameter": "events[0].step_id"}
    gap = claim("r", writer=WRITER_2, first_n=5, events=[event()])
    assert history.refused(gap).parameters == {"expected": 1, "last_n": 0}
    assert (run(history).status, run(history).last_seq, run(history).lease) == ("paused", 3, "ended")
    assert granted(history) == 2, "a refused claim took no epoch"


def test_an_answer_that_came_before_is_handed_on_to_the_resumer(history: History) -> None:
    paused(history)
    (answered,) = history.apply(keyed("r", None, answer(3, 7, key="k")))
    assert isinstance(answered, Appended) and run(history).status == "paused"
    second = history.refused(claim("r", writer=WRITER_2, first_n=1, events=[answer(3, 8)]))
    assert type(second) is Conflict and second.parameters == {"seq": 4}
    granted(history)
    assert events(history)[-1][1]["answer"] == 7


@pytest.mark.parametrize("expected", [{"expect_status": ("incomplete",)}, {"expect_seq": 2}])
def test_a_claim_of_a_run_that_changed_is_refused(history: History, expected: dict[str, Any]) -> None:
    paused(history)
    refusal = history.refused(claim("r", **expected))
    assert type(refusal) is StatusChanged and refusal.parameters == {"status": "paused", "last_seq": 3}


def test_ended_and_unknown_runs_are_not_claimed(history: History) -> None:
    history.append("r", history.begin("r"), 1, event("run.completed"))
    assert type(history.refused(claim("r", takeover=True))) is RunClosed
    assert type(history.refused(claim("no"))) is NoSuchRun


@pytest.mark.parametrize("clean", [True, False])
def test_a_lease_key_repeats_its_claim_over_a_restart_whatever_was_expected(history: History, clean: bool) -> None:
    paused(history)
    key = uuid4()
    first = claim("r", lease_key=key, expect_status=("paused",), writer=WRITER_2, first_n=1, events=[event()])
    (outcome,) = history.apply(first)
    history.reopen(clean=clean)
    assert history.apply(first, first) == [outcome, outcome]
    assert [kind for kind, _ in events(history)].count("run.resumed") == 1


def test_the_lease_key_of_a_begin_repeats_nothing_after_a_takeover(history: History) -> None:
    key = uuid4()
    history.apply(begin("r", lease_key=key))
    granted(history, takeover=True)
    assert type(history.refused(begin("r", lease_key=key))) is RunExists


def test_the_last_holders_death_makes_the_run_incomplete_with_the_evidence(history: History) -> None:
    epoch = history.begin("r")
    history.append("r", epoch, 1, event("step.started", step_id="s"))
    batch = apply(history, append("r", epoch, 1, event(), writer=WRITER_2, holder=OTHER))
    assert [held.holders for held in batch.held] == [{OWNER, OTHER}]
    assert history.apply(death("r", OWNER, pid=42)) == [Buried(False)]
    assert (run(history).status, holders(history)) == ("running", [("r", OTHER)])
    assert history.apply(death("r", OTHER, pid=43, by="pidfd")) == [Buried(True)]
    assert both(history)[1].evidence == msgspec.Raw(b'{"reason": "orphaned", "pid": 43, "by": "pidfd"}')
    assert (run(history).status, holders(history)) == ("incomplete", [])
    assert history.apply(death("r", OTHER)) == [Buried(False)], "a second verdict changes nothing"
    assert history.differences() == []


@pytest.mark.parametrize("end", ["run.completed", "run.failed", "run.paused"])
def test_a_verdict_never_overwrites_an_end_or_a_pause(history: History, end: str) -> None:
    epoch = history.begin("r")
    outcomes = history.apply(append("r", epoch, 1, event(end)), death("r"))
    assert outcomes[1] == Buried(False)
    assert events(history)[-1][0] == end


def test_a_verdict_about_an_earlier_holder_does_not_touch_the_claimant(history: History) -> None:
    history.begin("r")
    granted(history, takeover=True)
    assert history.apply(death("r", OWNER), death("missing", OWNER)) == [Buried(False), Buried(False)]
    assert run(history).status == "running"


def test_an_owner_who_was_taken_for_dead_reopens_its_run_by_going_on(history: History) -> None:
    epoch = history.begin("r")
    history.apply(death("r"))
    (outcome,) = history.apply(append("r", epoch, 1, event(), event(), holder=OWNER))
    assert isinstance(outcome, Appended) and (outcome.first_seq, outcome.last_seq) == (4, 5)
    assert [kind for kind, _ in events(history)] == ["run.started", "run.incomplete", "run.resumed", "note", "note"]
    assert (run(history).status, run(history).epoch, holders(history)) == ("running", epoch, [("r", OWNER)])
    assert history.differences() == []


def test_a_duplicate_from_an_owner_taken_for_dead_is_success_and_stores_nothing(history: History) -> None:
    epoch = history.begin("r")
    sent = append("r", epoch, 1, event(), holder=OWNER)
    history.apply(sent, death("r"))
    (outcome,) = history.apply(sent)
    assert isinstance(outcome, Appended) and (outcome.stored, outcome.duplicates) == (0, 1)
    assert run(history).status == "incomplete"


def test_what_a_dead_owner_left_is_stored_without_reopening_and_may_end_the_run(history: History) -> None:
    epoch = history.begin("r")
    history.apply(death("r"))
    history.append("r", epoch, 1, event())
    assert (run(history).status, holders(history)) == ("incomplete", [])
    history.append("r", epoch, 2, event("run.failed", {"error": "no"}))
    assert (run(history).status, run(history).error, run(history).lease) == ("failed", "no", "ended")
    assert history.differences() == []


def test_once_claimed_nothing_of_the_orphaned_owner_is_taken(history: History) -> None:
    epoch = history.begin("r")
    history.apply(death("r"))
    second = granted(history)
    refusal = history.refused(append("r", epoch, 1, event(), holder=OWNER))
    assert type(refusal) is StaleEpoch and refusal.parameters["epoch"] == second


def test_a_released_run_is_incomplete_and_must_be_claimed(history: History) -> None:
    epoch = history.begin("r")
    released = Release(UID, "default", "r", epoch)
    assert history.apply(released, released) == [Released(), Released()]
    assert events(history)[1:] == [("run.incomplete", {"reason": "released", "pid": 42})]
    assert type(history.refused(append("r", epoch, 1, event(), holder=OWNER))) is NotAllowed
    assert granted(history, expect_status=("incomplete",)) == epoch + 1
    assert history.differences() == []


def test_only_the_owner_releases_and_only_before_the_end(history: History) -> None:
    epoch = history.begin("r")
    assert type(history.refused(Release(UID, "default", "r", epoch + 1))) is StaleEpoch
    history.append("r", epoch, 1, event("run.completed"))
    assert type(history.refused(Release(UID, "default", "r", epoch))) is RunClosed
    assert type(history.refused(Release(UID, "default", "no", epoch))) is NoSuchRun


def test_a_run_without_a_lease_is_nobodys_to_bury_and_many_may_write_it(history: History) -> None:
    spec = msgspec.structs.replace(begin("r"), lease="none")
    history.apply(spec)
    assert (run(history).lease, run(history).owner_pid, holders(history)) == ("none", None, [])
    sent = keyed("r", None, event(key="a"), event("run.completed", key="b"))
    (outcome,) = history.apply(sent)
    assert isinstance(outcome, Appended) and run(history).status == "completed"
    assert history.apply(death("r")) == [Buried(False)]
    assert type(history.refused(Release(UID, "default", "r", 1))) is RunClosed


def test_holders_and_leases_outlive_a_restart(history: History) -> None:
    history.begin("a")
    history.append("b", history.begin("b"), 1, event("run.completed"))
    history.reopen(clean=False)
    assert holders(history) == [("a", OWNER)]
    history.apply(death("a"))
    history.reopen(clean=True)
    assert (holders(history), run(history, "a").status) == ([], "incomplete")
    (outcome,) = history.apply(append("a", 1, 1, event(), holder=OWNER))
    assert isinstance(outcome, Appended) and run(history, "a").status == "running"


def test_a_thousand_orphans_are_adopted_in_one_transaction(history: History) -> None:
    history.apply(*(begin(f"r{i}") for i in range(1000)))
    outcomes = history.apply(*(death(f"r{i}") for i in range(1000)))
    assert outcomes == [Buried(True)] * 1000


def test_interrupted_runs_are_listed_with_what_keeps_them_and_why(history: History) -> None:
    paused(history)
    for run_id in ("live", "dead", "done"):
        history.begin(run_id)
    history.append("done", 4, 1, event("run.completed"))
    history.apply(death("dead", pid=42))
    found = {one.run.run_id: one for one in interrupted(history)}
    assert {run_id: one.resumable for run_id, one in found.items()} == {"dead": True, "r": False}
    assert found["dead"].evidence == msgspec.Raw(b'{"reason": "orphaned", "pid": 42}')
    history.apply(keyed("r", None, answer(3, key="k")))
    assert [one.resumable for one in interrupted(history)] == [True, True]


def test_a_newer_execution_of_a_team_refuses_the_members_of_the_older(history: History) -> None:
    old = history.begin("old", team_id="t", team_run_id="T", team_epoch=1)
    history.append("old", old, 1, event())
    new = history.begin("new", team_id="t", team_run_id="T", team_epoch=2)
    stale = history.refused(append("old", old, 2, event(), holder=OWNER))
    assert type(stale) is StaleTeamEpoch and stale.parameters == {"team_epoch": 2}
    assert type(history.refused(begin("late", team_run_id="T", team_epoch=1))) is StaleTeamEpoch
    assert type(history.refused(claim("old", takeover=True))) is StaleTeamEpoch
    (again,) = history.apply(append("old", old, 1, event()))
    assert isinstance(again, Appended) and again.duplicates == 1, "what is stored stays stored"
    history.reopen(clean=False)
    assert type(history.refused(append("old", old, 2, event()))) is StaleTeamEpoch
    history.append("new", new, 1, event())
    (other,) = history.apply(begin("other", team_run_id="T", team_epoch=1, uid=UID + 1))
    assert isinstance(other, Begun), "another user's team is another team"


def test_a_refused_begin_raises_no_team_epoch(history: History) -> None:
    history.begin("r", team_run_id="T", team_epoch=1)
    assert type(history.refused(begin("r", team_run_id="T", team_epoch=2))) is RunExists
    history.begin("next", team_run_id="T", team_epoch=1)


def test_the_runs_of_a_team_are_listed_and_followed_in_one_order(history: History) -> None:
    a = history.begin("a", team_id="t", team_run_id="T", team_epoch=1)
    history.begin("x")
    b = history.begin("b", team_id="t", team_run_id="T", team_epoch=1)
    history.append("b", b, 1, event())
    history.append("a", a, 1, event())
    connection = open_reader(history.database)
    page = run_reader.list_runs(connection, UID, RunFilter(team_run_id="T"), None, 10)
    assert [one.run_id for one in page.runs] == ["b", "a"]
    page = run_reader.list_runs(connection, UID, RunFilter(team_id="t", status=("failed",)), None, 10)
    assert page.runs == []
    wanted = EventFilter(team_run_id="T")
    found, _, _ = event_reader.events_after(connection, UID, wanted, 0, limit=10, limit_bytes=10**6)
    assert [(one.run_id, one.seq) for one in found] == [("a", 1), ("b", 1), ("b", 2), ("a", 2)]
    connection.close()
