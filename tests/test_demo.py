"""`runhistd demo`, as a newcomer meets it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.cli.shells import Terminal
from tests.conftest import isolated_environment

DEMO = [sys.executable, "-m", "runhistd", "demo"]
DEADLINE_S = 120.0  # generous: it does real work, and shares two cores with whatever else runs


@pytest.fixture
def env(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A user without any history yet, with a temporary directory of its own whose path is short enough for a socket."""
    temporary = tempfile.mkdtemp(prefix="rh")
    yield {**isolated_environment(tmp_path / "state", tmp_path / "config.toml"), "TMPDIR": temporary}
    shutil.rmtree(temporary, ignore_errors=True)


def directory_in(shown: str) -> Path:
    return Path(re.findall(r"rm -r (\S+)", shown)[0])


@pytest.mark.long
def test_off_a_terminal_it_works_shows_and_ends(env: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        DEMO, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    shown = done.stdout
    assert (done.returncode, done.stderr) == (0, ""), shown
    work, _, rest = shown.partition("$ runhist list\n")
    listed, _, steps = rest.partition("$ runhist show ")
    for workflow in ("compile-stdlib", "hash-trees", "compress-sources", "small-pipeline"):
        assert workflow in work and workflow in listed
    assert listed.count("completed") == 3 and listed.count("failed") == 1
    assert re.search(r"check\s.*failed.*a bracket is not closed", steps) and re.search(r"check\s.*completed", steps)
    assert "$0." in steps and "publish" in steps
    directory = directory_in(shown)
    assert directory.is_relative_to(env["TMPDIR"])
    with sqlite3.connect(f"file:{directory}/state/history.db?mode=ro", uri=True) as database:
        assert database.execute("SELECT count(*) FROM runs").fetchone() == (4,)
    database.close()
    assert not (directory / "state" / "dev.runhist.History").exists(), "the daemon did not stop"
    assert not (tmp_path / "state").exists(), "the user's own history was touched"


def test_on_a_terminal_it_waits_for_enter_and_its_commands_work(env: dict[str, str]) -> None:
    with Terminal(DEMO, env, columns=120) as terminal:
        shown = terminal.until(b"Press Enter here to stop it. ").decode()
        commands = re.findall(r"^ +(RUNHIST_SOCKET=.*?)\r$", shown, re.MULTILINE)
        assert len(commands) == 3
        bare = {"HOME": "/nonexistent", "PATH": env["PATH"]}  # the demo says less of a command that is in the path
        for command in commands:
            done = subprocess.run(["sh", "-c", command], env=bare, capture_output=True, text=True, timeout=60, check=False)
            assert (done.returncode, done.stderr) == (0, ""), command
            assert done.stdout
        terminal.type(b"\r")
        status, _ = terminal.rest()
        assert status == 0


def test_an_interrupt_leaves_nothing_running(env: dict[str, str]) -> None:
    with Terminal(DEMO, env) as terminal:
        terminal.until(b" s  ")
        terminal.type(b"\x03")
        status, shown = terminal.rest()
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGINT
    assert not (directory_in(shown.decode()) / "state" / "dev.runhist.History").exists()


INTERRUPTED_AT_THE_LOCK = """
import os, signal, subprocess, sys, threading
import runhistd.demo

class Interrupted:
    "Popen's lock, where Ctrl-C comes when a poll of the last engine has just taken it."

    polls = 0

    def __init__(self):
        self._lock = threading.Lock()

    def acquire(self, blocking=True):
        taken = self._lock.acquire(blocking)
        Interrupted.polls += 1
        if Interrupted.polls == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return taken

    def release(self):
        self._lock.release()

    def __enter__(self):
        return self._lock.__enter__()

    def __exit__(self, *exception):
        self._lock.release()

class Popen(subprocess.Popen):
    def __init__(self, command, **options):
        super().__init__(command, **options)
        if "runhistd.demo" in command:
            self._waitpid_lock = Interrupted()

subprocess.Popen = Popen
sys.exit(runhistd.demo.main())
"""


def test_an_interrupt_that_comes_while_a_lock_of_the_library_is_held_stops_it_too(env: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_AT_THE_LOCK],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (128 + signal.SIGINT, "")
    assert not (directory_in(done.stdout) / "state" / "dev.runhist.History").exists()
