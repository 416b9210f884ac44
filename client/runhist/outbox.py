"""The events of one run handle on their way to the daemon: numbering, batches, receipts, refusals. No I/O but the spool's.

Theory of operation. An event waits, then flies (it was sent on the present connection), then is acknowledged and
forgotten. It gets its n when it is sent, as the one after its predecessor's, so n never has a hole. When the connection
is lost, everything that flew waits again, with the same n; the daemon stores what it has not. A refusal stores nothing
of its Append and makes gaps of all that flies behind it, so everything flies anew (a new *round*; replies of an older
one count for nothing): a refused batch is sent again one event at a time, and the event that is then refused is the
guilty one. It is dropped and counted, and its n goes to the next event.

Until BeginRun is answered there is no epoch to append under, so events wait for it; BeginRun is repeated under the same
lease_key, which makes that safe.

While the daemon is away, `save` moves what waits into a spool file, numbered as it would have been sent; what comes
meanwhile waits behind it. When the daemon is back, what is in the file is read back a request at a time and sent before
anything newer, and the file goes when all of it is acknowledged. An event from the file that is refused leaves a note in
its place, so that the numbers in the file stay true for whoever reads it when this process is dead; such a file is kept.
"""

from __future__ import annotations

import json
from collections import deque
from typing import Any, Deque, List, Mapping, NamedTuple, Optional, Union

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
from .shown import ShownQueue
from .spool import DamagedSpool, Spool, SpoolFile

MAX_BATCH_EVENTS = 100
MAX_BATCH_BYTES = 256 * 1024
ENVELOPE_BYTES = 4096  # of a call around its events: two names of at most 255 bytes, which JSON may double, and numbers

_OF_THE_RUN = (StaleEpoch, NoSuchRun, RunDeleted, PermissionDenied)  # refusals that every event of the handle would meet


class Entry:
    """An encoded event; `n` is 0 until it is sent, and may be lower when it is sent again."""

    __slots__ = ("encoded", "is_substitute", "n", "saved", "type")

    def __init__(self, type: str, encoded: bytes, n: int = 0, saved: bool = False) -> None:
        self.type = type
        self.encoded = encoded
        self.n = n
        self.saved = saved  # it is in the spool file too
        self.is_substitute = False


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
    """One run handle's way to the daemon: `begin` is the encoded BeginRun, or None for a run that was begun."""

    def __init__(
        self,
        faults: Faults,
        namespace: Optional[str],
        run_id: str,
        begin: Optional[bytes],
        epoch: Optional[int] = None,
        traceparent: Optional[str] = None,
        *,
        lease_key: Optional[str] = None,
    ) -> None:
        self.faults = faults
        self.namespace = namespace
        self.run_id = run_id
        self.epoch = epoch
        self._lease_key = lease_key
        self.traceparent = traceparent  # what the run hands on besides its name and lease
        self.refused: Optional[RunhistError] = None
        self.stored = 0
        self.duplicates = 0
        self.last_seq: Optional[int] = None
        self.position: Optional[int] = None
        self.held_bytes = len(begin or b"")
        self._begin = begin
        self._begin_flies = False
        self.may_have_begun = begin is None  # the daemon was asked to begin the run, whatever came of it
        self._writer = new_uuid()
        self._head = b""
        self._waiting: Deque[Entry] = deque()
        self._flying: Deque[Entry] = deque()
        self._acked_n = 0
        self._round = 0
        self._alone_to = 0  # events up to this n are sent one at a time
        self._file: Optional[SpoolFile] = None
        self.is_left = False  # all of it is in a sealed file
        self.is_written_off = False  # what it holds was counted as faults, though it waits on
        self._saved_n = 0  # the last n in the file
        self._read_n = 0  # the last n that was read back from it
        self._saved_begin = False
        self._saved_refusal = ""  # why the file is to be kept
        self.shown: ShownQueue[Entry] = ShownQueue()
        self._copies = 0  # entries that are in the file too, about: an interrupt may make it drift
        self._behind: Deque[Entry] = deque()  # come after what is still to be read from the file

    @property
    def lease(self) -> Union[int, str, None]:
        """What the run may be appended to under: its epoch, or the lease_key that stands for it."""
        return self._lease_key if self.epoch is None else self.epoch

    @property
    def held_events(self) -> int:
        """How many events are in memory only, BeginRun counted as one."""
        return len(self._waiting) + len(self._flying) + len(self._behind) - self._copies + self._begins

    @property
    def settled(self) -> bool:
        """Whether nothing is left to send or to hear."""
        holds = self._waiting or self._flying or self._behind or self._begins
        return not holds and self._file is None

    @property
    def _begins(self) -> bool:
        """Whether BeginRun is in memory only."""
        return self._begin is not None and self.refused is None and not self._saved_begin and not self.is_left

    @property
    def is_saved(self) -> bool:
        """Whether all that is not acknowledged is in the spool."""
        if self.is_left:
            return True
        return self._file is not None and (self._begin is None or self._saved_begin) and not self._unsaved()

    def add(self, entry: Entry) -> None:
        """Take an event; it is the last one of the run so far."""
        self.is_left = False
        (self._behind if self._file is not None and self._file.has_unread else self._waiting).append(entry)
        self.held_bytes += len(entry.encoded)

    def show(self, encoded: bytes) -> None:
        """Have an event shown in its place, unless what was recorded before it cannot be sent now."""
        if self.epoch is not None and self.refused is None and self._file is None and not self.is_left:
            self.shown.add(encoded, self._waiting[-1] if self._waiting else None)

    def depart_shown(self, frame_bytes: int = MAX_FRAME_BYTES) -> Optional[bytes]:
        """The parameters of the next Publish, or None while there is none."""
        events = self.shown.take(frame_bytes - ENVELOPE_BYTES)
        if not events:
            return None
        name = encode({**present(namespace=self.namespace, run_id=self.run_id), "epoch": self.epoch})[:-1]
        return b'%s,"events":[%s]}' % (name, b",".join(events))

    def depart(self, frame_bytes: int = MAX_FRAME_BYTES) -> Optional[Departure]:
        """The next call to send, or None while there is none. `frame_bytes` is the largest frame that the daemon takes."""
        if self.refused is not None:
            return None
        if self._begin is not None:
            if self._begin_flies:
                return None
            self._begin_flies = self.may_have_begun = True
            return Departure("BeginRun", self._begin, Flight(self, self._round))
        if not self._waiting and self._file is not None:
            self._read_back(self._file)
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
            lease = present(epoch=self.epoch, lease_key=self._lease_key)
            self._head = encode({**name, **lease, "writer": self._writer})[:-1]
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
            if self.shown.release(entry) or last_n <= self._alone_to:
                break
        return batch

    def arrive(self, flight: Flight, parameters: Mapping[str, Any]) -> None:
        """Take the reply to a call."""
        if flight.round != self._round:
            return
        if self._begin is not None:
            self.namespace, self.run_id = parameters["namespace"], parameters["run_id"]
            self.position = parameters["position"]
            self.last_seq = 1
            self.held_bytes -= len(self._begin)
            self._begin = None
            self.epoch = parameters["epoch"]
            self._head = b""  # the spool's had none
            self._finish_file()
            return
        self.stored += parameters["stored"]
        self.duplicates += parameters["duplicates"]
        self.position = parameters["position"]
        if parameters.get("last_seq") is not None:
            self.last_seq = parameters["last_seq"]
        self._acked_n = flight.last_n
        self._forget_acked(self._flying)
        self._finish_file()

    def refuse(self, flight: Flight, refusal: Refusal) -> None:
        """Take a typed error that answers a call."""
        if flight.round != self._round:
            return
        self.rewind()
        if self._begin is not None:
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
        self.shown.clear()
        flown, self._flying = self._flying, deque()
        if flown and self._waiting and flown[-1] is self._waiting[0]:
            flown.pop()  # an interrupt caught it on its way from one to the other
        self._waiting.extendleft(reversed(flown))
        self._forget_acked(self._waiting)

    def give_up(self, error: RunhistError) -> None:
        """The run cannot be recorded: forget what waits, and take nothing more."""
        lost = self.held_events + self._copies
        self.refused = error
        self._waiting.clear()
        self._behind.clear()
        self.shown.clear()
        self.held_bytes = self._copies = 0
        if self._file is not None:
            self._file.put_aside(str(error))
            self._file = None
        self.faults.add(type(error).__name__, error, f"run {self.run_id} cannot be recorded: {error}", lost)

    def _forget_acked(self, entries: Deque[Entry]) -> None:
        # The acknowledged n is set before its events go, so an interrupt in between makes nothing be numbered anew.
        while entries and 0 < entries[0].n <= self._acked_n:
            entry = entries.popleft()
            self.held_bytes -= len(entry.encoded)
            self._copies -= entry.saved
        if not self._waiting and not self._flying and not self._behind:
            self.held_bytes = len(self._begin or b"")  # without what interrupts made it drift
            self._copies = 0

    def _note_stored(self, last_n: int) -> None:
        """Events up to `last_n` are stored though their reply was lost."""
        known = sum(1 for entry in self._waiting if 0 < entry.n <= last_n)
        if known:
            self.stored += known
            self._acked_n = last_n
            self._forget_acked(self._waiting)
            self._finish_file()

    def _follow_gap(self, expected: int) -> None:
        """The daemon waits for another n than the one after the last acknowledged."""
        self._note_stored(expected - 1)
        if expected - 1 == self._acked_n:
            return
        text = (
            f"the history no longer has events of run {self.run_id} that it had acknowledged (an older copy was put back?)"
        )
        self.faults.add("history_lost", HistoryLost(text), text, max(1, self._acked_n - expected + 1))
        self._saved_refusal = text
        self._count_anew()

    def _count_anew(self) -> None:
        """What is unacknowledged is not stored under this writer: it becomes another, with a count of its own."""
        self._head = b""
        self._writer = new_uuid()
        self._acked_n = self._alone_to = 0

    def _drop(self, refusal: Refusal) -> None:
        """Give the first waiting event up; the next one gets its n, or a note if it is one of the spool's."""
        entry = self._waiting[0]
        if entry.saved and not entry.is_substitute:
            self._substitute(entry, refusal)
        elif entry.saved:
            self.give_up(refusal)  # not even the note: the numbers of the file cannot be kept up
            return
        else:
            self._waiting.popleft()
            self.shown.clear()  # its place was behind this one
            self.held_bytes -= len(entry.encoded)
        text = f"an event of type {entry.type!r} of run {self.run_id} was refused: {refusal}"
        self.faults.add(refusal.name, refusal, text)

    # the spool

    def _unsaved(self) -> List[Entry]:
        return [entry for entry in (*self._waiting, *self._flying, *self._behind) if not entry.saved]

    def save(self, spool: Spool) -> None:
        """Move what is not acknowledged into the spool; nothing may fly. Raises SpoolFault: the rest waits in memory."""
        if self.refused is not None or self.is_saved or self.settled:
            return
        if self._file is None:
            self._file = spool.create(self._spooled_key(), self.namespace, self.run_id)
            self._saved_n = self._read_n = self._acked_n
            self._saved_begin = False
        if self._begin is not None and not self._saved_begin:
            self._file.write("BeginRun", self._begin)
            self._saved_begin = True
        unsaved = self._unsaved()
        while unsaved:
            batch, size = [unsaved[0]], len(unsaved[0].encoded)
            for entry in unsaved[1:MAX_BATCH_EVENTS]:
                size += len(entry.encoded)
                if size > MAX_BATCH_BYTES:
                    break
                batch.append(entry)
            self._save_batch(self._file, batch)
            unsaved = unsaved[len(batch) :]

    def _save_batch(self, file: SpoolFile, batch: List[Entry]) -> None:
        events = b",".join([entry.encoded for entry in batch])
        file.write("Append", b'%s,"first_n":%d,"events":[%s]}' % (self._append_head(), self._saved_n + 1, events))
        self._saved_n += len(batch)
        for entry in batch:  # in place, because a signal handler may add one at any moment
            is_behind = self._behind and entry is self._behind[0]
            (self._behind if is_behind or entry not in self._waiting else self._waiting).remove(entry)
        self.held_bytes -= sum(len(entry.encoded) for entry in batch)

    def _spooled_key(self) -> Optional[str]:
        if self._begin is None:
            return self._lease_key
        key: str = json.loads(self._begin)["lease_key"]
        return key

    @property
    def is_synced(self) -> bool:
        """Whether what is saved is on the disk."""
        return self._file is None or self._file.is_synced

    def sync(self) -> None:
        """Return when what is saved is on the disk. Raises SpoolFault."""
        file = self._file  # another thread may be done with it meanwhile
        if file is not None:
            file.sync()

    def forget_spooled(self) -> None:
        """Nothing of it is wanted."""
        if self._file is not None:
            self._file.remove()
            self._file = None

    def seal(self) -> None:
        """Leave what is saved to the daemon; what comes later is another writer's. Raises OSError."""
        if self._file is not None and self.is_saved:
            self._file.seal()
            self._file = None
            self._waiting.clear()  # what was read back is in the file as well
            self._copies = 0
            self.held_bytes = len(self._begin or b"")
            self._saved_begin = False
            self.is_left = True
            self._count_anew()

    def _read_back(self, file: SpoolFile) -> None:
        """Make the next request of the file wait, or, when there is no more, what came behind it."""
        try:
            while file.has_unread and not self._waiting:
                request = file.read()
                if request["method"] == "Append":
                    parameters = request["parameters"]
                    first_n = parameters["first_n"]
                    for n, event in enumerate(parameters["events"], first_n):
                        if n <= self._read_n:
                            continue  # an interrupt had it written twice
                        self._read_n = n
                        entry = Entry(event["type"], encode(event), n, saved=True)
                        self._waiting.append(entry)
                        self.held_bytes += len(entry.encoded)
                        self._copies += 1
        except (DamagedSpool, OSError, ValueError, KeyError) as error:
            text = f"the spool of run {self.run_id} cannot be read back: {error}"
            self.faults.add("DamagedSpool", error, text)
            file.put_aside(text)
            self._file = None
            self._copies = 0
            for copy in (*self._waiting, *self._flying):
                copy.saved = False
            self._count_anew()
        if self._file is None or not file.has_unread:
            self._waiting.extend(self._behind)
            self._behind.clear()

    def _finish_file(self) -> None:
        """Remove the file when all that is in it is acknowledged."""
        file = self._file
        if file is None or self._begin is not None or file.has_unread or self._acked_n < self._saved_n:
            return
        if any(entry.saved for entry in (*self._waiting, *self._flying)):
            return
        self._file = None
        if self._saved_refusal:
            file.put_aside(self._saved_refusal)
        else:
            file.remove()

    def _substitute(self, entry: Entry, refusal: Refusal) -> None:
        """Put a note in the place of an event from the file."""
        self._saved_refusal = f"an event of type {entry.type!r} was refused: {refusal}"
        self.held_bytes -= len(entry.encoded)
        note = {"text": self._saved_refusal, "type": entry.type}
        entry.encoded = encode({"type": "note", "key": f"{self._writer}/{entry.n}", "data": note})
        entry.is_substitute = True
        self.held_bytes += len(entry.encoded)
