"""One daemon a state directory: who may use it, who holds it, and whether it still is what we hold.

Taking over: the directory is checked and opened, then a lock file in it is locked with flock, and only then may anything
else in it be touched. The kernel drops the lock with the process, so that a daemon that was killed never blocks the next
one; the lock file is never removed, because two daemons could then hold locks on two files of the same name. Its content,
the holder's process id, is for people only.

The files of the database are looked at with stat alone: closing any descriptor of a file drops all POSIX locks that the
process has on it, SQLite's included. So `check_inodes` remembers what it saw first and compares.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from runhist.paths import DATABASE_NAME
from runhistd.store.database import DamagedDatabase

logger = logging.getLogger("runhistd.instance")

LOCK_NAME = "runhistd.lock"
STORAGE_FAULTS_NAME = "storage-faults"
DAMAGE_NAME = "damaged"
TAG_NAME = "CACHEDIR.TAG"
LOCK_WAIT_S = 10.0  # a daemon that was told to stop needs no longer than this by default
LOCK_POLL_S = 0.05
DAMAGED_AFTER = 3  # ends by storage faults …
DAMAGED_WITHIN_US = 600 * 1_000_000  # … in ten minutes: restarting does not help any more
NETWORK_FILESYSTEMS = frozenset(
    "9p afs beegfs ceph cifs coda davfs fuse.ceph fuse.curlftpfs fuse.davfs fuse.davfs2 fuse.gcsfuse fuse.glusterfs "
    "fuse.juicefs fuse.rclone fuse.s3fs fuse.sshfs gfs2 glusterfs gpfs lustre ncpfs nfs nfs4 ocfs2 orangefs pvfs2 smb2 "
    "smb3 smbfs".split()
)
CACHE_TAG = """\
Signature: 8a477f597d28d172789f06886806bc55
# A copy of this directory taken while the daemon runs is torn, and restoring it would fork the history; so backup
# programs that know this mark (https://bford.info/cachedir/) leave it out. It is not a cache: deleting it loses runs.
"""


class InstanceFault(Exception):
    """The daemon cannot use, or must no longer use, the state directory. The text says what to do."""


class InstanceHeld(InstanceFault):
    """Another process holds the directory. `pid` is None where it could not be read."""

    def __init__(self, state_dir: Path, pid: int | None, waited_s: float) -> None:
        holder = f"process {pid}" if pid else "another process"
        advice = f"stop it (kill {pid}), or" if pid else "stop it, or"
        waited = f" and did not let go for {waited_s:g} s" if waited_s else ""
        super().__init__(
            f"{holder} is serving {state_dir}{waited}; {advice} set RUNHIST_STATE_DIR to keep a second history elsewhere"
        )
        self.pid = pid


class InstanceRefused(InstanceFault):
    """The state directory is not one that a history may be kept in."""


class InstanceLost(InstanceFault):
    """A file that we hold is no longer the one at its path: what we write could vanish, so nothing may be acknowledged."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path} was removed or replaced while the daemon had it open; nothing more is acknowledged. "
            "Put the file back if it was moved, and start the daemon again"
        )
        self.path = path


class Instance:
    """A state directory that this process holds. Made by `take`."""

    def __init__(self, state_dir: Path, lock: int) -> None:
        self.state_dir = state_dir
        self.database = state_dir / DATABASE_NAME
        self.lock_file = state_dir / LOCK_NAME
        self.replaced = False
        """Whether another database has come in the place of a damaged one since we gave the directory up."""
        self._lock: int | None = lock
        self._wal = state_dir / f"{DATABASE_NAME}-wal"
        self._seen: dict[Path, tuple[int, int]] = {self.lock_file: inode(os.fstat(lock))}

    @classmethod
    @contextlib.contextmanager
    def take(cls, state_dir: Path, *, wait_s: float = LOCK_WAIT_S, as_root: bool = False) -> Iterator[Instance]:
        """Hold the directory, made where it is missing, for the block; wait up to `wait_s` for another holder to let go.

        With `as_root`, root may hold another user's, for a command that puts something into it (`give_to_owner`).

        Sets the process's umask for the block, so that whatever is made in the directory is ours alone. Raises
        InstanceRefused and InstanceHeld before anything in the directory was touched.
        """
        path = state_dir.absolute()
        before = os.umask(0o077)
        try:
            open_directory(path, as_root=as_root)
            instance = cls(path, take_lock(path, wait_s))
            try:
                close_to_others(path)
                mark_no_backup(path)
                if as_root:
                    instance.give_to_owner(instance.lock_file, path / TAG_NAME)
                yield instance
            finally:
                instance.release()
        finally:
            os.umask(before)

    def release(self) -> None:
        """Give the directory up; after that nothing in it may be touched."""
        if self._lock is not None:
            os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None

    def give_to_owner(self, *paths: Path) -> None:
        """Let what root has put into the directory belong to whom the directory belongs to."""
        found = self.state_dir.stat()
        if os.geteuid() != 0 or found.st_uid == 0:
            return
        for top in paths:
            for path in (top, *top.rglob("*")):
                with contextlib.suppress(FileNotFoundError):
                    os.chown(path, found.st_uid, found.st_gid, follow_symlinks=False)

    def check_inodes(self) -> None:
        """Raise InstanceLost when lock, database or WAL is no longer the file that it was at the first call.

        The first call belongs right behind the opening of the database; a WAL that comes later is remembered then.
        """
        for path in (self.lock_file, self.database, self._wal):
            found = inode_at(path)
            if path not in self._seen:
                if found is not None:
                    self._seen[path] = found
            elif found != self._seen[path]:
                raise InstanceLost(path)

    def record_storage_failure(self, now_us: int) -> None:
        """Note that the daemon is about to end because the storage failed. A fault in doing so is only logged."""
        recent = [*self._recent_faults(now_us), now_us]
        fresh = self.state_dir / f"{STORAGE_FAULTS_NAME}.new"
        try:
            fresh.write_text(json.dumps(recent), "ascii")
            fresh.replace(self.state_dir / STORAGE_FAULTS_NAME)
        except OSError:
            logger.exception("the storage fault could not be noted")

    def damaged(self, now_us: int) -> bool:
        """Whether storage faults ended the daemon so often, just now, that it should only read."""
        return len(self._recent_faults(now_us)) >= DAMAGED_AFTER

    def forget_storage_failures(self) -> None:
        """Another database is in the place of the one that failed."""
        for name in (STORAGE_FAULTS_NAME, DAMAGE_NAME):
            (self.state_dir / name).unlink(missing_ok=True)

    def record_damage(self, damage: DamagedDatabase) -> None:
        """Note that the database is damaged, so that the next start does not touch it. A fault in that is only logged."""
        found = inode_at(self.database)
        fresh = self.state_dir / f"{DAMAGE_NAME}.new"
        try:
            fresh.write_text(json.dumps({"what": str(damage), "inode": found and found[1]}), "utf-8")
            fresh.replace(self.state_dir / DAMAGE_NAME)
        except OSError:
            logger.exception("the damage could not be noted")

    def known_damage(self) -> DamagedDatabase | None:
        """What was noted of the database that is there now."""
        found = inode_at(self.database)
        try:
            noted = json.loads((self.state_dir / DAMAGE_NAME).read_bytes())
            if found is not None and noted["inode"] == found[1]:
                return DamagedDatabase(str(noted["what"]))
        except (OSError, ValueError, TypeError, KeyError):  # none, or torn
            pass
        return None

    def _recent_faults(self, now_us: int) -> list[int]:
        try:
            noted = json.loads((self.state_dir / STORAGE_FAULTS_NAME).read_bytes())
            return [moment for moment in noted if now_us - DAMAGED_WITHIN_US < moment <= now_us]
        except (OSError, ValueError, TypeError):  # none yet, or torn by the fault that it tells of
            return []


def open_directory(path: Path, *, as_root: bool = False) -> None:
    """Make the directory where it is missing and make sure that it is a local one, ours, for nobody else."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise InstanceRefused(f"the state directory {path} {why_not(path, error)}") from error
    try:
        found = os.fstat(directory)
        if found.st_uid != os.geteuid() and not (as_root and os.geteuid() == 0):
            raise InstanceRefused(
                f"the state directory {path} belongs to user {found.st_uid}, not to us ({os.geteuid()}); "
                "set RUNHIST_STATE_DIR to a directory of your own"
            )
        kind = filesystem(directory)
        if kind in NETWORK_FILESYSTEMS:
            raise InstanceRefused(
                f"the state directory {path} is on a network file system ({kind}), where neither locks nor syncs can be "
                "relied on; set RUNHIST_STATE_DIR to a directory on a local disk"
            )
        if stat.S_IMODE(found.st_mode) != 0o700:
            logger.warning("closed the state directory to others", extra={"fields": {"path": path}})
            os.fchmod(directory, 0o700)
    finally:
        os.close(directory)


def why_not(path: Path, error: OSError) -> str:
    """What is wrong with a path that could not be opened as a directory, and what to do."""
    if path.is_symlink():
        return "is a symbolic link; remove it, or set RUNHIST_STATE_DIR to where it points"
    if path.exists() and not path.is_dir():
        return "is not a directory; move it away"
    return f"cannot be used: {error.strerror}; set RUNHIST_STATE_DIR to another one"


def filesystem(directory: int) -> str:
    """The type of the file system that an open directory is on; "" where the system does not tell (only Linux does)."""
    try:
        mount_id = mount_id_in(Path(f"/proc/self/fdinfo/{directory}").read_text())
        return filesystem_in(Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape"), mount_id)
    except OSError:
        return ""


def mount_id_in(fdinfo: str) -> str:
    """The mount's id in the text of /proc/self/fdinfo/N (proc_pid_fdinfo(5))."""
    return next((line.split()[1] for line in fdinfo.splitlines() if line.startswith("mnt_id:")), "")


def filesystem_in(mountinfo: str, mount_id: str) -> str:
    """The type of a mount's file system in the text of /proc/self/mountinfo (proc_pid_mountinfo(5)); "" when not there."""
    for line in mountinfo.splitlines():
        if line.split(" ", 1)[0] == mount_id:
            return line.partition(" - ")[2].split(" ")[0]
    return ""


def take_lock(state_dir: Path, wait_s: float) -> int:
    """The descriptor of the locked lock file, which names us. Raises InstanceHeld, InstanceRefused."""
    path = state_dir / LOCK_NAME
    deadline = time.monotonic() + wait_s
    told = False
    while True:
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise InstanceRefused(f"the lock file {path} cannot be opened: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if inode_at(path) == inode(os.fstat(lock)):  # else it was replaced between the two calls
                os.ftruncate(lock, 0)
                os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
                return lock
            os.close(lock)
        except OSError as error:
            holder = holder_in(lock)
            os.close(lock)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise InstanceRefused(f"{path} cannot be locked: {error.strerror}") from error
            if time.monotonic() >= deadline:
                raise InstanceHeld(state_dir, holder, wait_s) from None
            if not told:
                logger.info("waiting for the state directory", extra={"fields": {"path": state_dir, "holder": holder}})
                told = True
            time.sleep(LOCK_POLL_S)


def holder_in(lock: int) -> int | None:
    """The process id that the lock file holds."""
    text = os.pread(lock, 32, 0).strip()
    return int(text) if text.isdigit() else None


def close_to_others(state_dir: Path) -> None:
    """Take everybody else's rights from the files in the directory, which a careless restore may have given."""
    for path in state_dir.iterdir():
        found = path.lstat()
        if stat.S_ISREG(found.st_mode) and stat.S_IMODE(found.st_mode) & 0o077:
            path.chmod(0o600)


def mark_no_backup(state_dir: Path) -> None:
    """Tell backup programs to leave the directory out. A fault is only logged: the history works without."""
    try:
        if sys.platform == "darwin":
            subprocess.run(["/usr/bin/tmutil", "addexclusion", state_dir], check=True, capture_output=True, timeout=10)
        else:
            with (state_dir / TAG_NAME).open("x") as tag:
                tag.write(CACHE_TAG)
    except FileExistsError:
        pass
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("the no-backup mark could not be set", extra={"fields": {"error": error}})


def inode(found: os.stat_result) -> tuple[int, int]:
    """What makes a file itself, whatever its name."""
    return found.st_dev, found.st_ino


def inode_at(path: Path) -> tuple[int, int] | None:
    """The same for what is at that path now; None when nothing is."""
    try:
        return inode(path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return None


def is_held(lock_file: Path) -> bool:
    """Whether some process holds the directory that this is the lock file of."""
    try:
        lock = os.open(lock_file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False
