"""The fold: what each kind changes. Times are counted from 1000 so that an event's time tells its seq."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import Raw

from runhistd.model.events import KINDS, Accepted, Event, Usage, payload_of
from runhistd.model.run import Head, Step, fold, merge_patch


class Recorded:
    """A run whose events are folded as they are added."""

    def __init__(self, **spec: Any) -> None:
        self.head = Head()
        self.add("run.started", {"run_id": "r", **spec})

    def add(self, kind: str, data: dict[str, Any] | None = None, **members: Any) -> None:
        event = Event(type=kind, data=Raw(json.dumps(data or {}).encode()), **members)
        received_us = 1000 + self.head.last_seq + 1
        fold(self.head, [Accepted(event, kind, payload_of(kind, event.data, "data"), None)], received_us)

    def step(self, step_id: str, attempt: int = 1) -> Step:
        return self.head.steps[step_id][attempt]


def test_run_started_takes_the_spec() -> None:
    run = Recorded(workflow="w", agent_id="a", title="t", parent_run_id="p", definition={"x": 1}, metadata={"m": 1})
    head = run.head
    assert (head.status, head.workflow, head.agent_id, head.title, head.parent_run_id) == ("running", "w", "a", "t", "p")
    assert head.documents == {"definition": {"x": 1}, "metadata": {"m": 1}}
    assert (head.started_us, head.created_us) == (1001, 1001)


def test_the_engines_time_is_the_runs_time_and_the_daemons_is_kept_beside_it() -> None:
    run = Recorded()
    run.add("run.completed", time_us=77)
    assert (run.head.ended_us, run.head.closed_us) == (77, 1002)


def test_run_updated_lays_a_merge_patch_over_what_is_there() -> None:
    run = Recorded(title="old", metadata={"a": 1, "b": {"c": 2, "d": 3}})
    run.add("run.updated", {"title": "new", "metadata": {"b": {"c": None, "e": 4}}, "state": {"s": 1}})
    assert run.head.title == "new"
    assert run.head.documents == {"metadata": {"a": 1, "b": {"d": 3, "e": 4}}, "state": {"s": 1}}
    run.add("run.updated", {"title": None, "current_step": "x", "metadata": None})
    assert run.head.title is None
    assert run.head.current_step == "x"
    assert run.head.documents == {"state": {"s": 1}}


@pytest.mark.parametrize(
    ("target", "patch", "merged"),
    [  # the object cases of RFC 7386, appendix A
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        (None, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch_follows_the_rfc(target: Any, patch: dict[str, Any], merged: dict[str, Any]) -> None:
    assert merge_patch(target, patch) == merged


def test_a_gate_opens_with_the_pause_and_is_remembered_as_answered() -> None:
    run = Recorded()
    run.add("run.paused", {"name": "approve", "prompt": "Apply?", "payload": {"n": 3}})
    head = run.head
    assert (head.status, head.gate_seq, head.gate_name, head.gate_prompt) == ("paused", 2, "approve", "Apply?")
    run.add("gate.answered", {"gate_seq": 2, "answer": True})
    assert (head.status, head.gate_answer_seq) == ("paused", 3)
    run.add("run.resumed")
    assert (head.status, head.gate_seq, head.gate_answer_seq) == ("running", None, None)


def test_an_incomplete_run_keeps_its_open_steps_and_reopens() -> None:
    run = Recorded()
    run.add("step.started", step_id="a")
    run.add("run.incomplete")
    assert (run.head.status, run.head.ended_us, run.step("a").status) == ("incomplete", 1003, "running")
    run.add("run.resumed")
    assert (run.head.status, run.head.ended_us, run.head.closed_us) == ("running", None, None)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"reason": "orphaned", "pid": 4711, "evidence": "exited", "by": "pidfd", "seen_us": 1}, "owner pid 4711 exited"),
        ({"reason": "orphaned", "pid": 4711, "evidence": "boot changed", "by": "boot_id", "seen_us": 1}, "boot changed"),
        ({"reason": "orphaned", "pid": None, "evidence": "disconnected"}, "owner disconnected"),
        ({"reason": "released", "pid": 4711}, "released"),
    ],
)
def test_an_incomplete_run_says_why_until_it_is_reopened(data: dict[str, Any], text: str) -> None:
    run = Recorded()
    run.add("run.incomplete", data)
    assert run.head.error == text
    run.add("run.resumed")
    assert run.head.error is None


@pytest.mark.parametrize(
    ("kind", "data", "status", "error"),
    [
        ("run.completed", {}, "completed", None),
        ("run.failed", {"error": "exit 2"}, "failed", "exit 2"),
        ("run.cancelled", {"reason": "by hand"}, "cancelled", "by hand"),
    ],
)
def test_the_end_of_a_run_leaves_open_steps_unfinished(
    kind: str, data: dict[str, Any], status: str, error: str | None
) -> None:
    run = Recorded()
    run.add("step.started", step_id="done")
    run.add("step.completed", step_id="done")
    run.add("step.started", step_id="open")
    run.add(kind, {**data, "output": {"n": 1}})
    assert (run.head.status, run.head.error, run.head.ended_us) == (status, error, 1005)
    assert (run.step("done").status, run.step("open").status, run.step("open").ended_us) == ("completed", "unfinished", 1005)
    assert run.head.documents["output"] == {"n": 1}


def test_a_started_step_is_the_current_one_under_its_name() -> None:
    run = Recorded()
    run.add("step.started", {"name": "Render pages", "parent_step_id": "build"}, step_id="render")
    step = run.step("render")
    assert (step.name, step.parent_step_id, step.status, step.first_seq, step.started_us) == (
        "Render pages",
        "build",
        "running",
        2,
        1002,
    )
    assert run.head.current_step == "Render pages"


def test_a_retry_fails_the_attempt_and_the_next_start_opens_another() -> None:
    run = Recorded()
    run.add("step.started", step_id="a")
    run.add("step.retrying", {"error": "timeout"}, step_id="a")
    run.add("step.started", step_id="a")
    run.add("step.completed", step_id="a")
    assert [(s.attempt, s.status, s.error) for s in run.head.steps["a"].values()] == [
        (1, "failed", "timeout"),
        (2, "completed", None),
    ]


def test_a_start_on_an_open_attempt_opens_no_other() -> None:
    run = Recorded()
    run.add("step.started", step_id="a")
    run.add("step.started", step_id="a")
    assert list(run.head.steps["a"]) == [1]
    assert run.step("a").started_us == 1002


def test_the_first_end_of_an_attempt_stands() -> None:
    run = Recorded()
    run.add("step.started", step_id="a")
    run.add("step.failed", {"error": "first"}, step_id="a")
    run.add("step.completed", step_id="a")
    assert (run.step("a").status, run.step("a").error, run.step("a").ended_us) == ("failed", "first", 1003)


def test_an_end_without_a_start_still_makes_a_step() -> None:
    run = Recorded()
    run.add("step.skipped", {"reason": "cached"}, step_id="a")
    run.add("step.completed", step_id="b", attempt=3)
    assert (run.step("a").status, run.step("a").error, run.step("a").started_us) == ("skipped", "cached", None)
    assert (run.step("b", 3).status, run.step("b", 3).first_seq) == ("completed", 3)


def test_a_late_start_tells_when_and_as_what_but_reopens_nothing() -> None:
    run = Recorded()
    run.add("step.completed", step_id="a", attempt=1)
    run.add("step.started", {"name": "A"}, step_id="a", attempt=1, time_us=5)
    assert (run.step("a").status, run.step("a").name, run.step("a").started_us) == ("completed", "A", 5)


def test_a_checkpoint_is_remembered_by_its_seq() -> None:
    run = Recorded()
    run.add("checkpoint", {"at": 1})
    run.add("note")
    run.add("checkpoint", {"at": 2})
    assert run.head.checkpoint_seq == 4


def test_notes_output_and_artifacts_change_nothing_but_the_count() -> None:
    run = Recorded()
    before = Head(**{f: getattr(run.head, f) for f in run.head.__struct_fields__})
    for kind in ("note", "output", "artifact"):
        run.add(kind, {"text": "x"})
    assert run.head.last_seq == 4
    before.last_seq, before.updated_us = 4, 1004
    assert run.head == before


def test_every_kind_can_be_folded() -> None:
    for kind in sorted(KINDS - {"run.started"}):
        run = Recorded()
        run.add(kind, {"gate_seq": 1} if kind == "gate.answered" else None, step_id="s")
        assert run.head.last_seq == 2, kind


def test_deltas_of_usage_add_up_by_step_and_model() -> None:
    run = Recorded()
    run.add("step.started", step_id="a")
    run.add("usage", usage=Usage(input_tokens=10, cost_microcents=5, model="m", provider="p"), step_id="a")
    run.add("note", usage=Usage(input_tokens=1, output_tokens=2, model="m", provider="p"), step_id="a")
    run.add("usage", usage=Usage(input_tokens=100))
    assert run.head.usage_added == {("a", 1, "p", "m"): (11, 2, 0, 0, 0, 5), ("", 0, "", ""): (100, 0, 0, 0, 0, 0)}
    assert run.head.totals == (111, 2, 0, 0, 0, 5)


def test_snapshots_of_the_run_never_take_anything_back() -> None:
    run = Recorded()
    for cost in (100, 40, 120):
        run.add("usage", usage=Usage(cost_microcents=cost, cumulative=True))
    assert run.head.totals[5] == 120


def test_snapshots_count_each_figure_for_itself_and_across_epochs() -> None:
    run = Recorded()
    run.add("usage", usage=Usage(input_tokens=10, output_tokens=10, cumulative=True))
    run.add("run.incomplete")
    run.add("run.resumed")
    run.add("usage", usage=Usage(input_tokens=15, output_tokens=3, cumulative=True))
    assert run.head.totals[:2] == (15, 10)


def test_repeats_of_a_response_count_once() -> None:
    run = Recorded()
    for tokens in (5, 20, 20):
        run.add("usage", usage=Usage(output_tokens=tokens, response_id="msg_1"))
    run.add("usage", usage=Usage(output_tokens=7, response_id="msg_2"))
    assert run.head.totals[1] == 27


def test_usage_of_a_step_goes_to_its_latest_attempt_unless_it_says_which() -> None:
    run = Recorded()
    run.add("step.started", step_id="a")
    run.add("step.failed", step_id="a")
    run.add("step.started", step_id="a")
    run.add("usage", usage=Usage(input_tokens=1), step_id="a")
    run.add("usage", usage=Usage(input_tokens=1), step_id="a", attempt=1)
    run.add("usage", usage=Usage(input_tokens=1), step_id="never seen")
    assert sorted(run.head.usage_added) == [("a", 1, "", ""), ("a", 2, "", ""), ("never seen", 1, "", "")]
