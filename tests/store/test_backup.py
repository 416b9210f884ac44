"""A copy of a history that is written meanwhile is one moment of it, whole, or there is none."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path
from uuid import uuid4

import pytest

from runhistd.model.artifacts import KeepBlob
from runhistd.store import backup, contents
from runhistd.store.backup import Backup, BackupFault, Progress, back_up
from runhistd.store.database import open_reader, read_history
from runhistd.store.verify import verify
from tests.store.histories import UID, History, event

MIB = 1024 * 1024


def nothing(done: int, of: int) -> None:
    pass


def copy(history: History, target: Path, *, wal_bytes: int = 100 * MIB, progress: Progress = nothing) -> Backup:
    return back_up(history.database, target, wal_bytes=wal_bytes, progress=progress)


def fill(history: History, runs: int = 3) -> None:
    for i in range(runs):
        run_id = str(uuid4())
        epoch = history.begin(run_id)
        for n in range(1, 41):
            history.append(run_id, epoch, n, event(data={"text": f"{i} " * 2000}))


def keep(history: History, content: bytes) -> Path:
    sha256 = hashlib.sha256(content).hexdigest()
    path = contents.path_of(history.database.parent / "blobs", sha256)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    history.apply(KeepBlob(UID, bytes.fromhex(sha256), len(content)))
    return path


def test_a_copy_is_one_moment_of_the_history_though_every_step_sees_a_commit(
    history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "STEP_PAGES", 8)
    fill(history)
    epoch, before = history.begin("live"), history.log.position
    steps = []

    def progress(done: int, of: int) -> None:
        steps.append((done, of))
        history.append("live", epoch, len(steps), event(data={"text": "x" * 5000}))

    made = copy(history, tmp_path / "copy", progress=progress)
    assert len(steps) > 10, "it was copied in steps, with commits between them"
    assert made.position == before and made.verdict.differences == []
    copied = open_reader(tmp_path / "copy" / "history.db")
    instance_id, counters = read_history(copied)
    assert (instance_id, counters.position) == (history.log.instance_id, before)
    assert copied.execute("SELECT last_seq FROM runs WHERE run_id = 'live'").get == 1
    copied.close()
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert steps[-1][0] == steps[-1][1]
    assert history.log.position > before


def test_a_copy_holds_two_names_and_is_its_users_alone(history: History, tmp_path: Path) -> None:
    fill(history, 1)
    copy(history, tmp_path / "new" / "copy")
    assert sorted(path.name for path in (tmp_path / "new" / "copy").iterdir()) == ["blobs", "history.db"]
    assert stat.S_IMODE((tmp_path / "new" / "copy").stat().st_mode) == 0o700


def test_content_is_copied_and_what_is_lost_is_told(history: History, tmp_path: Path) -> None:
    good, lost = keep(history, b"good" * 1000), keep(history, b"lost")
    lost.unlink()
    made = copy(history, tmp_path / "copy")
    assert contents.path_of(tmp_path / "copy" / "blobs", good.name).read_bytes() == b"good" * 1000
    assert made.blobs == 2
    assert [one.what for one in made.verdict.differences] == [f"content {lost.name[:12]}"]


def test_nothing_is_removed_from_the_content_while_it_is_copied(history: History, tmp_path: Path) -> None:
    keep(history, b"content")
    blobs, seen = history.database.parent / "blobs", []

    def progress(done: int, of: int) -> None:
        with contents.removing(blobs) as may_remove:
            seen.append(may_remove)

    copy(history, tmp_path / "copy", progress=progress)
    assert set(seen) == {False}
    with contents.removing(blobs) as may_remove:
        assert may_remove


def test_a_copy_is_given_up_loudly_when_the_log_passes_its_bound_and_leaves_nothing(
    history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "STEP_PAGES", 8)
    fill(history)
    history.log.checkpoint(truncate=True)
    epoch, n = history.begin("live"), 0

    def progress(done: int, of: int) -> None:
        nonlocal n
        n += 1
        history.append("live", epoch, n, event(data={"text": "x" * 100_000}))

    with pytest.raises(BackupFault, match=r"write-ahead log grew to .* limits.wal_bytes"):
        copy(history, tmp_path / "copy", wal_bytes=MIB, progress=progress)
    assert list((tmp_path / "copy").iterdir()) == []
    copy(history, tmp_path / "copy")


def test_a_directory_with_something_in_it_is_refused_untouched(history: History, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "mine").write_text("x")
    with pytest.raises(BackupFault, match=r"is not empty \(mine is in it\)"):
        copy(history, tmp_path / "copy")
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["mine"]


def test_a_copy_needs_no_file_but_its_own_and_can_be_copied_again(history: History, tmp_path: Path) -> None:
    fill(history, 1)
    copy(history, tmp_path / "copy")
    (tmp_path / "copy" / "history.db").chmod(0o400)
    assert verify(tmp_path / "copy" / "history.db", nothing).differences == []
    assert back_up(tmp_path / "copy" / "history.db", tmp_path / "again", wal_bytes=MIB, progress=nothing).verdict.runs == 1
