"""What is done with the connection that a history records through, as far as it can be done now without waiting.

Theory of operation. `pump` connects if a try is due, takes the receipts that are there, sends what the socket takes.
Losing the connection is harmless: everything unacknowledged is sent again, and the daemon stores what it has not. So
whatever leaves the connection in doubt, an interrupt in the middle of a pump included, throws it away. New tries
come at later calls, further and further apart. A daemon that has no room or is stopping is treated alike.

While nobody can be connected to, every pump moves what waits into the spool, if there is one; `saved` tells. What the
spool does not take goes on waiting in memory. A daemon that takes a connection and answers nothing for SILENCE_S is away
too: it is asked who it is, and gets nothing else before it has told.

Who pumps, when, and how one waits for what came of it, is not said here: `link` does it for threads, `aio` for tasks.

After fork() the child must not write between the parent's bytes. Its copy of the link is closed at once and for good,
which closes the child's descriptor only; the parent goes on.
"""

from __future__ import annotations

import os
import random
import threading
import time
import weakref
from collections import deque
from pathlib import Path
from select import POLLIN, POLLOUT
from typing import Deque, Dict, Optional, Tuple

from .bringing import bring, is_needed
from .connection import Connection, Unreachable
from .large import SENT_WHOLE_BYTES
from .outbox import Flight, Outbox
from .paths import SocketChoice
from .protocol.errors import PASSING, Refusal, RunhistError
from .protocol.machine import MAX_FRAME_BYTES, Reply
from .spool import Spool, SpoolFault

SEND_AHEAD_BYTES = 64 * 1024  # what is handed to a full socket; the rest waits and is coalesced
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0
SILENCE_S = 5.0  # without a reply to what was sent; a busy disk is faster

_AWAY = frozenset({"not_installed", "not_running", "refused"})  # reasons for which a start of the daemon is the cure


class Pump:
    """See the module. `lock` guards it, its outboxes and everything of their runs that changes; hold it for each call."""

    def __init__(self, choice: SocketChoice, window: int, window_bytes: int, spool: Optional[Spool] = None) -> None:
        self.choice = choice
        self.away = False  # nobody could be connected to at the last try, or answers
        self.spool_fault: Optional[SpoolFault] = None
        self.lock = threading.RLock()
        self.forked = False
        self._trouble: Optional[RunhistError] = None
        self._spool = spool
        self._window = window
        self._window_bytes = window_bytes
        self._frame_bytes = MAX_FRAME_BYTES
        self.event_bytes = SENT_WHOLE_BYTES  # the largest data that the daemon takes with its event
        self._connection: Optional[Connection] = None
        self._flights: Deque[Optional[Flight]] = deque()  # None is Describe
        self._outboxes: Dict[Outbox, None] = {}  # those with something to send or to hear, oldest first
        self._pumping = False
        self._failures = 0
        self._retry_at = 0.0
        self._heard_at = 0.0  # when there was last nothing to wait for, or a reply came
        self._is_silent = False  # SILENCE_S have passed since, and nothing has come
        self._gave_up = False
        self._shows = False  # the daemon that is connected takes what is only to be shown
        self._may_bring = False  # a daemon that does not empty our spool has answered, and was brought nothing yet
        _links.add(self)

    def has_room(self, size: int) -> bool:
        """Whether an event of `size` bytes fits into the window; one alone always does."""
        events = held = 0
        for outbox in list(self._outboxes):  # copied, because a signal handler may add one
            events += outbox.held_events
            held += outbox.held_bytes
        return events == 0 or (events < self._window and held + size <= self._window_bytes)

    def take(self, outbox: Outbox) -> None:
        """There is something new in `outbox`; send it if that is possible at once."""
        self._outboxes[outbox] = None
        self.pump()

    def show(self, outbox: Outbox, encoded: bytes) -> None:
        """Have an event shown that nobody keeps; without a connection it is dropped, and one is tried when that is due."""
        if self._shows:
            outbox.show(encoded)
        self.take(outbox)

    def discard(self, outbox: Outbox) -> None:
        """Forget what the outbox still holds."""
        outbox.rewind()
        self._outboxes.pop(outbox, None)

    def pump(self) -> None:
        """Do what can be done now. Never waits, never raises but what interrupts it."""
        if self._pumping or self.forked:
            return  # a signal handler records in the middle of a pump; what it added goes with the next one
        self._pumping = True
        try:
            self._connect_if_due()
            if self._connection is not None:
                if self._may_receive():
                    self._receive(self._connection)
                    self._check_silence(self._connection)
                self._send(self._connection)
            if self._connection is None or self._is_silent:
                self._save()
        except (Unreachable, *PASSING) as trouble:
            self._lose(trouble)
            self._save()
        except BaseException:
            self._lose(None)
            raise
        finally:
            self._pumping = False

    def overflow(self) -> bool:
        """Move all that is not acknowledged into the spool although the daemon is there, to be sent from there.

        False where there is no spool. Raises SpoolFault: some is still in memory.
        """
        if self._spool is None or self._pumping:
            return False
        for outbox in list(self._outboxes):
            outbox.rewind()  # what flies is sent again, and stored once
            outbox.save(self._spool)
        return True

    def saved(self, outbox: Outbox) -> bool:
        """Whether the daemon is away and all that it has not acknowledged is on the disk. May sync."""
        if outbox.is_left:
            return True
        return self.away and outbox.is_saved and self._sync(outbox)

    def _sync(self, outbox: Outbox) -> bool:
        """Bring what is saved to the disk; False when that fails."""
        try:
            outbox.sync()
        except SpoolFault as fault:
            self.spool_fault = fault
            return False
        return True

    def seal(self, outbox: Outbox) -> None:
        """Leave to the daemon what is spooled of a run that has ended."""
        if self.saved(outbox):
            try:
                outbox.seal()
            except OSError:
                return  # it stays open, and the daemon takes it when this process is dead
            self._outboxes.pop(outbox, None)

    @property
    def spools(self) -> bool:
        """Whether events go to the spool now."""
        return self.away and self._spool is not None and not self.forked

    def why_not(self) -> RunhistError:
        """Why what was handed over is not stored yet."""
        return self.spool_fault or self.trouble

    @property
    def trouble(self) -> RunhistError:
        """What is wrong with the connection."""
        return self._trouble or Unreachable("timeout", self.choice.sockets, self.choice.why)

    def close(self) -> None:
        """Close the connection. What is unacknowledged is sent again when the link is used again."""
        self._lose(None)
        self._retry_at = 0.0

    def interest(self) -> Tuple[Optional[int], int, Optional[float]]:
        """For a caller with a poll of its own: a descriptor, its events, and in how many seconds to pump regardless."""
        if self._connection is not None:
            events = POLLIN | (POLLOUT if self._connection.unsent_bytes else 0)
            return self._connection.fileno(), events, self._silence_in_s()
        return None, 0, max(0.0, self._retry_at - time.monotonic()) if self._outboxes else None

    def bring(self, seconds: float) -> None:
        """Bring what earlier processes left in the spool, once a connection, where the daemon cannot. Without the lock."""
        spool, may_bring, self._may_bring = self._spool, self._may_bring, False
        if may_bring and spool is not None and spool.instance_id is not None:
            bring(spool.directory, self.choice, spool.instance_id, seconds)

    @property
    def socket_path(self) -> Optional[Path]:
        """The socket that answered; None while there is no connection."""
        return None if self._connection is None else self._connection.socket_path

    # What whoever waits may need

    def _may_receive(self) -> bool:
        """Whether this caller may take replies, or another one sleeps for them."""
        return True

    def _wake(self) -> None:
        """Something may have changed that somebody waits for."""

    # Parts of a pump

    def _connect_if_due(self) -> None:
        if self._connection is None and self._outboxes and time.monotonic() >= self._retry_at:
            self._connection = Connection.open(self.choice, timeout=0)
            if not self._is_silent:
                self.away = False
                self.spool_fault = None
            self._heard_at = time.monotonic()
            self._flights.append(None)
            self._connection.send("Describe", {})

    def _silence_in_s(self) -> Optional[float]:
        """In how many seconds the daemon will have been silent for too long; None when nothing is expected of it."""
        if not self._flights or self._is_silent:
            return None
        return max(0.0, self._heard_at + SILENCE_S - time.monotonic())

    def _check_silence(self, connection: Connection) -> None:
        if self._silence_in_s() == 0:
            self._is_silent = self.away = True
            raise connection.unreachable("timeout")

    def _receive(self, connection: Connection) -> None:
        for reply in connection.receive():
            flight = self._flights.popleft()
            self._heard_at = time.monotonic()
            if self._is_silent:
                self._is_silent = self.away = False
                self.spool_fault = None
            if reply.error is not None:
                self._take_error(connection, flight, reply)
                continue
            try:
                if flight is None:
                    self._frame_bytes = reply.parameters["limits"]["frame_bytes"]
                    self.event_bytes = reply.parameters["limits"]["event_bytes"]
                    self._shows = "publish" in reply.parameters.get("features", ())
                    if self._spool is not None:
                        self._spool.instance_id = reply.parameters["instance_id"]
                        self._may_bring = is_needed(connection.socket_path)
                    continue
                flight.outbox.arrive(flight, reply.parameters)
            except (KeyError, TypeError) as error:
                raise connection.unreachable("not_a_history", f"a reply lacks {error}") from error
            self._failures = 0
            self._gave_up = False
            self._trouble = None
        for outbox in list(self._outboxes):
            if outbox.settled and not outbox.shown:
                del self._outboxes[outbox]
            if not outbox.settled or outbox.shown:  # a signal handler may have recorded in between
                self._outboxes[outbox] = None
        self._wake()

    def _take_error(self, connection: Connection, flight: Optional[Flight], reply: Reply) -> None:
        error = connection.refusal(reply)
        if not isinstance(error, Refusal) or isinstance(error, PASSING):
            raise error
        if flight is not None:
            flight.outbox.refuse(flight, error)

    def _send(self, connection: Connection) -> None:
        for outbox in [] if self._is_silent else list(self._outboxes):
            while connection.unsent_bytes < SEND_AHEAD_BYTES:
                shown = outbox.depart_shown(self._frame_bytes)
                if shown is not None:
                    connection.send("Publish", shown, oneway=True)
                    connection.push()
                    continue
                departure = outbox.depart(self._frame_bytes)
                if departure is None:
                    break
                if not self._flights:
                    self._heard_at = time.monotonic()
                self._flights.append(departure.flight)
                connection.send(departure.method, departure.parameters)
                connection.push()
        connection.push()

    def _lose(self, trouble: Optional[RunhistError]) -> None:
        """Throw the connection away, and say when to try again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        elif isinstance(trouble, Unreachable):
            self.away = trouble.reason in _AWAY or self._is_silent
        self._flights.clear()
        self._shows = False
        for outbox in list(self._outboxes):
            outbox.rewind()
        if trouble is not None:
            self._trouble = trouble
            pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(self._failures, 10))
            self._failures += 1
            self._retry_at = time.monotonic() + pause * random.uniform(0.5, 1.0)
        self._wake()

    def _save(self) -> None:
        """Move what waits into the spool while the daemon is away."""
        if not self.away or self._spool is None:
            return
        try:
            for outbox in list(self._outboxes):
                outbox.save(self._spool)
            self.spool_fault = None
        except SpoolFault as fault:
            self.spool_fault = fault

    def abandon(self) -> None:
        """In the child after fork(): close our copy of the descriptor, and never record again."""
        self.forked = True
        self.lock = threading.RLock()  # another thread of the parent may have held the old one for ever
        if self._connection is not None:
            self._connection.close()


_links: weakref.WeakSet[Pump] = weakref.WeakSet()


def _abandon_all() -> None:
    for link in list(_links):
        link.abandon()


os.register_at_fork(after_in_child=_abandon_all)
