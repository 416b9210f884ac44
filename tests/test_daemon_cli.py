"""The daemon's command, as a user and a supervisor meet it."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

import runhistd
from runhist import paths
from runhist.connection import Connection
from runhist.paths import SocketChoice

if TYPE_CHECKING:
    from tests.conftest import Daemon

LEASE_KEY = "5a5e4c1e-93a5-4a04-9d3b-6d3f6e0c2a11"


def runhistd_command(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "runhistd", *arguments],
        env=daemon.env,
        cwd=daemon.state_dir.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )


def complaint(daemon: Daemon, *arguments: str) -> tuple[int, str]:
    """Status and text of a command that must fail without a traceback and without log lines."""
    ended = runhistd_command(daemon, *arguments)
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    return ended.returncode, ended.stderr


def begin_run(daemon: Daemon, run_id: str) -> None:
    with Connection.open(SocketChoice((daemon.socket,), "a test", True)) as connection:
        connection.call("BeginRun", {"run": {"run_id": run_id, "title": "a \x1b[31mtitle"}, "lease_key": LEASE_KEY})


@pytest.mark.parametrize(
    "arguments",
    [(), ("serve",), ("config",), ("verify",), ("backup",), ("restore",), ("recover",), ("demo",)],
)
def test_every_command_explains_itself(arguments: tuple[str, ...], daemon: Daemon) -> None:
    ended = runhistd_command(daemon, *arguments, "--help")
    assert ended.returncode == 0
    assert "usage: runhistd" in ended.stdout
    assert max(map(len, ended.stdout.splitlines())) < 120


def test_the_help_of_serve_shows_this_users_paths_and_all_settings(daemon: Daemon) -> None:
    shown = runhistd_command(daemon, "serve", "--help").stdout
    assert all(str(path) in shown for path in (daemon.state_dir, daemon.socket, daemon.config_file))
    assert "frame_bytes = 16777216" in shown


def test_without_a_command_the_help_goes_to_stderr_as_a_usage_fault(daemon: Daemon) -> None:
    status, text = complaint(daemon)
    assert status == 2
    assert "serve the history of this user" in text


def test_the_version_is_the_packages(daemon: Daemon) -> None:
    assert runhistd_command(daemon, "--version").stdout == f"runhistd {runhistd.__version__}\n"


def test_faulty_settings_are_all_told_and_nothing_is_touched(daemon: Daemon) -> None:
    daemon.config_file.write_text("[limits]\nevent_bytes = true\n[daemon]\nstop = 3\n")
    status, text = complaint(daemon, "serve")
    assert status == 2
    assert "limits.event_bytes: must be a whole number, not true" in text
    assert "daemon.stop: is not known here; did you mean daemon.stop_s?" in text
    assert not daemon.state_dir.exists()


def test_a_settings_file_that_was_named_must_exist(daemon: Daemon) -> None:
    status, text = complaint(daemon, "serve", "--config", "nowhere.toml")
    assert status == 2
    assert "nowhere.toml are not usable" in text and "there is no such file" in text


def test_a_state_directory_that_is_a_link_is_refused_with_the_next_step(daemon: Daemon) -> None:
    daemon.state_dir.symlink_to("elsewhere")
    status, text = complaint(daemon, "serve")
    assert status == 1
    assert "symbolic link" in text and "RUNHIST_STATE_DIR" in text


def test_no_socket_that_can_be_bound_is_one_message(daemon: Daemon) -> None:
    daemon.socket.mkdir(parents=True)
    daemon.state_dir.chmod(0o700)
    ended = runhistd_command(daemon, "serve")
    assert ended.returncode == 1
    assert f"runhistd: no socket can be listened at:\n  {daemon.socket}: " in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_gracefully(number: signal.Signals, daemon: Daemon) -> None:
    process = daemon.start().process
    assert process is not None
    process.send_signal(number)
    assert process.wait(30) == 0
    assert not daemon.socket.exists()
    assert f"msg=stopping logger=signals signal={number.name}" in daemon.log_text()


def test_every_file_is_its_users_alone_whatever_the_umask(daemon: Daemon) -> None:
    daemon.start(wrapper=["sh", "-c", 'umask 0; exec "$@"', "sh"])
    begin_run(daemon, "a")
    modes = {path.name: stat.S_IMODE(path.lstat().st_mode) for path in daemon.state_dir.iterdir() if not path.is_dir()}
    assert {"history.db", "history.db-wal", "history.db-shm", "runhistd.lock", paths.SOCKET_NAME} <= modes.keys()
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(daemon.state_dir.stat().st_mode) == 0o700


def test_the_log_is_logfmt_and_tells_when_it_is_ready(daemon: Daemon) -> None:
    daemon.start().stop()
    lines = [dict(word.split("=", 1) for word in shlex.split(line)) for line in daemon.log_text().splitlines()]
    assert all({"ts", "level", "msg"} <= line.keys() for line in lines)
    assert "ready" in [line["msg"] for line in lines]


def test_the_next_daemon_waits_for_the_one_that_is_stopping(
    daemon: Daemon, wait_until: Callable[..., None]
) -> None:
    first = daemon.start().process
    assert first is not None
    with daemon.log_file.open("ab") as log:
        command = [sys.executable, "-m", "runhistd", "serve"]
        second = subprocess.Popen(command, env=daemon.env, cwd=daemon.state_dir.parent, stderr=log)
    try:
        wait_until(lambda: f"holder={first.pid}" in daemon.log_text(), "the second daemon waits")
        daemon.stop()
        wait_until(lambda: daemon.log_text().count("msg=ready") == 2, "the second daemon serves")
        assert daemon.pid == second.pid
    finally:
        second.send_signal(signal.SIGTERM)
        assert second.wait(30) == 0


def test_a_killed_daemon_leaves_nothing_that_hinders_the_next(daemon: Daemon) -> None:
    daemon.start()
    begin_run(daemon, "a")
    daemon.kill()
    assert daemon.socket.exists()
    daemon.start().stop()


def test_a_newer_history_is_refused_untouched(daemon: Daemon) -> None:
    daemon.start().stop()
    with closing(sqlite3.connect(daemon.database)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA user_version = 999")
    before = daemon.database.read_bytes()
    ended = runhistd_command(daemon, "serve")
    assert ended.returncode == 1
    assert "install a newer runhistd" in ended.stderr and "Traceback" not in ended.stderr
    assert daemon.database.read_bytes() == before


def test_verify_agrees_beside_a_live_daemon(daemon: Daemon) -> None:
    daemon.start()
    begin_run(daemon, "a")
    ended = runhistd_command(daemon, "verify")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "1 run, 1 event checked; the history agrees with its events\n"
    assert json.loads(runhistd_command(daemon, "verify", "--json").stdout) == {"runs": 1, "events": 1, "differences": 0}


def test_verify_tells_each_difference_and_cannot_drive_a_terminal(daemon: Daemon) -> None:
    daemon.start()
    begin_run(daemon, "a")
    daemon.stop()
    with closing(sqlite3.connect(daemon.database)) as connection, connection:
        connection.execute("UPDATE runs SET workflow = 'else'")
    ended = runhistd_command(daemon, "verify")
    assert ended.returncode == 1
    assert "1 run, 1 event checked; 1 difference:" in ended.stdout
    assert "run 'a' of 'default': run workflow: expected None, found 'else'" in ended.stdout
    *differences, totals = map(json.loads, runhistd_command(daemon, "verify", "--json").stdout.splitlines())
    assert [difference["what"] for difference in differences] == ["run workflow"]
    assert totals["differences"] == 1


def test_verify_of_a_file_that_is_no_database_says_so(daemon: Daemon) -> None:
    daemon.state_dir.mkdir()
    daemon.database.write_bytes(b"no database" * 1000)
    status, text = complaint(daemon, "verify")
    assert status == 1
    assert f"{daemon.database} cannot be read" in text


def test_verify_without_a_history_says_how_one_is_made(daemon: Daemon) -> None:
    status, text = complaint(daemon, "verify")
    assert status == 1
    assert str(daemon.database) in text and "runhistd serve" in text


def test_verify_shows_its_progress_on_a_terminal_only(daemon: Daemon) -> None:
    from runhistd.terminal import Progress

    ours, theirs = os.openpty()
    program = "from runhistd import terminal as t; t.PROGRESS_S = -1; p = t.Progress('checking runs'); p.show(1, 2)"
    subprocess.run([sys.executable, "-c", program], env=daemon.env, stderr=theirs, check=True)
    shown = os.read(ours, 1000).decode()
    assert "checking runs ███████████████░░░░░░░░░░░░░░░  50%  1 of 2" in shown
    os.close(ours)
    os.close(theirs)
    assert not Progress("").shown
