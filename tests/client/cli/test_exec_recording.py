"""What `runhist exec` records, and how it behaves when the history is slow, away, or refuses."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runhist.cli import recording as module
from runhist.cli.command import Ended, NotStarted
from runhist.cli.recording import Recording
from runhist.cli.relay import is_ready
from runhist.paths import choose_sockets
from tests.client.cli.shells import PYTHON, run, start
from tests.client.conftest import Hang, Refuse

if TYPE_CHECKING:
    from tests.client.conftest import SmallHistory

ENDED = Ended(0, 1, 2, 3)


def outputs(small: SmallHistory) -> list[dict[str, Any]]:
    return [stored.event["data"] for stored in small.stored if stored.event["type"] == "output"]


def begun(small: SmallHistory) -> dict[str, Any]:
    (run_spec,) = [parameters["run"] for method, parameters in small.calls if method == "BeginRun"]
    return dict(run_spec)


def exec_(*arguments: str, **more: Any) -> Any:
    return run("exec", *arguments, env={**os.environ, **more})


def test_every_line_is_an_event_of_its_stream(small: SmallHistory) -> None:
    done = exec_("--", "sh", "-c", "echo one; echo two >&2; printf 'x\\ry\\nlast'")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"one\nx\ry\nlast", b"two\n")
    assert {"stream": "stderr", "text": "two"} in outputs(small)
    assert [data["text"] for data in outputs(small) if data["stream"] == "stdout"] == ["one", "y", "last"]


def test_on_a_pseudo_terminal_there_is_one_stream(small: SmallHistory) -> None:
    exec_("--pty", "--", "sh", "-c", "echo one; echo two >&2")
    assert outputs(small) == [{"stream": "terminal", "text": "one"}, {"stream": "terminal", "text": "two"}]


def test_bytes_that_are_no_text_are_kept_beside_it(small: SmallHistory) -> None:
    exec_("--", "printf", "caf\\351\\n")
    assert outputs(small) == [{"stream": "stdout", "text": "caf\ufffd", "base64": "Y2Fm6Q=="}]


def test_the_run_tells_what_was_run(small: SmallHistory) -> None:
    exec_("--agent", "me", "--", "/bin/echo", "a b", "c", RUNHIST_RUN="outer", RUNHIST_NAMESPACE="ours")
    spec = begun(small)
    assert (spec["workflow"], spec["title"], spec["agent_id"]) == ("echo", "/bin/echo 'a b' c", "me")
    assert (spec["parent_run_id"], spec["namespace"]) == ("outer", "ours")
    assert spec["metadata"] == {"argv": ["/bin/echo", "a b", "c"]}


def test_names_that_are_given_win(small: SmallHistory) -> None:
    exec_("--workflow", "nightly", "--title", "Build", "--namespace", "mine", "--", "true", RUNHIST_NAMESPACE="ours")
    spec = begun(small)
    assert (spec["workflow"], spec["title"], spec["namespace"]) == ("nightly", "Build", "mine")


def test_with_no_argv_only_the_commands_name_is_recorded(small: SmallHistory) -> None:
    exec_("--no-argv", "--", "/bin/echo", "secret")
    assert begun(small)["title"] == "echo"
    assert "secret" not in str(begun(small))


def test_arguments_of_any_size_are_recorded_within_bounds(small: SmallHistory) -> None:
    assert exec_("--", "true", "x" * 100_000, "y", "z").returncode == 0
    spec = begun(small)
    assert len(spec["title"]) == 200
    assert [spec["metadata"]["argv"][0], spec["metadata"]["argv"][-1]] == ["true", "… and 2 more"]
    assert len(str(spec)) < 70_000


def test_arguments_that_are_no_text_are_recorded_with_replacements(small: SmallHistory) -> None:
    assert exec_("--", "printf", "%s", "\udcff").stdout == b"\xff"
    assert begun(small)["metadata"]["argv"] == ["printf", "%s", "\ufffd"]


def test_neither_input_nor_environment_is_recorded(small: SmallHistory) -> None:
    run("exec", "--", "sh", "-c", "cat >/dev/null", env={**os.environ, "TOKEN": "hush-hush"}, stdin=b"whisper\n")
    assert "hush-hush" not in str(small.calls) and "whisper" not in str(small.calls)


def test_a_success_is_completed_with_its_figures(small: SmallHistory) -> None:
    exec_("--", "sh", "-c", "i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done; echo 12345")
    event = small.stored[-1].event
    output = event["data"]["output"]
    assert event["type"] == "run.completed"
    assert output["exit_code"] == 0 and output["output_bytes"] == 6
    assert output["user_us"] + output["system_us"] > 1000
    assert output["max_rss_bytes"] > 1_000_000


def test_a_failure_says_its_exit_status(small: SmallHistory) -> None:
    assert exec_("--", "sh", "-c", "exit 3").returncode == 3
    event = small.stored[-1].event
    assert event["type"] == "run.failed"
    assert (event["data"]["error"], event["data"]["exit_code"]) == ("exit 3", 3)
    assert event["data"]["output"]["exit_code"] == 3


@pytest.mark.parametrize("way", ["--pty", "--no-pty"])
def test_a_death_by_signal_says_which(way: str, small: SmallHistory) -> None:
    assert exec_(way, "--", "sh", "-c", "kill -TERM $$").returncode == -signal.SIGTERM
    data = small.stored[-1].event["data"]
    assert (data["error"], data["signal"]) == ("killed by SIGTERM", "SIGTERM")
    assert "exit_code" not in data


def test_a_command_that_cannot_be_started_is_a_failed_run(small: SmallHistory) -> None:
    assert exec_("--", "no-such-command-here").returncode == 127
    assert small.stored[-1].event["data"] == {"error": "no-such-command-here: not found", "exit_code": 127}


def test_the_command_finds_its_run_in_its_environment(small: SmallHistory) -> None:
    code = "import os; print(*(os.environ['RUNHIST_' + n] for n in ('RUN', 'NAMESPACE', 'LEASE', 'SOCKET')))"
    done = exec_("--", *PYTHON, code)
    assert done.stdout.decode().split() == [begun(small)["run_id"], "default", "1", str(small.path)]


def test_lines_arrive_while_the_command_runs(small: SmallHistory) -> None:
    code = "echo working; cat >/dev/null"
    read_end, write_end = os.pipe()
    with start("exec", "--", "sh", "-c", code, env=os.environ, stdin=read_end) as child:
        small.wait(lambda: outputs(small))
        os.close(write_end)
        assert child.wait(30) == 0
    os.close(read_end)


def test_beyond_the_limit_one_marker_is_recorded_and_output_passes_on(small: SmallHistory) -> None:
    done = exec_("--max-output", "1K", "--", "seq", "1", "1000")
    assert len(done.stdout.split()) == 1000
    texts = [data["text"] for data in outputs(small)]
    assert texts == [str(i) for i in range(1, len(texts) + 1)]
    assert 1000 < sum(map(len, texts)) <= 1024
    notes = [stored.event["data"]["text"] for stored in small.stored if stored.event["type"] == "note"]
    assert notes == ["output beyond 1,024 bytes is not recorded (--max-output)"]
    assert small.types()[-2:] == ["note", "run.completed"]


@pytest.mark.parametrize(("text", "size"), [("0", 0), ("10", 10), ("2K", 2048), ("64M", 64 << 20), ("1G", 1 << 30)])
def test_sizes_have_units(text: str, size: int) -> None:
    from runhist.cli import exec as command

    assert command.size(text) == size


def test_a_size_that_is_none_is_a_usage_error(small: SmallHistory) -> None:
    done = exec_("--max-output", "lots", "--", "true")
    assert done.returncode == 2 and b"'lots' is no size" in done.stderr


# When it cannot be recorded


def test_without_a_daemon_the_command_runs_and_one_line_says_so(small: SmallHistory) -> None:
    small.close()
    done = exec_("--", "sh", "-c", "echo out; exit 4")
    assert (done.returncode, done.stdout) == (4, b"out\n")
    (line,) = done.stderr.splitlines()
    assert line.startswith(b"runhist: not recorded so far: runhistd is not running") and b"next: " in line
    small.open()


def test_where_no_daemon_was_ever_installed_the_line_says_that(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("RUNHIST")}
    done = run("exec", "--", "echo", "out", env={**env, "RUNHIST_STATE_DIR": str(tmp_path / "state")})
    assert done.stdout == b"out\n"
    (line,) = done.stderr.splitlines()
    assert line.startswith(b"runhist: not recorded: no runhistd was ever started for this user")
    assert not (tmp_path / "state").exists()


def test_switched_off_nothing_is_said(small: SmallHistory) -> None:
    done = exec_("--", "echo", "out", RUNHIST="off")
    assert (done.stdout, done.stderr, small.calls) == (b"out\n", b"", [])


@pytest.mark.parametrize("off", ["off", ""])
def test_require_refuses_to_run_what_is_not_recorded(off: str, small: SmallHistory) -> None:
    small.close()
    done = exec_("--require", "--", "echo", "out", RUNHIST=off)
    assert (done.returncode, done.stdout) == (125, b"")
    assert done.stderr.startswith(b"runhist: not run: ")
    small.open()


def test_a_run_that_is_refused_runs_unrecorded_and_says_why(small: SmallHistory) -> None:
    def refuse(method: str, parameters: dict[str, Any]) -> None:
        if method == "BeginRun":
            raise Refuse("PermissionDenied")

    small.before = refuse
    done = exec_("--", "echo", "out")
    assert (done.returncode, done.stdout) == (0, b"out\n")
    assert done.stderr.startswith(b"runhist: not recorded: this user may not: the history is another user's")
    assert exec_("--require", "--", "echo", "out").returncode == 125


def test_a_daemon_that_comes_late_gets_everything(small: SmallHistory) -> None:
    small.close()
    read_end, write_end = os.pipe()
    with start("exec", "--", "sh", "-c", "echo early; cat", env=os.environ, stdin=read_end) as child:
        assert child.stdout and child.stderr
        assert child.stdout.readline() == b"early\n"
        small.open()
        small.wait(lambda: outputs(small))
        os.close(write_end)
        assert child.wait(30) == 0
    os.close(read_end)
    assert small.types() == ["output", "run.completed"]


def test_a_daemon_that_is_restarted_gets_everything_once(small: SmallHistory) -> None:
    read_end, write_end = os.pipe()
    with start("exec", "--", "sh", "-c", "echo one; cat", env=os.environ, stdin=read_end) as child:
        small.wait(lambda: outputs(small))
        small.close()
        os.write(write_end, b"two\n")
        assert child.stdout and child.stdout.readline() + child.stdout.readline() == b"one\ntwo\n"
        small.open()
        os.close(write_end)
        assert child.wait(30) == 0
        assert child.stderr and child.stderr.read() == b""
    os.close(read_end)
    assert [data["text"] for data in outputs(small)] == ["one", "two"]
    assert small.types()[-1] == "run.completed"


def test_a_run_that_another_process_took_over_is_told_at_the_end(small: SmallHistory) -> None:
    def refuse(method: str, parameters: dict[str, Any]) -> None:
        if method == "Append":
            raise Refuse("StaleEpoch", epoch=9, owner_pid=7, last_n=0)

    small.before = refuse
    done = exec_("--", "seq", "3")
    assert done.returncode == 0 and done.stdout == b"1\n2\n3\n"
    (line,) = done.stderr.splitlines()
    assert b"4 events of run " in line and b"no longer owns the run" in line


def test_a_command_may_end_its_run_itself(small: SmallHistory) -> None:
    def refuse(method: str, parameters: dict[str, Any]) -> None:
        if method == "Append":
            raise Refuse("RunClosed", status="completed")

    small.before = refuse
    assert exec_("--", "true").stderr == b""
    small.calls.clear()
    done = exec_("--", "seq", "500")
    (line,) = done.stderr.splitlines()
    assert b": 500 events of run " in line and b"the run is completed" in line
    assert len(small.calls) < 20, "it goes on to send what cannot be stored"


# The window, without a process around it


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch, small: SmallHistory) -> Recording:
    """A recording with a window of 10 events and a deadline of 0.2 s that has begun."""
    monkeypatch.setattr(module, "WINDOW_EVENTS", 10)
    monkeypatch.setattr(module, "DEADLINE_S", 0.2)
    recording = Recording(choose_sockets(), {"run_id": "r", "namespace": "default"}, 1 << 20)
    assert recording.begin() is None
    return recording


def hang(method: str, parameters: dict[str, Any]) -> None:
    raise Hang


def test_a_full_window_slows_the_command_and_receipts_set_it_free(little: Recording, small: SmallHistory) -> None:
    with small.changed:  # the small history cannot answer meanwhile
        little.take("stdout", b"x\n" * 25)
        assert little.full()
        timeout = little.timeout_s()
        assert timeout is not None and timeout > 0
    while little.full():
        little.pump()
    assert little.end(ENDED) is None
    assert len(outputs(small)) == 25


def test_past_the_deadline_output_is_left_out_and_a_note_tells_how_much(little: Recording, small: SmallHistory) -> None:
    with small.changed:
        little.take("stdout", b"x\n" * 25)
        while little.full():
            little.pump()
        little.take("stdout", b"yy\n" * 5)
        assert not little.full(), "no second deadline"
    small.wait(lambda: len(small.stored) == 10)
    while len(small.stored) < 12:
        little.take("stdout", b"z\n")
        little.pump()
    assert little.end(ENDED) is not None
    texts = [data["text"] for data in outputs(small)]
    assert texts[:10] == ["x"] * 10 and set(texts[10:]) == {"z"}
    note = small.stored[10].event["data"]
    assert note["left_out_lines"] >= 20
    assert note["left_out_bytes"] >= 15 + 10
    assert "lines" in note["text"] and "were left out here" in note["text"]


def test_lines_are_recorded_again_only_when_half_of_the_window_is_free(little: Recording, small: SmallHistory) -> None:
    def answer_two(method: str, parameters: dict[str, Any]) -> None:
        if method == "Append" and parameters["first_n"] > 2:
            raise Hang

    small.before = answer_two
    with small.changed:  # no answers meanwhile
        little.take("stdout", b"x\n" * 2)
        little.take("stdout", b"x\n" * 23)
        while little.full():
            little.pump()
    interest = little.interest()
    assert interest is not None and is_ready(interest[0], select.POLLIN, 30_000)
    little.pump()
    little.take("stdout", b"z\n" * 2)
    small.before = lambda method, parameters: None
    small.close()
    small.open()
    assert little.end(ENDED) is not None
    assert [data["text"] for data in outputs(small)] == ["x"] * 10
    (note,) = [stored.event["data"] for stored in small.stored if stored.event["type"] == "note"]
    assert note["left_out_lines"] == 17


def test_what_was_left_out_to_the_end_is_told_too(little: Recording, small: SmallHistory) -> None:
    small.before = hang
    little.take("stdout", b"x\n" * 25)
    told = little.end(ENDED)
    assert told is not None and told.startswith("27 events of run r are not recorded: runhistd did not answer in time")


def test_a_slow_history_is_waited_for_at_the_end(little: Recording, small: SmallHistory) -> None:
    little.take("stdout", b"x\n" * 500)
    assert little.end(NotStarted("x", 2)) is None
    assert len(outputs(small)) == 500
