"""The client against a real daemon: adoption, reading, following, and kill -9 in the middle."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import runhist
from runhist import Cursor, Event, Gap, NoSuchRun, PositionExpired, Refusal, RunClosed, RunExists, StaleEpoch, TooLarge
from runhist.connection import Connection

if TYPE_CHECKING:
    from tests.conftest import Daemon

LONG = 60.0

EXAMPLE = """\
import runhist
history = runhist.connect()                                   # never raises, never waits; history.mode says how it stands
with history.begin_run(workflow="nightly", agent_id="docs-bot", title="Build docs") as run:
    with run.step("fetch") as step:
        step.output("42 files")
        step.usage(model="m-large", input_tokens=1200, output_tokens=300, response_id="msg_1", cost_usd="0.0045")
    run.append("node:completed", {"answer": 42})              # the engine's own word
    print(run.flush().durable)                                # committed | spooled | off

for event in run.events(follow=True): ...                     # ends when the run is terminal; Event or Gap
"""


@pytest.fixture
def env(daemon: Daemon, lead_to: Callable[[Daemon], Daemon]) -> Daemon:
    """The daemon, running, and this process's environment pointing at it."""
    return lead_to(daemon).start()


@pytest.fixture
def history(env: Daemon) -> Iterator[runhist.History]:
    made = runhist.connect(deadline=LONG)
    yield made
    made.close()


def types(events: Iterator[Event | Gap]) -> list[str]:
    return [event.type for event in events]


def test_an_engine_adopts_it_in_ten_lines(env: Daemon, history: runhist.History) -> None:
    told = subprocess.run([sys.executable, "-c", EXAMPLE], env=env.env, capture_output=True, text=True, timeout=LONG)
    assert (told.stdout, told.stderr, told.returncode) == ("committed\n", "", 0)
    (record,) = history.list_runs()
    assert (record.status, record.workflow, record.agent_id, record.title) == (
        *("completed", "nightly", "docs-bot", "Build docs"),
    )
    assert record.ended and record.usage.cost_microcents == 450_000
    reader = history.run(record.run_id)
    events = list(reader.events())
    assert [event.seq for event in events] == [1, 2, 3, 4, 5, 6, 7]
    assert [event.type for event in events] == [
        *("run.started", "step.started", "output", "usage", "step.completed", "node:completed", "run.completed"),
    ]
    assert events[2].data == {"stream": "stdout", "text": "42 files"} and events[5].data == {"answer": 42}
    (step,) = reader.steps()
    assert (step.step_id, step.attempt, step.name, step.status) == ("fetch", 1, "fetch", "completed")
    usage = reader.usage()
    assert usage.total == runhist.UsageTotals(1200, 300, 0, 0, 0, 450_000)
    assert usage.rows == (runhist.UsageRow(usage.total, "fetch", 1, None, "m-large"),)


def test_following_everything_never_ends(env: Daemon, history: runhist.History, wait_until: Callable[..., None]) -> None:
    script = EXAMPLE + "for event in history.follow(): ...                         # from now; never ends; reconnects\n"
    engine = subprocess.Popen([sys.executable, "-uc", script], env=env.env, stdout=subprocess.PIPE)
    try:
        assert engine.stdout is not None and engine.stdout.readline() == b"committed\n"
        with Connection.open() as connection:
            wait_until(lambda: connection.call("GetStatus", {})["followers"] == 1, "it follows")
        history.begin_run().flush()
        assert engine.poll() is None
    finally:
        engine.kill()
        engine.communicate()


def test_a_run_is_read_back_as_it_was_recorded(history: runhist.History) -> None:
    run = history.begin_run(
        run_id="r", definition={"steps": ["a"]}, metadata={"keep": 1, "drop": 2}, namespace="n", parent_run_id="p"
    )
    with run.step("build") as build:
        with run.step("compile"):
            pass
        build.retrying("linker")
    with run.step("build", step_id="build"):
        run.update(title="new", metadata={"drop": None}, state={"s": 1})
    run.step("open")
    run.checkpoint({"at": 1})
    assert run.flush().durable == "committed"
    live = history.run("r", "n").get()
    assert (live.status, live.title, live.current_step, live.ended) == ("running", "new", "open", False)
    assert (live.definition, live.metadata, live.state) == ({"steps": ["a"]}, {"keep": 1}, {"s": 1})
    assert live.checkpoint_seq == live.last_seq and live.owner_pid == os.getpid() and live.epoch == run.epoch
    run.fail("it broke")
    run.flush()
    record = history.run("r", "n").get()
    assert (record.status, record.error, record.parent_run_id) == ("failed", "it broke", "p")
    steps = [(s.step_id, s.attempt, s.parent_step_id, s.status, s.error) for s in history.run("r", "n").steps()]
    assert steps == [
        ("build", 1, None, "failed", "linker"),
        ("compile", 1, "build", "completed", None),
        ("build", 2, None, "completed", None),
        ("open", 1, None, "unfinished", None),
    ]


def test_lists_are_filtered_and_read_page_by_page(history: runhist.History) -> None:
    for i in range(205):
        run = history.begin_run(run_id=f"run-{i:03}", workflow="even" if i % 2 == 0 else "odd", namespace=f"n{i % 2}")
        run.complete()
    run.flush()
    assert [record.run_id for record in history.list_runs()] == [f"run-{i:03}" for i in range(204, -1, -1)]
    assert len(list(history.list_runs(workflow="even"))) == 103
    assert len(list(history.list_runs(namespace="n1", status=["completed"]))) == 102
    assert [record.run_id for record in history.list_runs(limit=2)] == ["run-204", "run-203"]
    assert [record.run_id for record in history.list_runs(name="-042")] == ["run-042"]
    with pytest.raises(NoSuchRun):
        history.run("run-999").get()
    with pytest.raises(NoSuchRun):
        list(history.run("run-999").events(follow=True))


def test_events_are_read_page_by_page_and_filtered(history: runhist.History) -> None:
    with history.begin_run() as run:
        for i in range(250):
            run.append("even" if i % 2 == 0 else "odd", {"i": i})
    assert [event.seq for event in run.events()] == list(range(1, 253))
    assert [event.data["i"] for event in run.events(types=["odd"], after_seq=200)] == list(range(199, 250, 2))
    assert types(run.events(kinds=["run.completed"], follow=True)) == ["run.completed"]
    assert types(run.events(follow=True, after_seq=250)) == ["odd", "run.completed"]
    assert types(run.events(follow=True, after_seq=252)) == []


def test_what_the_daemon_refuses_is_counted_and_the_rest_is_stored(history: runhist.History) -> None:
    run = history.begin_run(run_id="r")
    run.append("a")
    run.append("x", kind="no such kind")
    run.append("run.resumed")
    run.append("b", {"text": "x" * 2_000_000})
    run.append("c", key="k")
    run.append("c", key="k")
    run.append("d", key="k")
    run.append("e")
    with pytest.raises(Refusal):
        run.flush()
    assert run.faults == 3
    run.complete()
    run.append("too late")
    run.append("note", {"text": "later"}, key="later")
    with pytest.raises(RunClosed):
        run.flush()
    assert types(run.events()) == ["run.started", "a", "b", "c", "e", "run.completed", "note"]
    run.update(state={"text": "x" * 20_000_000})  # larger than a frame: it would cost the connection
    with pytest.raises(TooLarge):
        run.flush()
    with history.begin_run(run_id="r") as again:
        with pytest.raises(RunExists):
            again.flush()


def test_a_handle_under_another_epoch_is_stale_at_once(history: runhist.History) -> None:
    run = history.begin_run()
    assert run.epoch is not None
    stranger = runhist.Run.attach(history, None, run.run_id, run.epoch + 1)
    stranger.append("x")
    with pytest.raises(StaleEpoch):
        stranger.flush()
    sharer = runhist.Run.attach(history, None, run.run_id, run.epoch)
    sharer.append("y")
    assert sharer.flush().durable == "committed"


def test_following_begins_with_the_moment_of_the_call_and_sees_every_run(history: runhist.History) -> None:
    history.begin_run(run_id="before").flush()
    with history.follow() as follower:
        for name in ("one", "two"):
            with history.begin_run(run_id=name, agent_id=name) as run:
                run.append("x")
        seen = [next(follower) for _ in range(6)]
    assert [(event.run_id, event.type) for event in seen] == [
        (name, type) for name in ("one", "two") for type in ("run.started", "x", "run.completed")
    ]
    assert list(follower) == []  # closed
    with history.follow(0) as follower:
        assert [next(follower).run_id for _ in range(4)] == ["before", "one", "one", "one"]
        kept = follower.cursor
    assert kept is not None and kept.position == seen[2].position
    with history.follow(kept) as follower:
        assert [next(follower).position for _ in range(3)] == [event.position for event in seen[3:]]
    with history.follow(tail=2, agent_id="one") as follower:
        assert [next(follower).type for _ in range(2)] == ["x", "run.completed"]


def test_a_cursor_of_another_history_is_refused(history: runhist.History) -> None:
    for cursor in (Cursor("11111111-1111-4111-8111-111111111111", 0), Cursor(None, 10**9)):
        with history.follow(cursor) as follower, pytest.raises(PositionExpired):
            next(follower)


def test_a_follower_of_a_run_ends_with_it_and_outlives_the_daemon(
    env: Daemon, history: runhist.History, wait_until: Callable[..., None]
) -> None:
    run = history.begin_run()
    seen: list[Event | Gap] = []
    follower = threading.Thread(target=lambda: seen.extend(runhist.connect().run(run.run_id).events(follow=True)))
    follower.start()
    wait_until(lambda: seen, "the follower has begun")
    for i in range(3):
        run.append("x", {"i": i})
        run.flush()
        env.kill()
        env.start()
    run.complete()
    run.flush()
    follower.join(LONG)
    assert not follower.is_alive()
    assert [event.seq for event in seen] == [1, 2, 3, 4, 5]


def test_killing_the_daemon_in_the_middle_loses_and_doubles_nothing(
    env: Daemon, history: runhist.History, wait_until: Callable[..., None]
) -> None:
    engines, each = 3, 400
    watcher = history.follow()
    runs = [history.begin_run(run_id=f"engine {i}") for i in range(engines)]
    killed = threading.Event()
    receipts: list[runhist.Receipt] = []

    def work(run: runhist.Run) -> None:
        for i in range(each):
            with run.step(f"step {i}", step_id="s") as step:
                step.append("x", {"i": i})
            if i == each // 2:
                killed.wait(LONG)
        run.complete()
        receipts.append(run.flush(LONG))

    threads = [threading.Thread(target=work, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for _ in range(3):
        env.kill()
        env.start()
    killed.set()
    env.kill()
    env.start()
    for thread in threads:
        thread.join(LONG)
    assert {receipt.durable for receipt in receipts} <= {"committed", "spooled"}
    wait_until(lambda: all(run.ended for run in history.list_runs()), "what was spooled is in the history")
    for run in runs:
        assert run.faults == 0
        events = list(run.events())
        assert [event.seq for event in events] == list(range(1, 3 * each + 3))
        assert [event.data["i"] for event in events if event.type == "x"] == list(range(each))
        assert [event.n for event in events[1:]] == list(range(1, 3 * each + 2))
    total = engines * (3 * each + 2)
    positions = [next(watcher).position for _ in range(total)]
    assert positions == sorted(set(positions))
    watcher.close()
    verdict = subprocess.run([sys.executable, "-m", "runhistd", "verify"], env=env.env, capture_output=True, timeout=LONG)
    assert verdict.returncode == 0, verdict.stdout


def test_a_daemon_that_comes_late_gets_the_whole_run(env: Daemon) -> None:
    env.stop()
    history = runhist.connect(deadline=0.05)
    with history.begin_run(run_id="r") as run:
        run.append("x")
    assert run.faults == 0 and history.mode == "spooling"
    env.start()
    assert types(run.events()) == ["run.started", "x", "run.completed"]
    history.close()


def test_a_program_that_is_killed_right_after_an_append_has_sent_it(
    env: Daemon, history: runhist.History, wait_until: Callable[..., None]
) -> None:
    script = (
        "import os, runhist\n"
        "run = runhist.connect(require=True).begin_run(run_id='r')\n"
        "for i in range(100): run.append('x', {'i': i})\n"
        "os.kill(os.getpid(), 9)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], env=env.env, timeout=LONG, check=False)
    assert ended.returncode == -9
    sent: list[int] = []

    def is_stored() -> bool:
        sent[:] = [event.data["i"] for event in history.run("r").events(types=["x"])]
        return len(sent) == 100

    wait_until(is_stored, "all that was appended is stored")
    assert sent == list(range(100))


def test_no_file_of_the_client_is_left_behind(env: Daemon, tmp_path: Path) -> None:
    home = env.state_dir.parent
    before = {path for path in home.rglob("*") if env.state_dir not in path.parents}
    subprocess.run([sys.executable, "-c", EXAMPLE], env=env.env, cwd=home, check=True, timeout=LONG, capture_output=True)
    assert {path for path in home.rglob("*") if env.state_dir not in path.parents} == before
