"""Sockets that a service manager opened for us and passed on: systemd's by number (sd_listen_fds(3)), launchd's by a call.

The manager bound them and keeps them: we neither bind nor remove them, and clients that connect while we are away wait in
them for our next start. The variables are taken out of the environment, and the descriptors are closed in our children.

What launchd does was written after launch(3) and never run on a Mac; a library that does as that page says stands in for
it in the tests.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import MutableMapping
from typing import TYPE_CHECKING

from .listen import ListenFault

if TYPE_CHECKING:
    import ctypes

FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START
VARLINK_NAME = "varlink"  # of the socket that speaks varlink, where several are passed (FileDescriptorName=)
MAX_PASSED = 64


def take_passed(environment: MutableMapping[str, str] = os.environ) -> list[socket.socket]:
    """The listening sockets that were passed to this very process; none without a service manager.

    To be called once, before anything else opens descriptors. Raises ListenFault when they are not what we can serve.
    """
    if sys.platform == "darwin":
        import ctypes

        return passed_by_launchd(ctypes.CDLL(None))
    return passed_by_systemd(environment)


def passed_by_systemd(environment: MutableMapping[str, str]) -> list[socket.socket]:
    """Those that the variables tell of. Of several, those named varlink count, and the others are closed.

    Raises ListenFault for what is no listening Unix stream socket, and for several of which none is so named.
    """
    count = environment.pop("LISTEN_FDS", "")
    pid = environment.pop("LISTEN_PID", "")
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    environment.pop("LISTEN_PIDFDID", None)  # since systemd 258
    if pid != str(os.getpid()) or not count.isdecimal():
        return []  # they were meant for the process that started us, or there are none
    if int(count) > MAX_PASSED:
        raise ListenFault(f"LISTEN_FDS says that {count} sockets were passed; at most {MAX_PASSED} are taken")
    descriptors = range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + int(count))
    for descriptor in descriptors:
        try:
            os.set_inheritable(descriptor, False)
        except OSError as error:
            raise ListenFault(f"the passed descriptor {descriptor} is not open ({error.strerror})") from error
    if len(descriptors) > 1:
        named = dict(zip(descriptors, names, strict=False))
        chosen = [descriptor for descriptor in descriptors if named.get(descriptor) == VARLINK_NAME]
        if not chosen:
            raise ListenFault(
                f"{count} sockets were passed and none is named {VARLINK_NAME}; set FileDescriptorName={VARLINK_NAME}"
            )
        for descriptor in set(descriptors) - set(chosen):
            os.close(descriptor)
    else:
        chosen = list(descriptors)
    return [adopt(descriptor) for descriptor in chosen]


def passed_by_launchd(library: ctypes.CDLL) -> list[socket.socket]:
    """Those that the job calls varlink; none when launchd did not start us. Raises ListenFault when they were taken before,
    or are no listening Unix stream sockets."""
    import ctypes  # not on Linux: it wants memory that can be written and executed, which a sandbox may deny

    numbers, count = ctypes.POINTER(ctypes.c_int)(), ctypes.c_size_t()
    activate = library.launch_activate_socket
    activate.argtypes = [ctypes.c_char_p, ctypes.POINTER(ctypes.POINTER(ctypes.c_int)), ctypes.POINTER(ctypes.c_size_t)]
    activate.restype = ctypes.c_int
    failed = activate(VARLINK_NAME.encode(), ctypes.byref(numbers), ctypes.byref(count))
    if failed in (errno.ESRCH, errno.ENOENT):  # not a job of launchd's; a job without such a socket
        return []
    if failed:
        raise ListenFault(f"launchd does not hand over the socket {VARLINK_NAME} ({os.strerror(failed)})")
    descriptors = numbers[: count.value]
    library.free.argtypes = [ctypes.c_void_p]
    library.free(numbers)
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return [adopt(descriptor) for descriptor in descriptors]


def adopt(descriptor: int) -> socket.socket:
    """The socket of a passed descriptor. Raises ListenFault when it cannot be listened at."""
    try:
        passed = socket.socket(fileno=descriptor)
        listens = passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise ListenFault(f"the passed descriptor {descriptor} is not a socket ({error.strerror})") from error
    if passed.family != socket.AF_UNIX or passed.type != socket.SOCK_STREAM or not listens:
        passed.detach()
        raise ListenFault(f"the passed socket {descriptor} is not a listening Unix stream socket (ListenStream=/path)")
    return passed
