"""The processes behind connections and leases: who they are by the kernel's word, and when they are gone.

How a process is named says `runhist.identity`. What cannot be told of one is never taken for a difference.

The process behind a connection is the one that connected. The kernel hands over its pidfd (SO_PEERPIDFD, Linux 6.5),
which is right also when the process has gone since, or lives in a namespace where it has no pid for us. Without that
we open the pid right after accepting, which is right unless it was given again within that moment.

On macOS kqueue tells of exits. That part was written after the manual pages and never run.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import sys
from typing import TYPE_CHECKING

from attrs import define, frozen

from runhist.identity import BY_START, NAMESPACE, Namer, boot_id, open_pidfd
from runhistd.model.holder import Holder

if TYPE_CHECKING:
    import trio

    Connected = socket.socket | trio.socket.SocketType

SO_PEERPIDFD = 77  # <asm-generic/socket.h>, the same on all that CPython runs on but parisc and sparc
SOL_LOCAL, LOCAL_PEERCRED, LOCAL_PEERPID = 0, 1, 2  # macOS: <sys/un.h>
XUCRED_BYTES = 76  # macOS: <sys/ucred.h>
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


class Processes:
    """The processes of this boot, as they are seen from our pid namespace."""

    def __init__(self, boot: str | None = None) -> None:
        self.boot_id = boot_id() if boot is None else boot
        self._namer = Namer()

    def peer(self, connected: Connected) -> Process:
        """The process that connected this Unix socket. It may have ended since."""
        pid, _ = peer_credentials(connected)
        try:
            pidfd = _peer_pidfd(connected, pid)
            return Process(Holder(pid, self._namer.identity(pid, pidfd), self.boot_id), pidfd)
        except ProcessLookupError:
            return Process(Holder(pid, ENDED, self.boot_id), has_ended=True)

    def find(self, pid: int) -> Process | None:
        """The process that has this pid now; None when there is none."""
        try:
            pidfd = open_pidfd(pid)
            process = Process(Holder(pid, self._namer.identity(pid, pidfd), self.boot_id), pidfd)
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
        kind, _, recorded_namespace = holder.identity.partition(NAMESPACE)
        kind = kind.partition(":")[0]
        if kind == ENDED:
            return Evidence("exited", "pidfd")
        if holder.pid <= 0 or recorded_namespace not in ("", self._namer.namespace):
            return None
        by = "start_time" if kind == BY_START else "pidfd"
        try:
            process = Process(holder, open_pidfd(holder.pid))
            identity = self._namer.identity(holder.pid, process.pidfd, kind)
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


def is_readable(descriptor: int) -> bool:
    """Whether reading from it would not block, without waiting."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def peer_credentials(connected: Connected) -> tuple[int, int]:
    """The pid and the effective user of the process that connected, as of then. The pid is 0 when it has none in our pid
    namespace."""
    if sys.platform == "darwin":
        xucred = connected.getsockopt(SOL_LOCAL, LOCAL_PEERCRED, XUCRED_BYTES)
        _, uid = struct.unpack_from("=II", xucred)  # version, uid, …
        return connected.getsockopt(SOL_LOCAL, LOCAL_PEERPID), uid
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", credentials)
    return pid, uid


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

    def _kevent(pid: int, flags: int) -> select.kevent:
        return select.kevent(pid, select.KQ_FILTER_PROC, flags, select.KQ_NOTE_EXIT)
