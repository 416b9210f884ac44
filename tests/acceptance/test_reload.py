"""Settings that change while the daemon serves."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runhist.connection import Connection
from runhist.paths import SocketChoice
from runhist.protocol.errors import Busy

if TYPE_CHECKING:
    from tests.conftest import Daemon

Wait = Callable[..., None]


def connect(daemon: Daemon) -> Connection:
    return Connection.open(SocketChoice((daemon.socket,), "a test", True))


def write_by_rename(daemon: Daemon, text: str) -> None:
    """As an editor does."""
    new = daemon.config_file.with_suffix(".new")
    new.write_text(text)
    new.rename(daemon.config_file)


def event_bytes(connection: Connection) -> int:
    return int(connection.call("Describe", {})["limits"]["event_bytes"])


def faults(connection: Connection) -> dict[str, str]:
    found: dict[str, Any] = connection.call("GetStatus", {})["config"]
    return {fault["key"]: fault["message"] for fault in found["faults"]}


def run_command(daemon: Daemon, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *words],
        env=daemon.env,
        cwd=daemon.state_dir.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_valid_change_applies_without_a_restart_and_drops_no_connection(daemon: Daemon, wait_until: Wait) -> None:
    daemon.start()
    pid = daemon.pid
    with connect(daemon) as connection:
        before = event_bytes(connection)
        write_by_rename(daemon, "[limits]\nevent_bytes = 4096\n")
        wait_until(lambda: event_bytes(connection) == 4096, "the new limit holds")
        daemon.config_file.unlink()
        wait_until(lambda: event_bytes(connection) == before, "the default holds again")
    assert daemon.pid == pid


def test_a_directory_that_appears_later_is_watched_too(daemon: Daemon, wait_until: Wait) -> None:
    file = daemon.config_file.parent / "made" / "later" / "config.toml"
    daemon.start(env={"RUNHIST_CONFIG": str(file)})
    with connect(daemon) as connection:
        file.parent.mkdir(parents=True)
        file.write_text("[limits]\nevent_bytes = 4096\n")
        wait_until(lambda: event_bytes(connection) == 4096, "the new limit holds")


def test_sighup_means_look_again(daemon: Daemon, wait_until: Wait, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.toml"
    elsewhere.write_text("")
    daemon.config_file.symlink_to("link.toml")
    (daemon.config_file.parent / "link.toml").symlink_to(elsewhere)
    daemon.start()
    with connect(daemon) as connection:
        elsewhere.write_text("[limits]\nevent_bytes = 4096\n")
        os.kill(daemon.pid, signal.SIGHUP)
        wait_until(lambda: event_bytes(connection) == 4096, "the new limit holds", deadline_s=5)


def test_an_invalid_change_keeps_the_old_and_names_every_fault(daemon: Daemon, wait_until: Wait) -> None:
    daemon.config_file.write_text("[limits]\nevent_bytes = 4096\n")
    daemon.start()
    with connect(daemon) as connection:
        write_by_rename(daemon, '[limits]\nevent_bytes = -1\nqueue_bytes = "much"\n')
        wait_until(lambda: faults(connection), "the faults are told")
        assert set(faults(connection)) == {"limits.event_bytes", "limits.queue_bytes"}
        assert event_bytes(connection) == 4096
        for key in faults(connection):
            assert re.search(f"level=error .*key={key} fault=", daemon.log_text())
        ended = run_command(daemon, "runhist.cli.main", "status")
        assert ended.returncode == 1
        assert "limits.event_bytes: must be from" in ended.stdout
        assert "limits.queue_bytes: must be a whole number" in ended.stdout
        write_by_rename(daemon, "[limits]\nevent_bytes = 8192\n")
        wait_until(lambda: event_bytes(connection) == 8192, "the mended file holds")
        assert faults(connection) == {}


def test_what_open_connections_keep_is_said(daemon: Daemon, wait_until: Wait) -> None:
    daemon.start()
    write_by_rename(daemon, "[limits]\nframe_bytes = 8388608\n")
    wait_until(lambda: "open connections keep theirs" in daemon.log_text(), "the log says so")
    assert "key=limits.frame_bytes value=8388608" in daemon.log_text()


def test_fewer_connections_are_taken_after_a_change(daemon: Daemon, wait_until: Wait) -> None:
    daemon.start()
    with connect(daemon) as first:
        write_by_rename(daemon, "[limits]\nconnections = 1\n")
        wait_until(lambda: "key=limits.connections value=1" in daemon.log_text(), "the change is taken over")
        with pytest.raises(Busy), connect(daemon) as second:
            event_bytes(second)
        assert event_bytes(first) > 0


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="context switches are counted in /proc")
def test_an_idle_daemon_wakes_less_than_five_times_a_second(daemon: Daemon, wait_until: Wait) -> None:
    daemon.start()

    def wake_ups() -> int:
        tasks = Path(f"/proc/{daemon.pid}/task").glob("*/status")
        counts = (re.findall(r"^voluntary_ctxt_switches:\s*(\d+)", task.read_text(), re.M) for task in tasks)
        return sum(int(count) for found in counts for count in found)

    wait_until(lambda: "msg=ready" in daemon.log_text(), "it serves")
    settled = time.monotonic() + 1
    wait_until(lambda: time.monotonic() > settled, "the start is over")
    before, begun = wake_ups(), time.monotonic()
    wait_until(lambda: time.monotonic() > begun + 4, "some time passes")
    assert (wake_ups() - before) / (time.monotonic() - begun) < 5


def test_config_check_names_every_fault_at_once(daemon: Daemon) -> None:
    ended = run_command(daemon, "runhistd", "config", "check")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "the defaults hold" in ended.stdout
    daemon.config_file.write_text("[limits]\nevent_bytes = -1\nevent_bites = 3\n")
    ended = run_command(daemon, "runhistd", "config", "check")
    assert ended.returncode == 2
    assert "limits.event_bytes: must be from" in ended.stderr
    assert "did you mean limits.event_bytes?" in ended.stderr
    ended = run_command(daemon, "runhistd", "config", "check", "--json")
    assert [fault["key"] for fault in json.loads(ended.stdout)["faults"]] == ["limits.event_bites", "limits.event_bytes"]


def test_config_show_tells_where_each_value_comes_from(daemon: Daemon) -> None:
    daemon.config_file.write_text("[limits]\nevent_bytes = 4096\n")
    shown = json.loads(run_command(daemon, "runhistd", "config", "show", "--json").stdout)
    assert shown["limits.event_bytes"] == {"value": 4096, "from": str(daemon.config_file)}
    assert shown["limits.frame_bytes"]["from"] == "default"
    text = run_command(daemon, "runhistd", "config", "show").stdout
    assert re.search(rf"^limits.event_bytes = 4096 +# {re.escape(str(daemon.config_file))}$", text, re.M)
