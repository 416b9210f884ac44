"""Only the dead are declared dead, and only after their last words: real processes, killed in every way."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from runhist.connection import Connection
from runhist.paths import SocketChoice
from runhist.protocol.errors import InvalidParameter
from tests.acceptance.engines import Engine

if TYPE_CHECKING:
    from tests.conftest import Daemon

MakeEngine = Callable[..., Engine]
WaitUntil = Callable[..., None]


@pytest.fixture
def new_engine(daemon: Daemon) -> Iterator[MakeEngine]:
    """Starts engines, each with a run of its own where it is given a name; what runs at the end is killed."""
    with contextlib.ExitStack() as stack:

        def make(run_id: str | None = None) -> Engine:
            engine = Engine(daemon)
            stack.callback(engine.end)
            if run_id is not None:
                engine.do(f"begin({run_id!r})")
            return engine

        yield make


def call(daemon: Daemon, method: str, **parameters: Any) -> Any:
    with Connection.open(SocketChoice((daemon.socket,), "the test's own", True)) as connection:
        return connection.call(method, parameters)


def status(daemon: Daemon, run_id: str) -> str:
    return str(call(daemon, "GetRun", run_id=run_id)["run"]["status"])


def kinds(daemon: Daemon, run_id: str) -> list[str]:
    return [event["kind"] for event in call(daemon, "GetEvents", run_id=run_id, limit=1000)["events"]]


def evidence(daemon: Daemon, run_id: str) -> Any:
    return call(daemon, "GetRun", run_id=run_id)["detail"]["evidence"]


def wait_until_incomplete(daemon: Daemon, run_id: str, wait_until: WaitUntil) -> None:
    wait_until(lambda: status(daemon, run_id) == "incomplete", f"the owner of {run_id} is declared dead")


def let_verdicts_pass(daemon: Daemon, new_engine: MakeEngine, wait_until: WaitUntil, name: str = "fence") -> None:
    """Return when an engine that died just now was declared dead: so would have been whoever died before."""
    new_engine(name).kill()
    wait_until_incomplete(daemon, name, wait_until)


@contextlib.contextmanager
def stopped(daemon: Daemon) -> Iterator[None]:
    """The daemon does not run for the block, and does not know it."""
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(daemon.pid, signal.SIGCONT)


def test_a_killed_engine_is_dead_at_once_even_while_its_child_keeps_the_socket(
    daemon: Daemon, new_engine: MakeEngine, wait_until: WaitUntil
) -> None:
    daemon.start()
    engine = new_engine("r")
    engine.do("leave_a_child_with_the_socket()")
    engine.kill()
    wait_until_incomplete(daemon, "r", wait_until)
    found = evidence(daemon, "r")
    assert found.pop("seen_us") > 0
    assert found == {"reason": "orphaned", "pid": engine.pid, "evidence": "exited", "by": "pidfd"}
    assert kinds(daemon, "r") == ["run.started", "run.incomplete"]
    shown = subprocess.run(
        [sys.executable, "-m", "runhist.cli.main", "show", "r"], env=daemon.env, capture_output=True, text=True, check=True
    )
    assert re.search(rf"^owner  pid {engine.pid} exited, seen 20[-0-9T:.]*Z by pidfd$", shown.stdout, re.MULTILINE)


def test_an_engine_that_is_stopped_or_silent_without_a_connection_stays_alive(
    daemon: Daemon, new_engine: MakeEngine, wait_until: WaitUntil
) -> None:
    daemon.start()
    frozen, silent = new_engine("frozen"), new_engine("silent")
    os.kill(frozen.pid, signal.SIGSTOP)
    silent.do("peer.close()")
    let_verdicts_pass(daemon, new_engine, wait_until)
    os.kill(frozen.pid, signal.SIGCONT)
    silent.do("connect()")
    for engine, run_id in ((frozen, "frozen"), (silent, "silent")):
        assert engine.do(f"append({run_id!r}, 'turn')")["last_seq"] == 2
        assert kinds(daemon, run_id) == ["run.started", "note"]


@pytest.mark.parametrize("child", [False, True])
@pytest.mark.parametrize("connects_late", [False, True])
def test_the_last_150_kb_of_a_dead_engine_are_recorded_and_its_end_stands(
    daemon: Daemon, new_engine: MakeEngine, wait_until: WaitUntil, connects_late: bool, child: bool
) -> None:
    daemon.start()
    engine = new_engine("ended")
    engine.do("begin('cut off')")
    with stopped(daemon):
        if connects_late:
            engine.do("connect()")  # the daemon cannot accept now
        turns = "b''.join(appending(name, 'turn', size=1400) for _ in range(50) for name in ('ended', 'cut off'))"
        engine.do(f"peer.sendall({turns} + appending('ended', 'run.completed'))")
        if child:
            engine.do("leave_a_child_with_the_socket()")
        engine.kill()
    wait_until_incomplete(daemon, "cut off", wait_until)
    assert kinds(daemon, "cut off") == ["run.started", *["note"] * 50, "run.incomplete"]
    assert kinds(daemon, "ended") == ["run.started", *["note"] * 50, "run.completed"]


def test_a_run_that_a_dead_process_began_is_recorded_and_orphaned(
    daemon: Daemon, new_engine: MakeEngine, wait_until: WaitUntil
) -> None:
    daemon.start()
    engine = new_engine()
    with stopped(daemon):
        engine.do("connect()")
        key = "00000000-0000-4000-8000-000000000000"
        engine.do(f"peer.sendall(frame('BeginRun', run={{'run_id': 'r'}}, lease_key={key!r}))")
        engine.do("epochs.update(r=1), peer.sendall(appending('r', 'turn'))")
        engine.kill()
    wait_until(lambda: call(daemon, "ListRuns", status=["incomplete"])["runs"], "the run is orphaned")
    assert kinds(daemon, "r") == ["run.started", "note", "run.incomplete"]


@pytest.mark.long
def test_an_engine_in_another_pid_namespace_lives_while_it_is_connected(
    daemon: Daemon, new_engine: MakeEngine, need: Callable[[str], str], wait_until: WaitUntil
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may make a pid namespace")
    daemon.config_file.write_text("[daemon]\ndisconnect_grace_s = 1\n")
    wrapper = [need("unshare"), "--pid", "--fork", "--mount-proc"]
    daemon.start(wrapper=wrapper)
    connected, disconnected = new_engine("connected"), new_engine("disconnected")
    assert call(daemon, "GetRun", run_id="connected")["run"].get("owner_pid") is None
    daemon.kill()
    daemon.start(wrapper=wrapper)
    connected.do("connect()")  # is enough: the kernel knows it again
    wait_until_incomplete(daemon, "disconnected", wait_until)
    assert evidence(daemon, "disconnected")["by"] == "grace"
    assert connected.do("append('connected', 'turn')")["stored"] == 1
    connected.kill()
    wait_until_incomplete(daemon, "connected", wait_until)
    assert evidence(daemon, "connected")["by"] == "pidfd"
    disconnected.do("connect()")
    assert disconnected.do("append('disconnected', 'run.completed')")["stored"] == 1  # it was judged too early
    assert status(daemon, "disconnected") == "completed"


def test_an_end_that_races_with_the_verdict_wins(daemon: Daemon, new_engine: MakeEngine, wait_until: WaitUntil) -> None:
    daemon.start()
    names = [f"r{i}" for i in range(20)]
    for engine, name in [(new_engine(name), name) for name in names]:
        engine.tell(f"peer.sendall(appending({name!r}, 'run.failed')), os.kill(os.getpid(), 9)")
    wait_until(lambda: all(status(daemon, name) != "running" for name in names), "all have ended")
    assert [kinds(daemon, name) for name in names] == [["run.started", "run.failed"]] * 20


def test_a_run_lives_as_long_as_one_of_the_processes_that_append_under_its_lease(
    daemon: Daemon, new_engine: MakeEngine, wait_until: WaitUntil
) -> None:
    daemon.start()
    owner, helper = new_engine("r"), new_engine()
    epoch = owner.do("epochs['r']")
    helper.do(f"epochs.update(r={epoch})")
    assert helper.do("append('r', 'turn')")["stored"] == 1
    owner.kill()
    let_verdicts_pass(daemon, new_engine, wait_until)
    assert status(daemon, "r") == "running"
    assert helper.do("append('r', 'turn')")["stored"] == 1
    helper.kill()
    wait_until_incomplete(daemon, "r", wait_until)
    assert evidence(daemon, "r")["pid"] == helper.pid
    assert kinds(daemon, "r") == ["run.started", "note", "note", "run.incomplete"]


def test_a_shell_that_never_connects_owns_its_run_until_it_exits(
    daemon: Daemon, new_engine: MakeEngine, wait_until: WaitUntil
) -> None:
    daemon.start()
    begin = f"{sys.executable} -m runhist.cli.main begin --owner-pid $$ --workflow release"
    script = f'eval "$({begin})"; echo "$RUNHIST_RUN"; read -r _'
    with subprocess.Popen(["sh", "-c", script], env=daemon.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as shell:
        assert shell.stdout is not None
        run_id = shell.stdout.readline().decode().strip()
        let_verdicts_pass(daemon, new_engine, wait_until)
        daemon.kill()
        daemon.start()
        let_verdicts_pass(daemon, new_engine, wait_until, "fence 2")
        assert status(daemon, run_id) == "running"
        shell.communicate(b"go\n")
    wait_until_incomplete(daemon, run_id, wait_until)
    assert evidence(daemon, run_id)["pid"] == shell.pid


def test_a_killed_daemon_comes_back_under_twenty_live_engines_and_closes_none(
    daemon: Daemon, new_engine: MakeEngine, wait_until: WaitUntil
) -> None:
    daemon.start()
    engines = {f"r{i}": new_engine(f"r{i}") for i in range(20)}
    for name, engine in engines.items():
        engine.do(f"append({name!r}, 'turn')")
        engine.do(f"peer.sendall(appending({name!r}, 'turn'))")  # may be lost, may be stored
    daemon.kill()
    daemon.start()
    let_verdicts_pass(daemon, new_engine, wait_until)
    for name, engine in engines.items():
        engine.do("connect()")
        engine.do(f"counts.update({{{name!r}: 1}})")
        sent = engine.do(f"append({name!r}, 'turn', 'turn')")
        assert sent["stored"] + sent["duplicates"] == 2
        assert kinds(daemon, name) == ["run.started", "note", "note", "note"]
    one, *others = engines
    engines[one].kill()
    wait_until_incomplete(daemon, one, wait_until)
    assert {status(daemon, name) for name in others} == {"running"}


CLIENT = """
import select, sys, runhist
history = runhist.connect(deadline=60)
with history.begin_run(run_id=sys.argv[1]) as run:
    count = 0
    while not select.select([sys.stdin], [], [], 0.005)[0]:
        count += 1
        run.append("turn", {"count": count})
    run.flush()
print(count, run.flush().durable)
"""


@pytest.mark.long
def test_twenty_engines_that_write_while_the_daemon_is_killed_lose_and_double_nothing(
    daemon: Daemon, wait_until: WaitUntil
) -> None:
    daemon.start()
    names = [f"r{i}" for i in range(20)]
    pipe = subprocess.PIPE
    engines = [
        subprocess.Popen([sys.executable, "-c", CLIENT, name], env=daemon.env, stdin=pipe, stdout=pipe) for name in names
    ]

    def all_reach(seq: int) -> bool:
        runs = call(daemon, "ListRuns")["runs"]
        return len(runs) == 20 and all(run["last_seq"] >= seq for run in runs)

    wait_until(lambda: all_reach(20), "all engines write")
    for so_far in (60, 120):
        daemon.kill()
        daemon.start()
        wait_until(lambda so_far=so_far: all_reach(so_far), "all engines go on")
    for name, engine in zip(names, engines, strict=True):
        count, durable = engine.communicate(timeout=60)[0].split()
        assert (engine.returncode, durable) == (0, b"committed")
        recorded = list(pages(daemon, name))
        assert [event["kind"] for event in recorded] == ["run.started", *["note"] * int(count), "run.completed"]
        assert [event["data"]["count"] for event in recorded[1:-1]] == list(range(1, int(count) + 1))


def pages(daemon: Daemon, run_id: str) -> Iterator[dict[str, Any]]:
    """All events of a run."""
    after_seq = 0
    while after_seq is not None:
        page = call(daemon, "GetEvents", run_id=run_id, after_seq=after_seq)
        yield from page["events"]
        after_seq = page.get("next_after_seq")


def test_engines_that_die_without_a_daemon_are_adopted_once_at_its_start(daemon: Daemon, new_engine: MakeEngine) -> None:
    daemon.start()
    dead, alive = new_engine("dead"), new_engine("alive")
    daemon.kill()
    dead.kill()
    for _ in range(2):
        daemon.start()
        assert kinds(daemon, "dead") == ["run.started", "run.incomplete"]
        assert kinds(daemon, "alive") == ["run.started"]
        daemon.kill()
    daemon.start()
    assert evidence(daemon, "dead")["evidence"] == "gone"
    alive.do("connect()")
    assert alive.do("append('alive', 'run.completed')")["stored"] == 1


@pytest.mark.long
def test_a_thousand_orphans_are_adopted_in_one_batch_before_anything_is_answered(
    daemon: Daemon, new_engine: MakeEngine
) -> None:
    daemon.start()
    engine = new_engine()
    engine.do("[begin(f'r{i}') for i in range(1000)]")
    daemon.kill()
    engine.kill()
    daemon.start()
    found = call(daemon, "GetStatus")
    assert found["runs"] == [{"status": "incomplete", "runs": 1000}]
    runs = call(daemon, "ListRuns", limit=1000)["runs"]
    assert len({run["closed_us"] for run in runs}) == 1  # a batch has one time


def change_the_holder(daemon: Daemon, assignment: str) -> None:
    """Make the recorded holders other ones than the processes that live, while the daemon is down."""
    with contextlib.closing(sqlite3.connect(daemon.database)) as database:
        database.execute(f"UPDATE holders SET {assignment}")  # noqa: S608 - the test's own
        database.commit()


def test_a_process_that_was_given_the_pid_of_a_dead_owner_is_not_taken_for_it(
    daemon: Daemon, new_engine: MakeEngine, wait_until: WaitUntil
) -> None:
    daemon.start()
    new_engine("r")
    daemon.stop()
    change_the_holder(daemon, "identity = 'start:1'")
    daemon.start()
    assert status(daemon, "r") == "incomplete"
    found = evidence(daemon, "r")
    assert (found["evidence"], found["by"]) == ("replaced", "start_time")


def test_an_owner_who_was_judged_wrongly_reopens_its_run_with_its_next_event(
    daemon: Daemon, new_engine: MakeEngine, wait_until: WaitUntil
) -> None:
    daemon.start()
    engine = new_engine("r")
    daemon.stop()
    change_the_holder(daemon, "identity = 'start:1'")
    daemon.start()
    assert status(daemon, "r") == "incomplete"
    engine.do("connect()")
    assert engine.do("append('r', 'turn', 'turn')")["stored"] == 2
    assert engine.do("append('r', 'turn')")["stored"] == 1
    assert kinds(daemon, "r") == ["run.started", "run.incomplete", "run.resumed", "note", "note", "note"]
    engine.kill()  # it owns the run again
    wait_until(lambda: status(daemon, "r") == "incomplete", "the death is noticed")


def test_what_a_dead_engine_left_with_its_child_is_stored_without_reopening_the_run(
    daemon: Daemon, new_engine: MakeEngine, wait_until: WaitUntil
) -> None:
    daemon.start()
    engine = new_engine("r")
    child = engine.do("fork_and_wait_for_usr1(lambda: (append('r', 'turn'), append('r', 'run.completed')))")
    engine.kill()
    wait_until_incomplete(daemon, "r", wait_until)
    os.kill(child, signal.SIGUSR1)
    wait_until(lambda: status(daemon, "r") == "completed", "the child's events are stored")
    assert kinds(daemon, "r") == ["run.started", "run.incomplete", "note", "run.completed"]


def test_after_a_reboot_all_owners_are_dead_whoever_has_their_pids(daemon: Daemon, new_engine: MakeEngine) -> None:
    daemon.start()
    new_engine("r")
    daemon.stop()
    daemon.start(env={"RUNHIST_BOOT_ID": "another boot"})
    assert status(daemon, "r") == "incomplete"
    found = evidence(daemon, "r")
    assert (found["evidence"], found["by"]) == ("boot changed", "boot_id")


def test_a_reboot_is_seen_by_the_kernels_own_boot_id(
    daemon: Daemon, new_engine: MakeEngine, need: Callable[[str], str]
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may mount another boot id over the real one")
    daemon.start()
    new_engine("r")
    daemon.stop()
    boot_id = daemon.state_dir.parent / "boot_id"
    boot_id.write_text("11111111-2222-4333-8444-555555555555\n")
    mount = f'mount --bind "{boot_id}" /proc/sys/kernel/random/boot_id && exec "$@"'
    daemon.start(wrapper=[need("unshare"), "--mount", "sh", "-c", mount, "sh"])
    assert status(daemon, "r") == "incomplete"
    assert evidence(daemon, "r")["evidence"] == "boot changed"


def test_an_owner_must_live_and_belong_to_the_same_user(daemon: Daemon) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may start a process of another user")
    daemon.start()
    named = {"run": {"run_id": "r"}, "lease_key": "00000000-0000-4000-8000-000000000000", "caller_pid": os.getpid()}
    with subprocess.Popen(["sleep", "1000"], user=65534) as foreign:
        for pid in (foreign.pid, 2**22 - 1):
            with pytest.raises(InvalidParameter) as caught:
                call(daemon, "BeginRun", **named, owner_pid=pid)
            assert caught.value.parameters == {"parameter": "owner_pid"}
        foreign.kill()
    assert call(daemon, "BeginRun", **named, owner_pid=os.getppid())["run_id"] == "r"
