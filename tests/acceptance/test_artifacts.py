"""What runs made: by reference, and kept with its content."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

import runhist
from runhist.protocol.errors import InvalidParameter, NoSuchArtifact, NoSuchBlob, RunClosed
from runhistd.store.contents import keeping
from runhistd.store.verify import verify
from tests.acceptance.making import UPLOAD, Made, make_old, restarted
from tests.client.cli.shells import run

Wait = Callable[..., None]


def test_a_path_is_given_back_resolved_against_the_runs_root(made: Made) -> None:
    epoch = made.begin("r", root="/srv/", dir="r")
    made.record("r", epoch, "a", name="report", path="r/report.txt", kind="text", size=12, mtime_us=5)
    made.record("r", epoch, "b", path="/tmp/else")
    first, second = made.listed("r")
    assert first == {
        **dict.fromkeys(("sha256", "blob")),
        **{"seq": 2, "name": "report", "path": "/srv/r/report.txt", "kind": "text", "size": 12, "mtime_us": 5},
    }
    assert (second["name"], second["path"]) == ("/tmp/else", "/tmp/else")


def test_of_one_name_the_last_counts(made: Made) -> None:
    epoch = made.begin("r")
    made.record("r", epoch, "a", name="x", path="/1")
    made.record("r", epoch, "b", name="x", path="/2")
    assert [one["path"] for one in made.listed("r", name="x")] == ["/2"]
    with pytest.raises(NoSuchArtifact):
        made.listed("r", name="y")


def test_artifacts_come_in_pages(made: Made) -> None:
    epoch = made.begin("r")
    for i in range(5):
        made.record("r", epoch, str(i), name=str(i))
    names, page = [], None
    while True:
        reply = made.connection.call("GetArtifacts", {"run_id": "r", "limit": 2, **({"page": page} if page else {})})
        names += [one["name"] for one in reply["artifacts"]]
        page = reply["next_page"]
        if page is None:
            break
    assert names == list("01234")


def test_content_comes_back_byte_for_byte_and_lies_in_files_of_ours_alone(made: Made) -> None:
    content = os.urandom(700_000)
    sha256 = made.put(content, chunk=200_000)
    assert sha256 == hashlib.sha256(content).hexdigest()
    made.record("r", made.begin("r"), "a", name="x", blob=sha256)
    assert made.get("r", sha256) == content
    (file,) = made.files()
    assert file.name == sha256
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    again = restarted(made)
    assert again.get("r", sha256) == content
    again.connection.close()


def test_empty_content_is_content(made: Made) -> None:
    sha256 = made.put(b"")
    made.record("r", made.begin("r"), "a", name="x", blob=sha256)
    assert made.get("r", sha256) == b""


def test_the_same_content_is_kept_once(made: Made) -> None:
    epoch = made.begin("r")
    first = made.put(b"same")
    assert made.put(b"same", upload=UPLOAD.replace("ff", "fe")) == first
    made.record("r", epoch, "a", blob=first)
    made.record("r", epoch, "b", blob=first)
    assert len(made.files()) == 1
    status = made.connection.call("GetStatus", {})
    assert (status["blobs"], status["blob_bytes"]) == (1, 4)


def test_a_hash_alone_tells_nobody_anything(made: Made) -> None:
    sha256 = made.put(b"a secret")
    made.begin("r")
    with pytest.raises(NoSuchBlob):
        made.get("r", sha256)
    never = hashlib.sha256(b"never given").hexdigest()
    with pytest.raises(NoSuchBlob):
        made.get("r", never)


def test_an_artifact_whose_content_was_never_given_is_refused(made: Made) -> None:
    epoch = made.begin("r")
    with pytest.raises(NoSuchBlob):
        made.record("r", epoch, "a", name="x", blob=hashlib.sha256(b"never given").hexdigest())
    assert made.listed("r") == []
    with pytest.raises(InvalidParameter):
        made.record("r", epoch, "a", name="x", blob="../../etc/passwd")


@pytest.mark.parametrize("offset", [1, 999, 5000])
def test_a_chunk_that_does_not_follow_ends_the_upload(made: Made, offset: int) -> None:
    made.chunk(UPLOAD, 0, b"x" * 1000)
    with pytest.raises(InvalidParameter):
        made.chunk(UPLOAD, offset, b"y")
    assert made.files() == []
    with pytest.raises(InvalidParameter):
        made.chunk(UPLOAD, 1000, b"y")


def test_bytes_that_are_no_base64_are_refused(made: Made) -> None:
    with pytest.raises(InvalidParameter, match="base64"):
        made.connection.call("PutBlob", {"upload": UPLOAD, "offset": 0, "base64": "?!"})


def test_unused_content_is_forgotten_after_an_hour_and_not_before(made: Made, wait_until: Wait) -> None:
    made.put(b"unused")
    used = made.put(b"used", upload=UPLOAD.replace("ff", "fe"))
    made.record("r", made.begin("r"), "a", blob=used)
    made.sweep()
    restarted_once = restarted(made)
    assert len(restarted_once.files()) == 2
    make_old(restarted_once)
    restarted_once.sweep()
    wait_until(lambda: [file.name for file in restarted_once.files()] == [used], "the unused file is gone")
    assert restarted_once.get("r", used) == b"used"
    restarted_once.connection.close()


def test_no_content_is_removed_while_somebody_copies_it(made: Made, wait_until: Wait) -> None:
    made.put(b"old")
    make_old(made)
    with keeping(made.daemon.state_dir / "blobs"):
        for i in range(3):  # each sweep wakes the sweeper anew, behind which the next one's transactions stand
            made.sweep()
            made.begin(f"r{i}")
        assert len(made.files()) == 1
    made.sweep()
    wait_until(lambda: made.files() == [], "the next pass removes it")


def test_giving_it_again_makes_it_young(made: Made, wait_until: Wait) -> None:
    made.put(b"old")
    sha256 = made.put(b"again", upload=UPLOAD.replace("ff", "fe"))
    make_old(made)
    made.put(b"again", upload=UPLOAD.replace("ff", "fd"))
    made.sweep()
    wait_until(lambda: [file.name for file in made.files()] == [sha256], "the old one is gone")


def test_deleting_the_last_run_that_uses_it_deletes_the_content(made: Made, wait_until: Wait) -> None:
    sha256 = made.put(b"shared")
    for run_id in ("r", "s"):
        epoch = made.begin(run_id)
        made.record(run_id, epoch, "a", blob=sha256)
        made.end(run_id, epoch)
    make_old(made)
    made.connection.call("DeleteRun", {"run_id": "r"})
    made.sweep()
    assert made.get("s", sha256) == b"shared"
    made.connection.call("DeleteRun", {"run_id": "s"})
    wait_until(lambda: made.files() == [], "the file is gone")
    assert made.connection.call("GetStatus", {})["blobs"] == 0


def test_deleting_a_run_deletes_nothing_outside(made: Made, tmp_path: Path, wait_until: Wait) -> None:
    own = tmp_path / "root" / "own"
    own.mkdir(parents=True)
    (own / "report.txt").write_text("by reference")
    epoch = made.begin("r", root=str(tmp_path / "root"), dir="own")
    made.record("r", epoch, "a", path="own/report.txt")
    made.record("r", epoch, "b", path="/etc/passwd", blob=made.put(b"kept"))
    made.end("r", epoch)
    make_old(made)
    outside = sorted(path for path in tmp_path.rglob("*") if made.daemon.state_dir not in (path, *path.parents))
    made.connection.call("DeleteRun", {"run_id": "r"})
    wait_until(lambda: made.files() == [], "its own content is gone")
    assert sorted(path for path in tmp_path.rglob("*") if made.daemon.state_dir not in (path, *path.parents)) == outside
    assert (own / "report.txt").read_text() == "by reference"


def test_what_a_crash_left_of_an_upload_is_removed_at_the_next_start(made: Made, wait_until: Wait) -> None:
    made.chunk(UPLOAD, 0, b"x" * 1000)
    assert len(made.files()) == 1
    os.kill(made.daemon.pid, signal.SIGKILL)
    made.daemon.kill()
    stray = made.daemon.state_dir / "blobs" / "ab"
    stray.mkdir()
    (stray / ("ab" * 32)).write_text("a file without a row")
    os.utime(stray / ("ab" * 32), (1, 1))
    made.daemon.start()
    wait_until(lambda: made.files() == [], "both are gone")


@pytest.mark.long
def test_a_large_content_costs_bounded_memory(made: Made, tmp_path: Path) -> None:
    def peak_kib() -> int:
        found = re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{made.daemon.pid}/status").read_text())
        assert found is not None
        return int(found[1])

    if not Path("/proc/self/status").exists():
        pytest.skip("memory is read in /proc")
    file = tmp_path / "large"
    with file.open("wb") as out:
        for i in range(100):
            out.write(bytes([i]) * 1_000_000)
    before = peak_kib()
    run_id = "large-run"
    made.begin(run_id)
    done = run("artifact", "add", "--run", run_id, "--keep", str(file), env=made.daemon.env, timeout=120)
    assert done.returncode == 0, done.stderr
    back = run("artifact", "get", run_id, "large", "-o", str(tmp_path / "back"), env=made.daemon.env, timeout=120)
    assert back.returncode == 0, back.stderr
    assert (tmp_path / "back").read_bytes() == file.read_bytes()
    assert peak_kib() - before < 30_000


def test_the_command_line_adds_lists_and_gets(made: Made, tmp_path: Path) -> None:
    made.begin("some-run")
    (tmp_path / "kept.txt").write_text("kept content")
    (tmp_path / "named.txt").write_text("by reference")
    env = made.daemon.env

    def ok(*words: str) -> str:
        done = run(*words, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()

    ok("artifact", "add", "--run", "some-run", "--keep", "--kind", "text", str(tmp_path / "kept.txt"))
    ok("artifact", "add", "--run", "some-run", "--sha256", "--name", "other", str(tmp_path / "named.txt"))
    kept, other = map(json.loads, ok("artifacts", "--json", "some-run").splitlines())
    assert (kept["name"], kept["kind"], kept["size"], bool(kept["blob"])) == ("kept.txt", "text", 12, True)
    assert other["sha256"] == hashlib.sha256(b"by reference").hexdigest()
    (tmp_path / "kept.txt").unlink()
    assert ok("artifact", "get", "some-run", "kept.txt") == "kept content"
    assert ok("artifact", "get", "some-run", "other") == "by reference"
    assert "kept.txt" in ok("artifacts", "some-run")
    (tmp_path / "named.txt").unlink()
    assert run("artifact", "get", "some-run", "other", env=env).returncode == 1
    assert run("artifact", "get", "some-run", "none", env=env).returncode == 4


def test_an_artifact_may_be_added_after_the_end(made: Made, tmp_path: Path) -> None:
    made.end("r-ended", made.begin("r-ended"))
    (tmp_path / "late").write_text("x")
    assert run("artifact", "add", "--run", "r-ended", str(tmp_path / "late"), env=made.daemon.env).returncode == 0
    with pytest.raises(RunClosed):
        made.connection.call("Append", {"run_id": "r-ended", "epoch": 1, "events": [{"type": "output", "key": "x"}]})


def test_a_python_program_records_and_keeps_files(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNHIST_SOCKET", str(made.daemon.socket))
    (tmp_path / "a").write_text("content")
    history = runhist.connect()
    with history.begin_run(run_id="p") as recording:
        recording.artifact(tmp_path / "a", keep=True, kind="text")
        recording.artifact(tmp_path / "none", keep=True)
        assert recording.faults == 1
    history.close()
    kept, missing = made.listed("p")
    assert made.get("p", kept["blob"]) == b"content"
    assert (missing["name"], missing["blob"]) == (str(tmp_path / "none"), None)


def test_verify_tells_content_that_is_lost_or_damaged(made: Made) -> None:
    epoch = made.begin("r")
    good, lost, damaged = (
        made.put(content, upload=UPLOAD.replace("ff", f"f{i}")) for i, content in enumerate((b"good", b"lost", b"damaged"))
    )
    for i, sha256 in enumerate((good, lost, damaged)):
        made.record("r", epoch, str(i), blob=sha256)
    assert verify(made.daemon.database, lambda checked, of: None).differences == []
    for file in made.files():
        if file.name == lost:
            file.unlink()
        if file.name == damaged:
            file.write_bytes(b"damagxd")
    found = verify(made.daemon.database, lambda checked, of: None).differences
    assert {difference.what for difference in found} == {f"content {lost[:12]}", f"content {damaged[:12]}"}


def test_kept_content_counts_towards_the_size_of_the_history(made: Made, wait_until: Wait) -> None:
    for run_id in ("old", "young"):
        epoch = made.begin(run_id)
        made.record(run_id, epoch, "a", blob=made.put(run_id.encode() * 400_000, chunk=500_000))
        made.end(run_id, epoch)
    assert made.connection.call("CollectGarbage", {"dry_run": True})["decisions"] == []
    made.daemon.config_file.write_text("[retention]\nmax_bytes = 2_500_000\n")
    wait_until(lambda: len(made.connection.call("ListRuns", {})["runs"]) == 1, "the older one is gone")
    assert made.listed("young")
