"""Who a process is by the kernel's word, and when it is gone.

A pid alone names nobody: it is given again. Where the kernel keeps pidfds in a file system of their own (pidfs, Linux 6.9)
the inode of a pidfd is never given again until the next boot; elsewhere the time at which the process started stands in
for it. Both count within one boot, and a pid within one pid namespace: so a holder carries the boot, and its identity,
where it has a pid, the namespace. What cannot be told is left empty, and never taken for a difference.

The process behind a connection is the one that connected. The kernel hands over its pidfd (SO_PEERPIDFD, Linux 6.5),
which is right also when the process has gone since, or lives in a namespace where it has no pid for us. Without that
we open the pid right after accepting, which is right unless it was given again within that moment.

On macOS kqueue tells of exits and sysctl of start times. That part was written after the manual pages and never run.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import socket
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import define, frozen

from runhistd.model.holder import Holder

if TYPE_CHECKING:
    import trio

    Connected = socket.socket | trio.socket.SocketType

SO_PEERPIDFD = 77  # <asm-generic/socket.h>, the same on all that CPython runs on but parisc and sparc
BOOT_ID_VARIABLE = "RUNHIST_BOOT_ID"
BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")
START_TIME_FIELD = 22  # of /proc/PID/stat, proc_pid_stat(5)
ENDED = "ended"  # the identity of a process that was gone before it could be looked at


@frozen
class Evidence:
    """Why a process is taken for dead: what was `found`, and what it was seen `by`; the words are those of Incomplete."""

    found: str
    by: str


@define(eq=False)
class Process:
    """A process that somebody asked about. `pidfd` is None where the kernel has none to give, or no descriptor was left;
    `has_ended` then says that it was gone before it could be looked at."""

    holder: Holder
    pidfd: int | None = None
    has_ended: bool = False

    def is_dead(self) -> bool:
        """Whether it is known to have ended; a zombie has."""
        return self.has_ended or (self.pidfd is not None and is_readable(self.pidfd))

    def share(self) -> Process:
        """The same process for somebody else to hold, without a pidfd where no descriptor is left."""
        with contextlib.suppress(OSError):
            return Process(self.holder, None if self.pidfd is None else os.dup(self.pidfd), self.has_ended)
        return Process(self.holder)

    def close(self) -> None:
        """Give the descriptor back; who the process is stays known."""
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None


def boot_id(environment: Mapping[str, str] = os.environ) -> str:
    """What names this boot of the machine: $RUNHIST_BOOT_ID, else the kernel's; empty where it has none."""
    named = environment.get(BOOT_ID_VARIABLE)
    if named:
        return named
    if sys.platform == "darwin":
        return _sysctl_text("kern.bootsessionuuid")
    with contextlib.suppress(OSError):
        return BOOT_ID_FILE.read_text("ascii").strip()
    return ""


class Processes:
    """The processes of this boot, as they are seen from our pid namespace."""

    def __init__(self, boot: str | None = None) -> None:
        self.boot_id = boot_id() if boot is None else boot
        self._namespace = _pid_namespace()
        self._has_pidfs = has_pidfs()

    def peer(self, connected: Connected) -> Process:
        """The process that connected this Unix socket. It may have ended since."""
        pid, _ = peer_credentials(connected)
        try:
            return self._look(pid, _peer_pidfd(connected, pid))
        except ProcessLookupError:
            return Process(Holder(pid, ENDED, self.boot_id), has_ended=True)

    def find(self, pid: int) -> Process | None:
        """The process that has this pid now; None when there is none."""
        try:
            process = self._look(pid, open_pidfd(pid))
        except ProcessLookupError:
            return None
        if process.is_dead():
            process.close()
            return None
        return process

    def find_again(self, holder: Holder) -> Process | Evidence | None:
        """A recorded process: found again, or how it is known that it is dead, or None where the kernel tells nothing of it.

        One that cannot be told from what has its pid now counts as found: with that one gone it is gone in any case.
        """
        if holder.boot_id and self.boot_id and holder.boot_id != self.boot_id:
            return Evidence("boot changed", "boot_id")
        kind, _, recorded_namespace = holder.identity.partition(" pidns:")
        kind = kind.partition(":")[0]
        if kind == ENDED:
            return Evidence("exited", "pidfd")
        if holder.pid <= 0 or recorded_namespace not in ("", self._namespace):
            return None
        by = "start_time" if kind == "start" else "pidfd"
        try:
            process = Process(holder, open_pidfd(holder.pid))
            identity = self._identity(kind, holder.pid, process.pidfd)
        except ProcessLookupError:
            return Evidence("gone", by)
        if process.is_dead():
            evidence = Evidence("exited", by)
        elif identity in ("", holder.identity):
            return process
        else:
            evidence = Evidence("replaced", by)
        process.close()
        return evidence

    def _look(self, pid: int, pidfd: int | None) -> Process:
        kind = "pidfd" if pidfd is not None and self._has_pidfs else "start"
        return Process(Holder(pid, self._identity(kind, pid, pidfd), self.boot_id), pidfd)

    def _identity(self, kind: str, pid: int, pidfd: int | None) -> str:
        """What tells the process from others of its pid; empty where it cannot be told. Raises ProcessLookupError."""
        told: int | None = None
        if kind == "pidfd" and pidfd is not None and self._has_pidfs:
            told = os.fstat(pidfd).st_ino
        elif kind == "start" and pid > 0:
            told = start_time(pid)
        if told is None:
            return ""
        return f"{kind}:{told}" + (f" pidns:{self._namespace}" if pid > 0 and self._namespace else "")


class Exits:
    """Notices the exits of any number of processes through one descriptor, which is readable when there are some.

    Nothing is opened for a process: it is its pidfd that is watched, and on macOS its pid.
    """

    def __init__(self) -> None:
        self._watched: dict[int, Process] = {}
        if sys.platform == "darwin":
            self._kernel = select.kqueue()
        else:
            self._kernel = select.epoll()

    def fileno(self) -> int:
        """The descriptor."""
        return self._kernel.fileno()

    def watch(self, process: Process) -> bool:
        """Notice its exit from now on, also one that has happened. False when the kernel cannot tell."""
        if sys.platform == "darwin":
            number = process.holder.pid
            try:
                self._kernel.control([_kevent(number, select.KQ_EV_ADD | select.KQ_EV_ONESHOT)], 0)
            except OSError:
                return False
        elif process.pidfd is None:
            return False
        else:
            number = process.pidfd
            self._kernel.register(number, select.EPOLLIN)
        self._watched[number] = process
        return True

    def forget(self, process: Process) -> None:
        """Watch it no longer. To be called before its pidfd is closed; does nothing for one that is not watched."""
        number = process.holder.pid if sys.platform == "darwin" else process.pidfd
        if number is None or self._watched.pop(number, None) is None:
            return
        if sys.platform != "darwin":
            self._kernel.unregister(number)
        else:
            with contextlib.suppress(OSError):
                self._kernel.control([_kevent(number, select.KQ_EV_DELETE)], 0)

    def take(self) -> list[Process]:
        """Those that have exited since; each is told once and watched no longer."""
        if sys.platform == "darwin":
            numbers = [event.ident for event in self._kernel.control([], 64, 0)]
        else:
            numbers = [number for number, _ in self._kernel.poll(0)]
        exited = [self._watched[number] for number in numbers if number in self._watched]
        for process in exited:
            self.forget(process)
        return exited

    def close(self) -> None:
        """Notice nothing more."""
        self._kernel.close()


def has_pidfs() -> bool:
    """Whether pidfds have inodes of their own: the older kernels' share one with every other anonymous file."""
    if not hasattr(os, "eventfd"):
        return False
    pidfd = open_pidfd(os.getpid())
    if pidfd is None:
        return False
    other = os.eventfd(0)
    try:
        ours, theirs = os.fstat(pidfd), os.fstat(other)
        return (ours.st_dev, ours.st_ino) != (theirs.st_dev, theirs.st_ino)
    finally:
        os.close(pidfd)
        os.close(other)


def is_readable(descriptor: int) -> bool:
    """Whether reading from it would not block, without waiting."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def peer_credentials(connected: Connected) -> tuple[int, int]:
    """The pid and the effective user of the process that connected, as of then. The pid is 0 when it has none in our pid
    namespace."""
    if sys.platform == "darwin":
        _, uid = struct.unpack("=II", connected.getsockopt(SOL_LOCAL, LOCAL_PEERCRED, 76)[:8])  # xucred: version, uid, …
        return connected.getsockopt(SOL_LOCAL, LOCAL_PEERPID), uid
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", credentials)
    return pid, uid


def open_pidfd(pid: int) -> int | None:
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


def start_time(pid: int) -> int | None:
    """When the process started: clock ticks since the boot, on macOS microseconds since 1970; None where that is hidden.

    Raises ProcessLookupError when there is no such process, or it has ended.
    """
    if sys.platform == "darwin":
        return _timeval_us(_kinfo(pid))
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        _find(pid)
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()  # the name in front may hold anything; these begin with field 3
    if fields[0] in (b"Z", b"X"):
        raise ProcessLookupError(pid)
    return int(fields[START_TIME_FIELD - 3])


def user_of(pid: int) -> int | None:
    """The effective user of a process; None when it is gone, or hidden from us."""
    try:
        if sys.platform == "darwin":
            return _effective_uid(_kinfo(pid))
        for line in Path(f"/proc/{pid}/status").read_text("utf-8", "replace").splitlines():
            if line.startswith("Uid:"):
                return int(line.split()[2])
    except OSError:
        pass
    return None


def _find(pid: int) -> None:
    """Raise ProcessLookupError when no process has this pid."""
    with contextlib.suppress(PermissionError):
        os.kill(pid, 0)


def _pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:
        return ""


def _peer_pidfd(connected: Connected, pid: int) -> int | None:
    """The pidfd of the process that connected. Raises ProcessLookupError when it is gone."""
    if sys.platform == "darwin":
        return None
    try:
        (pidfd,) = struct.unpack("i", connected.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, 4))
        return int(pidfd)
    except OSError as error:
        if error.errno in (errno.ESRCH, errno.EINVAL):  # before Linux 6.16 there is none of a process that was waited for
            raise ProcessLookupError(pid) from error
        return open_pidfd(pid) if error.errno == errno.ENOPROTOOPT else None


if sys.platform == "darwin":
    SOL_LOCAL, LOCAL_PEERCRED, LOCAL_PEERPID = 0, 1, 2  # <sys/un.h>
    KINFO_BYTES, KINFO_UID_OFFSET = 648, 420  # of a 64-bit kinfo_proc; the offset is kp_eproc.e_ucred.cr_uid's

    def _kevent(pid: int, flags: int) -> select.kevent:
        return select.kevent(pid, select.KQ_FILTER_PROC, flags, select.KQ_NOTE_EXIT)

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

    def _timeval_us(kinfo: bytes) -> int:
        seconds, microseconds = struct.unpack_from("=qi", kinfo)  # kp_proc.p_starttime comes first
        return int(seconds * 1_000_000 + microseconds)

    def _effective_uid(kinfo: bytes) -> int:
        return int(struct.unpack_from("=I", kinfo, KINFO_UID_OFFSET)[0])
