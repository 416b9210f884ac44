"""Bringing what earlier processes of this user left in the spool to a daemon that cannot read it.

A user's own daemon empties that user's spool by itself. One of another user, as the system's is, cannot: so whoever connects
to it brings what was meant for it, sealed files and open ones whose writer is dead. A file is deleted when all of it is
answered, and goes to the quarantine with the reason where the daemon refuses it for good; several processes may do
that at the same time, since requests carry lease_key, writer and n. What the file does not say is asked of the kernel: a
run is begun for its writer while that lives, else for this process, which lets go of it again.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

from .connection import Connection, Unreachable
from .identity import NAMESPACE, Namer, boot_id, open_pidfd
from .paths import SocketChoice, user_sockets
from .protocol.errors import PASSING, InvalidParameter, NoSuchRun, QuotaExceeded, Refusal
from .spool import OPEN, SEALED, DamagedSpool, Header, SpooledRequest, quarantine, read_spool

_LATER = (*PASSING, QuotaExceeded)


def is_needed(socket: Path) -> bool:
    """Whether the daemon at that socket is another than the one that empties this user's spool."""
    return socket.absolute() not in [path.absolute() for path in user_sockets()]


def bring(directory: Path, choice: SocketChoice, instance_id: str, seconds: float) -> None:
    """Bring what lies there for the daemon at the socket, as far as there is time. Raises nothing."""
    files = _files(directory, str(choice.sockets[0].absolute()), instance_id)
    if not files:
        return
    end = time.monotonic() + seconds
    with contextlib.suppress(Unreachable, OSError, *_LATER), Connection.open(choice, timeout=0) as connection:
        waiting = files
        while waiting:
            unknown = [path for path in waiting if not _bring_file(connection, path, end)]
            if len(unknown) == len(waiting):
                return  # their BeginRun may come yet, out of a file whose writer lives
            waiting = unknown


def _files(directory: Path, socket: str, instance_id: str) -> List[Path]:
    """Those that may be brought there, oldest first."""
    found = []
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(OSError, DamagedSpool):
                if entry.name.endswith((OPEN, SEALED)):
                    header, _ = read_spool(Path(entry.path))
                    is_meant = header.socket == socket and header.instance_id in (None, instance_id)
                    if is_meant and (entry.name.endswith(SEALED) or is_dead(header)):
                        found.append((entry.stat(follow_symlinks=False).st_mtime_ns, Path(entry.path)))
    return [path for _, path in sorted(found)]


def is_dead(header: Header) -> bool:
    """Whether the writer is certainly no more. One in another pid namespace is not known."""
    here = boot_id()
    if header.boot_id and here and header.boot_id != here:
        return True
    namer = Namer()
    _, _, namespace = header.identity.partition(NAMESPACE)
    if namespace != namer.namespace:
        return False
    try:
        pidfd = open_pidfd(header.pid)
    except ProcessLookupError:
        return True
    try:
        found = namer.identity(header.pid, pidfd, header.identity.partition(":")[0])
    except ProcessLookupError:
        return True
    finally:
        if pidfd is not None:
            os.close(pidfd)
    return bool(found and header.identity and found != header.identity)


def _bring_file(connection: Connection, path: Path, end: float) -> bool:
    """Send all of it, and delete it; False when its run is not known. Raises what keeps all files from being brought."""
    try:
        header, requests = read_spool(path)
        dead = is_dead(header)
        begun: Optional[Dict[str, Any]] = None
        for request in requests:
            reply = connection.call(
                request.method, _completed(request, header, dead), timeout=max(0.0, end - time.monotonic())
            )
            if request.method == "BeginRun":
                begun = reply
        if begun is not None and dead:
            _let_go(connection, begun)
    except NoSuchRun:
        return False
    except FileNotFoundError:
        return True  # another one was faster
    except _LATER:
        raise
    except (Refusal, DamagedSpool) as fault:
        if isinstance(fault, InvalidParameter) and fault.parameter in ("owner_pid", "caller_pid"):
            return True  # the writer has just died, or is no process where the daemon is: another time
        with contextlib.suppress(OSError):
            quarantine(path, str(fault))
        return True
    with contextlib.suppress(OSError):
        path.unlink()
    return True


def _completed(request: SpooledRequest, header: Header, dead: bool) -> bytes:
    """The request's parameters with what stands in the header. The rest of them stays as it is, byte for byte."""
    members: Dict[str, Any] = {}
    if request.method == "BeginRun":
        if not dead:
            members = {"owner_pid": header.pid, "caller_pid": os.getpid()}
    elif header.lease_key is not None and not ({"epoch", "lease_key"} & json.loads(request.parameters).keys()):
        members = {"lease_key": header.lease_key}
    if not members:
        return request.parameters
    return json.dumps(members)[:-1].encode("ascii") + b"," + request.parameters[1:]


def _let_go(connection: Connection, begun: Dict[str, Any]) -> None:
    """Nobody is left who could go on with the run; it is refused where the run has ended, or was claimed meanwhile."""
    name = {member: begun[member] for member in ("namespace", "run_id", "epoch")}
    with contextlib.suppress(Refusal):
        connection.call("ReleaseRun", name)
