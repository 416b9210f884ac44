"""Appends many events without waiting for each: they fly by the dozen, and a refusal names the line that it is about.

Every event is a call of its own, so that its reply is its own. A shell has no lasting writer, so each invocation is a
new one and counts its events from 1; an event with a key is named by that alone. Either way sending again is safe, and
when the connection is lost everything that was not answered is sent again.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Callable, Deque, Dict, Mapping, NamedTuple, Optional

from ..connection import Connection, Unreachable
from ..encoding import encode, present
from ..ids import new_uuid
from ..protocol.errors import NoSuchRun, Refusal, RunhistError, ShuttingDown
from .main import REFUSED, USAGE, Complaint
from .target import Target

MAX_FLYING = 256
MAX_UNSENT_BYTES = 1024 * 1024
ANSWER_S = 30.0  # without a single reply; a busy disk may take its time
RECONNECT_S = 5.0
PAUSE_S = 0.05
MAX_FRUITLESS = 3  # a daemon that is lost each time again will not take these events


class LineFault(Complaint):
    """Something is wrong with the line of that number; those before it are stored."""

    def __init__(self, line: int, cause: Exception) -> None:
        text = str(cause).replace("events[0].", "")  # the only event of its call
        super().__init__(f"line {line}: {text}", REFUSED if isinstance(cause, Refusal) else USAGE)


class _Sent(NamedTuple):
    line: Optional[int]
    parameters: bytes


class Feed:
    """See the module. `on_receipt` gets the parameters of every Append's reply, in order."""

    def __init__(self, target: Target, on_receipt: Callable[[Dict[str, Any]], None]) -> None:
        self.connection = Connection.open()
        self._head = present(namespace=target.namespace, run_id=target.run_id, epoch=target.epoch)
        self._on_receipt = on_receipt
        self._writer = new_uuid()
        self._n = 0
        self._flying: Deque[_Sent] = deque()
        self._fruitless = 0  # reconnections since the last receipt

    @property
    def has_room(self) -> bool:
        """Whether more may be added before some replies came."""
        return len(self._flying) < MAX_FLYING and self.connection.unsent_bytes < MAX_UNSENT_BYTES

    def add(self, event: Mapping[str, Any], line: Optional[int] = None) -> None:
        """Hand an event over; `step` sends it. Raises Unencodable."""
        event = {"time_us": time.time_ns() // 1000, **event}
        name = {} if event.get("key") is not None else {"writer": self._writer, "first_n": self._n + 1}
        parameters = encode({**self._head, **name, "events": [event]})
        self._n += bool(name)
        self._flying.append(_Sent(line, parameters))
        self._send(parameters)

    def step(self) -> None:
        """Send and receive what is possible without waiting. Raises Refusal or LineFault, and Unreachable."""
        try:
            self.connection.push()
            replies = self.connection.receive()
            for reply in replies:
                error = None if reply.error is None else self.connection.refusal(reply)
                if isinstance(error, ShuttingDown):
                    raise error
                sent = self._flying.popleft()
                if error is not None:
                    raise error if sent.line is None or isinstance(error, NoSuchRun) else LineFault(sent.line, error)
                self._on_receipt(reply.parameters)
                self._fruitless = 0
        except (Unreachable, ShuttingDown) as trouble:
            self._reconnect(trouble)

    def finish(self) -> None:
        """Wait until everything is answered."""
        while self._flying:
            before = len(self._flying)
            self.step()
            if len(self._flying) == before and not self.connection.wait(ANSWER_S):
                raise self.connection.unreachable("timeout")

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def _send(self, parameters: bytes) -> None:
        self.connection.send("Append", parameters)

    def _reconnect(self, trouble: RunhistError) -> None:
        """A new connection, on which everything that was not answered goes again."""
        self._fruitless += bool(self._flying)
        if self._fruitless > MAX_FRUITLESS or (isinstance(trouble, Unreachable) and trouble.reason != "lost"):
            raise trouble
        self.connection.close()
        deadline = time.monotonic() + RECONNECT_S
        while True:
            try:
                self.connection = Connection.open()
                break
            except Unreachable:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(PAUSE_S)
        for sent in self._flying:
            self._send(sent.parameters)
