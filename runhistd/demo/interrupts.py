"""Interrupts that come only where they can do no harm.

A KeyboardInterrupt that comes while `subprocess` holds its lock leaves the lock held for ever, and the next wait for that
process never returns (CPython's Popen._internal_poll takes it outside of any try). So a signal is only noted, and raised
where the demo waits for something else: `pausing()` says where that is.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Notes the signals that ask us to stop, from when it is made."""

    def __init__(self) -> None:
        self._noted = False
        self._pausing = False
        for number in SIGNALS:
            signal.signal(number, self._note)

    @contextlib.contextmanager
    def pausing(self) -> Iterator[None]:
        """A block in which nothing is held: a signal that comes in it, or came before, raises KeyboardInterrupt."""
        self._pausing = True
        try:
            if self._noted:
                raise KeyboardInterrupt
            yield
        finally:
            self._pausing = False

    def _note(self, *_: object) -> None:
        self._noted = True
        if self._pausing:
            raise KeyboardInterrupt
