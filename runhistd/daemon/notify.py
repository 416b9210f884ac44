"""Telling the service manager how we are: the protocol of sd_notify(3), which is one datagram of lines a message.

    READY            when the daemon answers, and not before
    STATUS           what an operator sees in `systemctl status`: state, database, position, connections
    WATCHDOG         when a transaction went through since the last time, or, with nothing to write, a select did; never
                     because a timer ran out: a daemon whose committer is stuck must be found and killed
    RELOADING        around a look at the settings that the manager asked for
    EXTEND_TIMEOUT   while a long recovery or adoption goes on, as long as it really goes on
    STOPPING         once the daemon was told to stop, with the time that this may take

Without a service manager nothing is sent. A message that cannot be sent is logged once and never costs more than that.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping

import trio

logger = logging.getLogger("runhistd.notify")

SEND_S = 1.0  # a manager whose socket is full for longer misses a message
BEAT_S = 10.0  # between two messages where there is no watchdog that wants more
BEATS_OF_A_WATCHDOG = 3  # so that two may come late
EXTEND_S = 60.0  # from each look on; a single sync may take that long on a disk in trouble
EXTEND_EVERY_S = 5.0
STOP_SLACK_S = 30.0  # beyond the wait for answers: the last checkpoint


class Notifier:
    """What the service manager hears of us. `address` is None without one; `watchdog_s` None when it does not watch."""

    def __init__(self, address: str | None = None, watchdog_s: float | None = None) -> None:
        self._address = "\0" + address[1:] if address and address.startswith("@") else address
        self._watches = watchdog_s is not None
        self._ready = False
        self._told = False
        self.beat_s = float("inf") if address is None else BEAT_S
        """How often `beat` is to be called, at least."""
        if watchdog_s is not None:
            self.beat_s = min(self.beat_s, watchdog_s / BEATS_OF_A_WATCHDOG)

    @classmethod
    def take(cls, environment: MutableMapping[str, str] = os.environ) -> Notifier:
        """The one that the environment tells of, and takes the variables away: our children are not the service."""
        address = environment.pop("NOTIFY_SOCKET", None)
        watchdog_us = environment.pop("WATCHDOG_USEC", "")
        watched = environment.pop("WATCHDOG_PID", str(os.getpid()))
        if not address or watched != str(os.getpid()) or not watchdog_us.isdecimal() or not int(watchdog_us):
            return cls(address or None)
        return cls(address, int(watchdog_us) / 1_000_000)

    def ready(self, status: str) -> None:
        """The daemon answers."""
        self._ready = True
        self._send("READY=1", status_line(status))

    def beat(self, status: str) -> None:
        """The committer has just proved that it works; before `ready` nobody waits for that."""
        if not self._ready:
            return
        self._send(*(["WATCHDOG=1"] if self._watches else []), status_line(status))

    @contextlib.contextmanager
    def reloading(self) -> Iterator[None]:
        """The settings are looked at in the block. Before we were ready, and while we stop, nobody waits for that."""
        was_ready = self._ready
        if was_ready:
            self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            yield
        finally:
            if was_ready:
                self._send("READY=1")

    def stopping(self, wait_s: float) -> None:
        """The daemon was told to stop, and waits that long for its answers."""
        self._ready = False
        self._send("STOPPING=1", f"EXTEND_TIMEOUT_USEC={int((wait_s + STOP_SLACK_S) * 1_000_000)}", "STATUS=stopping")

    def extend(self, why: str) -> None:
        """The start takes longer, and goes on."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(EXTEND_S * 1_000_000)}", status_line(why))

    @contextlib.contextmanager
    def starting(self, why: str) -> Iterator[None]:
        """Extend the time for the start as long as this thread is busy in the block, which may hold up the event loop.

        It is extended at once, so that a short time is not over before the first look.
        """
        if self._address is None:
            yield
            return
        self.extend(why)
        ended = threading.Event()
        look = Looker(threading.get_ident(), lambda: self.extend(why)).look

        def keep_looking() -> None:
            while not ended.wait(EXTEND_EVERY_S):
                look()

        watching = threading.Thread(target=keep_looking, daemon=True)
        watching.start()
        try:
            yield
        finally:
            ended.set()
            watching.join()

    def _send(self, *lines: str) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(SEND_S)
                sender.connect(self._address)
                sender.send("\n".join(lines).encode("utf-8", "replace"))
        except OSError as error:
            if not self._told:
                logger.warning("the service manager cannot be told", extra={"fields": {"error": error}})
            self._told = True


class Answers:
    """Says once to whoever started us that the daemon answers, and to the service manager each time."""

    def __init__(self, notifier: Notifier, task_status: trio.TaskStatus[None]) -> None:
        self.notifier = notifier
        self._task_status = task_status
        self._told = False

    def ready(self, status: str) -> None:
        """It answers now."""
        if not self._told:
            self._told = True
            self._task_status.started()
        self.notifier.ready(status)


class Looker:
    """Tells whether a thread still gets on: by the processor time that it used since the last look."""

    def __init__(self, thread: int, gets_on: Callable[[], None]) -> None:
        self._clock = time.pthread_getcpuclockid(thread)
        self._used_ns = time.clock_gettime_ns(self._clock)
        self._gets_on = gets_on

    def look(self) -> None:
        """Call `gets_on` when it did."""
        before, self._used_ns = self._used_ns, time.clock_gettime_ns(self._clock)
        if self._used_ns > before:
            self._gets_on()


def status_line(status: str) -> str:
    """The status as a line; what could end it early is made visible."""
    return "STATUS=" + "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in status)
