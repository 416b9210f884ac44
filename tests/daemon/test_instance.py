"""Who may hold a state directory, and how it is found out that it is gone."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from runhistd.daemon import instance
from runhistd.daemon.instance import Instance, InstanceHeld, InstanceLost, InstanceRefused

HOLD = """
import sys, time
from pathlib import Path
from runhistd.daemon.instance import Instance
with Instance.take(Path(sys.argv[1])):
    sys.stdout.write("held\\n")
    sys.stdout.flush()
    time.sleep(600)
"""
SECOND_US = 1_000_000
MOUNTS = (
    "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
    "31 22 0:27 / /home/ann/my\\040files rw,nosuid - nfs4 server:/export rw,vers=4.2\n"
    "310 22 0:41 / /mnt/far rw,relatime - fuse.sshfs ann@far: rw,user_id=0\n"
    "44 22 0:38 / /tmp rw shared:9 master:2 - tmpfs tmpfs rw\n"
)


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "state"


@pytest.fixture
def holder(state_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the directory."""
    state_dir.parent.mkdir()
    process = subprocess.Popen([sys.executable, "-c", HOLD, state_dir], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_directory_and_all_that_is_made_in_it_is_ours_alone_whatever_the_umask(state_dir: Path) -> None:
    before = os.umask(0)
    try:
        with Instance.take(state_dir) as taken:
            taken.database.touch()
            assert mode(state_dir) == 0o700
            assert mode(state_dir.parent) == 0o700
            assert {path.name: mode(path) for path in state_dir.iterdir()} == dict.fromkeys(
                ["runhistd.lock", "history.db", "CACHEDIR.TAG"], 0o600
            )
        assert os.umask(0) == 0, "the umask is given back"
    finally:
        os.umask(before)


def test_a_directory_that_was_open_to_others_is_closed_with_its_files(state_dir: Path) -> None:
    state_dir.mkdir(parents=True)
    state_dir.chmod(0o777)
    (state_dir / "history.db").touch()
    (state_dir / "history.db").chmod(0o644)
    with Instance.take(state_dir) as taken:
        assert mode(state_dir) == 0o700
        assert mode(taken.database) == 0o600


def test_a_link_to_a_directory_is_refused_and_nothing_behind_it_is_touched(state_dir: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.mkdir()
    state_dir.parent.mkdir()
    state_dir.symlink_to(target)
    with pytest.raises(InstanceRefused, match=r"is a symbolic link; .*RUNHIST_STATE_DIR"), Instance.take(state_dir):
        pass
    assert list(target.iterdir()) == []


def test_a_link_to_nowhere_is_refused(state_dir: Path, tmp_path: Path) -> None:
    state_dir.parent.mkdir()
    state_dir.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InstanceRefused, match="is a symbolic link"), Instance.take(state_dir):
        pass
    assert not (tmp_path / "nowhere").exists()


def test_a_file_in_the_directorys_place_is_refused(state_dir: Path) -> None:
    state_dir.parent.mkdir()
    state_dir.touch()
    with pytest.raises(InstanceRefused, match="is not a directory; move it away"), Instance.take(state_dir):
        pass


def test_another_users_directory_is_refused_untouched(state_dir: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory away")
    state_dir.mkdir(parents=True, mode=0o755)
    os.chown(state_dir, 65534, 65534)
    with pytest.raises(InstanceRefused, match=r"belongs to user 65534, not to us \(0\)"), Instance.take(state_dir):
        pass
    assert mode(state_dir) == 0o755
    assert list(state_dir.iterdir()) == []


def test_a_network_file_system_is_refused_untouched(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state_dir.mkdir(parents=True)
    directory = os.open(state_dir, os.O_RDONLY)
    here = instance.filesystem(directory)
    os.close(directory)
    monkeypatch.setattr(instance, "NETWORK_FILESYSTEMS", {here})
    with pytest.raises(InstanceRefused, match=rf"network file system \({here}\)"), Instance.take(state_dir):
        pass
    assert list(state_dir.iterdir()) == []


def test_the_type_of_the_file_system_is_the_one_that_findmnt_shows(tmp_path: Path, need: Callable[[str], str]) -> None:
    shown = subprocess.run(
        [need("findmnt"), "-no", "FSTYPE", "-T", tmp_path], check=True, capture_output=True, text=True
    ).stdout.strip()
    directory = os.open(tmp_path, os.O_RDONLY)
    assert instance.filesystem(directory) == shown
    os.close(directory)


@pytest.mark.parametrize(
    ("mount_id", "kind"), [("22", "ext4"), ("31", "nfs4"), ("310", "fuse.sshfs"), ("44", "tmpfs"), ("4", "")]
)
def test_a_mount_is_found_by_its_whole_id(mount_id: str, kind: str) -> None:
    assert instance.mount_id_in(f"pos:\t0\nflags:\t0100000\nmnt_id:\t{mount_id}\nino:\t2\n") == mount_id
    assert instance.filesystem_in(MOUNTS, mount_id) == kind


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "lustre", "glusterfs"])
def test_the_known_network_file_systems_are_refused(kind: str) -> None:
    assert kind in instance.NETWORK_FILESYSTEMS


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "f2fs", "bcachefs", "fuse.gocryptfs"])
def test_local_file_systems_are_not_refused(kind: str) -> None:
    assert kind not in instance.NETWORK_FILESYSTEMS


def test_a_held_directory_is_refused_naming_the_holder(state_dir: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(InstanceHeld) as caught, Instance.take(state_dir, wait_s=0.1):
        pass
    assert caught.value.pid == holder.pid
    assert f"process {holder.pid} is serving {state_dir}" in str(caught.value)
    assert f"kill {holder.pid}" in str(caught.value)


def test_the_directory_of_a_killed_holder_is_free_at_once(state_dir: Path, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with Instance.take(state_dir, wait_s=0) as taken:
        assert taken.lock_file.read_text() == f"{os.getpid()}\n"


def test_who_waits_gets_the_directory_when_the_holder_lets_go(state_dir: Path) -> None:
    waiter = "import time\nfrom runhistd.daemon import instance\n" + HOLD.replace("time.sleep(600)", "pass")
    with Instance.take(state_dir):
        process = subprocess.Popen([sys.executable, "-c", waiter, state_dir], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.communicate(timeout=30)[0] == "held\n"
    assert process.returncode == 0


def test_a_lock_on_a_file_that_was_replaced_meanwhile_does_not_count(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = state_dir / "runhistd.lock"
    locked: list[int] = []

    def replace_before_the_first(lock: int, operation: int) -> None:
        if not locked:
            path.rename(path.with_name("old"))
            path.touch()
        fcntl.flock(lock, operation)
        locked.append(os.fstat(lock).st_ino)

    monkeypatch.setattr(instance, "fcntl", SimpleNamespace(**{**vars(fcntl), "flock": replace_before_the_first}))
    with Instance.take(state_dir) as taken:
        assert locked == [path.with_name("old").stat().st_ino, path.stat().st_ino]
        taken.check_inodes()


def test_a_lock_file_that_is_a_link_is_refused(state_dir: Path, tmp_path: Path) -> None:
    state_dir.mkdir(parents=True, mode=0o700)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (state_dir / "runhistd.lock").symlink_to(victim)
    with pytest.raises(InstanceRefused, match="lock file"), Instance.take(state_dir):
        pass
    assert victim.read_text() == "precious"


def test_the_no_backup_mark_is_the_one_that_backup_programs_know(
    state_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Instance.take(state_dir):
        pass
    assert (state_dir / "CACHEDIR.TAG").read_bytes().startswith(b"Signature: 8a477f597d28d172789f06886806bc55\n")
    with Instance.take(state_dir):
        pass
    assert caplog.records == []


def test_unchanged_files_are_no_loss(state_dir: Path) -> None:
    with Instance.take(state_dir) as taken:
        taken.database.touch()
        taken.check_inodes()
        (state_dir / "history.db-wal").touch()  # comes with the first write
        taken.check_inodes()
        taken.database.write_bytes(b"more")
        taken.check_inodes()


@pytest.mark.parametrize("name", ["runhistd.lock", "history.db", "history.db-wal"])
@pytest.mark.parametrize("replaced", [True, False])
def test_a_file_that_was_replaced_or_removed_is_a_loss(name: str, replaced: bool, state_dir: Path) -> None:
    with Instance.take(state_dir) as taken:
        taken.database.touch()
        (state_dir / "history.db-wal").touch()
        taken.check_inodes()
        (state_dir / name).rename(state_dir / "moved")
        if replaced:
            shutil.copy(state_dir / "moved", state_dir / name)
        with pytest.raises(InstanceLost, match=f"{name} was removed or replaced"):
            taken.check_inodes()


def test_a_directory_that_was_moved_away_is_a_loss(state_dir: Path) -> None:
    with Instance.take(state_dir) as taken:
        taken.database.touch()
        taken.check_inodes()
        state_dir.rename(state_dir.with_name("moved"))
        with pytest.raises(InstanceLost):
            taken.check_inodes()


def test_three_storage_faults_in_ten_minutes_are_damage_over_restarts(state_dir: Path) -> None:
    for minute in (0, 4, 8):
        with Instance.take(state_dir) as taken:
            assert not taken.damaged(minute * 60 * SECOND_US)
            taken.record_storage_failure(minute * 60 * SECOND_US)
    with Instance.take(state_dir) as taken:
        assert taken.damaged(9 * 60 * SECOND_US)
        assert not taken.damaged(11 * 60 * SECOND_US), "the first has been forgotten"


def test_storage_faults_further_apart_are_no_damage(state_dir: Path) -> None:
    with Instance.take(state_dir) as taken:
        for minute in (0, 6, 12, 18):
            taken.record_storage_failure(minute * 60 * SECOND_US)
        assert not taken.damaged(18 * 60 * SECOND_US)


def test_a_clock_that_was_set_back_does_not_keep_the_damage(state_dir: Path) -> None:
    with Instance.take(state_dir) as taken:
        for _ in range(3):
            taken.record_storage_failure(1000 * SECOND_US)
        assert not taken.damaged(999 * SECOND_US)


@pytest.mark.parametrize("torn", [b"", b"[1000000", b"\xff", b"3", b'["a"]', b"null"])
def test_a_torn_note_of_storage_faults_counts_as_none(torn: bytes, state_dir: Path) -> None:
    with Instance.take(state_dir) as taken:
        (state_dir / "storage-faults").write_bytes(torn)
        assert not taken.damaged(2 * SECOND_US)
        taken.record_storage_failure(2 * SECOND_US)


def test_a_storage_fault_that_cannot_be_noted_is_only_logged(state_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Instance.take(state_dir) as taken:
        (state_dir / "storage-faults.new").mkdir()
        taken.record_storage_failure(SECOND_US)
    assert "could not be noted" in caplog.text
