"""What the store could do if sockets and processes cost nothing: frames from memory, decoded, decided, folded, committed.

One process stands for eight writers, so that a batch holds as much as eight in flight bring. Frames are the same but for
their n, which is put in at the cost of a copy.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from uuid import UUID, uuid4

from runhistd.daemon.commit import CHECKPOINT_BYTES
from runhistd.daemon.envelope import decode_envelope
from runhistd.daemon.write_calls import decode_append
from runhistd.model.decide import Append
from runhistd.model.lease import Begin
from runhistd.store.log import Appended, EventLog

from . import REQUEST_EVENTS, event
from .runhistd import INTERFACE

TITLE = "EventLog.apply, from memory"
WORKLOADS = frozenset({"flight", "request"})
WITHIN_ONE = True
WRITERS = 8
EVENT_BYTES = 16 * 1024 * 1024


def missing() -> str | None:
    """It is here."""
    return None


def start(directory: Path, env: Mapping[str, str]) -> None:
    """No server."""


class Store:
    """The log, and eight runs in it."""

    window = 8 * 100

    def __init__(self, directory: Path) -> None:
        self._log = EventLog.open(directory / "history.db")
        self._n = 0
        self._frames: list[bytes] = []
        self._log.apply([_begin(i) for i in range(WRITERS)], time.time_ns() // 1000)
        self._single = [self._parts(i, 1) for i in range(WRITERS)]
        self._many = [self._parts(i, REQUEST_EVENTS) for i in range(WRITERS)]

    def _parts(self, writer: int, events: int) -> list[bytes]:
        """A call before and behind its first_n."""
        parameters = {
            "run_id": f"run-{writer}",
            "epoch": writer + 1,
            "writer": str(uuid4()),
            "first_n": -1,
            "events": [event(i) for i in range(events)],
        }
        call = {"method": f"{INTERFACE}.Append", "parameters": parameters}
        before, named, behind = json.dumps(call).encode().partition(b'"first_n": ')
        return [before + named, behind.removeprefix(b"-1")]

    def _apply(self, frames: list[bytes]) -> int:
        requests: list[Append] = []
        for frame in frames:
            requests.append(decode_append(decode_envelope(frame).parameters, 0, None, EVENT_BYTES))
        stored = 0
        for outcome in self._log.apply(requests, time.time_ns() // 1000).outcomes:
            assert isinstance(outcome, Appended), outcome
            stored += outcome.stored
        if self._log.wal_bytes >= CHECKPOINT_BYTES:
            self._log.checkpoint(truncate=False)
        return stored

    def one(self) -> int:
        """Nobody waits in here."""
        raise NotImplementedError

    def request(self) -> int:
        """A batch of one request of each writer."""
        frames = [b"%b%d%b" % (before, self._n + 1, behind) for before, behind in self._many]
        self._n += REQUEST_EVENTS
        return self._apply(frames)

    def send(self, events: int) -> None:
        """Keep calls of one event each."""
        for _ in range(events // WRITERS):
            self._n += 1
            self._frames += [b"%b%d%b" % (before, self._n, behind) for before, behind in self._single]

    def receive(self) -> int:
        """A batch of all that was kept."""
        frames, self._frames = self._frames, []
        return self._apply(frames)


def _begin(writer: int) -> Begin:
    run_id = f"run-{writer}"
    return Begin(0, "default", run_id, UUID(int=writer), None, json.dumps({"run_id": run_id}).encode(), None)


def connect(directory: Path, index: int) -> Store:
    """The store, for all writers."""
    return Store(directory)
