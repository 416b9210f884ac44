"""The spool with real processes: engines go on while there is no daemon, and everything acknowledged is there once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import runhist
from runhist.spool import OPEN, SEALED, encode_line, encode_request, quarantined

if TYPE_CHECKING:
    from tests.conftest import Daemon

LONG = 30.0
LISTED = "import json, sys, runhist\nhistory = runhist.connect(deadline=30)\n"


@pytest.fixture
def env(away: Daemon) -> Daemon:
    """A daemon that was installed and is stopped."""
    return away


def engine(env: Daemon, code: str) -> subprocess.Popen[bytes]:
    """A process that records; it prints a line when it is to be noticed."""
    command = [sys.executable, "-c", LISTED + code]
    return subprocess.Popen(command, env=env.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def read_line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().decode().strip()


def end(process: subprocess.Popen[bytes]) -> None:
    process.communicate(timeout=LONG)


def files(env: Daemon, ending: str = "") -> list[Path]:
    directory = env.state_dir / "spool"
    return sorted(path for path in directory.glob("*" + ending) if path.is_file()) if directory.exists() else []


def numbers(run_id: str) -> list[int]:
    return [event.data["i"] for event in runhist.connect(deadline=LONG).run(run_id).events() if event.type == "x"]


def verify(env: Daemon) -> None:
    env.stop()
    checked = subprocess.run([sys.executable, "-m", "runhistd", "verify"], env=env.env, capture_output=True)
    assert checked.returncode == 0, checked.stdout


def test_a_run_without_a_daemon_is_spooled_and_drained_before_the_daemon_answers(env: Daemon) -> None:
    code = """
with history.begin_run(run_id="r") as run:
    for i in range(250):
        run.append("x", {"i": i})
    assert history.mode == "spooling"
    print(run.flush().durable, run.epoch, run.faults, flush=True)
"""
    process = engine(env, code)
    assert read_line(process) == "spooled None 0"
    end(process)
    assert len(files(env, SEALED)) == 1
    env.start()
    run = runhist.connect(deadline=LONG).run("r").get()
    assert (run.status, run.last_seq) == ("completed", 252)
    assert numbers("r") == list(range(250))
    assert files(env) == []
    verify(env)


def test_a_daemon_killed_in_the_middle_loses_and_doubles_nothing(env: Daemon) -> None:
    env.start()
    code = """
run = history.begin_run(run_id="r")
for i in range(600):
    run.append("x", {"i": i})
    if i % 200 == 100:
        print(run.flush().durable, flush=True)
        sys.stdin.readline()
run.complete()
print(run.flush().durable, flush=True)
"""
    process = engine(env, code)
    assert process.stdin is not None
    assert read_line(process) == "committed"
    env.kill()
    process.stdin.write(b"\n")
    process.stdin.flush()
    assert read_line(process) == "spooled"
    env.start()
    assert len(files(env, OPEN)) == 1  # it lives: only itself may take it
    process.stdin.write(b"\n")
    process.stdin.flush()
    last = [read_line(process), ""]
    process.stdin.write(b"\n")
    process.stdin.flush()
    last[1] = read_line(process)
    assert last == ["committed", "committed"]
    end(process)
    assert numbers("r") == list(range(600))
    assert files(env) == []
    assert runhist.connect().run("r").get().status == "completed"
    verify(env)


def test_an_engine_killed_while_spooling_is_drained_without_its_torn_tail_and_adopted(env: Daemon) -> None:
    code = """
run = history.begin_run(run_id="r")
for i in range(20):
    run.append("x", {"i": i})
print(run.flush().durable, flush=True)
sys.stdin.readline()
"""
    process = engine(env, code)
    assert read_line(process) == "spooled"
    process.kill()
    end(process)
    (path,) = files(env, OPEN)
    with path.open("ab") as file:
        file.write(encode_line(encode_request("Append", b"{}"))[:-3])
    env.start()
    run = runhist.connect(deadline=LONG).run("r").get()
    assert run.status == "incomplete"
    assert numbers("r") == list(range(20))
    assert files(env) == []
    verify(env)


def test_the_last_words_of_a_dead_engine_are_in_its_spool_and_come_before_the_verdict(
    env: Daemon, wait_until: Callable[..., None]
) -> None:
    env.start()
    code = """
run = history.begin_run(run_id="r")
print("begun", flush=True)
sys.stdin.readline()
run.complete({"answer": 42})
print(run.flush().durable, flush=True)
"""
    process = engine(env, code)
    assert process.stdin is not None and read_line(process) == "begun"
    env.kill()
    process.stdin.write(b"\n")
    process.stdin.flush()
    assert read_line(process) == "spooled"
    end(process)
    env.start()
    kinds = [event.kind for event in runhist.connect(deadline=LONG).run("r").events()]
    assert kinds == ["run.started", "run.completed"]
    verify(env)


def test_a_spool_that_was_drained_but_not_deleted_is_drained_again_without_a_double(env: Daemon) -> None:
    code = """
with history.begin_run(run_id="r") as run:
    run.append("x", {"i": 0})
"""
    end(engine(env, code))
    (path,) = files(env, SEALED)
    kept = path.read_bytes()
    env.start()
    env.kill()
    path.write_bytes(kept)  # as if it had been killed between the commit and the deletion
    env.start()
    assert numbers("r") == [0] and files(env) == []
    assert runhist.connect(deadline=LONG).run("r").get().last_seq == 3
    verify(env)


def test_two_spools_of_one_run_are_both_drained(env: Daemon) -> None:
    code = """
run = history.begin_run(run_id="r")
run.append("x", {"i": 0})
run.complete()
run.flush()
run.append("x", {"i": 1}, key="late", kind="note")
run.flush()
"""
    end(engine(env, code))
    assert len(files(env)) == 2
    env.start()
    assert numbers("r") == [0, 1] and files(env) == []
    verify(env)


def spool_behind_a_killed_daemon(env: Daemon) -> subprocess.Popen[bytes]:
    """An engine, alive, that has begun a run and spooled an event of it; the daemon serves again."""
    env.start()
    code = """
run = history.begin_run(run_id="r")
run.flush()
print("begun", flush=True)
sys.stdin.readline()
run.append("x", {"i": 1})
print(run.flush().durable, flush=True)
sys.stdin.readline()
"""
    process = engine(env, code)
    assert process.stdin is not None and read_line(process) == "begun"
    env.kill()
    process.stdin.write(b"\n")
    process.stdin.flush()
    assert read_line(process) == "spooled"
    env.start()
    return process


def assert_put_aside(env: Daemon, refusal: str) -> None:
    """The one file is in quarantine, whole, and listed with the refusal."""
    ((path, reason),) = quarantined(env.state_dir / "spool")
    assert refusal in reason and b'"i":1' in path.read_bytes()
    shown = subprocess.run([sys.executable, "-m", "runhist.cli.main", "status", "--spool"], env=env.env, capture_output=True)
    assert path.name.encode() in shown.stdout and refusal.encode() in shown.stdout


def test_the_spool_of_a_run_that_was_taken_over_goes_to_quarantine_and_is_listed(
    env: Daemon, wait_until: Callable[..., None]
) -> None:
    process = spool_behind_a_killed_daemon(env)
    claimed = runhist.connect(deadline=LONG).claim_run("r", takeover=True)
    process.kill()
    end(process)
    wait_until(lambda: not files(env), "the file is put aside")
    assert_put_aside(env, "StaleEpoch")
    assert claimed is not None and numbers("r") == []
    verify(env)


def test_the_spool_of_a_run_that_was_deleted_goes_to_quarantine_and_is_listed(
    env: Daemon, wait_until: Callable[..., None]
) -> None:
    process = spool_behind_a_killed_daemon(env)
    runhist.connect(deadline=LONG).claim_run("r", takeover=True).complete()
    with runhist.Connection.open() as connection:
        ended = lambda: connection.call("GetRun", {"run_id": "r"})["run"]["status"] == "completed"  # noqa: E731
        wait_until(ended, "the run has ended")
        assert connection.call("DeleteRun", {"run_id": "r"})["deleted"]
    process.kill()
    end(process)
    wait_until(lambda: not files(env), "the file is put aside")
    assert_put_aside(env, "RunDeleted")
    assert [run.run_id for run in runhist.connect(deadline=LONG).list_runs()] == []
    verify(env)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage\n",
        b"\xff" * 3_000_000,
        encode_line(b"[]"),
        encode_line(b'{"format":1}'),
        encode_line(b"[" * 100_000),
    ],
)
def test_a_damaged_file_costs_only_itself(env: Daemon, content: bytes) -> None:
    code = 'with history.begin_run(run_id="r") as run: run.append("x", {"i": 0})\n'
    end(engine(env, code))
    bad = env.state_dir / "spool" / ("0" + SEALED)
    bad.write_bytes(content)
    env.start()
    assert numbers("r") == [0]
    ((path, reason),) = quarantined(env.state_dir / "spool")
    assert path.name == bad.name and path.read_bytes() == content and reason
    verify(env)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/etc/passwd"), os.mkdir])
def test_what_is_no_file_is_put_aside(env: Daemon, make: Callable[[Path], Any]) -> None:
    (env.state_dir / "spool").mkdir(exist_ok=True)
    make(env.state_dir / "spool" / ("0" + SEALED))
    env.start()
    assert len(list((env.state_dir / "spool" / "quarantine").glob("*.reason"))) == 1
    assert not os.path.lexists(env.state_dir / "spool" / ("0" + SEALED))


def test_a_spool_of_another_history_is_put_aside(env: Daemon) -> None:
    end(engine(env, 'with history.begin_run(run_id="r") as run: run.append("x", {"i": 0})\n'))
    (path,) = files(env, SEALED)
    _, _, rest = path.read_bytes().partition(b"\n")
    header = json.loads(path.read_bytes().partition(b"\n")[0].split(b" ", 2)[2])
    path.write_bytes(encode_line(json.dumps({**header, "instance_id": "another"}).encode()) + rest)
    env.start()
    ((_, reason),) = quarantined(env.state_dir / "spool")
    assert "another history" in reason


def test_an_event_that_is_refused_leaves_a_note_and_its_neighbours_are_stored(env: Daemon) -> None:
    code = """
run = history.begin_run(run_id="r")
run.append("x", {"i": 0}, key="k")
run.append("x", {"i": 1}, key="k2")
run.append("y", {}, key="k")
run.append("x", {"i": 2})
run.complete()
run.flush()
"""
    end(engine(env, code))
    env.start()
    events = list(runhist.connect(deadline=LONG).run("r").events())
    assert numbers("r") == [0, 1, 2] and events[-1].kind == "run.completed"
    assert any("Conflict" in event.data.get("text", "") or "key" in event.data.get("text", "") for event in events)
    assert len(quarantined(env.state_dir / "spool")) == 1
    verify(env)


def test_a_killed_stopped_engine_is_found_while_the_daemon_serves(env: Daemon, wait_until: Callable[..., None]) -> None:
    code = """
run = history.begin_run(run_id="r")
run.append("x", {"i": 0})
print(run.flush().durable, flush=True)
sys.stdin.readline()
"""
    process = engine(env, code)
    assert read_line(process) == "spooled"
    os.kill(process.pid, signal.SIGSTOP)
    env.start()
    assert len(files(env, OPEN)) == 1  # stopped is not dead
    process.kill()
    end(process)
    wait_until(lambda: not files(env), "it is drained")
    wait_until(lambda: runhist.connect(deadline=LONG).run("r").get().status == "incomplete", "it is adopted")
    assert numbers("r") == [0]


@pytest.mark.parametrize(
    "request_line",
    [
        encode_line(b"no request"),
        encode_line(encode_request("DeleteRun", b'{"run_id":"r"}')),
        encode_line(encode_request("Append", b"{]}")),
        encode_line(encode_request("Append", b'{"run_id":"r","events":[' + b"[" * 100_000 + b"}")),
        encode_line(encode_request("BeginRun", b'{"run":{"run_id":1}}')),
        encode_line(encode_request("Append", b'{"run_id":"\xff"}')),
        encode_line(encode_request("Append", b'{"run_id":"nowhere","epoch":1,"events":[{"type":"a","key":"k"}]}')),
    ],
)
def test_a_request_that_is_none_costs_only_its_file(env: Daemon, request_line: bytes) -> None:
    end(engine(env, 'with history.begin_run(run_id="r") as run: run.append("x", {"i": 0})\n'))
    (path,) = files(env, SEALED)
    bad = path.with_name("0" + SEALED)
    bad.write_bytes(path.read_bytes().partition(b"\n")[0] + b"\n" + request_line)
    env.start()
    assert numbers("r") == [0]
    ((aside, reason),) = quarantined(env.state_dir / "spool")
    assert aside.name == bad.name and reason


def test_a_command_that_is_recorded_without_a_daemon_is_in_the_history_later(env: Daemon) -> None:
    command = [sys.executable, "-m", "runhist.cli.main", "exec", "--", "sh", "-c", "echo one; echo two; exit 3"]
    done = subprocess.run(command, env=env.env, capture_output=True, timeout=LONG)
    assert done.returncode == 3 and done.stdout == b"one\ntwo\n"
    assert len(files(env, SEALED)) == 1 and b"not recorded:" not in done.stderr
    env.start()
    (run,) = runhist.connect(deadline=LONG).list_runs()
    assert run.status == "failed"
    texts = [event.data["text"] for event in runhist.connect().run(run.run_id).events() if event.kind == "output"]
    assert texts == ["one", "two"] and files(env) == []


def test_a_daemon_that_hangs_is_away_until_it_answers_again(env: Daemon) -> None:
    env.start()
    code = """
import runhist.pump
runhist.pump.SILENCE_S = 0.5
run = history.begin_run(run_id="r")
for i in range(3):
    run.append("x", {"i": i})
print(run.flush().durable, flush=True)
sys.stdin.readline()
for i in range(3, 600):
    run.append("x", {"i": i})
print(run.flush().durable, history.mode, flush=True)
sibling = history.begin_run(run_id="s")
sibling.append("x", {"i": 0})
print(sibling.flush().durable, run.faults + sibling.faults, flush=True)
sys.stdin.readline()
run.append("x", {"i": 600})
import time
while {run.flush().durable, sibling.flush().durable} != {"committed"}:
    time.sleep(0.05)
print(history.mode, flush=True)
"""
    process = engine(env, code)
    assert process.stdin is not None
    assert read_line(process) == "committed"
    os.kill(env.pid, signal.SIGSTOP)
    try:
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert read_line(process) == "spooled spooling"
        assert read_line(process) == "spooled 0"
    finally:
        os.kill(env.pid, signal.SIGCONT)
    process.stdin.write(b"\n")
    process.stdin.flush()
    assert read_line(process) == "recording"
    end(process)
    assert (numbers("r"), numbers("s")) == (list(range(601)), [0])
    assert files(env) == []
    verify(env)
