"""Sockets that a service manager opened for us and passed on: systemd's by number (sd_listen_fds(3)).

The manager bound them and keeps them: we neither bind nor remove them, and clients that connect while we are away wait in
them for our next start. The variables are taken out of the environment, and the descriptors are closed in our children.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

from .listen import ListenFault

FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START
VARLINK_NAME = "varlink"  # of the socket that speaks varlink, where several are passed (FileDescriptorName=)
MAX_PASSED = 64


def take_passed(environment: MutableMapping[str, str] = os.environ) -> list[socket.socket]:
    """The listening sockets that were passed to this very process; none without a service manager.

    To be called once, before anything else opens descriptors. Of several, those named varlink count, and the others are
    closed. Raises ListenFault for what is no listening Unix stream socket, and for several of which none is so named.
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
