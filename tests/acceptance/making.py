"""Runs, events, artifacts and content, made by hand through the protocol."""

from __future__ import annotations

import base64
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runhist.connection import Connection
from runhist.paths import SocketChoice

if TYPE_CHECKING:
    from tests.conftest import Daemon

UPLOAD = "00000000-0000-4000-8000-0000000000ff"
HOUR_US = 3_600_000_000


class Made:
    """A daemon, and a connection to it."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.connection = Connection.open(SocketChoice((daemon.socket,), "a test", True))

    def begin(self, run_id: str, **spec: Any) -> int:
        lease_key = f"00000000-0000-4000-8000-{int.from_bytes(run_id.encode(), 'big') % 16**12:012x}"
        asked = {"run": {"run_id": run_id, **spec}, "lease_key": lease_key}
        return int(self.connection.call("BeginRun", asked)["epoch"])

    def record(self, run_id: str, epoch: int, key: str, **members: Any) -> None:
        event = {"type": "artifact", "key": key, "data": members}
        self.connection.call("Append", {"run_id": run_id, "epoch": epoch, "events": [event]})

    def append(self, run_id: str, epoch: int, key: str, type: str, **members: Any) -> dict[str, Any]:
        event = {"type": type, "key": key, **members}
        return dict(self.connection.call("Append", {"run_id": run_id, "epoch": epoch, "events": [event]}))

    def events(self, run_id: str, **members: Any) -> list[dict[str, Any]]:
        return list(self.connection.call("GetEvents", {"run_id": run_id, **members})["events"])

    def end(self, run_id: str, epoch: int) -> None:
        event = {"type": "run.completed", "key": "end"}
        self.connection.call("Append", {"run_id": run_id, "epoch": epoch, "events": [event]})

    def put(self, content: bytes, upload: str = UPLOAD, chunk: int = 1000) -> str:
        for offset in range(0, len(content), chunk):
            self.chunk(upload, offset, content[offset : offset + chunk])
        kept = self.chunk(upload, len(content), b"", done=True)
        assert kept["size"] == len(content)
        return str(kept["sha256"])

    def chunk(self, upload: str, offset: int, content: bytes, **members: Any) -> dict[str, Any]:
        asked = {"upload": upload, "offset": offset, "base64": base64.b64encode(content).decode(), **members}
        return dict(self.connection.call("PutBlob", asked))

    def get(self, run_id: str, sha256: str) -> bytes:
        replies = self.connection.stream("GetBlob", {"run_id": run_id, "sha256": sha256})
        return b"".join(base64.b64decode(reply["base64"]) for reply in replies)

    def listed(self, run_id: str, **members: Any) -> list[dict[str, Any]]:
        return list(self.connection.call("GetArtifacts", {"run_id": run_id, **members})["artifacts"])

    def files(self) -> list[Path]:
        return sorted(path for path in (self.daemon.state_dir / "blobs").rglob("*") if path.is_file())

    def sweep(self) -> None:
        self.connection.call("CollectGarbage", {})


def restarted(made: Made) -> Made:
    made.connection.close()
    made.daemon.stop()
    return Made(made.daemon.start())


def make_old(made: Made) -> None:
    """As if all content was given long ago."""
    with closing(sqlite3.connect(made.daemon.database, timeout=10)) as database, database:
        database.execute("UPDATE blobs SET stored_us = stored_us - ?", (2 * HOUR_US,))
