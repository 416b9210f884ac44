"""A full disk, for real: a small file system of its own. What was acknowledged stays, what is refused leaves nothing."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import runhist
from runhist.connection import Connection
from runhist.protocol.errors import StorageFull
from tests.acceptance.test_append import begin, connect, request
from tests.client.cli.shells import RUNHIST
from tests.conftest import Daemon

MIB = 1024 * 1024
DISK_MIB = 48
BIG = {"type": "output", "data": {"text": "x" * 30_000}}


@pytest.fixture
def small(tmp_path: Path, need: Callable[[str], str]) -> Iterator[Daemon]:
    """A daemon, not started yet, whose state directory is alone on a small file system."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = [need("mount"), "-t", "tmpfs", "-o", f"size={DISK_MIB}m,mode=700", "tmpfs", str(disk)]
    if subprocess.run(mounted, capture_output=True).returncode != 0:
        pytest.skip("this user may not mount a file system")
    daemon = Daemon(disk / "state")
    daemon.config_file = tmp_path / "small.toml"
    daemon.log_file = tmp_path / "small.log"
    daemon.env["RUNHIST_CONFIG"] = str(daemon.config_file)
    try:
        yield daemon
    finally:
        daemon.kill()
        subprocess.run([need("umount"), "-l", str(disk)], check=True)


def fill(daemon: Daemon, leave: int = 0) -> Path:
    """Take all room but so many bytes."""
    filler = daemon.state_dir.parent / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(64 * 1024))
    if leave:
        os.truncate(filler, filler.stat().st_size - leave)
    return filler


def status(connection: Connection) -> dict[str, Any]:
    return dict(connection.call("GetStatus", {}))


def append_until_full(connection: Connection, run_id: str, epoch: int, n: int = 1) -> int:
    """The n that is refused."""
    while True:
        try:
            connection.call("Append", request(run_id, epoch, n, BIG, BIG))
        except StorageFull:
            return n
        n += 2


def test_a_full_disk_refuses_whole_batches_reads_go_on_and_writing_resumes_by_itself(small: Daemon) -> None:
    small.start()
    with connect(small) as connection:
        epoch = begin(connection, "r")
        connection.call("Append", request("r", epoch, 1))
        filler = fill(small, leave=2 * MIB)
        n = append_until_full(connection, "r", epoch, 2)
        found = status(connection)
        assert found["state"] == "full"
        (trouble,) = found["troubles"]
        assert "the disk is full" in trouble["what"] and "resumes by itself" in trouble["what"]
        assert connection.call("GetRun", {"run_id": "r"})["run"]["last_seq"] == n, "nothing of the refused batch is there"
        shown = subprocess.run([*RUNHIST, "status"], env=small.env, capture_output=True, text=True)
        assert shown.returncode == 1 and "the disk is full" in shown.stdout
        with pytest.raises(StorageFull):
            connection.call("BeginRun", {"run": {"run_id": "s", "title": "x" * 60_000}, "lease_key": f"{1:032x}"})
        filler.unlink()
        assert connection.call("Append", request("r", epoch, n, BIG, BIG))["stored"] == 2
        assert status(connection)["state"] == "recording"
    small.stop()
    assert subprocess.run([sys.executable, "-m", "runhistd", "verify"], env=small.env).returncode == 0


def test_a_checkpoint_on_a_full_disk_loses_nothing_and_does_not_end_the_daemon(small: Daemon) -> None:
    small.start()
    with connect(small) as connection:
        epoch = begin(connection, "r")
        fill(small, leave=7 * MIB)  # the log finds room to grow, and the database none to take it in
        n = append_until_full(connection, "r", epoch)
        assert n > 10
        assert small.process is not None and small.process.poll() is None
        small.kill()
    small.start()
    with connect(small) as connection:
        assert connection.call("GetRun", {"run_id": "r"})["run"]["last_seq"] == n
    small.kill()
    assert subprocess.run([sys.executable, "-m", "runhistd", "verify"], env=small.env).returncode == 0


@pytest.mark.long
def test_retention_works_on_a_full_disk_with_the_reserve_which_is_made_again(
    small: Daemon, wait_until: Callable[..., None]
) -> None:
    small.start()
    reserve = small.state_dir / "reserve"
    assert reserve.stat().st_size == DISK_MIB * MIB // 8
    with connect(small) as connection:
        epochs = [begin(connection, run_id, i) for i, run_id in enumerate(("old", "new"))]
        for run_id, epoch in zip(("old", "new"), epochs, strict=True):
            connection.call("Append", request(run_id, epoch, 1, *[BIG] * 200, {"type": "run.completed"}))
        epoch = begin(connection, "live", 3)
        fill(small)
        n = append_until_full(connection, "live", epoch)
        assert reserve.exists()
        connection.call("DeleteRun", {"run_id": "old"})  # which a full disk alone would refuse
        wait_until(lambda: status(connection)["state"] == "recording", "the freed room is given back")
        assert reserve.exists(), "and the reserve is there for the next time"
        assert connection.call("Append", request("live", epoch, n, BIG))["stored"] == 1
        names = [run["run_id"] for run in connection.call("ListRuns", {})["runs"]]
        assert names == ["live", "new"]
    assert "the reserve is used" in small.log_text()


def test_a_full_disk_starts_a_pass_of_retention(small: Daemon, wait_until: Callable[..., None]) -> None:
    small.config_file.write_text("[retention]\nmax_runs_per_agent = 1\ninterval_s = 100000\n")
    small.start()
    with connect(small) as connection:
        wait_until(lambda: status(connection)["retention"]["last_us"], "the pass of the start is over")
        for i, run_id in enumerate(("old", "new")):
            epoch = begin(connection, run_id, i)
            connection.call("Append", request(run_id, epoch, 1, *[BIG] * 200, {"type": "run.completed"}))
        epoch = begin(connection, "live", 3)
        fill(small)
        append_until_full(connection, "live", epoch)
        wait_until(lambda: status(connection)["retention"]["removed"] == 1, "the oldest run made room")
        wait_until(lambda: status(connection)["state"] == "recording", "writes are taken again")


def test_content_that_finds_no_room_is_refused_and_leaves_nothing(small: Daemon) -> None:
    small.start()
    with connect(small) as connection:
        fill(small, leave=MIB)
        upload = "00000000-0000-4000-8000-0000000000ff"
        chunk = {"upload": upload, "base64": "eHh4" * 100_000}
        with pytest.raises(StorageFull):
            for i in range(20):
                connection.call("PutBlob", {**chunk, "offset": i * 300_000})
        assert [path for path in (small.state_dir / "blobs").rglob("*") if path.is_file()] == []


def test_a_daemon_starts_on_a_full_disk_and_reads(small: Daemon) -> None:
    small.start()
    with connect(small) as connection:
        epoch = begin(connection, "r")
        connection.call("Append", request("r", epoch, 1, *[BIG] * 29))
    small.kill()
    fill(small)
    small.start()
    with connect(small) as connection:
        assert connection.call("GetRun", {"run_id": "r"})["run"]["last_seq"] == 30
        with pytest.raises(StorageFull):
            for n in range(30, 1000):
                connection.call("Append", request("r", epoch, n, BIG))
        assert status(connection)["state"] == "full"


def test_little_room_is_told_before_it_is_none(small: Daemon) -> None:
    small.start()
    with connect(small) as connection:
        found = status(connection)
        assert found["state"] == "recording"
        assert "MB free on the disk of" in found["troubles"][0]["what"]
        assert begin(connection, "r")


def test_an_engine_goes_on_over_a_full_disk_and_all_of_it_is_recorded_once_there_is_room(
    small: Daemon, lead_to: Callable[[Daemon], Daemon]
) -> None:
    lead_to(small).start()
    run = runhist.connect(deadline=30).begin_run(run_id="r")
    run.note("before")
    assert run.flush().durable == "committed"
    filler = fill(small)
    for i in range(40):
        run.append("x", {"i": i, "text": "y" * 50_000})
    with pytest.raises(runhist.RunhistError):
        run.flush(deadline=1)
    filler.unlink()
    run.complete()
    assert run.flush(deadline=30).durable == "committed"
    with connect(small) as connection:
        assert connection.call("GetRun", {"run_id": "r"})["run"]["last_seq"] == 43


def test_a_spool_on_a_full_disk_is_told_in_the_receipt(small: Daemon, lead_to: Callable[[Daemon], Daemon]) -> None:
    lead_to(small).start()
    small.stop()
    filler = fill(small)
    run = runhist.connect(deadline=30).begin_run(run_id="r")
    for i in range(5):
        run.append("x", {"i": i, "text": "y" * 20_000})
    receipt = run.flush(deadline=1)
    assert receipt.durable == "off" and receipt.faults > 0
    filler.unlink()
    assert run.flush(deadline=10).durable == "spooled"
    small.start()
    run.complete()
    assert run.flush(deadline=30).durable == "committed"
    with connect(small) as connection:
        assert connection.call("GetRun", {"run_id": "r"})["run"]["last_seq"] == 7


def test_a_backup_that_finds_no_room_says_so_and_leaves_nothing(
    small: Daemon, new_daemon: Callable[[], Daemon]
) -> None:
    daemon = new_daemon().start()
    with connect(daemon) as connection:
        epoch = begin(connection, "r")
        connection.call("Append", request("r", epoch, 1, *[BIG] * 100))
    small.state_dir.mkdir()
    fill(small, leave=MIB)
    target = small.state_dir / "copy"
    command = [sys.executable, "-m", "runhistd", "backup", str(target)]
    done = subprocess.run(command, env=daemon.env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == "runhistd: no copy was made: the disk is full\n"
    assert list(target.iterdir()) == []
