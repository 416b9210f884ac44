"""The sockets that clients connect to: bound without a race, bound again when somebody removes them.

A socket is bound under another name in its directory and renamed into place, so that it has its mode before anybody can
find it, and so that a dead one of an earlier daemon is replaced without a moment in which none is there. That nobody else
listens at the path is certain: whoever holds the state directory's lock is the only daemon of this user.

`/run/user/UID` goes when the user logs out and comes back empty, and cleaners remove what they think is old. So the places
are looked at again: at once when something changes in a directory that holds nothing but the socket, and every ten
seconds anyway. The directory of the database is not watched, because every commit would wake us. The watching thread looks
at its stop flag once a step, hence the step of a second: one wake-up a second, and a stop that takes so much longer.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import trio
import watchfiles

from runhist.paths import DATABASE_NAME, check_socket_path

from .instance import inode_at

logger = logging.getLogger("runhistd.listen")

BACKLOG = 128
BINDING_NAME = ".binding"  # shorter than the socket's own name, so that it fits wherever that fits
LOOK_AGAIN_S = 10.0
WATCH_STEP_MS = 1000


class ListenFault(Exception):
    """The daemon can be reached at none of its sockets. The text says why, for each."""


class Endpoint(trio.abc.Listener[trio.SocketStream]):
    """The listener at one path. Whoever waits in `accept` does not notice when the socket is bound again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fault: str | None = None  # why it is not bound; the log has it once
        self._listener: trio.SocketListener | None = None
        self._inode: tuple[int, int] | None = None
        self._changed = trio.Event()
        self._closed = False

    def is_bound(self) -> bool:
        """Whether what is at the path is our socket."""
        return self._inode is not None and inode_at(self.path) == self._inode

    def bind(self) -> None:
        """Listen at the path from now on. A fault is noted and logged; what was bound before stays."""
        try:
            bound = bind_socket(self.path)
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
                return await listener.accept()
            except trio.ClosedResourceError:
                if listener is self._listener:
                    raise
        raise trio.ClosedResourceError

    async def aclose(self) -> None:
        """Stop listening and remove the socket, if it still is ours."""
        self._closed = True
        if self.is_bound():
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()
        self._inode = None
        if self._listener is not None:
            self._listener.socket.close()
        self._changed.set()
        await trio.lowlevel.checkpoint()


@contextlib.asynccontextmanager
async def open_listeners(
    paths: Sequence[Path], *, look_again_s: float = LOOK_AGAIN_S
) -> AsyncIterator[Sequence[Endpoint]]:
    """Listen at all the paths for the block, and bind again what vanishes. Raises ListenFault when none can be bound.

    A path that cannot be bound now is logged and tried again. The database must be open already, since its directory is
    known by it. An exception leaves the block inside an ExceptionGroup.
    """
    endpoints = [Endpoint(path) for path in paths]
    for endpoint in endpoints:
        endpoint.bind()
    if all(endpoint.fault for endpoint in endpoints):
        reasons = "".join(f"\n  {endpoint.path}: {endpoint.fault}" for endpoint in endpoints)
        raise ListenFault(f"no socket can be listened at:{reasons}")
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_bound, endpoints, look_again_s, stop)
        try:
            yield endpoints
        finally:
            stop.set()
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                for endpoint in endpoints:
                    await endpoint.aclose()


async def keep_bound(endpoints: Sequence[Endpoint], look_again_s: float, stop: trio.Event) -> None:
    """Bind again what is no longer there. To end it, set `stop` and cancel: the watching thread heeds only the first."""
    while True:
        await wait_for_change(watchable(endpoints), look_again_s, stop)
        if stop.is_set():
            return
        for endpoint in endpoints:
            if not endpoint.is_bound():
                endpoint.bind()


def watchable(endpoints: Sequence[Endpoint]) -> list[Path]:
    """The directories that exist and in which nothing happens but to our socket."""
    directories = {endpoint.path.parent for endpoint in endpoints}
    return sorted(path for path in directories if path.is_dir() and not (path / DATABASE_NAME).exists())


async def wait_for_change(directories: Sequence[Path], look_again_s: float, stop: trio.Event) -> None:
    """Return when something changed in one of the directories, after `look_again_s`, or soon after `stop` was set."""
    if not directories:
        await trio.sleep(look_again_s)
        return
    changes = watchfiles.awatch(
        *directories,
        watch_filter=None,
        debounce=WATCH_STEP_MS,
        step=WATCH_STEP_MS,
        stop_event=stop,
        rust_timeout=int(look_again_s * 1000),
        yield_on_timeout=True,
        recursive=False,
    )
    try:
        async with contextlib.aclosing(changes):
            async for _ in changes:
                return
    except (OSError, RuntimeError) as error:  # the directory went, or the user has no watches left
        logger.debug("cannot watch", extra={"fields": {"error": error}})
        await trio.sleep(look_again_s)


def bind_socket(path: Path) -> socket.socket:
    """A socket that listens at the path, for us alone. ValueError when the path is too long, OSError for the rest."""
    check_socket_path(path)
    with contextlib.suppress(FileExistsError):
        path.parent.mkdir(mode=0o700)  # its parent is the system's to make
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
        fresh.chmod(0o600)
        bound.listen(BACKLOG)
        fresh.rename(path)
    except OSError:
        bound.close()
        fresh.unlink(missing_ok=True)
        raise
    return bound
