"""runhistd by way of its own Python library, as programs use it: `append` queues, `flush` waits for the commit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

import runhist

from . import REQUEST_EVENTS, event, runhistd
from .child import Child

TITLE = "runhistd, by the runhist library"
WORKLOADS = frozenset({"one", "request"})
WITHIN_ONE = False


def missing() -> str | None:
    """It is here."""
    return None


def start(directory: Path, env: Mapping[str, str]) -> Child:
    """The same daemon."""
    return runhistd.start(directory, env)


class Recorder:
    """A run of its own."""

    window = 0

    def __init__(self, directory: Path, index: int) -> None:
        history = runhist.connect(require=True)
        self._run = history.begin_run(run_id=str(uuid4()), agent_id=f"agent-{index}")
        self._i = 0
        self._run.flush()

    def _append(self, events: int) -> None:
        for _ in range(events):
            self._i += 1
            sent = event(self._i)
            self._run.append(str(sent["type"]), sent["data"])

    def _flush(self) -> None:
        receipt = self._run.flush()
        if receipt.durable != "committed":
            raise RuntimeError(f"{receipt}")

    def one(self) -> int:
        """An event, flushed."""
        self._append(1)
        self._flush()
        return 1

    def request(self) -> int:
        """Many events, flushed at once; the library makes requests of them as it likes."""
        self._append(REQUEST_EVENTS)
        self._flush()
        return REQUEST_EVENTS

    def send(self, events: int) -> None:
        """Whether it waits is what tells `one` and `request` apart."""
        raise NotImplementedError

    def receive(self) -> int:
        """Nothing is in flight."""
        raise NotImplementedError


def connect(directory: Path, index: int) -> Recorder:
    """A recorder; the environment names the daemon."""
    return Recorder(directory, index)
