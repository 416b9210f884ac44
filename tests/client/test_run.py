"""What a run's handle and its steps record."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

import runhist
from runhist.steps import _open_steps

if TYPE_CHECKING:
    from .conftest import SmallHistory


@pytest.fixture
def history(small: SmallHistory) -> Iterator[runhist.History]:
    made = runhist.connect(deadline=30)
    yield made
    made.close()


@pytest.fixture
def run(history: runhist.History) -> runhist.Run:
    return history.begin_run()


def recorded(small: SmallHistory, run: runhist.Run) -> list[dict[str, Any]]:
    """The stored events without their times."""
    run.flush()
    return [{name: value for name, value in stored.event.items() if name != "time_us"} for stored in small.stored]


def steps(small: SmallHistory, run: runhist.Run) -> list[tuple[str, str, int | None, str | None]]:
    return [
        (event["type"].removeprefix("step."), event["step_id"], event.get("attempt"), data.get("parent_step_id"))
        for event in recorded(small, run)
        for data in [event["data"]]
        if event["type"].startswith("step.")
    ]


def test_a_run_begins_with_what_it_was_given(small: SmallHistory) -> None:
    history = runhist.connect(namespace="n", deadline=30)
    run = history.begin_run(
        run_id="r", workflow="w", agent_id="a", title="t", parent_run_id="p", definition={"d": 1}, metadata={"m": 2}
    )
    spec = next(parameters["run"] for method, parameters in small.calls if method == "BeginRun")
    assert spec.pop("time_us") > 1_600_000_000_000_000
    assert spec == {
        **{"namespace": "n", "run_id": "r", "workflow": "w", "agent_id": "a", "title": "t", "parent_run_id": "p"},
        **{"definition": {"d": 1}, "metadata": {"m": 2}},
    }
    assert (run.run_id, run.namespace, run.epoch) == ("r", "n", 1)
    assert history.begin_run(namespace="other").namespace == "other"
    history.close()


def test_an_event_carries_what_it_was_given(small: SmallHistory, run: runhist.Run) -> None:
    run.append("node", {"a": [1]}, kind="note", key="k", step_id="s", attempt=2, usage={"input_tokens": 3})
    run.append("turn", "text")
    run.append("empty")
    assert recorded(small, run) == [
        {
            **{"type": "node", "kind": "note", "key": "k", "step_id": "s", "attempt": 2, "data": {"a": [1]}},
            "usage": {"input_tokens": 3},
        },
        {"type": "turn", "data": {"value": "text"}},
        {"type": "empty"},
    ]


def test_the_words_of_a_run(small: SmallHistory, run: runhist.Run) -> None:
    run.output("line")
    run.output(b"\xff", "stderr")
    run.note("remark\0")
    run.usage(model="m", provider="p", input_tokens=1, cost_usd="0.5", response_id="r", cumulative=True)
    run.checkpoint({"at": 7})
    run.update(title="new", current_step=None, state={"a": 1}, output=3)
    assert recorded(small, run) == [
        {"type": "output", "data": {"stream": "stdout", "text": "line"}},
        {"type": "output", "data": {"stream": "stderr", "text": "\ufffd", "base64": "/w=="}},
        {"type": "note", "data": {"text": "remark\ufffd"}},
        {
            "type": "usage",
            "usage": {
                **{"model": "m", "provider": "p", "input_tokens": 1, "cost_microcents": 50_000_000},
                **{"response_id": "r", "cumulative": True},
            },
        },
        {"type": "checkpoint", "data": {"at": 7}},
        {"type": "run.updated", "data": {"state": {"a": 1}, "output": {"value": 3}, "title": "new", "current_step": None}},
    ]


# steps


def test_a_step_is_named_by_its_name_and_then_by_its_count(small: SmallHistory, run: runhist.Run) -> None:
    for name in ("a", "a#2", "a", "a"):
        with run.step(name):
            pass
    assert [step_id for kind, step_id, _, _ in steps(small, run) if kind == "started"] == ["a", "a#2", "a#3", "a#4"]


def test_a_given_step_id_is_the_next_attempt_of_that_step(small: SmallHistory, run: runhist.Run) -> None:
    first = run.step("build")
    first.retrying("linker")
    with run.step("build", step_id=first.step_id) as second:
        second.output("x")
    assert (second.step_id, second.attempt) == ("build", 2)
    assert steps(small, run) == [
        ("started", "build", 1, None),
        ("retrying", "build", 1, None),
        ("started", "build", 2, None),
        ("completed", "build", 2, None),
    ]
    assert next(e for e in recorded(small, run) if e["type"] == "output")["attempt"] == 2


def test_a_step_within_a_step_has_it_as_parent(small: SmallHistory, run: runhist.Run) -> None:
    with run.step("a"):
        with run.step("b") as b:
            with run.step("c"):
                pass
            b.complete()
            with run.step("d"):  # b has ended
                pass
        with run.step("e"):
            pass
    with run.step("f"):
        pass
    assert _open_steps.get() == ()
    parents = {step_id: parent for kind, step_id, _, parent in steps(small, run) if kind == "started"}
    assert parents == {"a": None, "b": "a", "c": "b", "d": "a", "e": "a", "f": None}


def test_steps_of_other_runs_are_no_parents(small: SmallHistory, history: runhist.History, run: runhist.Run) -> None:
    other = history.begin_run()
    with run.step("a"), other.step("b") as b:
        assert b.parent_step_id is None


def test_a_thread_begins_without_a_parent_and_a_task_with_its_makers(small: SmallHistory, run: runhist.Run) -> None:
    made: list[runhist.Step] = []

    async def task() -> None:
        made.append(run.step("in a task"))

    with run.step("outer") as outer:
        thread = threading.Thread(target=lambda: made.extend([run.step("in a thread"), outer.step("by hand")]))
        thread.start()
        thread.join(30)
        asyncio.run(task())
    assert [step.parent_step_id for step in made] == [None, "outer", "outer"]


def test_a_generator_that_is_closed_ends_its_step(small: SmallHistory, run: runhist.Run) -> None:
    def produce() -> Generator[int, None, None]:
        with run.step("produce"):
            yield 1
            yield 2

    generator = produce()
    assert next(generator) == 1
    generator.close()
    with run.step("after") as after:
        assert after.parent_step_id is None
    failed = next(event for event in recorded(small, run) if event["type"] == "step.failed")
    assert failed["data"] == {"error": "cancelled by GeneratorExit"}


def test_what_was_said_inside_a_step_stands(small: SmallHistory, run: runhist.Run) -> None:
    with run.step("a") as step:
        step.skip("nothing to do")
    with pytest.raises(ValueError):
        with run.step("b") as step:
            step.complete({"n": 1})
            raise ValueError
    with run.step("c") as step:
        step.fail("bad")
    ends = [event for event in recorded(small, run) if event["type"] not in ("step.started",)]
    assert [(event["type"], event["data"]) for event in ends] == [
        ("step.skipped", {"reason": "nothing to do"}),
        ("step.completed", {"output": {"n": 1}}),
        ("step.failed", {"error": "bad"}),
    ]


def test_an_exception_fails_its_step(small: SmallHistory, run: runhist.Run) -> None:
    with pytest.raises(ZeroDivisionError):
        with run.step("a") as step:
            step.append("x", {"b": 1}, kind="note", key="k", usage={"model": "m"})
            raise ZeroDivisionError("by zero")
    event, failed = recorded(small, run)[1:]
    assert event == {
        **{"type": "x", "kind": "note", "key": "k", "step_id": "a", "attempt": 1, "data": {"b": 1}},
        "usage": {"model": "m"},
    }
    assert failed["data"]["error"] == "ZeroDivisionError: by zero" and "Traceback" in failed["data"]["traceback"]


# the end of a run


def end_of(small: SmallHistory) -> dict[str, Any]:
    end = small.stored[-1].event
    return {"type": end["type"], **end["data"]}


def test_leaving_the_block_completes_the_run_and_waits_until_that_is_stored(
    small: SmallHistory, history: runhist.History
) -> None:
    with history.begin_run():
        pass
    assert end_of(small) == {"type": "run.completed"}


def test_what_was_said_inside_a_run_stands(small: SmallHistory, history: runhist.History) -> None:
    with history.begin_run() as run:
        run.complete(output=[1])
    assert end_of(small) == {"type": "run.completed", "output": {"value": [1]}}
    with pytest.raises(ValueError):
        with history.begin_run() as run:
            run.cancel("had enough")
            raise ValueError
    assert end_of(small) == {"type": "run.cancelled", "reason": "had enough"}
    with history.begin_run() as run:
        run.append("over", {"error": "e"}, kind="run.failed")  # the engine's own word for it
    assert end_of(small) == {"type": "over", "error": "e"}


def test_an_exception_fails_the_run_and_goes_on(small: SmallHistory, history: runhist.History) -> None:
    with pytest.raises(LookupError):
        with history.begin_run():
            raise LookupError("not\nthere")
    end = end_of(small)
    assert (end["type"], end["error"], end["error_type"]) == ("run.failed", "LookupError: not there", "LookupError")
    assert "raise LookupError" in end["traceback"]


@pytest.mark.parametrize(
    ("code", "type", "members"),
    [
        (0, "run.completed", {}),
        (None, "run.completed", {}),
        (2, "run.failed", {"error": "exit 2", "exit_code": 2}),
        ("no such file", "run.failed", {"error": "no such file", "exit_code": 1}),
    ],
)
def test_an_exit_ends_the_run_by_its_status(
    small: SmallHistory, history: runhist.History, code: Any, type: str, members: dict[str, Any]
) -> None:
    with pytest.raises(SystemExit):
        with history.begin_run():
            sys.exit(code)
    end = end_of(small)
    assert end["type"] == type and members.items() <= end.items()


@pytest.mark.parametrize("error", [KeyboardInterrupt, asyncio.CancelledError, GeneratorExit])
def test_an_interruption_cancels_the_run(small: SmallHistory, history: runhist.History, error: type[BaseException]) -> None:
    with pytest.raises(error):
        with history.begin_run():
            raise error
    assert end_of(small) == {"type": "run.cancelled", "reason": error.__name__}


def test_a_step_left_open_by_the_end_of_its_run_records_no_end(small: SmallHistory, history: runhist.History) -> None:
    with history.begin_run() as run:
        with run.step("a"):
            run.complete()
    assert small.types() == ["step.started", "run.completed"]


def test_without_a_block_the_engine_ends_the_run_itself(small: SmallHistory, run: runhist.Run) -> None:
    run.fail("it broke", exit_code=4)
    assert run.flush().durable == "committed"
    assert end_of(small) == {"type": "run.failed", "error": "it broke", "exit_code": 4}


def test_another_handle_appends_under_the_same_lease_with_a_count_of_its_own(
    small: SmallHistory, history: runhist.History, run: runhist.Run
) -> None:
    run.append("a")
    run.flush()
    assert run.epoch is not None
    other = runhist.Run.attach(runhist.connect(deadline=30), None, run.run_id, run.epoch)
    with other.step("s") as step:
        assert step.attempt is None  # only the daemon knows
    assert other.flush().stored == 2
    assert [stored.n for stored in small.stored] == [1, 1, 2]
    assert len({stored.writer for stored in small.stored}) == 2
