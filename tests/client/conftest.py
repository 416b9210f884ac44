"""A small history on a real socket that misbehaves on demand, for faults that a sound daemon does not produce."""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from runhist.protocol import INTERFACE, Call, ServerConnection

LIMITS = {"frame_bytes": 16 * 1024 * 1024, "event_bytes": 1024 * 1024}


class Refuse(Exception):
    """Answer with a typed error; a name with a dot is a full one."""

    def __init__(self, name: str, **parameters: Any) -> None:
        self.name = name if "." in name else f"{INTERFACE}.{name}"
        self.parameters = parameters


class Vanish(Exception):
    """Close the connection; with `after` the call is carried out first, so only its reply is lost."""

    def __init__(self, after: bool = False) -> None:
        self.after = after


class Hang(Exception):
    """Neither carry this call out nor answer it, nor any that comes behind it on its connection."""


class Stored(NamedTuple):
    """An event as the small history keeps it."""

    run_id: str
    writer: str
    n: int
    event: dict[str, Any]


class SmallHistory:
    """Answers Describe, BeginRun, Append and Publish in a thread; `before` sees each call first and may raise one of the
    above.

    `calls` are those that came, `stored` the events in their order, `seen` what a follower would get: the types of events
    and the texts of what is only shown. `close` and `open` are the daemon's end and start.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.before: Callable[[str, dict[str, Any]], None] = lambda method, parameters: None
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.stored: list[Stored] = []
        self.seen: list[str] = []
        self.features = ["publish"]
        self.epochs: dict[str, tuple[str, int]] = {}
        self.last_n: dict[tuple[str, str], int] = {}
        self.connections = 0
        self.changed = threading.Condition()
        self._listener: socket.socket | None = None
        self._peers: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def open(self) -> None:
        """Begin to listen."""
        self.path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._start(self._accept, self._listener)

    def close(self) -> None:
        """End without a word: every connection breaks, nobody listens."""
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        for peer in self._peers:
            try:
                peer.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for thread in self._threads:
            thread.join(30)
        self._peers.clear()
        self._threads.clear()

    def wait(self, condition: Callable[[], object]) -> None:
        """Wait until something that a call changes is so."""
        with self.changed:
            assert self.changed.wait_for(condition, 30)

    def types(self) -> list[str]:
        """The stored events' types."""
        return [stored.event["type"] for stored in self.stored]

    def _start(self, run: Callable[[socket.socket], None], peer: socket.socket) -> None:
        thread = threading.Thread(target=run, args=(peer,), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            self._peers.append(peer)
            self.connections += 1
            self._start(self._serve, peer)

    def _serve(self, peer: socket.socket) -> None:
        machine = ServerConnection(lambda frame: Call(**json.loads(frame)))
        hangs = False
        with peer:
            while True:
                try:
                    received = peer.recv(65536)
                    if not received:
                        return
                    machine.receive_data(received)
                    while not hangs and (call := machine.next_call()) is not None:
                        peer.sendall(self._answer(machine, call))
                except Hang:
                    hangs = True
                except (Vanish, OSError):
                    return

    def _answer(self, machine: ServerConnection, call: Call) -> bytes:
        method = call.method.rpartition(".")[2]
        with self.changed:
            try:
                self.calls.append((method, call.parameters))
                self.before(method, call.parameters)
                reply = machine.send_reply(getattr(self, f"_{method}")(**call.parameters))
                return b"" if call.oneway else reply
            except Refuse as refusal:
                return machine.send_error(refusal.name, refusal.parameters)
            except Vanish as vanish:
                if vanish.after:
                    getattr(self, f"_{method}")(**call.parameters)
                raise
            finally:
                self.changed.notify_all()

    def _Describe(self) -> dict[str, Any]:
        return {"limits": LIMITS, "instance_id": "small", "features": self.features}

    def _Publish(self, run_id: str, epoch: int, events: list[Any], namespace: str | None = None) -> dict[str, Any]:
        self.seen += [event["data"]["text"] for event in events]
        return {}

    def _BeginRun(self, run: dict[str, Any], lease_key: str) -> dict[str, Any]:
        key, epoch = self.epochs.setdefault(run["run_id"], (lease_key, len(self.epochs) + 1))
        if key != lease_key:
            raise Refuse("RunExists", namespace="default", run_id=run["run_id"])
        return {"namespace": run.get("namespace", "default"), "run_id": run["run_id"], "epoch": epoch, "position": 1}

    def _Append(
        self, run_id: str, epoch: int, writer: str, first_n: int, events: list[Any], namespace: str | None = None
    ) -> dict[str, Any]:
        last_n = self.last_n.get((run_id, writer), 0)
        if first_n > last_n + 1:
            raise Refuse("SequenceGap", expected=last_n + 1, last_n=last_n)
        new = events[max(0, last_n - first_n + 1) :]
        for i, event in enumerate(new):
            self.stored.append(Stored(run_id, writer, last_n + 1 + i, event))
            self.seen.append(event["type"])
        self.last_n[run_id, writer] = last_n + len(new)
        position = 1 + len(self.stored)
        last_seq = position if new else None
        return {
            "first_seq": last_seq and last_seq - len(new) + 1,
            "last_seq": last_seq,
            "position": position,
            "stored": len(new),
            "duplicates": len(events) - len(new),
        }


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallHistory]:
    """A small history that listens, and that `runhist.connect()` finds."""
    directory = Path(tempfile.mkdtemp(prefix="rh"))
    history = SmallHistory(directory / "socket")
    monkeypatch.setenv("RUNHIST_SOCKET", str(history.path))
    monkeypatch.setenv("RUNHIST_STATE_DIR", str(directory / "state"))
    monkeypatch.delenv("RUNHIST", raising=False)
    history.open()
    yield history
    history.close()
    shutil.rmtree(directory)
