"""runhistd, spoken to in its own protocol, one run a client."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

from . import REQUEST_EVENTS, event
from .child import Child, connected

TITLE = "runhistd"
WORKLOADS = frozenset({"one", "flight", "request"})
WITHIN_ONE = False
INTERFACE = "dev.runhist.History"
RETENTION = '[retention]\nmax_age_days = "off"\nmax_bytes = "off"\nmax_runs_per_agent = {}\n'


def missing() -> str | None:
    """It is here."""
    return None


def settings(directory: Path, env: Mapping[str, str]) -> dict[str, str]:
    """The environment in which daemon and clients meet in that directory."""
    return {**env, "RUNHIST_STATE_DIR": str(directory), "RUNHIST_CONFIG": str(config_file(directory))}


def config_file(directory: Path) -> Path:
    """Where the daemon's settings are: not beside the database, or who watches them would be woken by each write."""
    return directory / "config" / "config.toml"


def configure(directory: Path, settings: str) -> None:
    """Write the settings of the daemon in that directory."""
    config_file(directory).parent.mkdir(exist_ok=True)
    config_file(directory).write_text(settings)


def start(directory: Path, env: Mapping[str, str]) -> Child:
    """`runhistd serve`, with its defaults but for retention, which would remove what was put there to be measured."""
    configure(directory, RETENTION.format('"off"'))
    command = [sys.executable, "-m", "runhistd", "serve"]
    server = Child(command, settings(directory, env), directory / "log")
    server.wait_until(lambda: _answers(directory))
    return server


def _answers(directory: Path) -> bool:
    with closing(History(directory)) as history:
        return bool(history.call("Describe"))


class History:
    """A connection that asks and waits."""

    def __init__(self, directory: Path) -> None:
        self.socket = connected(directory / INTERFACE)
        self._received = b""

    def close(self) -> None:
        """End the connection."""
        self.socket.close()

    def send(self, method: str, parameters: Mapping[str, Any], *, more: bool = False) -> None:
        """Send a call; with `more` it has many replies."""
        call = {"method": f"{INTERFACE}.{method}", "parameters": parameters, "more": more}
        self.socket.sendall(json.dumps(call).encode() + b"\0")

    def receive_raw(self) -> bytes:
        """The next reply as it came."""
        while b"\0" not in self._received:
            more = self.socket.recv(65536)
            if not more:
                raise ConnectionResetError("runhistd closed the connection")
            self._received += more
        frame, _, self._received = self._received.partition(b"\0")
        return frame

    def receive(self) -> dict[str, Any]:
        """The next reply's parameters."""
        reply: dict[str, Any] = json.loads(self.receive_raw())
        if "error" in reply:
            raise RuntimeError(reply)
        parameters: dict[str, Any] = reply["parameters"]
        return parameters

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a call and return its reply's parameters."""
        self.send(method, parameters)
        return self.receive()

    def call_raw(self, method: str, parameters: Mapping[str, Any]) -> bytes:
        """Send a call and return its reply as it came."""
        self.send(method, parameters)
        return self.receive_raw()


class Writer:
    """Appends to a run of its own."""

    window = 100

    def __init__(self, directory: Path, index: int) -> None:
        self._history = History(directory)
        self._run_id, self._writer = str(uuid4()), str(uuid4())
        spec = {"run_id": self._run_id, "agent_id": f"agent-{index}"}
        self._epoch = self._history.call("BeginRun", run=spec, lease_key=str(uuid4()))["epoch"]
        self._n = 0

    def _call(self, events: int) -> bytes:
        parameters = {
            "run_id": self._run_id,
            "epoch": self._epoch,
            "writer": self._writer,
            "first_n": self._n + 1,
            "events": [event(self._n + i) for i in range(events)],
        }
        self._n += events
        return json.dumps({"method": f"{INTERFACE}.Append", "parameters": parameters}).encode() + b"\0"

    def one(self) -> int:
        """An Append of one event."""
        self._history.socket.sendall(self._call(1))
        return int(self._history.receive()["stored"])

    def request(self) -> int:
        """An Append of many."""
        self._history.socket.sendall(self._call(REQUEST_EVENTS))
        return int(self._history.receive()["stored"])

    def send(self, events: int) -> None:
        """Calls behind one another."""
        self._history.socket.sendall(b"".join([self._call(1) for _ in range(events)]))

    def receive(self) -> int:
        """Count replies; half a one counts with its end."""
        received = self._history.socket.recv(65536)
        if not received or b'"error"' in received:
            raise RuntimeError(received.decode("utf-8", "replace"))
        return received.count(b"\0")


def connect(directory: Path, index: int) -> Writer:
    """A writer with a run of its own."""
    return Writer(directory, index)
