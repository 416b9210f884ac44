"""The one connection that a history records through, shared by its runs and threads; there is no hidden thread.

Theory of operation. `pump` does what can be done now without waiting: connect if a try is due, take the receipts that
are there, send what the socket takes. Every recording call pumps once; the few that wait (`wait`) pump and sleep in poll
by turns. While one thread does that, it alone reads from the socket, so that no other takes the reply it sleeps for;
threads that wait too are woken whenever it has read. (They sleep on a lock each: an interrupt in the middle of
Condition.wait can leave the condition's own lock released.)

Losing the connection is harmless: everything unacknowledged is sent again, and the daemon stores what it has not. So
whatever leaves the connection in doubt, an interrupt in the middle of a pump included, throws it away. New tries
come at later calls, further and further apart. A daemon that has no room or is stopping is treated alike.

When a wait has run out, the following ones are short until the daemon answers again: an engine that begins many runs
while the daemon is away is held up once and not each time.

While nobody can be connected to, every pump moves what waits into the spool, if the link was given one; `saved` tells.
What the spool does not take goes on waiting in memory.

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
from typing import Callable, Deque, Dict, List, Optional, Tuple

from .connection import Connection, Unreachable
from .outbox import Flight, Outbox
from .paths import SocketChoice
from .protocol.errors import Damaged, Refusal, RunhistError, ShuttingDown, StorageFull
from .protocol.machine import MAX_FRAME_BYTES, Reply
from .spool import Spool, SpoolFault

SEND_AHEAD_BYTES = 64 * 1024  # what is handed to a full socket; the rest waits and is coalesced
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0
IMPATIENT_S = 0.25  # ample for a healthy daemon to answer

_AWAY = frozenset({"not_installed", "not_running", "refused"})  # reasons for which a start of the daemon is the cure
_PASSING = (StorageFull, Damaged, ShuttingDown)  # refusals that say nothing against the call: try again later


class Link:
    """See the module. `lock` guards the link, its outboxes and everything of their runs that changes."""

    def __init__(self, choice: SocketChoice, window: int, window_bytes: int, spool: Optional[Spool] = None) -> None:
        self.choice = choice
        self.away = False  # nobody could be connected to at the last try
        self.spool_fault: Optional[SpoolFault] = None
        self.lock = threading.RLock()
        self.forked = False
        self._trouble: Optional[RunhistError] = None
        self._spool = spool
        self._window = window
        self._window_bytes = window_bytes
        self._frame_bytes = MAX_FRAME_BYTES
        self._connection: Optional[Connection] = None
        self._flights: Deque[Optional[Flight]] = deque()  # None is Describe
        self._outboxes: Dict[Outbox, None] = {}  # those with something to send or to hear, oldest first
        self._pumping = False
        self._reader: Optional[int] = None  # the thread that alone receives
        self._sleepers: List[threading.Lock] = []
        self._failures = 0
        self._retry_at = 0.0
        self._gave_up = False
        self._congested = False  # the window was full for as long as an event may wait
        _links.add(self)

    # With the lock held

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
                if self._reader in (None, threading.get_ident()):
                    self._receive(self._connection)
                self._send(self._connection)
            if self._connection is None:
                self._save()
        except (Unreachable, *_PASSING) as trouble:
            self._lose(trouble)
            self._save()
        except BaseException:
            self._lose(None)
            raise
        finally:
            self._pumping = False

    def saved(self, outbox: Outbox) -> bool:
        """Whether the daemon is away and all that it has not acknowledged is on the disk. May sync."""
        if outbox.is_left:
            return True
        if not self.away or not outbox.is_saved:
            return False
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
            return self._connection.fileno(), POLLIN | (POLLOUT if self._connection.unsent_bytes else 0), None
        return None, 0, max(0.0, self._retry_at - time.monotonic()) if self._outboxes else None

    @property
    def socket_path(self) -> Optional[Path]:
        """The socket that answered; None while there is no connection."""
        return None if self._connection is None else self._connection.socket_path

    # Without the lock

    def wait(self, done: Callable[[], bool], seconds: float, *, patient: bool = False) -> bool:
        """Pump until `done()`, at most `seconds`; less after a wait that ran out, unless `patient`. False: not done."""
        with self.lock:
            if self._gave_up and not patient:
                seconds = min(seconds, IMPATIENT_S)
                self._retry_at = 0.0
            if self.away and patient:
                self._retry_at = 0.0  # or what is in the spool would be an answer before anybody was asked
        end = time.monotonic() + seconds
        try:
            while True:
                with self.lock:
                    self.pump()
                    if done() or self.forked:
                        return not self.forked
                    remaining = end - time.monotonic()
                    if remaining <= 0:
                        self._gave_up = self._gave_up or not patient
                        return False
                    sleep = self._prepare_sleep(remaining)
                sleep()
        finally:
            with self.lock:
                if self._reader == threading.get_ident():
                    self._reader = None
                self._wake_sleepers()

    def make_room(self, size: int, seconds: float) -> bool:
        """Wait until an event of `size` bytes fits into the window. Once that was in vain, it only looks until it fits.

        Several threads may pass at the same time, so the window can be passed by one event for each.
        """
        with self.lock:
            if not self.has_room(size):
                self.pump()
            room = self.has_room(size)
            if room or self._congested:
                self._congested = not room
                return room
        room = self.wait(lambda: self.has_room(size), seconds)
        with self.lock:
            self._congested = not room
        return room

    def _prepare_sleep(self, seconds: float) -> Callable[[], object]:
        """With the lock held: how to sleep without it until something may have changed."""
        me = threading.get_ident()
        connection = self._connection
        if connection is not None and self._reader in (None, me):
            self._reader = me
            return lambda: _poll(connection, seconds)
        if connection is None:
            seconds = min(seconds, max(0.001, self._retry_at - time.monotonic()))
        sleeper = threading.Lock()
        sleeper.acquire()
        self._sleepers.append(sleeper)
        return lambda: sleeper.acquire(timeout=seconds)

    def _wake_sleepers(self) -> None:
        sleepers, self._sleepers = self._sleepers, []
        for sleeper in sleepers:
            sleeper.release()

    # Parts of a pump

    def _connect_if_due(self) -> None:
        if self._connection is None and self._outboxes and time.monotonic() >= self._retry_at:
            self._connection = Connection.open(self.choice, timeout=0)
            self.away = False
            self.spool_fault = None
            self._flights.append(None)
            self._connection.send("Describe", {})

    def _receive(self, connection: Connection) -> None:
        for reply in connection.receive():
            flight = self._flights.popleft()
            if reply.error is not None:
                self._take_error(connection, flight, reply)
                continue
            try:
                if flight is None:
                    self._frame_bytes = reply.parameters["limits"]["frame_bytes"]
                    if self._spool is not None:
                        self._spool.instance_id = reply.parameters["instance_id"]
                    continue
                flight.outbox.arrive(flight, reply.parameters)
            except (KeyError, TypeError) as error:
                raise connection.unreachable("not_a_history", f"a reply lacks {error}") from error
            self._failures = 0
            self._gave_up = False
            self._trouble = None
        for outbox in list(self._outboxes):
            if outbox.settled:
                del self._outboxes[outbox]
            if not outbox.settled:  # a signal handler may have recorded in between
                self._outboxes[outbox] = None
        self._wake_sleepers()

    def _take_error(self, connection: Connection, flight: Optional[Flight], reply: Reply) -> None:
        error = connection.refusal(reply)
        if not isinstance(error, Refusal) or isinstance(error, _PASSING):
            raise error
        if flight is not None:
            flight.outbox.refuse(flight, error)

    def _send(self, connection: Connection) -> None:
        for outbox in list(self._outboxes):
            while connection.unsent_bytes < SEND_AHEAD_BYTES:
                departure = outbox.depart(self._frame_bytes)
                if departure is None:
                    break
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
            self.away = trouble.reason in _AWAY
        self._flights.clear()
        for outbox in list(self._outboxes):
            outbox.rewind()
        if trouble is not None:
            self._trouble = trouble
            pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(self._failures, 10))
            self._failures += 1
            self._retry_at = time.monotonic() + pause * random.uniform(0.5, 1.0)
        self._wake_sleepers()

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


def _poll(connection: Connection, seconds: float) -> None:
    try:
        connection.wait(seconds)
    except (Unreachable, OSError):
        pass  # closed meanwhile; the next pump sees to it


_links: weakref.WeakSet[Link] = weakref.WeakSet()


def _abandon_all() -> None:
    for link in list(_links):
        link.abandon()


os.register_at_fork(after_in_child=_abandon_all)
