"""A damaged database is closed as it is, everybody is told what to type, and nothing is written to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from runhist.connection import Connection, Unreachable
from runhist.protocol.errors import Damaged
from tests.acceptance.test_append import begin, connect, request
from tests.client.cli.shells import RUNHIST
from tests.faults.damage import flip, page_with, root_of

if TYPE_CHECKING:
    from tests.conftest import Daemon


@pytest.fixture
def filled(daemon: Daemon) -> Daemon:
    """A stopped daemon with some runs; it is sound."""
    daemon.start()
    with connect(daemon) as connection:
        for run_id in ("a", "b", "c"):
            epoch = begin(connection, run_id)
            for n in range(1, 30):
                connection.call("Append", request(run_id, epoch, n))
    daemon.stop()
    return daemon


def kept_files(daemon: Daemon) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in daemon.state_dir.glob("history.db*") if not path.name.endswith("-shm")}


def state(daemon: Daemon) -> str:
    try:
        with connect(daemon) as connection:
            return str(connection.call("GetStatus", {})["state"])
    except Unreachable:
        return "away"  # for the moment in which the sockets are bound anew


def assert_damaged(daemon: Daemon, connection: Connection) -> None:
    for method, parameters in (
        ("Describe", {}),
        ("GetRun", {"run_id": "a"}),
        ("ListRuns", {}),
        ("BeginRun", {"run": {"run_id": "x"}, "lease_key": "5a5e4c1e-93a5-4a04-9d3b-6d3f6e0c2a11"}),
        ("Append", request("a", 1, 99)),
        ("CollectGarbage", {}),
    ):
        with pytest.raises(Damaged) as caught:
            connection.call(method, parameters)
        assert caught.value.parameters["command"] == "runhistd recover"
    found = connection.call("GetStatus", {})
    assert found["state"] == "damaged"
    assert [trouble["command"] for trouble in found["troubles"]][:1] == ["runhistd recover"]
    shown = subprocess.run([*RUNHIST, "status"], env=daemon.env, capture_output=True, text=True)
    assert shown.returncode == 1
    assert "the database is damaged" in shown.stdout and "type: runhistd recover" in shown.stdout
    assert "unknown while the database is closed" in shown.stdout


def test_a_database_that_cannot_be_opened_is_told_of_and_kept_byte_for_byte(filled: Daemon) -> None:
    flip(filled.database, 1, length=100)
    before = kept_files(filled)
    process = filled.start().process
    assert process is not None
    with connect(filled) as connection:
        assert_damaged(filled, connection)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert kept_files(filled) == before


def test_damage_that_an_append_meets_stops_all_writing_and_answers_nobody_first(
    filled: Daemon, wait_until: Callable[..., None]
) -> None:
    flip(filled.database, root_of(filled.database, "runs"))
    filled.start()
    with connect(filled) as connection, pytest.raises((Unreachable, Damaged)):
        connection.call("Append", request("a", 1, 30))
    wait_until(lambda: state(filled) == "damaged", "the damage is noticed")
    before = kept_files(filled)
    with connect(filled) as connection:
        assert_damaged(filled, connection)
    assert kept_files(filled) == before
    assert filled.process is not None and filled.process.poll() is None


def test_damage_that_a_reader_meets_stops_all_writing_too(filled: Daemon, wait_until: Callable[..., None]) -> None:
    flip(filled.database, page_with(filled.database, b'{"run_id":"a"}'))
    filled.start()
    with connect(filled) as connection:
        epoch = begin(connection, "unhurt")
        connection.call("Append", request("unhurt", epoch, 1))
        with pytest.raises(Damaged):
            connection.call("GetEvents", {"run_id": "a"})
    wait_until(lambda: state(filled) == "damaged", "the damage is noticed")
    before = kept_files(filled)
    assert before["history.db-wal"], "no checkpoint was made over the database"
    with connect(filled) as connection:
        assert_damaged(filled, connection)
    assert kept_files(filled) == before


def test_the_damage_is_remembered_and_the_next_start_touches_nothing(filled: Daemon) -> None:
    flip(filled.database, root_of(filled.database, "runs"))
    filled.start()
    with connect(filled) as connection, pytest.raises((Unreachable, Damaged)):
        connection.call("Append", request("a", 1, 30))
    filled.kill()
    before = kept_files(filled)
    filled.start()
    assert state(filled) == "damaged"
    filled.kill()
    assert kept_files(filled) == before


def test_the_lock_is_given_up_and_another_database_is_served_by_the_same_process(
    filled: Daemon, wait_until: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> None:
    sound = filled.database.read_bytes()
    flip(filled.database, 1)
    process = filled.start().process
    assert process is not None
    assert state(filled) == "damaged"
    restored = tmp_path_factory.mktemp("copy") / "history.db"
    restored.write_bytes(sound)
    done = subprocess.run(
        [sys.executable, "-m", "runhistd", "restore", str(restored.parent), "--move-aside"],
        env=filled.env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    wait_until(lambda: state(filled) == "recording", "the restored history is served")
    assert process.poll() is None and filled.pid == process.pid
    with connect(filled) as connection:
        assert connection.call("GetRun", {"run_id": "a"})["run"]["last_seq"] == 31
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(30) == 0


def runhistd(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "runhistd", *arguments]
    return subprocess.run(command, env=daemon.env, capture_output=True, text=True, timeout=120)


def test_recover_saves_what_can_be_read_and_the_daemon_that_told_of_it_serves_that(
    filled: Daemon, wait_until: Callable[..., None]
) -> None:
    flip(filled.database, page_with(filled.database, b'{"n":20}'))
    process = filled.start().process
    with connect(filled) as connection:
        old = connection.call("GetStatus", {})["instance_id"]
        with pytest.raises(Damaged):
            for run_id in "abc":
                connection.call("GetEvents", {"run_id": run_id})
    wait_until(lambda: state(filled) == "damaged", "the damage is noticed")
    before = kept_files(filled)
    done = runhistd(filled, "recover")
    assert (done.returncode, done.stderr) == (0, "")
    sys.stdout.write(done.stdout)
    assert "lost of run 'a' of 'default': " in done.stdout and ", seq " in done.stdout
    (aside,) = filled.state_dir.glob("damaged-*")
    assert str(aside) in done.stdout
    assert {path.name: path.read_bytes() for path in aside.iterdir() if path.name in before} == before
    wait_until(lambda: state(filled) == "recording", "the recovered history is served")
    assert process is not None and process.poll() is None
    with connect(filled) as connection:
        assert connection.call("GetStatus", {})["instance_id"] != old
        found = connection.call("GetRun", {"run_id": "a"})
        assert (found["run"]["status"], found["detail"]["evidence"]["reason"]) == ("incomplete", "recovered")
        page = connection.call("GetEvents", {"run_id": "a", "kinds": ["run.started"]})
        assert [gap["rule"] for gap in page["gaps"]] == ["events.lost"]
    assert runhistd(filled, "verify").returncode == 0


def test_recover_leaves_a_sound_history_alone(filled: Daemon) -> None:
    before = filled.database.read_bytes()
    done = runhistd(filled, "recover")
    assert done.returncode == 0 and "is sound, and was left as it is" in done.stdout
    assert filled.database.read_bytes() == before


def test_recover_needs_a_history_that_nobody_serves(filled: Daemon) -> None:
    filled.start()
    done = runhistd(filled, "recover")
    assert done.returncode == 1 and f"kill {filled.pid}" in done.stderr


def test_a_damaged_backup_is_refused_by_restore_and_recovered_by_its_own_command(filled: Daemon, tmp_path: Path) -> None:
    assert runhistd(filled, "backup", str(tmp_path / "copy")).returncode == 0
    copied = tmp_path / "copy" / "history.db"
    flip(copied, page_with(copied, b'{"n":20}'))
    refused = runhistd(filled, "restore", str(tmp_path / "copy"), "--move-aside")
    assert refused.returncode == 1 and f"runhistd recover {tmp_path / 'copy'}" in refused.stderr
    done = runhistd(filled, "recover", str(tmp_path / "copy"), "--json")
    assert done.returncode == 0
    *losses, totals = map(json.loads, done.stdout.splitlines())
    assert losses and totals["lost_events"] == sum(loss["events"] for loss in losses)
    assert totals["moved_to"] is not None
