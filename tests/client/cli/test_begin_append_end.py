"""Runs that shell scripts record: `runhist begin`, `append` and `end`, against a real daemon."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

import runhist
from tests.client.cli.shells import RUNHIST, run, start
from tests.client.conftest import Vanish

if TYPE_CHECKING:
    from tests.client.conftest import SmallHistory
    from tests.conftest import Daemon


@pytest.fixture
def history(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> runhist.History:
    """The history of a daemon that runs; this process is its client too."""
    for name in [name for name in os.environ if name.startswith("RUNHIST")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RUNHIST_SOCKET", str(daemon.socket))
    daemon.start()
    return runhist.connect()


@pytest.fixture
def shell(daemon: Daemon, history: runhist.History) -> dict[str, str]:
    """The environment of a script that has begun a run."""
    return begin(dict(daemon.env), "--workflow", "nightly")


def begin(env: dict[str, str], *arguments: str) -> dict[str, str]:
    """`env` with what `begin` prints, as a shell would take it."""
    done = run("begin", "--owner-pid", str(os.getpid()), *arguments, env=env)
    assert done.returncode == 0, done.stderr
    shown = subprocess.run(
        ["sh", "-c", 'eval "$1"; env', "sh", done.stdout.decode()], env=env, capture_output=True, check=True, text=True
    )
    return dict(line.split("=", 1) for line in shown.stdout.splitlines() if "=" in line)


def events(history: runhist.History, env: dict[str, str]) -> list[runhist.Event | runhist.Gap]:
    return list(history.run(env["RUNHIST_RUN"]).events())


# begin


def test_begin_prints_assignments_that_a_shell_takes(history: runhist.History, daemon: Daemon) -> None:
    env = begin(dict(daemon.env), "--namespace", "it's ours", "--run-id", "a $b 'c'", "--title", "T", "--agent", "me")
    assert (env["RUNHIST_RUN"], env["RUNHIST_NAMESPACE"]) == ("a $b 'c'", "it's ours")
    found = history.run("a $b 'c'", "it's ours").get()
    assert (found.title, found.agent_id, found.epoch) == ("T", "me", int(env["RUNHIST_LEASE"]))
    assert found.owner_pid == os.getpid()


def test_begin_makes_an_id_when_none_is_given(history: runhist.History, shell: dict[str, str]) -> None:
    assert history.run(shell["RUNHIST_RUN"]).get().workflow == "nightly"


def test_begin_with_json_prints_the_reply(history: runhist.History, daemon: Daemon) -> None:
    done = run("begin", "--owner-pid", str(os.getpid()), "--json", env=daemon.env)
    reply = json.loads(done.stdout)
    assert history.run(reply["run_id"]).get().epoch == reply["epoch"]


def test_begin_needs_the_owner(history: runhist.History, daemon: Daemon) -> None:
    assert run("begin", env=daemon.env).returncode == 2


def test_a_run_begun_within_another_is_its_child(history: runhist.History, shell: dict[str, str]) -> None:
    done = run("begin", "--owner-pid", "1" if os.getpid() == 1 else str(os.getppid()), "--json", env=shell)
    child = json.loads(done.stdout)["run_id"]
    assert history.run(child).get().parent_run_id == shell["RUNHIST_RUN"]


def test_the_next_run_of_the_same_shell_is_no_child_of_the_one_before(
    history: runhist.History, shell: dict[str, str]
) -> None:
    following = begin(shell, "--workflow", "second")
    assert following["RUNHIST_RUN"] != shell["RUNHIST_RUN"]
    assert history.run(following["RUNHIST_RUN"]).get().parent_run_id is None


# append


def test_an_event_by_its_arguments(history: runhist.History, shell: dict[str, str]) -> None:
    arguments = ["--kind", "step.started", "--step", "fetch", "--attempt", "1", "--data", '{"name": "Fetch it"}']
    done = run("append", "node:begun", *arguments, env=shell)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    (step,) = history.run(shell["RUNHIST_RUN"]).steps()
    assert (step.step_id, step.attempt, step.name, step.status) == ("fetch", 1, "Fetch it", "running")
    event = events(history, shell)[-1]
    assert (event.type, event.kind, event.n) == ("node:begun", "step.started", 1)


def test_text_is_short_for_data(history: runhist.History, shell: dict[str, str]) -> None:
    run("append", "remark", "--text", "looks odd", env=shell)
    run("append", "output", "--text", "a line", env=shell)
    remark, line = events(history, shell)[-2:]
    assert (remark.kind, remark.data) == ("note", {"text": "looks odd"})
    assert (line.kind, line.data) == ("output", {"text": "a line", "stream": "log"})


def test_a_key_makes_an_append_safe_to_repeat(history: runhist.History, shell: dict[str, str]) -> None:
    for _ in range(2):
        done = run("append", "turn", "--key", "turn-1", "--data", '{"n": 1}', "--json", env=shell)
        assert done.returncode == 0
    assert json.loads(done.stdout)["duplicates"] == 1
    assert [event.key for event in events(history, shell)[1:]] == ["turn-1"]


def test_appends_without_a_key_are_events_of_their_own(history: runhist.History, shell: dict[str, str]) -> None:
    for _ in range(2):
        assert run("append", "turn", env=shell).returncode == 0
    assert [event.type for event in events(history, shell)[1:]] == ["turn", "turn"]


def test_lines_of_json_become_events_in_their_order(history: runhist.History, shell: dict[str, str]) -> None:
    lines = [json.dumps({"type": "turn", "data": {"i": i}, **({"key": f"k{i}"} if i % 3 == 0 else {})}) for i in range(1000)]
    done = run("append", "-", env=shell, stdin="\n\n".join(lines).encode())
    assert (done.returncode, done.stdout) == (0, b""), done.stderr
    assert [event.data["i"] for event in events(history, shell)[1:]] == list(range(1000))


def test_lines_are_sent_as_they_come(history: runhist.History, shell: dict[str, str]) -> None:
    with start("append", "-", "--json", env=shell, stdin=subprocess.PIPE) as child:
        assert child.stdin and child.stdout
        for i in range(3):
            child.stdin.write(b'{"type": "turn"}\n')
            assert json.loads(child.stdout.readline())["stored"] == 1
            assert len(events(history, shell)) == 2 + i
        child.stdin.close()
        assert child.wait(30) == 0


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"{oops", b"not JSON" if False else b"line 3: "),
        (b"[1]", b"line 3: not a JSON object"),
        (b'{"type": "turn", "data": {"x": NaN}}', b"line 3: "),
        (b"\xff", b"line 3: "),
    ],
)
def test_a_line_that_is_no_event_is_named_and_those_before_it_are_stored(
    line: bytes, says: bytes, history: runhist.History, shell: dict[str, str]
) -> None:
    done = run("append", "-", env=shell, stdin=b'{"type":"one"}\n{"type":"two"}\n' + line + b'\n{"type":"four"}\n')
    assert done.returncode == 2
    assert says in done.stderr and done.stderr.count(b"\n") == 1
    assert [event.type for event in events(history, shell)[1:]] == ["one", "two"]


@pytest.mark.parametrize(
    "line", [b'{"type": "turn", "seq": 3}', b'{"type": "turn", "kind": "no.kind"}', b'{"type": "step.failed"}']
)
def test_a_line_that_is_refused_is_named_and_none_behind_it_is_stored(
    line: bytes, history: runhist.History, shell: dict[str, str]
) -> None:
    done = run("append", "-", env=shell, stdin=b'{"type":"one"}\n' + line + b"\n" + b'{"type":"three"}\n' * 50)
    assert done.returncode == 4
    assert re.fullmatch(rb"runhist: line 2: the parameter (seq|kind|step_id) is wrong\n", done.stderr)
    assert [event.type for event in events(history, shell)[1:]] == ["one"]


def test_the_end_of_the_daemon_in_the_middle_loses_and_doubles_nothing(
    history: runhist.History, shell: dict[str, str], daemon: Daemon, wait_until: Callable[..., None]
) -> None:
    with start("append", "-", env=shell, stdin=subprocess.PIPE) as child:
        assert child.stdin
        for i in range(300):
            child.stdin.write(json.dumps({"type": "turn", "data": {"i": i}}).encode() + b"\n")
            if i in (100, 200):
                wait_until(lambda: len(events(history, shell)) > 50, "some are stored")
                daemon.kill()
                daemon.start()
        child.stdin.close()
        assert child.wait(30) == 0
    assert [event.data["i"] for event in events(history, shell)[1:]] == list(range(300))


@pytest.mark.parametrize("after", [False, True])
def test_lines_whose_receipts_were_lost_are_sent_again(after: bool, small: SmallHistory) -> None:
    appends = 0

    def lose_the_third(method: str, parameters: dict[str, Any]) -> None:
        nonlocal appends
        appends += method == "Append"
        if appends == 3:
            raise Vanish(after)

    small.before = lose_the_third
    lines = "".join(json.dumps({"type": "turn", "data": {"i": i}}) + "\n" for i in range(10))
    env = {**os.environ, "RUNHIST_RUN": "r", "RUNHIST_LEASE": "1"}
    assert run("append", "-", env=env, stdin=lines.encode()).returncode == 0
    assert [stored.event["data"]["i"] for stored in small.stored] == list(range(10))
    assert small.connections == 2


@pytest.mark.parametrize("data", ["[1]", "{", "1"])
def test_data_that_is_no_object_is_a_usage_error(data: str, shell: dict[str, str]) -> None:
    assert run("append", "turn", "--data", data, env=shell).returncode == 2


def test_without_a_run_append_and_end_say_what_to_do(history: runhist.History, daemon: Daemon) -> None:
    for arguments in (["append", "turn"], ["end"]):
        done = run(*arguments, env=daemon.env)
        assert done.returncode == 2
        assert b"RUNHIST_RUN is not set" in done.stderr and b"runhist begin" in done.stderr


def test_a_lease_that_is_no_number_is_a_usage_error(shell: dict[str, str]) -> None:
    assert run("append", "turn", env={**shell, "RUNHIST_LEASE": "x"}).returncode == 2


def test_another_run_can_be_named(history: runhist.History, shell: dict[str, str], daemon: Daemon) -> None:
    assert run("append", "turn", "--run", shell["RUNHIST_RUN"], env=daemon.env).returncode == 0
    assert events(history, shell)[-1].type == "turn"
    other = begin(dict(daemon.env))
    assert run("append", "other", "--run", other["RUNHIST_RUN"][-8:], env=shell).returncode == 0
    assert events(history, other)[-1].type == "other"


# end


@pytest.mark.parametrize(
    ("arguments", "status", "error"),
    [
        ([], "completed", None),
        (["--exit-code", "0"], "completed", None),
        (["--exit-code", "3"], "failed", "exit 3"),
        (["--exit-code", "3", "--error", "no\nnetwork"], "failed", "no network"),
        (["--error", "no network"], "failed", "no network"),
        (["--cancelled"], "cancelled", None),
        (["--cancelled", "--error", "not needed"], "cancelled", "not needed"),
    ],
)
def test_end_says_how(
    arguments: list[str], status: str, error: str | None, history: runhist.History, shell: dict[str, str]
) -> None:
    done = run("end", *arguments, env=shell)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    found = history.run(shell["RUNHIST_RUN"]).get()
    assert (found.status, found.error) == (status, error)


def test_end_by_name_is_a_takeover_while_the_owner_lives(
    history: runhist.History, shell: dict[str, str], daemon: Daemon
) -> None:
    assert run("end", shell["RUNHIST_RUN"], "--json", env=daemon.env).returncode == 4
    done = run("end", shell["RUNHIST_RUN"], "--takeover", "--json", env=daemon.env)
    assert json.loads(done.stdout)["epoch"] == int(shell["RUNHIST_LEASE"]) + 1
    assert history.run(shell["RUNHIST_RUN"]).get().status == "completed"


def test_a_second_end_is_refused(shell: dict[str, str]) -> None:
    run("end", env=shell)
    done = run("end", env=shell)
    assert done.returncode == 4
    assert b"the run is completed" in done.stderr


def test_another_lease_than_the_present_one_is_refused(shell: dict[str, str]) -> None:
    assert run("end", env={**shell, "RUNHIST_LEASE": "999"}).returncode == 4


def test_no_such_run_is_3(history: runhist.History, daemon: Daemon) -> None:
    assert run("end", "no-such-run", env=daemon.env).returncode == 3
    assert (
        run("append", "-", env={**daemon.env, "RUNHIST_RUN": "x", "RUNHIST_LEASE": "1"}, stdin=b'{"type":"t"}').returncode
        == 3
    )


def test_faults_are_objects_with_json(shell: dict[str, str]) -> None:
    done = run("append", "-", "--json", env=shell, stdin=b"x\n")
    assert done.stdout == b""
    assert json.loads(done.stderr)["message"].startswith("line 1: ")


def test_switched_off_all_do_nothing(shell: dict[str, str], daemon: Daemon) -> None:
    daemon.stop()
    for arguments in (["begin", "--owner-pid", "1"], ["append", "turn"], ["end"]):
        done = run(*arguments, env={**shell, "RUNHIST": "off"})
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


# all of it


def test_a_whole_script_records_itself(history: runhist.History, daemon: Daemon) -> None:
    script = """
eval "$(runhist begin --owner-pid $$ --workflow nightly --title 'A script')"
runhist append step.started --step fetch
runhist append output --step fetch --text '42 files'
runhist append step.completed --step fetch
runhist exec -- echo inner
(exit 3)
runhist end --exit-code $?
echo "$RUNHIST_RUN"
"""
    functions = f'runhist() {{ {sys.executable} -c "$RUNHIST_CODE" "$@"; }}\n'
    env = {**daemon.env, "RUNHIST_CODE": RUNHIST[2]}
    done = subprocess.run(
        ["sh", "-euc", functions + script.replace("(exit 3)", "code=3").replace("$?", "$code")],
        env=env,
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    run_id = done.stdout.split()[-1]
    found = history.run(run_id).get()
    assert (found.status, found.error) == ("failed", "exit 3")
    assert [step.status for step in history.run(run_id).steps()] == ["completed"]
    (child,) = history.list_runs(parent_run_id=run_id)
    assert child.title == "echo inner"


def test_exec_hands_its_run_to_the_command(history: runhist.History, daemon: Daemon) -> None:
    inner = " ".join(f"'{word}'" for word in ["append", "turn", "--text", "from within"])
    env = {**daemon.env, "RUNHIST_CODE": RUNHIST[2]}
    done = run("exec", "--", "sh", "-c", f'echo before; {sys.executable} -c "$RUNHIST_CODE" {inner}; echo after', env=env)
    assert (done.returncode, done.stderr) == (0, b"")
    (found,) = history.list_runs()
    types = [event.type for event in history.run(found.run_id).events()]
    assert sorted(types) == ["output", "output", "run.completed", "run.started", "turn"]
    assert types[-1] == "run.completed"


def test_exec_is_recorded_once_though_the_daemon_is_killed(
    history: runhist.History, daemon: Daemon, wait_until: Callable[..., None]
) -> None:
    code = "i=0; while read -r line; do i=$((i+1)); echo $line; done; echo $i lines >&2"
    with start("exec", "--agent", "me", "--", "sh", "-c", code, env=daemon.env, stdin=subprocess.PIPE) as child:
        assert child.stdin and child.stdout
        for i in range(400):
            child.stdin.write(b"%d\n" % i)
            assert child.stdout.readline() == b"%d\n" % i
            if i in (100, 300):
                daemon.kill()
            if i in (200, 350):
                daemon.start()
        child.stdin.close()
        assert child.wait(30) == 0
        assert child.stderr and child.stderr.read() == b"400 lines\n"
    (found,) = history.list_runs()
    assert (found.status, found.agent_id) == ("completed", "me")
    lines = [event.data["text"] for event in history.run(found.run_id).events(kinds=["output"])]
    assert lines == [*map(str, range(400)), "400 lines"]
