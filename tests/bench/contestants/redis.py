"""Redis Streams: a stream for each run, and a sync before each answer (appendfsync always), on a Unix socket."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from . import REQUEST_EVENTS, event_text
from .child import Child, connected

TITLE = "Redis Streams"
WORKLOADS = frozenset({"one", "flight", "request"})
WITHIN_ONE = False
SETTINGS = ("--port", "0", "--save", "", "--appendonly", "yes", "--appendfsync", "always")


def missing() -> str | None:
    """Why it cannot take part here."""
    return None if shutil.which("redis-server") else "redis-server is not installed"


def start(directory: Path, env: Mapping[str, str]) -> Child:
    """A server of our own."""
    socket_path = directory / "redis.sock"
    command = ["redis-server", "--dir", str(directory), "--unixsocket", str(socket_path), *SETTINGS]
    server = Child(command, env, directory / "log")
    server.wait_until(lambda: _answers(directory))
    return server


def _answers(directory: Path) -> bool:
    with closing(connected(directory / "redis.sock")) as connection:
        connection.sendall(b"PING\r\n")
        return connection.recv(100) == b"+PONG\r\n"


class Adder:
    """XADD to a stream of its own."""

    window = 100

    def __init__(self, directory: Path, index: int) -> None:
        self._socket = connected(directory / "redis.sock")
        self._key, self._seq = f"run-{index}", 0

    def send(self, events: int) -> None:
        """Commands behind one another."""
        commands = []
        for _ in range(events):
            self._seq += 1
            text = event_text(self._seq)
            commands.append(
                f"*5\r\n$4\r\nXADD\r\n${len(self._key)}\r\n{self._key}\r\n$1\r\n*\r\n$1\r\ne\r\n${len(text)}\r\n{text}\r\n"
            )
        self._socket.sendall("".join(commands).encode())

    def receive(self) -> int:
        """Count ids. Each comes as its length in a line, beginning with a dollar sign, and itself."""
        received = self._socket.recv(65536)
        while not received.endswith(b"\r\n") or received.count(b"\r\n") % 2:
            received += self._socket.recv(65536)
        if not received.startswith(b"$") or b"\n-" in received:
            raise RuntimeError(received.decode())
        return received.count(b"$")

    def one(self) -> int:
        """A command, and its id."""
        self.send(1)
        return self.receive()

    def request(self) -> int:
        """Many commands in one send, and their ids: a transaction of them would be slower."""
        self.send(REQUEST_EVENTS)
        stored = 0
        while stored < REQUEST_EVENTS:
            stored += self.receive()
        return stored


def connect(directory: Path, index: int) -> Adder:
    """A connection with a stream of its own."""
    return Adder(directory, index)
