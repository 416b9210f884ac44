"""Appends many events without waiting for each: they fly by the dozen, and a refusal names the line that it is about.

Every event is a call of its own, so that its reply is its own. A shell has no lasting writer, so each invocation is a
new one and counts its events from 1; an event with a key is named by that alone. Either way sending again is safe, and
when the connection is lost everything that was not answered is sent again.

While the daemon is away, or does not know a run yet that was begun in the spool, the events of the shell's own run go to
the spool.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Callable, Deque, Dict, Mapping, NamedTuple, Optional, Tuple

from ..connection import Connection, Unreachable
from ..encoding import encode, present
from ..ids import new_uuid
from ..large import SENT_WHOLE_BYTES, encode_event, give_to
from ..protocol.errors import NoSuchRun, Refusal, RunhistError, ShuttingDown
from .main import REFUSED, USAGE, Complaint
from .spooled import NO_RECEIPT, SpooledRequests, is_away
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


def _encode(event: Mapping[str, Any]) -> bytes:
    if isinstance(event.get("data"), dict) and isinstance(event.get("type"), str):
        return encode_event(event, SENT_WHOLE_BYTES, give_to(None, RECONNECT_S))
    return encode(event)  # the daemon says what is wrong with it


class _Sent(NamedTuple):
    line: Optional[int]
    parameters: bytes


class Feed:
    """See the module. `on_receipt` gets the parameters of every Append's reply, in order."""

    def __init__(self, target: Target, on_receipt: Callable[[Dict[str, Any]], None]) -> None:
        self._target = target
        lease = present(epoch=target.epoch, lease_key=target.lease_key)
        self._head = {**present(namespace=target.namespace, run_id=target.run_id), **lease}
        self._on_receipt = on_receipt
        self._writer = new_uuid()
        self._n = 0
        self._flying: Deque[_Sent] = deque()
        self._fruitless = 0  # reconnections since the last receipt
        self._spooled: Optional[SpooledRequests] = None
        self._connection: Optional[Connection] = None
        try:
            self._connection = Connection.open()
        except Unreachable as trouble:
            self._spool(trouble)

    @property
    def has_room(self) -> bool:
        """Whether more may be added before some replies came."""
        if self._connection is None:
            return True
        return len(self._flying) < MAX_FLYING and self._connection.unsent_bytes < MAX_UNSENT_BYTES

    def interest(self) -> Optional[Tuple[Connection, bool]]:
        """The connection to poll, and whether also for room to send; None while there is none."""
        return None if self._connection is None else (self._connection, self._connection.unsent_bytes > 0)

    def add(self, event: Mapping[str, Any], line: Optional[int] = None) -> None:
        """Hand an event over; `step` sends it, and data too large for that goes at once. Raises Unencodable, TooLarge,
        and Unreachable and Refusal for such data."""
        encoded = _encode({"time_us": time.time_ns() // 1000, **event})
        name = {} if event.get("key") is not None else {"writer": self._writer, "first_n": self._n + 1}
        parameters = b'%s,"events":[%s]}' % (encode({**self._head, **name})[:-1], encoded)
        self._n += bool(name)
        if self._spooled is not None:
            self._spooled.add("Append", parameters)
        self._flying.append(_Sent(line, parameters))
        if self._connection is not None:
            self._connection.send("Append", parameters)

    def step(self) -> None:
        """Send and receive what is possible without waiting. Raises Refusal or LineFault, Unreachable and Complaint."""
        connection = self._connection
        if connection is None:
            return
        try:
            connection.push()
            for reply in connection.receive():
                error = None if reply.error is None else connection.refusal(reply)
                if isinstance(error, ShuttingDown):
                    raise error
                if isinstance(error, NoSuchRun) and self._target.lease_key is not None:
                    return self._spool(error)
                sent = self._flying.popleft()
                if error is not None:
                    raise error if sent.line is None or isinstance(error, NoSuchRun) else LineFault(sent.line, error)
                self._on_receipt(reply.parameters)
                self._fruitless = 0
        except (Unreachable, ShuttingDown) as trouble:
            self._reconnect(trouble)

    def finish(self) -> None:
        """Wait until everything is answered, or in the spool."""
        while self._flying and self._connection is not None:
            before = len(self._flying)
            self.step()
            if len(self._flying) == before and self._connection is not None and not self._connection.wait(ANSWER_S):
                self._spool(self._connection.unreachable("timeout"))
        if self._spooled is not None:
            self._spooled.seal()
            while self._flying:
                self._flying.popleft()
                self._on_receipt(NO_RECEIPT)

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()

    def _spool(self, trouble: RunhistError) -> None:
        """Go on in the spool with all that was not answered. Raises `trouble` where that must not be, and Complaint."""
        is_unknown = isinstance(trouble, NoSuchRun)  # its BeginRun lies in the spool
        if not self._target.is_own or not (is_unknown or is_away(trouble)):
            raise trouble
        self.close()
        self._connection = None
        self._spooled = SpooledRequests(trouble, self._target.lease_key, self._target.namespace, self._target.run_id)
        for sent in self._flying:
            self._spooled.add("Append", sent.parameters)

    def _reconnect(self, trouble: RunhistError) -> None:
        """A new connection, on which everything that was not answered goes again."""
        self._fruitless += bool(self._flying)
        if self._fruitless > MAX_FRUITLESS or (isinstance(trouble, Unreachable) and trouble.reason != "lost"):
            raise trouble
        self.close()
        deadline = time.monotonic() + RECONNECT_S
        while True:
            try:
                self._connection = Connection.open()
                break
            except Unreachable as away:
                if time.monotonic() >= deadline:
                    return self._spool(away)
                time.sleep(PAUSE_S)
        for sent in self._flying:
            self._connection.send("Append", sent.parameters)
