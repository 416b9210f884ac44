"""Which users are served, and whose runs a peer may see.

A user's own daemon serves that user, and root in that user's place. The system's daemon serves everybody: every run belongs
to the user who began it, by the kernel's word, and what belongs to another is as if it did not exist. Root and the members
of the admin group may look at the runs of others, and change none of them.

Groups are those that the peer had when it connected (SO_PEERGROUPS, see unix(7)); where the system does not tell them, only
root sees all.
"""

from __future__ import annotations

import array
import grp
import os
import socket
import struct
from collections.abc import Callable, Iterable

import trio

from runhistd.model.errors import PermissionDenied

from .peer import Peer
from .processes import Processes, peer_credentials

SO_PEERGROUPS = 59  # of Linux's asm-generic/socket.h; Python has no name for it
GROUPS_BYTES = 1024  # all that Python's getsockopt takes; who is in more than 256 groups is no admin by any of them


class Users:
    """`serves_all`: this is the system's daemon. `admin_group` names the group whose members see all; empty: none."""

    def __init__(self, *, serves_all: bool, admin_group: Callable[[], str]) -> None:
        self.serves_all = serves_all
        self._admin_group = admin_group

    def admit(self, stream: trio.SocketStream, processes: Processes) -> Peer | None:
        """The peer; None for a user who is not served here."""
        _, uid = peer_credentials(stream.socket)
        if self.serves_all:
            return Peer(uid, processes.peer(stream.socket), uid == 0 or self._is_admin(stream.socket))
        if uid in (0, os.geteuid()):
            return Peer(os.geteuid(), processes.peer(stream.socket))
        return None

    def _is_admin(self, connected: socket.socket | trio.socket.SocketType) -> bool:
        name = self._admin_group()
        if not name:
            return False
        try:
            return grp.getgrnam(name).gr_gid in groups_of(connected)
        except (KeyError, OSError):
            return False


def groups_of(connected: socket.socket | trio.socket.SocketType) -> Iterable[int]:
    """The peer's groups. Raises OSError where the system does not tell them."""
    _, _, gid = struct.unpack("3i", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    groups = array.array("I")
    groups.frombytes(connected.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, GROUPS_BYTES))
    return {gid, *groups}


def whose(peer: Peer, uid: int | None) -> int:
    """Whose runs a reading call is about: the peer's own unless it asks for another's. Raises PermissionDenied."""
    if uid is None or uid == peer.uid:
        return peer.uid
    if not peer.is_admin:
        raise PermissionDenied
    return uid
