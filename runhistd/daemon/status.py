"""How the daemon stands: what GetStatus answers, and the line that the service manager shows."""

from __future__ import annotations

import os
import shutil
import time
from typing import TYPE_CHECKING, Any

import runhistd
from runhistd.model.views import StatusCount, Trouble
from runhistd.store import blobs, run_reader

from . import control_calls
from .peer import Peer
from .shares import shares_of, shortages_of

if TYPE_CHECKING:
    from .service import Service

LOW_SPACE_BYTES = 500_000_000  # below this, status warns


def status_of(service: Service) -> str:
    """What an operator sees at a glance, on one line."""
    faulty = "; the settings file is not usable" if service.reload.faults else ""
    return (
        f"{state_of(service)} in {service.instance.database}, position {service.tail.position}, "
        f"{len(service.connections)} connections{faulty}"
    )


async def get_status(service: Service, peer: Peer, call: control_calls.GetStatus) -> Any:
    """GetStatus. Answered also while the database is closed."""
    database = service.instance.database
    counts: list[StatusCount] = []
    blob_count = blob_bytes = 0
    if service.damage is None:
        counts = await service.read(run_reader.count_statuses, peer.uid)
        blob_count, blob_bytes = await service.read(blobs.totals)
    wal = database.with_name(f"{database.name}-wal")
    sorted_us = sorted(service.committer.latencies_us) or [0]
    return {
        "version": runhistd.__version__,
        "pid": os.getpid(),
        "state": state_of(service),
        "started_us": service.started_us,
        "instance_id": service.instance_id,
        "position": service.tail.position,
        "database": str(database),
        "database_bytes": database.stat().st_size if database.exists() else 0,
        "wal_bytes": wal.stat().st_size if wal.exists() else 0,
        "troubles": [*troubles_of(service), *shortages_of(service, peer.uid)],
        "free_bytes": shutil.disk_usage(database.parent).free,
        "sockets": service.sockets,
        "connections": len(service.connections),
        "followers": sum(connection.stream_ended is not None for connection in service.connections),
        "shares": shares_of(service, peer.uid),
        "config": service.reload.status(),
        "blobs": blob_count,
        "blob_bytes": blob_bytes,
        "retention": service.collector.status(),
        "runs": counts,
        "delayed": service.liveness.delayed(),
        "spool": service.spools.status(),
        "commit": {
            "commits": service.committer.commits,
            "p50_us": sorted_us[len(sorted_us) // 2],
            "p99_us": sorted_us[len(sorted_us) * 99 // 100],
            "max_us": sorted_us[-1],
        },
    }


def state_of(service: Service) -> str:
    """In a word: recording, full, or damaged."""
    return "full" if service.damage is None and service.committer.space.full_since_us is not None else service.state


def troubles_of(service: Service) -> list[Trouble]:
    """What somebody must see to, with what to type."""
    free_bytes = shutil.disk_usage(service.instance.state_dir).free
    found = []
    if service.damage is not None:
        what = f"the database is damaged ({service.damage}); it is closed and kept as it is, and nothing is recorded"
        found.append(Trouble(what, service.recover))
    elif service.state != "recording":
        what = "storage faults ended the daemon again and again, and it only reads; see to the disk, and the daemon's log"
        found.append(Trouble(what, "runhistd verify"))
    wal = service.instance.database.with_name(f"{service.instance.database.name}-wal")
    if wal.exists() and wal.stat().st_size > service.config.wal_bytes:
        what = f"the write-ahead log has {wal.stat().st_size // 1_000_000:,} MB, because another program goes on reading it"
        found.append(Trouble(what, f"fuser -v {wal}"))
    service.committer.space.look_again()
    full_since_us = service.committer.space.full_since_us
    if full_since_us is not None:
        since = time.strftime("%H:%M:%S", time.localtime(full_since_us / 1_000_000))
        refused = f"{service.committer.space.refused:,} writes were refused since {since}"
        what = f"the disk is full: {refused}; reads go on, and writing resumes by itself when there is room"
        found.append(Trouble(what, "runhist gc --dry-run"))
    elif free_bytes < LOW_SPACE_BYTES:
        what = f"{free_bytes // 1_000_000:,} MB free on the disk of {service.instance.database}"
        found.append(Trouble(what, "runhist gc --dry-run"))
    return found
