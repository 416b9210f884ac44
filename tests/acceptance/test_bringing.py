"""What was spooled for a daemon that cannot read this user's spool is brought there by whoever connects next."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import runhist
from runhist.connection import Connection
from runhist.spool import OPEN, SEALED, quarantined
from tests.client.cli.shells import RUNHIST

if TYPE_CHECKING:
    from tests.conftest import Daemon

ENGINE = "import sys, runhist\nhistory = runhist.connect(deadline=30)\n"


class Foreign:
    """A daemon, and a user whose state directory is another than the daemon's."""

    def __init__(self, daemon: Daemon, home: Path) -> None:
        self.daemon = daemon
        self.spool = home / "own" / "spool"
        self.env = {**daemon.env, "RUNHIST_SOCKET": str(daemon.socket), "RUNHIST_STATE_DIR": str(home / "own")}

    def files(self, ending: str = "") -> list[Path]:
        return [path for path in self.spool.glob("*" + ending) if path.is_file()]

    def engine(self, code: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", ENGINE + code]
        return subprocess.Popen(command, env=self.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def next_engine(self) -> None:
        """Another process that records something."""
        process = self.engine("run = history.begin_run(workflow='next')\nrun.complete()\nprint(run.flush().durable)")
        assert process.communicate(timeout=60)[0] == b"committed\n"


@pytest.fixture
def foreign(daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Foreign:
    made = Foreign(daemon, tmp_path)
    for name, value in made.env.items():
        if name.startswith("RUNHIST"):
            monkeypatch.setenv(name, value)
    return made


def told(run_id: str) -> list[Any]:
    return [event.data.get("i", event.type) for event in runhist.connect(deadline=30).run(run_id).events()]


def test_what_a_dead_and_what_an_ended_engine_left_is_brought_by_the_next_one(foreign: Foreign) -> None:
    left = """
with history.begin_run(run_id="ended") as run:
    for i in range(150):
        run.append("x", {"i": i, "precise": 0.10})
dead = history.begin_run(run_id="dead")
for i in range(3):
    dead.append("x", {"i": i})
print(dead.flush().durable, flush=True)
sys.stdin.read()
"""
    process = foreign.engine(left)
    assert process.stdout is not None and process.stdout.readline() == b"spooled\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (len(foreign.files(SEALED)), len(foreign.files(OPEN))) == (1, 1)
    foreign.daemon.start()
    foreign.next_engine()
    assert foreign.files() == [] and quarantined(foreign.spool) == []
    assert told("ended") == ["run.started", *range(150), "run.completed"]
    assert told("dead") == ["run.started", *range(3), "run.incomplete"]
    with Connection.open() as connection:
        reply = connection.call("GetEvents", {"run_id": "ended", "limit": 2})
    assert reply["events"][1]["data"] == {"i": 0, "precise": 0.1}


def test_the_file_of_an_engine_that_lives_is_its_own(foreign: Foreign) -> None:
    process = foreign.engine("""
run = history.begin_run(run_id="alive")
run.append("x", {"i": 0})
print(run.flush().durable, flush=True)
sys.stdin.readline()
run.complete()
print(run.flush(30).durable, flush=True)
""")
    assert process.stdout is not None and process.stdout.readline() == b"spooled\n"
    foreign.daemon.start()
    foreign.next_engine()
    assert len(foreign.files(OPEN)) == 1
    assert process.communicate(b"\n", timeout=60)[0] == b"committed\n"
    assert told("alive") == ["run.started", 0, "run.completed"] and foreign.files() == []


def test_a_shell_owns_the_run_that_was_brought_for_it(foreign: Foreign, wait_until: Callable[..., None]) -> None:
    foreign.daemon.start()
    foreign.daemon.stop()
    shell = subprocess.Popen(["sleep", "600"])
    try:
        begin = [*RUNHIST, "begin", "--owner-pid", str(shell.pid), "--run-id", "r"]
        assert subprocess.run(begin, env=foreign.env, capture_output=True).returncode == 0
        assert len(foreign.files(SEALED)) == 1
        foreign.daemon.start()
        foreign.next_engine()
        run = runhist.connect(deadline=30).run("r").get()
        assert (run.status, run.owner_pid) == ("running", shell.pid)
    finally:
        shell.kill()
        shell.wait()
    wait_until(lambda: runhist.connect().run("r").get().status == "incomplete", "the shell's death is seen")


def test_what_is_refused_goes_to_the_quarantine_whole(foreign: Foreign) -> None:
    foreign.daemon.start()
    process = foreign.engine("""
run = history.begin_run(run_id="r")
run.flush()
print("begun", flush=True)
sys.stdin.readline()
run.append("x", {"i": 0})
print(run.flush().durable, flush=True)
sys.stdin.read()
""")
    assert process.stdin is not None and process.stdout is not None and process.stdout.readline() == b"begun\n"
    foreign.daemon.kill()
    process.stdin.write(b"\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"spooled\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    spooled = foreign.files(OPEN)[0].read_bytes()
    foreign.daemon.start()
    end = [*RUNHIST, "end", "r", "--takeover", "--cancelled"]
    assert subprocess.run(end, env=foreign.env, capture_output=True).returncode == 0
    foreign.next_engine()
    ((aside, reason),) = quarantined(foreign.spool)
    assert aside.read_bytes() == spooled and "no longer owns" in reason and foreign.files() == []


def test_the_users_own_daemon_is_left_to_empty_its_spool(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    from runhist.bringing import is_needed

    monkeypatch.setenv("RUNHIST_STATE_DIR", str(daemon.state_dir))
    assert not is_needed(daemon.socket) and is_needed(daemon.state_dir / "another")
