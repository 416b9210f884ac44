"""Backup and restore of a real daemon's history, with everybody around who still holds something of the old one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import runhist
from runhistd.store.verify import verify

if TYPE_CHECKING:
    from tests.conftest import Daemon

LONG = 30.0


@pytest.fixture
def env(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> Daemon:
    """A daemon that serves, and clients of this process that find it."""
    for name, value in daemon.env.items():
        if name.startswith("RUNHIST"):
            monkeypatch.setenv(name, value)
    monkeypatch.delenv("RUNHIST", raising=False)
    return daemon.start()


def runhistd(env: Daemon, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "runhistd", *map(str, arguments)]
    return subprocess.run(command, env=env.env, capture_output=True, text=True, timeout=120)


def test_a_backup_is_taken_while_runs_are_recorded_and_nobody_waits_for_it(env: Daemon, tmp_path: Path) -> None:
    stop, durable = threading.Event(), []

    def record() -> None:
        with runhist.connect(deadline=LONG).begin_run(run_id="busy") as run:
            while not stop.is_set():
                run.append("x", {"text": "y" * 20_000})
                durable.append(run.flush().durable)

    recording = threading.Thread(target=record)
    recording.start()
    try:
        while len(durable) < 50:
            assert recording.is_alive()
        before = len(durable)
        done = runhistd(env, "backup", tmp_path / "copy", "--json")
        assert (done.returncode, done.stderr) == (0, "")
        assert len(durable) > before, "appends went on"
    finally:
        stop.set()
        recording.join()
    assert set(durable) == {"committed"}
    told = json.loads(done.stdout)
    copied = verify(tmp_path / "copy" / "history.db", lambda checked, of: None)
    assert (copied.runs, copied.events, copied.differences) == (told["runs"], told["events"], [])
    assert before <= copied.events - 1 <= len(durable)
    assert runhistd(env, "verify").returncode == 0


def test_a_backup_tells_what_it_holds_and_refuses_a_directory_in_use(env: Daemon, tmp_path: Path) -> None:
    with runhist.connect(deadline=LONG).begin_run(run_id="r") as run:
        run.note("x")
    done = runhistd(env, "backup", tmp_path / "copy")
    assert done.returncode == 0
    assert f"copied 1 run, 3 events, 0 blobs to {tmp_path / 'copy'}" in done.stdout
    assert "verified: the copy opens, and agrees with its events" in done.stdout
    again = runhistd(env, "backup", tmp_path / "copy")
    assert again.returncode == 1
    assert "is not empty" in again.stderr and "name a new directory" in again.stderr


def test_a_backup_shows_a_bar_on_a_terminal(env: Daemon, tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    program = "import sys; from runhistd import cli, terminal; terminal.PROGRESS_S = -1; sys.exit(cli.main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "backup", str(tmp_path / "copy")]
    subprocess.run(command, env=env.env, stdout=subprocess.DEVNULL, stderr=theirs, check=True)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    os.close(theirs)
    assert "copying ██" in shown and "100%" in shown
