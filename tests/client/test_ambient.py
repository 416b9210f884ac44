"""The run of the context: who inherits it, what the environment lends, and that it does nothing where there is neither."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

import runhist
from runhist import StaleEpoch, environment
from tests.client.cli.shells import RUNHIST
from tests.client.cli.shells import run as run_command
from tests.client.conftest import Refuse
from tests.test_packaging import real_python_39

if TYPE_CHECKING:
    from tests.client.conftest import SmallHistory
    from tests.conftest import Daemon

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def run(small: SmallHistory) -> runhist.Run:
    """A run that nobody has made current."""
    return runhist.connect(deadline=30).begin_run(run_id="r")


def specs(small: SmallHistory) -> dict[str, dict[str, Any]]:
    return {parameters["run"]["run_id"]: parameters["run"] for method, parameters in small.calls if method == "BeginRun"}


def is_nothing() -> bool:
    return runhist.current_run().environ() == {} and runhist.current_run().run_id == ""


# the context


def test_the_current_run_is_that_of_the_innermost_block(small: SmallHistory) -> None:
    history = runhist.connect()
    assert is_nothing()
    with history.begin_run() as outer:
        assert runhist.current_run() is outer
        with pytest.raises(ZeroDivisionError), history.begin_run() as inner:
            assert runhist.current_run() is inner
            _ = 1 / 0
        assert runhist.current_run() is outer
        with inner.use(), outer.use(), outer.use():
            assert runhist.current_run() is outer
        assert runhist.current_run() is outer
    assert is_nothing()


def test_without_a_run_every_call_does_nothing(small: SmallHistory) -> None:
    run = runhist.current_run()
    assert isinstance(run, runhist.Run)
    with run, run.step("a") as step, run.use():
        step.output("x")
        run.append("x", {"a": float("nan")})
        run.complete()
        assert run.flush() == runhist.Receipt("off")
    assert run.faults == 0 and small.calls == []


def test_use_makes_a_run_current_and_leaves_it_open(run: runhist.Run, small: SmallHistory) -> None:
    with run.use() as used:
        assert used is run is runhist.current_run()
    run.append("later")
    run.flush()
    assert small.types() == ["later"]


def test_tasks_and_to_thread_inherit_the_run_and_change_it_for_nobody_else(small: SmallHistory) -> None:
    history = runhist.connect()
    run = history.begin_run()

    async def work(name: str) -> None:
        assert runhist.current_run() is run
        with history.begin_run(run_id=name) as own, runhist.current_run().step("s"):
            await asyncio.sleep(0)
            assert runhist.current_run() is own
            assert await asyncio.to_thread(runhist.current_run) is own
        assert runhist.current_run() is run

    async def main() -> None:
        await asyncio.gather(*[work(f"task{i}") for i in range(3)])
        assert runhist.current_run() is run

    with run:
        asyncio.run(main())


def test_tasks_of_trio_inherit_the_run(run: runhist.Run) -> None:
    async def work() -> None:
        await trio.lowlevel.checkpoint()
        assert runhist.current_run() is run
        assert await trio.to_thread.run_sync(runhist.current_run) is run

    async def main() -> None:
        with run.use():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(work)
                nursery.start_soon(work)

    trio.run(main)


@pytest.mark.skipif(getattr(sys.flags, "thread_inherit_context", 0) == 1, reason="this Python's threads inherit contexts")
def test_a_new_thread_begins_without_and_use_lends_it_the_run(run: runhist.Run) -> None:
    seen: list[Any] = []

    def work() -> None:
        seen.append(is_nothing())
        with run.use():
            seen.append(runhist.current_run() is run)
        seen.append(is_nothing())

    with run.use():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            pool.submit(work).result()
    assert seen == [True, True, True] * 2


def test_a_block_that_ends_in_another_context_leaves_that_one_alone(small: SmallHistory) -> None:
    history = runhist.connect()
    outer, inner = history.begin_run(), history.begin_run()
    elsewhere = contextvars.copy_context()
    elsewhere.run(inner.__enter__)
    with outer:
        inner.__exit__(None, None, None)
        assert runhist.current_run() is outer


def test_a_run_that_is_begun_is_a_child_of_the_current_one_and_of_its_trace(
    small: SmallHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(environment.RUN, "lent")
    history = runhist.connect()
    with history.begin_run(run_id="top", parent_run_id="other", traceparent=TRACE):
        history.begin_run(run_id="child")
        history.begin_run(run_id="named", parent_run_id="x")
        history.begin_run(run_id="elsewhere", namespace="theirs")
    history.begin_run(run_id="after")
    parents = {name: spec.get("parent_run_id") for name, spec in specs(small).items()}
    assert parents == {"top": "other", "child": "top", "named": "x", "elsewhere": None, "after": "lent"}
    assert specs(small)["child"]["traceparent"] == TRACE and "traceparent" not in specs(small)["after"]


def test_a_run_that_is_not_recorded_is_nobodys_parent(small: SmallHistory, monkeypatch: pytest.MonkeyPatch) -> None:
    history = runhist.connect()
    monkeypatch.setenv("RUNHIST", "off")
    with runhist.connect().begin_run(run_id="off") as off:
        assert runhist.current_run() is off
        history.begin_run(run_id="child")
    assert "parent_run_id" not in specs(small)["child"]


# what the environment lends

JOIN = """\
import logging, runhist
logging.getLogger().addHandler(runhist.LogHandler())
logging.getLogger("engine").warning("hot")
with runhist.current_run().step("child-step"):
    runhist.current_run().append("from-child")
"""


@pytest.fixture
def history(daemon: Daemon, lead_to: Callable[[Daemon], Daemon]) -> runhist.History:
    """The history of a daemon that runs."""
    lead_to(daemon).start()
    return runhist.connect(deadline=30)


def lend(run: runhist.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in run.environ().items():
        monkeypatch.setenv(name, value)


def test_processes_join_the_run_that_is_lent_and_leave_it_open(daemon: Daemon, history: runhist.History) -> None:
    with history.begin_run(namespace="ours") as run:
        lent = {**daemon.env, **run.environ()}
        for _ in range(2):
            subprocess.run([sys.executable, "-c", JOIN], env=lent, check=True, timeout=60)
        run.append("from-parent")
    reader = history.run(run.run_id, "ours")
    events = [event for event in reader.events() if isinstance(event, runhist.Event)]
    joined = ["output", "step.started", "from-child", "step.completed"]
    assert [event.type for event in events] == ["run.started", *joined, *joined, "from-parent", "run.completed"]
    assert events[1].data == {"stream": "log", "level": "WARNING", "logger": "engine", "text": "hot"}
    assert len({event.writer for event in events[1:]}) == 3 and len({event.epoch for event in events}) == 1
    assert [(step.step_id, step.attempt) for step in reader.steps()] == [("child-step", 1), ("child-step", 2)]


def test_a_process_that_exec_started_joins_its_run(daemon: Daemon, history: runhist.History) -> None:
    done = run_command("exec", "--", sys.executable, "-c", JOIN, env=daemon.env)
    assert done.returncode == 0, done.stderr
    (found,) = history.list_runs()
    types = [event.type for event in history.run(found.run_id).events() if isinstance(event, runhist.Event)]
    assert types == ["run.started", "output", "step.started", "from-child", "step.completed", "run.completed"]


def test_what_a_process_adds_while_there_is_no_daemon_is_kept_for_it(
    daemon: Daemon, history: runhist.History, wait_until: Callable[..., None]
) -> None:
    run = history.begin_run()
    run.flush()
    daemon.kill()
    lent = {**daemon.env, **run.environ()}
    done = subprocess.run([sys.executable, "-c", JOIN], env=lent, check=True, timeout=60, capture_output=True)
    assert done.stderr == b""
    daemon.start()
    reader = history.run(run.run_id)
    wait_until(lambda: reader.get().last_seq == 5, "it is taken in")
    types = [event.type for event in reader.events() if isinstance(event, runhist.Event)]
    assert types == ["run.started", "output", "step.started", "from-child", "step.completed"]
    assert reader.get().status == "running"


def test_all_threads_of_a_process_share_one_handle_of_the_lent_run(
    run: runhist.Run, small: SmallHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    lend(run, monkeypatch)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(runhist.current_run())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1 and found[0].run_id == "r" and found[0] is not run
    with run.use():
        assert runhist.current_run() is run  # the context comes first
    found[0].append("x")
    found[0].flush()
    assert small.types() == ["x"]


def test_what_a_lent_run_still_holds_is_sent_at_the_interpreters_end(run: runhist.Run, small: SmallHistory) -> None:
    go_on = threading.Event()

    def hold_up(method: str, parameters: dict[str, Any]) -> None:
        assert go_on.wait(30)

    small.before = hold_up
    code = (
        "import runhist\nfor i in range(99): runhist.current_run().append('x', {'i': i, 'pad': 'x' * 50_000})\nprint('said')"
    )
    lent = {**os.environ, **run.environ()}
    with subprocess.Popen([sys.executable, "-uc", code], env=lent, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == b"said\n"
        go_on.set()
        assert child.communicate(timeout=60) == (b"", b"")
    assert [stored.event["data"]["i"] for stored in small.stored] == list(range(99))


def test_a_forked_child_has_a_handle_of_its_own_of_the_lent_run(
    run: runhist.Run, small: SmallHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    lend(run, monkeypatch)
    runhist.current_run().append("parent")
    child = os.fork()
    if child == 0:
        try:
            runhist.current_run().append("child")
            lent = runhist.current_run()
            assert isinstance(lent, runhist.Run) and lent.flush().stored == 1
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    small.wait(lambda: sorted(small.types()) == ["child", "parent"])
    assert len({stored.writer for stored in small.stored}) == 2


def test_in_a_forked_child_the_contexts_run_is_the_parents_and_records_nothing(
    run: runhist.Run, small: SmallHistory
) -> None:
    with run.use():
        child = os.fork()
        if child == 0:
            try:
                runhist.current_run().append("child")
                logging.getLogger("x").addHandler(runhist.LogHandler())
                logging.getLogger("x").warning("child")
                os._exit(0 if runhist.current_run().faults == 2 else 1)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        runhist.current_run().append("parent")
    run.flush()
    assert small.types() == ["parent"]


@pytest.mark.parametrize("lease", ["", None])
def test_without_a_lease_nothing_is_lent(
    lease: str | None, run: runhist.Run, small: SmallHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    lend(run, monkeypatch)
    monkeypatch.setenv(environment.LEASE, "") if lease is not None else monkeypatch.delenv(environment.LEASE)
    assert is_nothing()


def test_a_lease_that_is_none_lends_nothing_and_is_told_of_once(
    run: runhist.Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lend(run, monkeypatch)
    monkeypatch.setenv(environment.LEASE, "seven")
    assert is_nothing() and is_nothing()
    assert [record.getMessage() for record in caplog.records] == [
        "RUNHIST_LEASE is 'seven', which is no lease; nothing is recorded into the run that RUNHIST_RUN names"
    ]


def test_a_lent_run_that_was_taken_over_breaks_only_who_records_into_it(
    run: runhist.Run, small: SmallHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(method: str, parameters: dict[str, Any]) -> None:
        if method == "Append":
            raise Refuse("StaleEpoch", epoch=2, owner_pid=1, last_n=0)

    small.before = refuse
    lend(run, monkeypatch)
    lent = runhist.current_run()
    lent.append("x")
    assert isinstance(lent, runhist.Run)
    with pytest.raises(StaleEpoch):
        lent.flush()
    assert runhist.current_run() is lent and lent.faults == 1


# as it is told


def test_what_the_readme_shows_is_so(daemon: Daemon, history: runhist.History, tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    (program,) = [text for text in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "@runhist.step" in text]
    (tmp_path / "release.py").write_text(program, "utf-8")
    command = tmp_path / "bin" / "runhist"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\n{RUNHIST[2]}\n")
    command.chmod(0o755)
    env = {**daemon.env, "PATH": f"{command.parent}:{os.environ['PATH']}"}
    done = subprocess.run([sys.executable, "release.py"], cwd=tmp_path, env=env, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    child, parent = history.list_runs()
    assert (parent.workflow, child.workflow, child.parent_run_id) == ("release", "sleep", parent.run_id)
    events = [event for event in history.run(parent.run_id).events() if isinstance(event, runhist.Event)]
    steps = ["step.started", "output", "target:ready", "step.completed"]
    assert [event.type for event in events] == ["run.started", *steps, *steps, "note", "run.completed"]
    assert [event.step_id for event in events if event.kind == "output"] == ["build", "build#2"]


OLD_PYTHON = """\
import asyncio, logging, runhist
logging.getLogger().addHandler(runhist.LogHandler())
@runhist.step("items")
def items():
    yield (yield 1)
@runhist.step("later")
async def later():
    yield 1
    yield 2
@runhist.step("work")
async def work():
    async for _ in later(): pass
    return await asyncio.to_thread(runhist.current_run)
with runhist.connect().begin_run() as run:
    assert list(items()) == [1, None]
    assert asyncio.run(work()) is run
    logging.warning("hot")
assert run.flush().durable == "committed"
"""


def test_it_works_on_the_oldest_python_that_the_client_takes(daemon: Daemon, history: runhist.History) -> None:
    env = {**daemon.env, "PYTHONPATH": str(Path(runhist.__file__).parents[1])}
    done = subprocess.run([real_python_39(), "-W", "error", "-c", OLD_PYTHON], env=env, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    (found,) = history.list_runs()
    steps = [(step.step_id, step.status, step.parent_step_id) for step in history.run(found.run_id).steps()]
    assert steps == [("items", "completed", None), ("work", "completed", None), ("later", "completed", "work")]
