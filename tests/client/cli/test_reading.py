"""What people read, against a real daemon: list, show, logs, wait and status."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, Any

import pytest

from runhist.cli.main import COMMANDS
from runhist.connection import Connection
from runhist.paths import SocketChoice
from tests.client.cli.shells import RUNHIST, Terminal, run, start

if TYPE_CHECKING:
    from tests.conftest import Daemon

LEASE = "00000000-0000-4000-8000-00000000000{}"
WRITER = "00000000-0000-4000-9000-000000000001"


class Recorder:
    """Writes runs by hand, so that what is read is known."""

    def __init__(self, daemon: Daemon) -> None:
        self.env = daemon.env
        self.connection = Connection.open(SocketChoice((daemon.socket,), "the test's own", True))
        self.counts: dict[str, int] = {}

    def begin(self, run_id: str, **spec: Any) -> None:
        lease_key = LEASE.format(len(self.counts))
        self.connection.call("BeginRun", {"run": {"run_id": run_id, **spec}, "lease_key": lease_key})
        self.counts[run_id] = 0

    def append(self, run_id: str, type: str, data: dict[str, Any] | None = None, **members: Any) -> None:
        self.counts[run_id] += 1
        event = {"type": type, "data": data or {}, **members}
        epoch = list(self.counts).index(run_id) + 1
        first_n = self.counts[run_id]
        asked = {"run_id": run_id, "epoch": epoch, "writer": WRITER, "first_n": first_n, "events": [event]}
        self.connection.call("Append", asked)

    def text(self, *arguments: str, status: int = 0) -> str:
        done = run(*arguments, env=self.env)
        assert done.returncode == status, (arguments, done.stdout, done.stderr)
        return (done.stdout if status == 0 or done.stdout else done.stderr).decode()


@pytest.fixture
def recorder(daemon: Daemon) -> Recorder:
    return Recorder(daemon.start())


@pytest.fixture
def three(recorder: Recorder) -> Recorder:
    recorder.begin("build-0001-alpha", workflow="build", agent_id="me", title="Build all")
    recorder.append("build-0001-alpha", "step.started", {"name": "compile"}, step_id="compile")
    recorder.append("build-0001-alpha", "output", {"stream": "stderr", "text": "no -lssl"}, step_id="compile")
    usage = {"input_tokens": 1200, "output_tokens": 300, "cost_microcents": 12_000_000}
    recorder.append("build-0001-alpha", "usage", step_id="compile", usage=usage)
    recorder.append("build-0001-alpha", "step.failed", {"error": "linker"}, step_id="compile")
    recorder.append("build-0001-alpha", "run.failed", {"error": "exit 2"})
    recorder.begin("build-0002-beta!", namespace="other", workflow="build")
    recorder.begin("night-0003-gamma", workflow="nightly", agent_id="docs-bot")
    return recorder


def test_runs_are_listed_newest_first_with_all_that_matters(three: Recorder) -> None:
    lines = three.text("list").splitlines()
    assert [line.split()[0] for line in lines] == ["RUN", "3-gamma", "2-beta!", "1-alpha"]
    for part in ("✗ failed", "exit 2", "$0.12", " me ", " build "):
        assert part in lines[3], part


def test_runhist_alone_is_list(three: Recorder) -> None:
    assert three.text("-q") == three.text("list", "-q")
    assert three.text("list", "-q").split() == ["night-0003-gamma", "build-0002-beta!", "build-0001-alpha"]


def test_filters_restrict_the_list(three: Recorder) -> None:
    assert three.text("list", "-q", "--status", "failed").split() == ["build-0001-alpha"]
    assert three.text("list", "-q", "--agent", "docs-bot").split() == ["night-0003-gamma"]
    assert three.text("list", "-q", "--workflow", "build", "--namespace", "other").split() == ["build-0002-beta!"]
    assert len(three.text("list", "-q", "--since", "1h").split()) == 3
    assert three.text("list", "-q", "-n", "1").split() == ["night-0003-gamma"]


def test_an_empty_result_says_why_and_what_next(recorder: Recorder) -> None:
    done = run("list", env=recorder.env)
    assert (done.returncode, done.stdout) == (0, b"") and b"runhist exec" in done.stderr
    recorder.begin("r")
    done = run("list", "--status", "failed", env=recorder.env)
    assert b"no run matches" in done.stderr


def test_json_is_the_wire_object_one_a_line(three: Recorder) -> None:
    runs = [json.loads(line) for line in three.text("list", "--json").splitlines()]
    assert [found["run_id"] for found in runs] == ["night-0003-gamma", "build-0002-beta!", "build-0001-alpha"]
    assert runs[2]["usage"]["cost_microcents"] == 12_000_000
    shown = json.loads(three.text("show", "alpha", "--json"))
    assert (shown["run"]["status"], shown["steps"][0]["step_id"]) == ("failed", "compile")


def test_show_tells_steps_tokens_cost_error_owner_and_what_to_type_next(three: Recorder) -> None:
    text = three.text("show", "build-0001")
    for part in ("Build all", "✗ failed", "compile", "1,200/300", "$0.12", "linker", "error  exit 2"):
        assert part in text, part
    assert f"owner  pid {os.getpid()}" in text and "runhist logs 1-alpha" in text


NAMED = [
    *(["show"], ["logs"], ["logs", "-f"], ["wait"], ["pin"], ["unpin"], ["rm", "--yes"], ["end"], ["resume"], ["artifacts"]),
    *(["artifact", "get"], ["append", "note", "--run"], ["artifact", "add", "--run"], ["export"]),
]


@pytest.mark.parametrize("command", NAMED, ids=" ".join)
def test_an_empty_name_is_no_run_and_not_the_last_one(daemon: Daemon, command: list[str]) -> None:
    done = run(*command, "", *(["x"] if command[0] == "artifact" else []), env=daemon.env)
    assert done.returncode == 2
    assert "the name is empty; which run is meant?" in done.stderr.decode()


def test_every_command_that_takes_a_run_refuses_an_empty_name(daemon: Daemon) -> None:
    taking = {command for command in COMMANDS if "RUN" in run(command, "--help", env=daemon.env).stdout.decode().split()}
    assert {"show", "append"} <= taking
    assert taking - {command[0] for command in NAMED} == set()


def test_show_tells_what_the_run_made_and_that_it_is_pinned(recorder: Recorder) -> None:
    recorder.begin("some-run")
    assert "made" not in recorder.text("show", "some-run")
    for i in (0, 1, 1, 2, 3, 4, 5):
        recorder.append("some-run", "artifact", {"name": f"file {i}\x1b"})
    recorder.text("pin", "some-run")
    shown = recorder.text("show", "some-run")
    names = ", ".join(f"file {i}\\x1b" for i in (5, 4, 3, 2, 1))
    assert f"made   {names}, 1 more; see: runhist artifacts some-run" in shown
    assert "pinned retention leaves it alone until: runhist unpin some-run" in shown
    assert len(json.loads(recorder.text("show", "--json", "some-run"))["artifacts"]) == 7


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("build-0001-alpha", "build-0001-alpha"),
        ("night", "night-0003-gamma"),
        ("amma", "night-0003-gamma"),
        ("@last", "night-0003-gamma"),
        ("@last~2", "build-0001-alpha"),
        ("@failed", "build-0001-alpha"),
        ("@running", "night-0003-gamma"),
    ],
)
def test_a_run_is_named_by_id_beginning_ending_or_place(three: Recorder, name: str, found: str) -> None:
    assert json.loads(three.text("show", name, "--json"))["run"]["run_id"] == found


def test_an_ambiguous_name_lists_the_candidates_and_an_unknown_one_is_3(three: Recorder) -> None:
    done = run("show", "build-000", env=three.env)
    assert done.returncode == 2 and b"build-0001-alpha" in done.stderr and b"build-0002-beta!" in done.stderr
    assert run("show", "nothing", env=three.env).returncode == 3
    assert run("show", "@paused", env=three.env).returncode == 3
    assert run("show", "@yesterday", env=three.env).returncode == 2


def test_the_run_of_the_environment_is_the_default(three: Recorder) -> None:
    done = run("show", "--json", env={**three.env, "RUNHIST_RUN": "build-0001-alpha"})
    assert json.loads(done.stdout)["run"]["run_id"] == "build-0001-alpha"


def test_logs_print_every_event_once_in_order_and_mark_stderr(three: Recorder) -> None:
    lines = three.text("logs", "alpha").splitlines()
    assert len(lines) == 6
    assert "● started" in lines[0] and "! no -lssl" in lines[2] and "✗ failed" in lines[5] and "exit 2" in lines[5]
    assert len(three.text("logs", "alpha", "--after-seq", "4").splitlines()) == 2
    assert len(three.text("logs", "alpha", "--type", "output").splitlines()) == 1
    run_failed = run("logs", "alpha", "--exit-status", env=three.env)
    assert run_failed.returncode == 1


def test_logs_follow_to_the_end_of_the_run_over_a_restart_of_the_daemon(
    three: Recorder, daemon: Daemon, wait_until: Callable[..., None]
) -> None:
    three.append("night-0003-gamma", "output", {"stream": "stdout", "text": "line 0"})
    with start("logs", "-f", "gamma", env=three.env) as following:
        assert following.stdout is not None and following.stderr is not None
        seen = [following.stdout.readline() for _ in range(2)]
        three.append("night-0003-gamma", "output", {"stream": "stdout", "text": "line 1"})
        seen.append(following.stdout.readline())
        daemon.kill()
        daemon.start()
        three.connection = Connection.open(SocketChoice((daemon.socket,), "the test's own", True))
        three.append("night-0003-gamma", "output", {"stream": "stdout", "text": "line 2"})
        three.append("night-0003-gamma", "run.completed")
        rest, _ = following.communicate(timeout=30)
    lines = b"".join(seen) + rest
    assert [line.split()[-1] for line in lines.splitlines()[1:4]] == [b"0", b"1", b"2"]
    assert "✓ completed".encode() in lines and following.returncode == 0 and len(lines.splitlines()) == 5


def test_wait_ends_with_the_runs_and_tells_how(three: Recorder) -> None:
    assert run("wait", "alpha", env=three.env).returncode == 1
    with start("wait", "gamma", env=three.env) as waiting:
        three.append("night-0003-gamma", "run.completed")
        out, _ = waiting.communicate(timeout=30)
    assert (waiting.returncode, "✓ completed" in out.decode()) == (0, True)


def test_wait_gives_up_at_its_time_out_with_6(three: Recorder) -> None:
    done = run("wait", "gamma", "--timeout", "0", env=three.env)
    assert done.returncode == 6 and b"night-0003-gamma" in done.stderr


def test_status_tells_which_daemon_and_why(three: Recorder, daemon: Daemon) -> None:
    text = three.text("status")
    for part in (f"pid {daemon.pid}", str(daemon.socket), "RUNHIST_STATE_DIR is set", "2 live of 3", "history.db"):
        assert part in text, part
    assert json.loads(three.text("status", "--json"))["pid"] == daemon.pid


def test_recorded_text_cannot_drive_the_terminal(recorder: Recorder) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\u202eabc\x9b"
    recorder.begin("r", title=evil, workflow=evil, agent_id=evil)
    recorder.append("r", "step.started", {"name": evil}, step_id=evil)
    recorder.append("r", "output", {"stream": "stdout", "text": evil}, step_id=evil)
    recorder.append("r", "turn", {"a": evil})
    recorder.append("r", "run.failed", {"error": evil})
    for command in (["list"], ["show", "r"], ["logs", "r"]):
        text = recorder.text(*command)
        assert not set(text) & {"\x1b", "\x07", "\u202e", "\x9b"}, command
        assert "\\x1b[2J\\u202eabc" in text


def test_a_terminal_gets_relative_times_and_lines_that_fit(three: Recorder) -> None:
    three.begin("long", workflow="w" * 200)
    with Terminal([*RUNHIST, "list"], three.env, columns=80) as terminal:
        shown = terminal.until(b"of 4 runs").decode()
    assert "ago" in shown or "now" in shown
    for line in shown.splitlines():
        assert len(line.replace("\x1b[0m", "").replace("\x1b[36m", "").replace("\x1b[31m", "")) <= 80, line


def test_without_a_daemon_every_reading_command_says_so_with_5(daemon: Daemon) -> None:
    for command in ("list", "show", "logs", "wait", "status"):
        done = run(command, env=daemon.env)
        assert done.returncode == 5 and b"runhistd serve" in done.stderr, command
        done = run(command, "--json", env=daemon.env)
        assert json.loads(done.stderr)["reason"] == "not_installed"


def test_help_teaches_without_a_daemon(daemon: Daemon) -> None:
    done = run("--help", env=daemon.env)
    for command in ("list", "show", "logs", "wait", "status", "exec", "begin", "append", "end", "@failed"):
        assert command.encode() in done.stdout
    for command in ("list", "show", "logs", "wait", "status"):
        assert run(command, "--help", env=daemon.env).returncode == 0


def cpu_s(command: list[str], env: dict[str, str]) -> float:
    """User and system time of one run of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_list_costs_at_most_five_times_the_cpu_of_an_empty_program(three: Recorder) -> None:
    env = {**three.env, "PYTHONDONTWRITEBYTECODE": ""}
    ratios = []
    for _ in range(7):
        empty = cpu_s([sys.executable, "-c", "pass"], env)
        ratios.append(cpu_s([*RUNHIST, "list"], env) / empty)
    assert median(ratios) <= 5, ratios


def test_list_imports_nothing_that_only_others_need(three: Recorder) -> None:
    code = "import sys, json; from runhist.cli.main import main; main(['list']); json.dump(sorted(sys.modules), sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], env=three.env, capture_output=True, check=True)
    assert not {"trio", "attr", "attrs", "msgspec", "apsw", "asyncio", "shutil", "subprocess"} & set(json.loads(done.stderr))


def test_a_list_tells_how_to_go_on_and_pages_join_without_a_gap(three: Recorder) -> None:
    with Terminal([*RUNHIST, "list", "-n", "2"], three.env, columns=100) as terminal:
        shown = terminal.until(b"--page ") + terminal.until(b"\n")
    assert b"2 of 3 runs" in shown
    token = shown.split(b"--page ")[1].split()[0].decode()
    rest = three.text("list", "-n", "2", "-q", "--page", token).split()
    assert [*three.text("list", "-n", "2", "-q").split(), *rest] == three.text("list", "-q").split()
    assert "page" in three.text("list", "--page", "nonsense", status=4)
