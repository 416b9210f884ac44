"""Shell scripts while there is no daemon: begin, append and end go to the spool, and all of it is there once afterwards."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import runhist
from runhist.paths import SOCKET_NAME
from runhist.spool import SEALED
from tests.client.cli.shells import RUNHIST

if TYPE_CHECKING:
    from tests.conftest import Daemon

LONG = 60.0
SPOOLED = "recorded in the spool, because runhistd is not running"


class Shell:
    """A shell that runs a script a piece at a time."""

    def __init__(self, daemon: Daemon) -> None:
        self.process = subprocess.Popen(
            ["sh"], env=daemon.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.do(f'runhist() {{ {shlex.join(RUNHIST)} "$@"; }}')

    def do(self, piece: str) -> list[str]:
        """Run a piece; returns what it printed, its exit status as the last line."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{piece}\necho status $?\n")
        self.process.stdin.flush()
        lines = []
        while True:
            lines.append(self.process.stdout.readline().rstrip("\n"))
            if lines[-1].startswith("status ") or not lines[-1]:
                return lines

    def end(self) -> None:
        if self.process.returncode is None:
            self.process.communicate(timeout=LONG)


@pytest.fixture
def shell(away: Daemon) -> Iterator[Shell]:
    made = Shell(away)
    yield made
    made.end()


def waiting(daemon: Daemon) -> list[Path]:
    return [path for path in (daemon.state_dir / "spool").glob("*") if path.is_file()]


def told(run_id: str) -> list[str]:
    """The events of a run behind its first, in their order."""
    events = list(runhist.connect(deadline=LONG).run(run_id).events())
    return [str(event.data.get("i", event.type)) for event in events if event.type != "run.started"]


def begin(shell: Shell) -> None:
    *said, status = shell.do('eval "$(runhist begin --owner-pid $$ --workflow nightly --run-id r)"')
    assert status == "status 0" and (not said or SPOOLED in said[0])


def append(shell: Shell, i: int) -> list[str]:
    return shell.do(f"runhist append turn --data '{{\"i\": {i}}}'")


def test_a_script_without_a_daemon_is_recorded_when_the_daemon_starts(away: Daemon, shell: Shell) -> None:
    begin(shell)
    for i in range(3):
        said, status = append(shell, i)
        assert SPOOLED in said and status == "status 0"
    lines = "".join(json.dumps({"type": "turn", "data": {"i": i}}) + "\n" for i in range(3, 50))
    said, *receipts, status = shell.do(f"runhist append - --json <<'END'\n{lines}END")
    assert SPOOLED in said and status == "status 0"
    assert [json.loads(line)["durable"] for line in receipts] == ["spooled"] * 47
    assert shell.do("runhist end --exit-code 3")[-1] == "status 0"
    shell.end()
    assert len(waiting(away)) == 6 and all(path.suffix == SEALED for path in waiting(away))
    away.start()
    found = runhist.connect(deadline=LONG).run("r").get()
    assert (found.status, found.workflow, found.last_seq) == ("failed", "nightly", 52)
    assert told("r") == [*map(str, range(50)), "run.failed"]
    assert waiting(away) == []


def test_a_run_that_was_begun_in_the_spool_goes_on_through_the_daemon(away: Daemon, shell: Shell) -> None:
    begin(shell)
    append(shell, 0)
    away.start()
    assert append(shell, 1) == ["status 0"]
    found = runhist.connect(deadline=LONG).run("r").get()
    assert (found.status, found.owner_pid) == ("running", shell.process.pid)
    away.stop()
    append(shell, 2)
    away.start()
    assert shell.do("runhist end") == ["status 0"]
    assert told("r") == ["0", "1", "2", "run.completed"]


def test_the_shell_owns_a_run_that_it_began_in_the_spool(
    away: Daemon, shell: Shell, wait_until: Callable[..., None]
) -> None:
    begin(shell)
    away.start()
    history = runhist.connect(deadline=LONG)
    assert history.run("r").get().status == "running"
    shell.end()
    wait_until(lambda: history.run("r").get().status == "incomplete", "the shell's death is seen")


def test_what_a_program_in_the_script_records_goes_into_the_same_run(away: Daemon, shell: Shell) -> None:
    begin(shell)
    program = "import runhist; run = runhist.current_run(); run.append('turn', {'i': 7}); run.flush()"
    python = RUNHIST[0]
    assert shell.do(f'{python} -c "{program}" 2>/dev/null') == ["status 0"]
    away.start()
    assert shell.do(f'{python} -c "{program}"') == ["status 0"]
    assert told("r") == ["7", "7"]


def test_a_daemon_that_dies_under_a_stream_of_events_loses_and_doubles_none(away: Daemon, shell: Shell) -> None:
    away.start()
    begin(shell)
    reader, writer = os.pipe()
    env = {**away.env, "RUNHIST_RUN": "r", "RUNHIST_LEASE": str(runhist.connect(deadline=LONG).run("r").get().epoch)}
    feed = subprocess.Popen([*RUNHIST, "append", "-", "--json"], env=env, stdin=reader, stdout=subprocess.PIPE)
    os.close(reader)
    assert feed.stdout is not None
    with os.fdopen(writer, "wb") as lines:
        for i in range(100):
            lines.write(b'{"type": "turn", "data": {"i": %d}}\n' % i)
        lines.flush()
        assert json.loads(feed.stdout.readline())["stored"] == 1
        away.kill()
        for i in range(100, 200):
            lines.write(b'{"type": "turn", "data": {"i": %d}}\n' % i)
    assert feed.wait(LONG) == 0
    feed.stdout.close()
    away.start()
    assert told("r") == [str(i) for i in range(200)]


def test_a_daemon_that_hangs_is_written_around(away: Daemon, shell: Shell) -> None:
    away.start()
    os.kill(away.pid, signal.SIGSTOP)
    try:
        said, status = shell.do('eval "$(runhist begin --owner-pid $$ --run-id r)"')
    finally:
        os.kill(away.pid, signal.SIGCONT)
    assert "recorded in the spool, because runhistd did not answer in time" in said and status == "status 0"
    while append(shell, 1) != ["status 0"]:  # the daemon may still have to find the begin in the spool
        pass
    assert set(told("r")) == {"1"}


def test_an_owner_that_is_no_process_is_told(shell: Shell) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    said, status = shell.do(f"runhist begin --owner-pid {gone.pid}")
    assert said == f"runhist: --owner-pid {gone.pid} is no process of yours" and status == "status 2"


def test_only_the_shells_own_run_is_spooled(away: Daemon, shell: Shell) -> None:
    begin(shell)
    for command in ("append x --run another", "end another", "end --takeover"):
        said, status = shell.do(f"runhist {command}")
        assert "not running" in said and status == "status 5", command
    assert len(waiting(away)) == 1


def test_where_no_daemon_was_ever_started_nothing_is_spooled(new_daemon: Callable[[], Daemon]) -> None:
    never = new_daemon()
    shell = Shell(never)
    said, status = shell.do("runhist begin --owner-pid $$")
    assert "no runhistd was ever started" in said and status == "status 5"
    assert not never.state_dir.exists() and SOCKET_NAME in said
    shell.end()


def test_a_spool_that_cannot_be_used_is_told_beside_why_it_was_needed(away: Daemon, shell: Shell) -> None:
    (away.state_dir / "spool").rmdir()
    (away.state_dir / "spool").write_text("in the way")
    said, status = shell.do("runhist begin --owner-pid $$")
    assert "not running" in said and "cannot spool" in said and status == "status 5"
