"""The one connection that a history records through, shared by its runs and threads; there is no hidden thread.

Theory of operation. Every recording call pumps once (see `pump`); the few that wait (`wait`) pump and sleep in poll
by turns. While one thread does that, it alone reads from the socket, so that no other takes the reply it sleeps for;
threads that wait too are woken whenever it has read. (They sleep on a lock each: an interrupt in the middle of
Condition.wait can leave the condition's own lock released.)

When a wait has run out, the following ones are short until the daemon answers again: an engine that begins many runs
while the daemon is away is held up once and not each time.
"""

from __future__ import annotations

import threading
import time
from typing import Callable, List, Optional

from .connection import Connection, Unreachable
from .paths import SocketChoice
from .pump import Pump
from .spool import Spool

IMPATIENT_S = 0.25  # ample for a healthy daemon to answer


class Link(Pump):
    """See the module."""

    def __init__(self, choice: SocketChoice, window: int, window_bytes: int, spool: Optional[Spool] = None) -> None:
        super().__init__(choice, window, window_bytes, spool)
        self._reader: Optional[int] = None  # the thread that alone receives
        self._sleepers: List[threading.Lock] = []
        self._congested = False  # the window was full for as long as an event may wait

    def wait(self, done: Callable[[], bool], seconds: float, *, patient: bool = False) -> bool:
        """Pump until `done()`, at most `seconds`; less after a wait that ran out, unless `patient`. False: not done.

        What is left of the time may go on what earlier processes left in the spool.
        """
        end = time.monotonic() + seconds
        is_done = self._wait(done, seconds, patient=patient)
        if is_done and not self.forked:
            self.bring(end - time.monotonic())
        return is_done

    def _wait(self, done: Callable[[], bool], seconds: float, *, patient: bool) -> bool:
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
                self._wake()

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
            silence_in_s = self._silence_in_s()
            until = seconds if silence_in_s is None else min(seconds, silence_in_s)
            return lambda: _poll(connection, until)
        if connection is None:
            seconds = min(seconds, max(0.001, self._retry_at - time.monotonic()))
        sleeper = threading.Lock()
        sleeper.acquire()
        self._sleepers.append(sleeper)
        return lambda: sleeper.acquire(timeout=seconds)

    def _may_receive(self) -> bool:
        return self._reader in (None, threading.get_ident())

    def _wake(self) -> None:
        sleepers, self._sleepers = self._sleepers, []
        for sleeper in sleepers:
            sleeper.release()


def _poll(connection: Connection, seconds: float) -> None:
    try:
        connection.wait(seconds)
    except (Unreachable, OSError):
        pass  # closed meanwhile; the next pump sees to it
