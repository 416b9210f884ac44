"""What a user takes of what the settings allow each user, so that one cannot keep the others from recording.

Connections and what waits in memory are of the moment, and whoever has all of his waits; stored runs and bytes are
refused beyond the limit (see `runhistd.model.quota`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runhistd.model.quota import BYTES, RUNS, Stored
from runhistd.model.views import Share, Trouble

from .peer import Peer

if TYPE_CHECKING:
    from .service import Service

NEARLY = 0.95  # of what a user may have stored; from there on status warns


def is_full(service: Service, peer: Peer) -> bool:
    """Whether there is no room for another connection, or none for another one of this user."""
    config = service.config
    if len(service.connections) >= config.connections:
        return True
    return connections_of(service, peer.uid) >= config.connections_per_user


def connections_of(service: Service, uid: int) -> int:
    """How many connections the user has open."""
    return sum(connection.peer.uid == uid for connection in service.connections)


def check_content(service: Service, uid: int, size: int) -> None:
    """Refuse so many bytes of content more. Raises QuotaExceeded."""
    tally = service.committer.tally
    if tally is not None:
        tally.check_bytes(uid, size)


def shares_of(service: Service, uid: int) -> list[Share]:
    """All of the user's."""
    config, tally = service.config, service.committer.tally
    stored = Stored() if tally is None else tally.of(uid)
    return [
        Share("connections_per_user", connections_of(service, uid), config.connections_per_user),
        Share("queue_bytes_per_user", service.committer.queued_bytes_of(uid), config.queue_bytes_per_user),
        Share(RUNS, stored.runs, config.runs_per_user),
        Share(BYTES, stored.bytes, config.bytes_per_user),
    ]


def shortages_of(service: Service, uid: int) -> list[Trouble]:
    """What the user has nearly all stored of."""
    allows = "this user has {0.used:,} of the {0.limit:,} that limits.{0.what} allows"
    return [
        Trouble(allows.format(share), "runhist gc --dry-run")
        for share in shares_of(service, uid)
        if share.what in (RUNS, BYTES) and share.limit is not None and share.used >= share.limit * NEARLY
    ]
