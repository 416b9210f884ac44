"""A peer that sends whatever bytes a test wants, and a well-behaved neighbour that must not notice."""

from __future__ import annotations

import itertools
import json
import socket
from pathlib import Path
from typing import Any
from uuid import uuid4

from runhist.connection import Connection
from runhist.paths import SocketChoice
from runhist.protocol import INTERFACE
from tests.conftest import Daemon, wait_until

PATIENCE_S = 60.0


def frame(method: str, parameters: Any, **members: Any) -> bytes:
    """A call as its sender encodes it; a method without a dot is one of the history."""
    name = method if "." in method else f"{INTERFACE}.{method}"
    return json.dumps({"method": name, "parameters": parameters, **members}).encode() + b"\0"


class Peer:
    """One raw connection."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE_S)
        wait_until(self._connects, "there is room among those who wait to be accepted")
        self._received = b""

    def _connects(self) -> bool:
        try:
            self.socket.connect(str(self.path))
        except BlockingIOError:
            return False
        return True

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, text: bytes) -> None:
        """Send all of it."""
        self.socket.sendall(text)

    def reply(self) -> dict[str, Any] | None:
        """The next reply; None when the daemon has closed the connection instead."""
        while b"\0" not in self._received:
            try:
                received = self.socket.recv(1 << 20)
            except ConnectionResetError:  # it was closed with bytes of ours unread
                received = b""
            if not received:
                return None
            self._received += received
        first, _, self._received = self._received.partition(b"\0")
        found = json.loads(first)
        assert isinstance(found, dict)
        return found

    def ask(self, text: bytes) -> dict[str, Any] | None:
        """Send and wait for one reply."""
        self.send(text)
        return self.reply()

    def ask_or_closed(self, text: bytes) -> dict[str, Any] | None:
        """As `ask`; None also when the connection was closed before."""
        try:
            self.send(text)
        except (BrokenPipeError, ConnectionResetError):
            return self.reply()
        return self.reply()

    def fault(self, text: bytes) -> str:
        """The member that an InvalidParameter answer to these bytes names; the connection must go on."""
        reply = self.ask(text)
        assert reply is not None and reply.get("error") == "org.varlink.service.InvalidParameter", reply
        return str(reply["parameters"]["parameter"])

    def flood(self, text: bytes, at: int = 0) -> int:
        """Send it again and again, from byte `at` of that on, until the socket is full; where that was. Nothing is read."""
        self.socket.setblocking(False)
        try:
            while True:
                at += self.socket.send(text[at % len(text) :])
        except BlockingIOError:
            return at
        finally:
            self.socket.settimeout(PATIENCE_S)


class Neighbour:
    """Records a run of its own over its own connection and reads it back."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._pid = daemon.pid
        self._connection = Connection.open(SocketChoice((daemon.socket,), "the test's own", True))
        self._run_id, self._writer = f"neighbour-{uuid4()}", str(uuid4())
        begun = self._connection.call("BeginRun", {"run": {"run_id": self._run_id}, "lease_key": str(uuid4())})
        self._epoch = begun["epoch"]
        self._numbers = itertools.count(1)

    def go_on(self) -> None:
        """Append an event over the connection that has been open all the time, and read it back over it."""
        n = next(self._numbers)
        events = [{"type": "note", "data": {"n": n}}]
        named = {"run_id": self._run_id, "epoch": self._epoch, "writer": self._writer, "first_n": n}
        receipt = self._connection.call("Append", {**named, "events": events}, timeout=PATIENCE_S)
        assert receipt["stored"] == 1
        page = {"run_id": self._run_id, "after_seq": receipt["last_seq"] - 1}
        (event,) = self._connection.call("GetEvents", page, timeout=PATIENCE_S)["events"]
        assert event["data"] == {"n": n}
        assert self._daemon.pid == self._pid, "the daemon was replaced"

    def connections(self) -> int:
        """How many the daemon serves, with this one."""
        return int(self._connection.call("GetStatus", {}, timeout=PATIENCE_S)["connections"])

    def close(self) -> None:
        """Leave."""
        self._connection.close()


def memory_bytes(pid: int) -> int:
    """What of a process is in memory now."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024
