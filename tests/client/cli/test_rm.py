"""Deleting, pinning and what followers hear of it, against a real daemon."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import runhist
from runhist.connection import Connection
from runhist.paths import SocketChoice
from runhist.protocol.errors import InvalidParameter, NoSuchRun, RunDeleted
from tests.client.cli.shells import RUNHIST, Terminal, run, start

if TYPE_CHECKING:
    from tests.conftest import Daemon

BOTH = {"one-1111", "two-2222"}
Wait = Callable[..., None]
LEASE = "00000000-0000-4000-8000-00000000000{}"


class Recorder:
    """Makes runs by hand."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.connection = Connection.open(SocketChoice((daemon.socket,), "a test", True))
        self.begun = 0

    def begin(self, run_id: str, **spec: Any) -> int:
        self.begun += 1
        asked = {"run": {"run_id": run_id, **spec}, "lease_key": LEASE.format(self.begun)}
        return int(self.connection.call("BeginRun", asked)["epoch"])

    def closed(self, run_id: str, notes: int = 0, **spec: Any) -> int:
        epoch = self.begin(run_id, **spec)
        for i in range(0, notes, 100):
            events = [{"type": "note", "key": f"{i + k}", "data": {"text": "x" * 1000}} for k in range(100)]
            self.connection.call("Append", {"run_id": run_id, "epoch": epoch, "events": events})
        end = {"type": "run.completed", "key": "end"}
        self.connection.call("Append", {"run_id": run_id, "epoch": epoch, "events": [end]})
        return epoch

    def ids(self) -> set[str]:
        return {found["run_id"] for found in self.connection.call("ListRuns", {})["runs"]}

    def rm(self, *words: str, status: int = 0) -> str:
        done = run("rm", *words, env=self.daemon.env)
        assert done.returncode == status, (words, done.stdout, done.stderr)
        return (done.stdout + done.stderr).decode()


@pytest.fixture
def recorder(daemon: Daemon) -> Recorder:
    return Recorder(daemon.start())


def test_several_are_deleted_with_one_object_each(recorder: Recorder) -> None:
    recorder.closed("one-1111")
    recorder.closed("two-2222")
    recorder.closed("three-3333")
    lines = [json.loads(line) for line in recorder.rm("--yes", "--json", "1111", "two-2222", "never-was").splitlines()]
    assert [(line["run_id"], line["deleted"]) for line in lines] == [
        *(("one-1111", True), ("two-2222", True)),
        ("never-was", False),
    ]
    assert recorder.ids() == {"three-3333"}


def test_it_needs_a_yes_where_nobody_can_be_asked(recorder: Recorder) -> None:
    recorder.closed("one-1111")
    assert "--yes" in recorder.rm("one-1111", status=2)
    assert recorder.ids() == {"one-1111"}


@pytest.mark.parametrize(("answer", "left"), [(b"n\n", BOTH), (b"\n", BOTH), (b"y\n", set())])
def test_it_asks_at_a_terminal_and_shows_how_far_it_is(recorder: Recorder, answer: bytes, left: set[str]) -> None:
    recorder.closed("one-1111", title="The \x1b[31mfirst")
    recorder.closed("two-2222")
    with Terminal([*RUNHIST, "rm", "one-1111", "two-2222"], env=recorder.daemon.env) as terminal:
        shown = terminal.until(b"[y/N] ")
        assert b"delete these 2 runs for good?" in shown
        assert b"\x1b[31m" not in shown
        terminal.type(answer)
        wait_status, rest = terminal.rest()
    assert recorder.ids() == left
    assert os.waitstatus_to_exitcode(wait_status) == (1 if left else 0)
    assert (b"1 of 2 runs" in rest) == (not left)


@pytest.mark.parametrize("status", ["running", "paused"])
def test_a_live_run_is_refused_with_the_way_out(recorder: Recorder, status: str) -> None:
    epoch = recorder.begin("live-1111")
    if status == "paused":
        pause = {"type": "run.paused", "key": "p"}
        recorder.connection.call("Append", {"run_id": "live-1111", "epoch": epoch, "events": [pause]})
    text = recorder.rm("--yes", "live-1111", status=4)
    assert status in text
    assert "runhist end" in text
    assert recorder.ids() == {"live-1111"}


def test_deleting_twice_is_no_fault(recorder: Recorder) -> None:
    recorder.closed("one-1111")
    recorder.rm("--yes", "one-1111")
    assert "was not there" in recorder.rm("--yes", "one-1111")


def test_a_stale_writer_of_a_deleted_run_is_refused(recorder: Recorder) -> None:
    epoch = recorder.closed("one-1111")
    recorder.rm("--yes", "one-1111")
    late = {"run_id": "one-1111", "epoch": epoch, "events": [{"type": "note", "key": "late"}]}
    with pytest.raises(RunDeleted, match="was deleted"):
        recorder.connection.call("Append", late)
    with pytest.raises(RunDeleted):
        recorder.connection.call("BeginRun", {"run": {"run_id": "one-1111"}, "lease_key": LEASE.format(1)})
    with pytest.raises(NoSuchRun):
        recorder.connection.call("GetRun", {"run_id": "one-1111"})


@pytest.mark.long
def test_a_crash_while_it_is_cleared_away_is_made_up_for(recorder: Recorder, wait_until: Wait) -> None:
    recorder.closed("big-1111", notes=5000)
    daemon = recorder.daemon
    recorder.connection.call("DeleteRun", {"run_id": "big-1111"})
    os.kill(daemon.pid, signal.SIGKILL)
    daemon.kill()
    daemon.start()
    connection = Connection.open(SocketChoice((daemon.socket,), "a test", True))
    assert connection.call("ListRuns", {})["runs"] == []
    wait_until(lambda: connection.call("GetStatus", {})["database_bytes"] < 500_000, "the space is given back")
    connection.close()
    assert run("status", env=daemon.env).returncode == 0


def test_a_follower_is_told_of_the_gap(recorder: Recorder) -> None:
    recorder.closed("one-1111")
    recorder.closed("two-2222")
    recorder.rm("--yes", "one-1111")
    for reply in recorder.connection.stream("Follow", {"cursor": {"position": 0}}):
        gaps = [item["gap"] for item in reply["items"] if item.get("gap")]
        events = [item["event"]["run_id"] for item in reply["items"] if item.get("event")]
        break
    assert gaps == [
        {"namespace": "default", "run_id": "one-1111", "from_position": 1, "to_position": 2, "rule": "deleted"},
    ]
    assert set(events) == {"two-2222"}


def test_a_follower_in_python_is_told_of_the_gap(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder.closed("one-1111")
    recorder.closed("two-2222")
    recorder.rm("--yes", "one-1111")
    monkeypatch.setenv("RUNHIST_SOCKET", str(recorder.daemon.socket))
    history = runhist.connect()
    with history.follow(0) as follower:
        assert next(follower) == runhist.Gap("default", "one-1111", 1, 2, "deleted")
        assert next(follower).run_id == "two-2222"
    history.close()


def test_following_a_run_in_python_ends_when_it_is_deleted(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNHIST_SOCKET", str(recorder.daemon.socket))
    epoch = recorder.begin("one-1111")
    history = runhist.connect()
    events = history.run("one-1111").events(follow=True, after_seq=1)
    stored = {"run_id": "one-1111", "epoch": epoch}
    recorder.connection.call("Append", {**stored, "events": [{"type": "note", "key": "a"}]})
    assert next(events).type == "note"
    recorder.daemon.stop()  # so that the follower is behind when the run ends and goes
    recorder.daemon.start()
    recorder.connection.close()
    recorder.connection = Connection.open(SocketChoice((recorder.daemon.socket,), "a test", True))
    recorder.connection.call("Append", {**stored, "events": [{"type": "run.completed", "key": "end"}]})
    recorder.connection.call("DeleteRun", {"run_id": "one-1111"})
    with pytest.raises(NoSuchRun):
        next(events)
    history.close()


def test_deleting_what_a_follower_still_reads_from_memory_tells_it_too(recorder: Recorder) -> None:
    recorder.closed("one-1111", notes=300)
    replies = recorder.connection.stream("Follow", {"cursor": {"position": 0}})
    first = next(replies)
    assert len(first["items"]) == 100
    cursor = first["cursor"]
    other = Connection.open(SocketChoice((recorder.daemon.socket,), "a test", True))
    other.call("DeleteRun", {"run_id": "one-1111"})
    again = next(other.stream("Follow", {"cursor": cursor}))
    assert [item["gap"]["run_id"] for item in again["items"]] == ["one-1111"]


def test_waiting_for_a_run_that_is_deleted_ends(recorder: Recorder, wait_until: Wait) -> None:
    recorder.begin("one-1111")
    waiting = start("wait", "one-1111", env=recorder.daemon.env)
    wait_until(lambda: recorder.connection.call("GetStatus", {})["followers"], "it follows")
    end = {"type": "run.completed", "key": "end"}
    recorder.connection.call("Append", {"run_id": "one-1111", "epoch": 1, "events": [end]})
    recorder.connection.call("DeleteRun", {"run_id": "one-1111"})
    assert waiting.wait(30) in (0, 3)
    for stream in (waiting.stdout, waiting.stderr):
        if stream is not None:
            stream.close()


def test_files_are_removed_by_the_client_when_it_is_asked_to(recorder: Recorder, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "work" / name).mkdir(parents=True)
        (tmp_path / "work" / name / "file").write_text("x")
        recorder.closed(f"run-{name}", root=str(tmp_path / "work"), dir=name)
    recorder.rm("--yes", "run-a")
    assert (tmp_path / "work" / "a" / "file").exists()
    assert f"removed {tmp_path}/work/b" in recorder.rm("--yes", "--files", "run-b")
    assert not (tmp_path / "work" / "b").exists()
    assert (tmp_path / "work").exists()


def test_a_directory_that_may_not_be_removed_keeps_the_run_too(recorder: Recorder, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "a").symlink_to("../outside")
    recorder.closed("run-a", root=str(tmp_path / "work"), dir="a")
    assert "no plain directory" in recorder.rm("--yes", "--files", "run-a", status=1)
    assert recorder.ids() == {"run-a"}
    assert (tmp_path / "outside").is_dir()


@pytest.mark.parametrize(
    ("root", "dir", "named"),
    [
        *(("/work", dir, "run.dir") for dir in ("x/../y", ".", "..", "", "/abs", "a//b", "a/", "a\0b")),
        *(("/", "a", "run.root"), ("relative", "a", "run.root"), ("/a/../b", "a", "run.root"), ("", "a", "run.root")),
        *(("/work", None, "run.dir"), (None, "a", "run.root")),
    ],
)
def test_a_directory_that_is_none_is_refused_when_the_run_begins(
    recorder: Recorder, root: str | None, dir: str | None, named: str
) -> None:
    with pytest.raises(InvalidParameter) as refused:
        recorder.begin("r", root=root, dir=dir)
    assert refused.value.parameter == named


@pytest.mark.parametrize("run_id", ["x/../y", ".", "..", "/etc/passwd", "-rf"])
def test_a_name_that_looks_like_a_path_is_only_a_name(recorder: Recorder, run_id: str, tmp_path: Path) -> None:
    recorder.closed(run_id)
    before = {path for path in tmp_path.rglob("*") if "history.db" not in path.name}
    recorder.rm("--yes", "--files", "--", run_id)
    assert recorder.ids() == set()
    assert {path for path in tmp_path.rglob("*") if "history.db" not in path.name} == before


def test_an_empty_name_deletes_nothing(recorder: Recorder) -> None:
    recorder.closed("one-1111")
    with pytest.raises(InvalidParameter):
        recorder.connection.call("DeleteRun", {"run_id": ""})
    recorder.rm("--yes", "", status=2)
    assert recorder.ids() == {"one-1111"}


def test_begin_declares_the_directory_from_a_shell(recorder: Recorder, tmp_path: Path) -> None:
    own = ("--root", f"{tmp_path}/./x/..", "--dir", "a/b")
    done = run("begin", "--owner-pid", str(os.getpid()), "--run-id", "r", *own, env=recorder.daemon.env)
    assert done.returncode == 0, done.stderr
    detail = recorder.connection.call("GetRun", {"run_id": "r"})["detail"]
    assert (detail["root"], detail["dir"]) == (str(tmp_path), "a/b")


def test_pinning_is_seen_and_taken_back(recorder: Recorder) -> None:
    recorder.closed("one-1111")
    for command, pinned in (("pin", True), ("pin", True), ("unpin", False), ("unpin", False)):
        done = run(command, "--json", "1111", env=recorder.daemon.env)
        assert json.loads(done.stdout) == {"namespace": "default", "run_id": "one-1111", "pinned": pinned}
        assert recorder.connection.call("GetRun", {"run_id": "one-1111"})["detail"]["pinned"] is pinned
    assert run("pin", "never-was", env=recorder.daemon.env).returncode == 3
