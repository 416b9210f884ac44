"""The events of one run handle on their way to the daemon: numbering, batches, receipts and refusals. No I/O.

Theory of operation. An event waits, then flies (it was sent on the present connection), then is acknowledged and
forgotten. It gets its n when it is sent, as the one after its predecessor's, so n never has a hole. When the connection
is lost, everything that flew waits again, with the same n; the daemon stores what it has not. A refusal stores nothing
of its Append and makes gaps of all that flies behind it, so everything flies anew (a new *round*; replies of an older
one count for nothing): a refused batch is sent again one event at a time, and the event that is then refused is the
guilty one. It is dropped and counted, and its n goes to the next event.

Until BeginRun is answered there is no epoch to append under, so events wait for it; BeginRun is repeated under the same
lease_key, which makes that safe.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Deque, Mapping, NamedTuple, Optional

from .encoding import encode, present
from .faults import Faults
from .ids import new_uuid
from .protocol.errors import (
    NoSuchRun,
    PermissionDenied,
    Refusal,
    RunDeleted,
    RunhistError,
    SequenceGap,
    StaleEpoch,
    TooLarge,
)
from .protocol.machine import MAX_FRAME_BYTES

MAX_BATCH_EVENTS = 100
MAX_BATCH_BYTES = 256 * 1024
ENVELOPE_BYTES = 4096  # of a call around its events: two names of at most 255 bytes, which JSON may double, and numbers

_OF_THE_RUN = (StaleEpoch, NoSuchRun, RunDeleted, PermissionDenied)  # refusals that every event of the handle would meet


class Entry:
    """An encoded event; `n` is 0 until it is sent, and may be lower when it is sent again."""

    __slots__ = ("encoded", "n", "type")

    def __init__(self, type: str, encoded: bytes) -> None:
        self.type = type
        self.encoded = encoded
        self.n = 0


class Flight(NamedTuple):
    """A call whose reply is awaited. n is 0 for BeginRun."""

    outbox: Outbox
    round: int
    first_n: int = 0
    last_n: int = 0


class Departure(NamedTuple):
    """A call that is ready to be sent."""

    method: str
    parameters: bytes
    flight: Flight


class HistoryLost(RunhistError):
    """The daemon no longer has events that it had acknowledged; its history was replaced by an older one."""


class Outbox:
    """One run handle's way to the daemon: `begin` is the encoded BeginRun, or None for a run that has an epoch."""

    def __init__(
        self, faults: Faults, namespace: Optional[str], run_id: str, begin: Optional[bytes], epoch: Optional[int] = None
    ) -> None:
        self.faults = faults
        self.namespace = namespace
        self.run_id = run_id
        self.epoch = epoch
        self.refused: Optional[RunhistError] = None
        self.stored = 0
        self.duplicates = 0
        self.last_seq: Optional[int] = None
        self.position: Optional[int] = None
        self.held_bytes = len(begin or b"")
        self._begin = begin
        self._begin_flies = False
        self._writer = new_uuid()
        self._head = b""
        self._waiting: Deque[Entry] = deque()
        self._flying: Deque[Entry] = deque()
        self._acked_n = 0
        self._round = 0
        self._alone_to = 0  # events up to this n are sent one at a time

    @property
    def held_events(self) -> int:
        """How many events are not acknowledged, BeginRun counted as one."""
        return len(self._waiting) + len(self._flying) + (self.epoch is None and self.refused is None)

    @property
    def settled(self) -> bool:
        """Whether nothing is left to send or to hear."""
        return self.held_events == 0

    def add(self, entry: Entry) -> None:
        """Take an event; it is the last one of the run so far."""
        self._waiting.append(entry)
        self.held_bytes += len(entry.encoded)

    def depart(self, frame_bytes: int = MAX_FRAME_BYTES) -> Optional[Departure]:
        """The next call to send, or None while there is none. `frame_bytes` is the largest frame that the daemon takes."""
        if self.refused is not None:
            return None
        if self.epoch is None:
            if self._begin_flies or self._begin is None:
                return None
            self._begin_flies = True
            return Departure("BeginRun", self._begin, Flight(self, self._round))
        batch = self._next_batch(frame_bytes - ENVELOPE_BYTES)
        if not batch:
            return None
        first_n, last_n = batch[0].n, batch[-1].n
        events = b",".join([entry.encoded for entry in batch])
        parameters = b'%s,"first_n":%d,"events":[%s]}' % (self._append_head(), first_n, events)
        return Departure("Append", parameters, Flight(self, self._round, first_n, last_n))

    def _append_head(self) -> bytes:
        """The members that all Appends of this writer have in common, encoded once."""
        if not self._head:
            name = present(namespace=self.namespace, run_id=self.run_id)
            self._head = encode({**name, "epoch": self.epoch, "writer": self._writer})[:-1]
        return self._head

    def _next_batch(self, limit_bytes: int) -> Deque[Entry]:
        batch: Deque[Entry] = deque()
        size = 0
        last_n = self._flying[-1].n if self._flying else self._acked_n
        if self._flying and last_n <= self._alone_to:
            return batch
        while self._waiting and len(batch) < MAX_BATCH_EVENTS:
            entry = self._waiting[0]
            if entry.n == 0 and len(entry.encoded) > limit_bytes:
                self._drop(TooLarge(parameter="the event", limit=limit_bytes))
                continue
            size += len(entry.encoded)
            if batch and size > MAX_BATCH_BYTES:
                break
            last_n += 1
            entry.n = last_n
            batch.append(entry)
            self._flying.append(entry)
            self._waiting.popleft()
            if last_n <= self._alone_to:
                break
        return batch

    def arrive(self, flight: Flight, parameters: Mapping[str, Any]) -> None:
        """Take the reply to a call."""
        if flight.round != self._round:
            return
        if self.epoch is None:
            self.namespace, self.run_id = parameters["namespace"], parameters["run_id"]
            self.position = parameters["position"]
            self.last_seq = 1
            self.held_bytes -= len(self._begin or b"")
            self._begin = None
            self.epoch = parameters["epoch"]
            return
        self.stored += parameters["stored"]
        self.duplicates += parameters["duplicates"]
        self.position = parameters["position"]
        if parameters.get("last_seq") is not None:
            self.last_seq = parameters["last_seq"]
        self._acked_n = flight.last_n
        self._forget_acked(self._flying)

    def refuse(self, flight: Flight, refusal: Refusal) -> None:
        """Take a typed error that answers a call."""
        if flight.round != self._round:
            return
        self.rewind()
        if self.epoch is None:
            self.give_up(refusal)
        elif isinstance(refusal, SequenceGap) and refusal.expected != flight.first_n:
            self._follow_gap(refusal.expected)
        elif isinstance(refusal, _OF_THE_RUN):
            if isinstance(refusal, StaleEpoch):
                self._note_stored(refusal.last_n)
            self.give_up(refusal)
        elif flight.first_n < flight.last_n:
            self._alone_to = flight.last_n
        else:
            self._drop(refusal)

    def rewind(self) -> None:
        """Send everything that is not acknowledged again; replies that still come to what was sent count for nothing."""
        self._round += 1
        self._begin_flies = False
        flown, self._flying = self._flying, deque()
        if flown and self._waiting and flown[-1] is self._waiting[0]:
            flown.pop()  # an interrupt caught it on its way from one to the other
        self._waiting.extendleft(reversed(flown))
        self._forget_acked(self._waiting)

    def give_up(self, error: RunhistError) -> None:
        """The run cannot be recorded: forget what waits, and take nothing more."""
        lost = self.held_events
        self.refused = error
        self._waiting.clear()
        self.held_bytes = 0
        self.faults.add(type(error).__name__, error, f"run {self.run_id} cannot be recorded: {error}", lost)

    def _forget_acked(self, entries: Deque[Entry]) -> None:
        # The acknowledged n is set before its events go, so an interrupt in between makes nothing be numbered anew.
        while entries and 0 < entries[0].n <= self._acked_n:
            self.held_bytes -= len(entries.popleft().encoded)
        if not self._waiting and not self._flying:
            self.held_bytes = len(self._begin or b"")  # without what interrupts made it drift

    def _note_stored(self, last_n: int) -> None:
        """Events up to `last_n` are stored though their reply was lost."""
        known = sum(1 for entry in self._waiting if 0 < entry.n <= last_n)
        if known:
            self.stored += known
            self._acked_n = last_n
            self._forget_acked(self._waiting)

    def _follow_gap(self, expected: int) -> None:
        """The daemon waits for another n than the one after the last acknowledged."""
        self._note_stored(expected - 1)
        if expected - 1 == self._acked_n:
            return
        text = (
            f"the history no longer has events of run {self.run_id} that it had acknowledged (an older copy was put back?)"
        )
        self.faults.add("history_lost", HistoryLost(text), text, max(1, self._acked_n - expected + 1))
        self._head = b""
        self._writer = new_uuid()  # what is unacknowledged is not stored, and begins a count of its own
        self._acked_n = self._alone_to = 0

    def _drop(self, refusal: Refusal) -> None:
        """Give the first waiting event up; the next one gets its n."""
        entry = self._waiting.popleft()
        self.held_bytes -= len(entry.encoded)
        text = f"an event of type {entry.type!r} of run {self.run_id} was refused: {refusal}"
        self.faults.add(refusal.name, refusal, text)
