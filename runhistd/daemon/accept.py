"""Taking connections and serving each to its end."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import trio

from runhistd.model.errors import Busy, PermissionDenied

from .listen import Endpoint
from .server import Connection, turn_away
from .service import Service
from .shares import is_full

logger = logging.getLogger("runhistd.accept")

RETRY_AFTER_US = 1_000_000  # of a client that there is no room for


async def accept_all(
    service: Service, endpoints: Sequence[Endpoint], nursery: trio.Nursery, accepting: trio.CancelScope
) -> None:
    """Take connections at all endpoints until cancelled; those that were taken live on in the nursery."""
    with accepting:
        async with trio.open_nursery() as acceptors:
            for endpoint in endpoints:
                acceptors.start_soon(accept, service, endpoint, nursery)


async def accept(service: Service, endpoint: Endpoint, nursery: trio.Nursery) -> None:
    """Take connections at one endpoint."""
    while True:
        try:
            stream = await endpoint.accept()
        except OSError as error:
            logger.error("cannot accept", extra={"fields": {"error": error}})
            await trio.sleep(0.1)  # out of descriptors: some will be closed
            continue
        peer = service.users.admit(stream, service.liveness.processes)
        if peer is None:
            nursery.start_soon(turn_away, stream, PermissionDenied())
            continue
        if is_full(service, peer):
            peer.process.close()
            nursery.start_soon(turn_away, stream, Busy(RETRY_AFTER_US))
            continue
        connection = Connection(stream, peer, service, service.config.frame_bytes)
        service.connections.add(connection)  # at once: a verdict may wait for what its peer has sent
        service.liveness.connected(connection)
        nursery.start_soon(serve_connection, service, connection)


async def serve_connection(service: Service, connection: Connection) -> None:
    """Serve one peer to its end."""
    try:
        async with connection.stream:
            await connection.serve()
    finally:
        service.connections.discard(connection)
        service.liveness.disconnected(connection)
        connection.peer.process.close()
