"""The sockets that clients connect to: bound without a race, bound again when somebody removes them.

A socket is bound under another name in its directory and renamed into place, so that it has its mode before anybody can
find it, and so that a dead one of an earlier daemon is replaced without a moment in which none is there. That nobody else
listens at the path is certain: whoever holds the state directory's lock is the only daemon of this user.

`/run/user/UID` goes when the user logs out and comes back empty, and cleaners remove what they think is old. So every two
seconds a task looks whether what is at each path still is ours. Watching the directories was tried instead and is worse:
a watch is blind while a directory is away, and beside the database it wakes at every commit.

A socket that a service manager passed is its own: it made the path, and it alone may remove it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import trio
from attrs import frozen

from runhist.paths import SYSTEM_SOCKET, check_socket_path, user_sockets

from .instance import inode_at
from .processes import is_readable

logger = logging.getLogger("runhistd.listen")

BACKLOG = 128
BINDING_NAME = ".binding"  # shorter than the socket's own name, so that it fits wherever that fits
LOOK_AGAIN_S = 2.0


class ListenFault(Exception):
    """The daemon can be reached at none of its sockets. The text says why, for each."""


class Endpoint(trio.abc.Listener[trio.SocketStream]):
    """The listener at one path. Whoever waits in `accept` does not notice when the socket is bound again."""

    def __init__(self, path: Path, *, for_all: bool = False) -> None:
        self.path = path
        self._for_all = for_all
        self.fault: str | None = None  # why it is not bound; the log has it once
        self._listener: trio.SocketListener | None = None
        self._inode: tuple[int, int] | None = None
        self._changed = trio.Event()
        self._closed = False
        self._accepted = 0
        self._accepting = trio.Event()  # one was accepted, or will never be

    def is_bound(self) -> bool:
        """Whether what is at the path is our socket."""
        return self._inode is not None and inode_at(self.path) == self._inode

    def bind(self) -> None:
        """Listen at the path from now on. A fault is noted and logged; what was bound before stays."""
        try:
            bound = bind_socket(self.path, for_all=self._for_all)
        except (OSError, ValueError) as error:
            if str(error) != self.fault:
                self.fault = str(error)
                logger.error("cannot listen", extra={"fields": {"socket": self.path, "error": error}})
            return
        self.fault = None
        old, self._listener = self._listener, trio.SocketListener(trio.socket.from_stdlib_socket(bound))
        self._inode = inode_at(self.path)
        logger.info("listening", extra={"fields": {"socket": self.path}})
        if old is not None:
            old.socket.close()
        self._changed.set()
        self._changed = trio.Event()

    async def accept(self) -> trio.SocketStream:
        """The next connection. Raises ClosedResourceError once the endpoint is closed, OSError when descriptors run out."""
        while not self._closed:
            if self._listener is None:
                await self._changed.wait()
                continue
            listener = self._listener
            try:
                stream = await listener.accept()
                self._accepted += 1
                self._accepting.set()
                self._accepting = trio.Event()
                return stream
            except trio.ClosedResourceError:
                if listener is self._listener:
                    raise
        raise trio.ClosedResourceError

    def remove(self) -> None:
        """Take the socket from its path, if it still is ours."""
        if self.is_bound():
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()
        self._inode = None

    async def all_accepted(self) -> None:
        """Return when everyone who has connected before now was accepted."""
        behind = self._accepted + BACKLOG
        while not self._closed and self._accepted <= behind:
            if self._listener is None or not is_readable(self._listener.socket.fileno()):
                return
            await self._accepting.wait()

    async def aclose(self) -> None:
        """Stop listening and remove the socket, if it still is ours."""
        self._closed = True
        self.remove()
        if self._listener is not None:
            self._listener.socket.close()
        self._changed.set()
        self._accepting.set()
        await trio.lowlevel.checkpoint()


class PassedEndpoint(Endpoint):
    """The listener at a socket that a service manager bound and keeps."""

    def __init__(self, passed: socket.socket) -> None:
        super().__init__(path_of(passed))
        self._listener = trio.SocketListener(trio.socket.from_stdlib_socket(passed))

    def is_bound(self) -> bool:
        """Always: what is at its path is not ours to see to."""
        return True

    def bind(self) -> None:
        """There is nothing to do but to say so."""
        logger.info("listening", extra={"fields": {"socket": self.path, "passed": True}})

    def remove(self) -> None:
        """Leave it: who connects now waits in it for the next daemon."""


def path_of(passed: socket.socket) -> Path:
    """Where a bound Unix socket is; an abstract one is shown with @."""
    name = passed.getsockname()
    return Path("@" + os.fsdecode(name[1:])) if isinstance(name, bytes) else Path(name)


@frozen
class Doors:
    """Where clients come in: the sockets that a service manager passed, and for whom.

    The system's daemon `serves_all`; it listens at the system's socket unless one was passed.
    """

    passed: Sequence[socket.socket] = ()
    serves_all: bool = False

    def open(self, *, keep: bool = True) -> AbstractAsyncContextManager[list[Endpoint]]:
        """Listen for the block, as open_listeners does."""
        passed = [one.dup() for one in self.passed]
        if not self.serves_all:
            return open_listeners(user_sockets(), passed, keep=keep)
        return open_listeners(() if passed else (SYSTEM_SOCKET,), passed, keep=keep, for_all=True)


@contextlib.asynccontextmanager
async def open_listeners(
    paths: Sequence[Path], passed: Sequence[socket.socket] = (), *, keep: bool = True, for_all: bool = False
) -> AsyncIterator[list[Endpoint]]:
    """Listen at the passed sockets and at all the paths for the block, and bind again what vanishes of the latter.

    Without `keep` nothing is bound again: for whoever does not hold the state directory's lock. `for_all`: every user may
    connect.

    Raises ListenFault when there is nothing to listen at. A path that cannot be bound now is logged and tried again; one
    that a passed socket is at is left to that. An exception leaves the block inside an ExceptionGroup.
    """
    endpoints: list[Endpoint] = [PassedEndpoint(one) for one in passed]
    taken = {endpoint.path for endpoint in endpoints}
    endpoints += [Endpoint(path, for_all=for_all) for path in paths if path not in taken]
    for endpoint in endpoints:
        endpoint.bind()
    if all(endpoint.fault for endpoint in endpoints):
        reasons = "".join(f"\n  {endpoint.path}: {endpoint.fault}" for endpoint in endpoints)
        raise ListenFault(f"no socket can be listened at:{reasons}")
    async with trio.open_nursery() as nursery:
        if keep:
            nursery.start_soon(keep_bound, endpoints)
        try:
            yield endpoints
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                for endpoint in endpoints:
                    await endpoint.aclose()


async def all_accepted(endpoints: Sequence[Endpoint]) -> None:
    """Return when everyone who has connected to any of them before now was accepted."""
    for endpoint in endpoints:
        await endpoint.all_accepted()


async def keep_bound(endpoints: Sequence[Endpoint]) -> None:
    """Bind again what is no longer there, until cancelled."""
    while True:
        await trio.sleep(LOOK_AGAIN_S)
        for endpoint in endpoints:
            if not endpoint.is_bound():
                endpoint.bind()


def bind_socket(path: Path, *, for_all: bool = False) -> socket.socket:
    """A socket that listens at the path, for us alone or `for_all`. ValueError for a path that is too long, else OSError."""
    check_socket_path(path)
    with contextlib.suppress(FileExistsError):
        path.parent.mkdir(mode=0o755 if for_all else 0o700)  # its parent is the system's to make
    directory = path.parent.stat(follow_symlinks=False)
    if not stat.S_ISDIR(directory.st_mode) or directory.st_uid != os.geteuid():
        raise PermissionError(f"{path.parent} is not a directory of our own")
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.stat(follow_symlinks=False).st_mode):
            raise FileExistsError(f"{path} is not a socket; move it away")
    fresh = path.with_name(BINDING_NAME)
    fresh.unlink(missing_ok=True)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        bound.bind(str(fresh))
        fresh.chmod(0o666 if for_all else 0o600)
        bound.listen(BACKLOG)
        fresh.rename(path)
    except OSError:
        bound.close()
        fresh.unlink(missing_ok=True)
        raise
    return bound
