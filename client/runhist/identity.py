"""What names a process so that no other one can be taken for it. The daemon names those that connect to it the same way.

A pid alone names nobody: it is given again. Where the kernel keeps pidfds in a file system of their own (pidfs, Linux 6.9)
the inode of a pidfd is never given again until the next boot; elsewhere the time at which the process started stands in
for it. Both count within one boot, and a pid within one pid namespace: so the identity of a process that has a pid carries
the namespace, and the boot goes with it. What cannot be told is left empty.

On macOS sysctl tells of start times. That part was written after the manual pages and never run.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import struct
import sys
from pathlib import Path
from typing import Mapping, Optional

BOOT_ID_VARIABLE = "RUNHIST_BOOT_ID"
BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")
START_TIME_FIELD = 22  # of /proc/PID/stat, proc_pid_stat(5)
BY_PIDFD, BY_START = "pidfd", "start"
PIDFD_GET_INFO, PIDFD_INFO_BYTES = 0xC040FF0B, 64  # <linux/pidfd.h>: _IOWR(0xFF, 11, struct pidfd_info), its first form
PIDFD_INFO_CREDS, PIDFD_INFO_EUID_OFFSET = 1 << 1, 36
NAMESPACE = " pidns:"  # in front of the pid namespace, at the end of an identity


class Namer:
    """Names processes as this one sees them."""

    def __init__(self) -> None:
        self.namespace = pid_namespace()
        self.has_pidfs = has_pidfs()

    def identity(self, pid: int, pidfd: Optional[int], kind: Optional[str] = None) -> str:
        """What tells the process from others of its pid: its pidfd where that does, else, or as `kind` asks, its start.

        Empty where it cannot be told. Raises ProcessLookupError when there is no such process.
        """
        if kind is None:
            kind = BY_PIDFD if pidfd is not None and self.has_pidfs else BY_START
        told: Optional[int] = None
        if kind == BY_PIDFD and pidfd is not None and self.has_pidfs:
            told = os.fstat(pidfd).st_ino
        elif kind == BY_START and pid > 0:
            told = start_time(pid)
        if told is None:
            return ""
        return f"{kind}:{told}" + (NAMESPACE + self.namespace if pid > 0 and self.namespace else "")


def boot_id(environment: Mapping[str, str] = os.environ) -> str:
    """What names this boot of the machine: $RUNHIST_BOOT_ID, else the kernel's; empty where it has none.

    The variable is for a service from which the kernel's is hidden; systemd writes the same number without hyphens.
    """
    named = environment.get(BOOT_ID_VARIABLE)
    if named:
        import uuid  # which only a service needs here

        with contextlib.suppress(ValueError):
            return str(uuid.UUID(named))
        return named
    if sys.platform == "darwin":
        return _sysctl_text("kern.bootsessionuuid")
    with contextlib.suppress(OSError):
        return BOOT_ID_FILE.read_text("ascii").strip()
    return ""


def pid_namespace() -> str:
    """What names our pid namespace; empty where there are none."""
    try:
        return str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:
        return ""


def has_pidfs() -> bool:
    """Whether pidfds have inodes of their own: the older kernels' share one with every other anonymous file."""
    if sys.platform != "linux":
        return False
    pidfd = open_pidfd(os.getpid())
    if pidfd is None:
        return False
    try:
        with select.epoll() as other:
            ours, theirs = os.fstat(pidfd), os.fstat(other.fileno())
        return (ours.st_dev, ours.st_ino) != (theirs.st_dev, theirs.st_ino)
    finally:
        os.close(pidfd)


def open_pidfd(pid: int) -> Optional[int]:
    """A pidfd of the process; None where there is none to have. Raises ProcessLookupError when there is no such process."""
    if pid <= 0:
        return None
    try:
        return os.pidfd_open(pid)
    except AttributeError:  # not a Linux
        pass
    except OSError as error:
        if error.errno in (errno.ESRCH, errno.EINVAL, errno.ENOENT):  # the last two: it is a thread's
            raise ProcessLookupError(pid) from error
    _find(pid)
    return None


def start_time(pid: int) -> Optional[int]:
    """When the process started: clock ticks since the boot, on macOS microseconds since 1970; None where that is hidden.

    Raises ProcessLookupError when there is no such process, or it has ended.
    """
    if sys.platform == "darwin":
        seconds, microseconds = struct.unpack_from("=qi", _kinfo(pid))  # kp_proc.p_starttime comes first
        return int(seconds * 1_000_000 + microseconds)
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        _find(pid)
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()  # the name in front may hold anything; these begin with field 3
    if fields[0] in (b"Z", b"X"):
        raise ProcessLookupError(pid)
    return int(fields[START_TIME_FIELD - 3])


def user_of(pid: int) -> Optional[int]:
    """The effective user of a process; None when it is gone, or hidden from us."""
    told = _user_by_pidfd(pid)
    if told is not None:
        return told
    try:
        if sys.platform == "darwin":
            return int(struct.unpack_from("=I", _kinfo(pid), KINFO_UID_OFFSET)[0])
        for line in Path(f"/proc/{pid}/status").read_text("utf-8", "replace").splitlines():
            if line.startswith("Uid:"):
                return int(line.split()[2])
    except OSError:
        pass
    return None


def _user_by_pidfd(pid: int) -> Optional[int]:
    """The same by the kernel's own word, which a service gets of processes that /proc hides from it; since Linux 6.13."""
    try:
        pidfd = open_pidfd(pid)
    except ProcessLookupError:
        return None
    if pidfd is None:
        return None
    try:
        told = bytearray(struct.pack("=Q", PIDFD_INFO_CREDS).ljust(PIDFD_INFO_BYTES, b"\0"))
        fcntl.ioctl(pidfd, PIDFD_GET_INFO, told)
        (has,) = struct.unpack_from("=Q", told)
        return int(struct.unpack_from("=I", told, PIDFD_INFO_EUID_OFFSET)[0]) if has & PIDFD_INFO_CREDS else None
    except OSError:  # an older kernel, or it is gone
        return None
    finally:
        os.close(pidfd)


def _find(pid: int) -> None:
    """Raise ProcessLookupError when no process has this pid."""
    with contextlib.suppress(PermissionError):
        os.kill(pid, 0)


if sys.platform == "darwin":
    import ctypes

    KINFO_BYTES, KINFO_UID_OFFSET = 648, 420  # of a 64-bit kinfo_proc; the offset is kp_eproc.e_ucred.cr_uid's

    def _sysctl_text(name: str) -> str:
        size = ctypes.c_size_t(128)
        buffer = ctypes.create_string_buffer(size.value)
        failed = ctypes.CDLL(None).sysctlbyname(name.encode(), buffer, ctypes.byref(size), None, 0)
        return "" if failed else buffer.value.decode("ascii")

    def _kinfo(pid: int) -> bytes:
        """struct kinfo_proc of <sys/sysctl.h>, by {CTL_KERN, KERN_PROC, KERN_PROC_PID, pid}."""
        name = (ctypes.c_int * 4)(1, 14, 1, pid)
        size = ctypes.c_size_t(KINFO_BYTES)
        buffer = ctypes.create_string_buffer(size.value)
        if ctypes.CDLL(None).sysctl(name, 4, buffer, ctypes.byref(size), None, 0) or size.value == 0:
            raise ProcessLookupError(pid)
        return buffer.raw
