"""Backup and restore of a real daemon's history, with everybody around who still holds something of the old one."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import runhist
from runhist.connection import Connection
from runhist.paths import choose_sockets
from runhist.protocol.errors import NoSuchRun, PositionExpired, Refusal, StaleEpoch
from runhist.spool import quarantined
from runhistd.store.verify import verify
from tests.client.cli.shells import RUNHIST

if TYPE_CHECKING:
    from tests.conftest import Daemon

LONG = 30.0


@pytest.fixture
def env(daemon: Daemon, lead_to: Callable[[Daemon], Daemon]) -> Daemon:
    """A daemon that serves, and clients of this process that find it."""
    return lead_to(daemon).start()


def files(directory: Path) -> dict[str, bytes]:
    """What lies in the directory, but for the lock file, which names whoever held it last."""
    found = (path for path in directory.iterdir() if path.is_file() and path.name != "runhistd.lock")
    return {path.name: path.read_bytes() for path in found}


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


ENGINE = """
import sys, runhist
history = runhist.connect(deadline=30)
run = history.begin_run(run_id=sys.argv[1])
for i in range(int(sys.argv[2])):
    run.append("x", {"i": i})
run.checkpoint({"i": i})
print(run.flush().durable, run.epoch, flush=True)
for line in sys.stdin:
    run.append("x", {"late": line.strip()})
    try:
        print(run.flush(deadline=20).durable, run.faults, flush=True)
    except runhist.StaleEpoch:
        print("refused", run.faults, flush=True)
"""


class Engine:
    """A process that records ten events and then one for each line that it is told."""

    def __init__(self, env: Daemon, run_id: str) -> None:
        command = [sys.executable, "-c", ENGINE, run_id, "10"]
        self.process = subprocess.Popen(command, env=env.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        durable, epoch = self.heard()
        assert durable == "committed"
        self.epoch = int(epoch)

    def heard(self) -> list[str]:
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()

    def record(self, text: str) -> list[str]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{text}\n")
        self.process.stdin.flush()
        return self.heard()

    def end(self) -> None:
        self.process.communicate(timeout=LONG)


def cursor_now() -> runhist.Cursor:
    """Where a follower stands that has seen everything."""
    with Connection.open(choose_sockets()) as connection:
        now = connection.call("GetStatus", {})
    return runhist.Cursor(now["instance_id"], now["position"])


def refusal_of(method: str, **parameters: object) -> Refusal:
    with Connection.open(choose_sockets()) as connection, pytest.raises(Refusal) as caught:
        if method == "Follow":
            next(iter(connection.stream(method, parameters)))
        else:
            connection.call(method, parameters)
    return caught.value


def test_the_restore_drill(env: Daemon, tmp_path: Path, wait_until: Callable[..., None]) -> None:
    history = runhist.connect(deadline=LONG)
    with history.begin_run(run_id="before") as run:
        run.note("kept")
    history.begin_run(run_id="waits").release()
    engine = Engine(env, "goes-on")
    assert runhistd(env, "backup", tmp_path / "copy").returncode == 0

    # What the restored history will not know: events, a whole run, a claim; and who has been told of them.
    assert engine.record("after the copy")[0] == "committed"
    with history.begin_run(run_id="after") as run:
        run.note("lost")
    claimed = history.claim_run("waits")
    claimed.note("under a later epoch")
    assert claimed.flush().durable == "committed"
    late_epoch, cursor = claimed.epoch, cursor_now()
    assert late_epoch is not None and late_epoch > engine.epoch

    env.stop()
    assert engine.record("while nobody serves")[0] == "spooled"
    held = runhistd(env, "restore", tmp_path / "copy")
    assert held.returncode == 1 and "--move-aside" in held.stderr and "was not touched" in held.stderr
    before = env.database.read_bytes()
    done = runhistd(env, "restore", tmp_path / "copy", "--move-aside")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    sys.stdout.write(done.stdout)
    assert "incomplete now, because it was going on: 1 run: goes-on" in done.stdout
    aside = next(env.state_dir.glob("before-restore-*"))
    assert str(aside) in done.stdout
    assert (aside / "history.db").read_bytes() == before
    env.start()

    # The runs: what was going on is incomplete, with the evidence; what came after the copy never was.
    goes_on = history.run("goes-on").get()
    assert (goes_on.status, goes_on.last_seq) == ("incomplete", 13)
    interrupted, waits = history.interrupted()
    assert waits.evidence is not None and waits.evidence["reason"] == "released"
    assert interrupted.evidence is not None and interrupted.evidence["reason"] == "restored"
    assert [found.run_id for found in history.list_runs()] == ["goes-on", "waits", "before"]

    # The engine: neither what it sends now nor what it spooled gets in; it is told, and the spool file is put aside.
    durable, faults = engine.record("after the restore")
    assert durable == "refused" and int(faults) > 0
    wait_until(lambda: quarantined(env.state_dir / "spool"), "the spool of the old instance is put aside")
    event = {"type": "x", "key": "k"}
    stale = refusal_of("Append", run_id="goes-on", epoch=engine.epoch, events=[event])
    assert isinstance(stale, StaleEpoch) and stale.parameters["epoch"] > late_epoch
    assert isinstance(refusal_of("Append", run_id="waits", epoch=late_epoch, events=[event]), StaleEpoch)
    assert isinstance(refusal_of("Append", run_id="after", epoch=late_epoch, events=[event]), NoSuchRun)
    engine.end()

    # The follower: its cursor is of another history.
    old = {"instance_id": cursor.instance_id, "position": cursor.position}
    assert isinstance(refusal_of("Follow", cursor=old), PositionExpired)
    nobodys = {"instance_id": None, "position": cursor.position + 1000}
    assert isinstance(refusal_of("Follow", cursor=nobodys), PositionExpired)

    # And it goes on: whoever claims the run continues it from its checkpoint.
    with history.claim_run("goes-on") as claimed:
        assert claimed.checkpoint_data == {"i": 9}
        claimed.append("x", {"i": 10})
    assert history.run("goes-on").get().status == "completed"
    assert runhistd(env, "verify").returncode == 0


def test_two_restores_of_one_copy_never_grant_the_same_epoch(env: Daemon, tmp_path: Path) -> None:
    epochs: list[int | None] = []
    runhist.connect(deadline=LONG).begin_run(run_id="r").release()
    assert runhistd(env, "backup", tmp_path / "copy").returncode == 0
    for _ in range(2):
        env.stop()
        assert runhistd(env, "restore", tmp_path / "copy", "--move-aside").returncode == 0
        next(env.state_dir.glob("before-restore-*")).rename(tmp_path / f"old{len(epochs)}")
        env.start()
        run = runhist.connect(deadline=LONG).claim_run("r")
        run.flush()
        epochs.append(run.epoch)
        run.release()
    assert len(set(epochs)) == 2


def test_a_restore_needs_the_daemon_to_be_stopped_and_says_which_it_is(env: Daemon, tmp_path: Path) -> None:
    assert runhistd(env, "backup", tmp_path / "copy").returncode == 0
    refused = runhistd(env, "restore", tmp_path / "copy", "--move-aside")
    assert refused.returncode == 1 and f"kill {env.pid}" in refused.stderr


@pytest.mark.parametrize("left", ["nothing", "partial", "garbage", "newer"])
def test_what_is_no_copy_changes_nothing(left: str, env: Daemon, tmp_path: Path) -> None:
    runhist.connect(deadline=LONG).begin_run(run_id="r").complete()
    assert runhistd(env, "backup", tmp_path / "copy").returncode == 0
    env.stop()
    copied = tmp_path / "copy" / "history.db"
    if left == "nothing":
        copied.unlink()
    elif left == "partial":
        copied.rename(tmp_path / "copy" / "history.db.partial")
    elif left == "garbage":
        copied.write_bytes(os.urandom(20_000))
    else:
        with closing(sqlite3.connect(copied)) as connection:
            connection.execute("PRAGMA user_version = 999")
    found = files(env.state_dir)
    refused = runhistd(env, "restore", tmp_path / "copy", "--move-aside")
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
    told = {"nothing": "no history.db in", "partial": "not finished", "garbage": "nothing was restored", "newer": "newer"}
    assert told[left] in refused.stderr
    assert files(env.state_dir) == found
    assert not (env.state_dir / "restoring").exists()


def test_a_restored_history_has_the_content_of_its_artifacts(env: Daemon, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.write_bytes(b"content" * 1000)
    with runhist.connect(deadline=LONG).begin_run(run_id="r") as run:
        run.artifact(made, keep=True)
    assert runhistd(env, "backup", tmp_path / "copy").returncode == 0
    env.stop()
    for path in env.state_dir.iterdir():
        if path.name.startswith("history.db"):
            path.unlink()
    shutil.rmtree(env.state_dir / "blobs")
    assert runhistd(env, "restore", tmp_path / "copy").returncode == 0
    env.start()
    got = tmp_path / "got"
    command = [*RUNHIST, "artifact", "get", "r", "made", "-o", str(got)]
    subprocess.run(command, env=env.env, check=True)
    assert got.read_bytes() == made.read_bytes()


def test_root_restores_and_recovers_the_history_of_another_user_for_that_user(env: Daemon, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may")
    runhist.connect(deadline=LONG).begin_run(run_id="r").complete()
    assert runhistd(env, "backup", tmp_path / "copy", "--system").returncode == 0
    env.stop()
    nobody = 65534
    for path in (env.state_dir, *env.state_dir.rglob("*")):
        os.chown(path, nobody, nobody)
    assert runhistd(env, "restore", tmp_path / "copy", "--move-aside", "--system").returncode == 0
    env.database.write_bytes(b"damaged" + env.database.read_bytes()[7:])
    assert runhistd(env, "recover", "--system").returncode == 0
    found = {path: path.lstat().st_uid for path in env.state_dir.rglob("*")}
    assert set(found.values()) == {nobody}, found
    refused = runhistd(env, "serve")
    assert refused.returncode == 1 and "belongs to user 65534" in refused.stderr
