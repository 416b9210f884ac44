"""`runhist exec` for the command that it runs and the shell that runs it: as if it were not there."""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
from pathlib import Path

import pytest

from runhist.cli import relay
from runhist.cli.command import Change, Ended, Output
from runhist.cli.exec import Unrecorded
from runhist.cli.signals import caught
from tests.client.cli.shells import PORTABLE, PYTHON, RUNHIST, run, start

OFF = {**os.environ, "RUNHIST": "off"}


@pytest.mark.parametrize("status", [0, 1, 2, 77, 125, 255])
def test_the_exit_status_is_the_commands(status: int) -> None:
    assert run("exec", "--", "sh", "-c", f"exit {status}", env=OFF).returncode == status


def test_the_command_may_stand_without_dashes_and_keeps_its_own_options() -> None:
    done = run("exec", "--agent", "me", "echo", "--agent", "-n", "--", "x", env=OFF)
    assert done.stdout == b"--agent -n -- x\n"


def test_bytes_pass_unmodified_and_errors_apart() -> None:
    everything = bytes(range(256)) * 2000
    code = "import sys; b = sys.stdin.buffer.read(); sys.stdout.buffer.write(b); sys.stderr.buffer.write(b[::-1])"
    done = run("exec", "--", *PYTHON, code, env=OFF, stdin=everything)
    assert (done.returncode, done.stdout, done.stderr) == (0, everything, everything[::-1])


def test_output_passes_at_once_also_without_a_newline() -> None:
    with start("exec", "--", *PYTHON, "print('name? ', end=''); print(input())", env=OFF, stdin=subprocess.PIPE) as child:
        assert child.stdin and child.stdout
        assert child.stdout.read(6) == b"name? "
        child.stdin.write(b"Ada\n")
        assert child.stdout.read() == b"Ada\n"


def test_a_slow_reader_loses_nothing() -> None:
    with start("exec", "--", "seq", "1", "300000", env=OFF) as child:
        assert child.stdout
        lines = b""
        while chunk := child.stdout.read(1000):
            lines += chunk
    assert lines == b"".join(b"%d\n" % i for i in range(1, 300001))


def test_a_reader_that_goes_away_ends_the_command_as_it_would_without_us() -> None:
    with start("exec", "--", "yes", env=OFF) as child:
        assert child.stdout
        assert child.stdout.read(2) == b"y\n"
        child.stdout.close()
        assert child.wait(30) == -signal.SIGPIPE


def allow_cores() -> None:
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGINT])
def test_a_death_by_signal_is_repeated_without_a_core_of_our_own(number: int, tmp_path: Path) -> None:
    code = f"import os, resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); os.kill(os.getpid(), {number})"
    child = subprocess.Popen([*RUNHIST, "exec", "--", *PYTHON, code], env=OFF, cwd=tmp_path, preexec_fn=allow_cores)
    _, raw_status = os.waitpid(child.pid, 0)
    child.returncode = 0
    assert os.WTERMSIG(raw_status) == number and not os.WCOREDUMP(raw_status)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
@pytest.mark.parametrize("way", ["--no-pty", "--pty"])
@pytest.mark.parametrize("runhist", [RUNHIST, PORTABLE], ids=["signalfd", "portable"])
def test_a_signal_to_us_is_passed_on_to_the_command_once(number: signal.Signals, way: str, runhist: list[str]) -> None:
    code = f"""
import signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [{number}])
print("ready")
signal.sigwait([{number}])
print("came", signal.sigtimedwait([{number}], 0.2))
"""
    with start("exec", way, "--", *PYTHON, code, env=OFF, runhist=runhist) as child:
        assert child.stdout
        assert child.stdout.readline().strip() == b"ready"
        child.send_signal(number)
        assert child.stdout.read().strip() == b"came None"
        assert child.wait(30) == 0


def test_a_signal_that_we_were_started_to_ignore_is_ignored_by_us_and_the_command() -> None:
    code = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
print(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN)
print(signal.sigtimedwait([signal.SIGHUP], 0.3))
"""
    inner = [*RUNHIST, "exec", "--", *PYTHON, code]
    with subprocess.Popen(["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *inner], env=OFF, stdout=subprocess.PIPE) as child:
        assert child.stdout
        assert child.stdout.readline() == b"True\n"
        child.send_signal(signal.SIGHUP)
        assert child.stdout.read() == b"None\n"


@pytest.mark.parametrize("way", ["--no-pty", "--pty"])
def test_the_command_starts_with_the_signals_of_any_other_program(way: str) -> None:
    code = """
import signal
print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])), end=" ")
print([s.name for s in signal.valid_signals() if s in list(signal.Signals)
       and signal.getsignal(s) == signal.SIG_IGN and s not in (signal.SIGPIPE, signal.SIGXFSZ)])
"""
    done = run("exec", way, "--", *PYTHON, code, env=OFF)
    assert done.stdout.strip() == b"[] []"


def test_a_command_that_is_not_there_is_127() -> None:
    done = run("exec", "--", "no-such-command-here", "x", env=OFF)
    assert done.returncode == 127
    assert done.stderr == b"runhist: no-such-command-here: not found\n"


@pytest.mark.parametrize("way", ["--no-pty", "--pty"])
def test_what_cannot_be_executed_is_126(way: str, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("no program")
    done = run("exec", way, "--", str(plain), env=OFF)
    assert done.returncode == 126
    assert done.stderr == f"runhist: {plain}: Permission denied\n".encode()


def test_no_command_is_a_usage_error() -> None:
    assert run("exec", env=OFF).returncode == 2
    assert run("exec", "--", env=OFF).returncode == 2


def test_what_the_command_left_behind_does_not_hold_us_up() -> None:
    done = run("exec", "--", "sh", "-c", "sleep 60 & echo $!", env=OFF, timeout=20)
    os.kill(int(done.stdout), signal.SIGKILL)
    assert done.returncode == 0


def test_what_the_command_left_behind_may_still_say_something() -> None:
    code = "parent=$$; (while kill -0 $parent 2>/dev/null; do :; done; sleep 0.1; echo late) & echo early"
    done = run("exec", "--", "sh", "-c", code, env=OFF)
    assert done.stdout == b"early\nlate\n"


class Chatterbox:
    """A command that has ended, and left something behind whose output never pauses."""

    in_our_group = True

    def __init__(self, output: int, sink: int) -> None:
        self.outputs: tuple[Output, ...] = (Output(output, "stdout", sink),)
        self._untold: list[Change] = [Ended(0, 0, 0, 0)]

    def report_fd(self) -> int | None:
        return self.outputs[0].fd if self._untold else None

    def changes(self) -> list[Change]:
        told, self._untold = self._untold, []
        return told

    def send_signal(self, number: int) -> None:
        raise AssertionError

    def resume(self) -> None:
        raise AssertionError


def test_a_chatterbox_that_the_command_left_behind_does_not_hold_us_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "LINGER_S", 0.1)
    sink = os.open(os.devnull, os.O_WRONLY)
    with caught([]) as signals:
        command = Chatterbox(os.open("/dev/zero", os.O_RDONLY), sink)
        assert relay.Relay(command, Unrecorded(), signals).run().status == 0
    os.close(sink)


def test_closed_standard_streams_stay_out_of_the_commands_way() -> None:
    inner = [*RUNHIST, "exec", "--", "sh", "-c", "cat; echo out; echo err >&2; exit 3"]
    done = subprocess.run(["sh", "-c", 'exec "$@" <&- >&-', "sh", *inner], env=OFF, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (3, b"err\n")


def test_a_sudden_end_of_ours_ends_a_command_on_its_pseudo_terminal() -> None:
    with start("exec", "--pty", "--", "sh", "-c", "echo $$; exec sleep 60", env=OFF) as child:
        assert child.stdout
        pid = int(child.stdout.readline())
        fd = os.pidfd_open(pid)
        child.kill()
        assert select.select([fd], [], [], 20)[0], "the command lives on without its terminal"
        os.close(fd)
