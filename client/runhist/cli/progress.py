"""A line on a terminal with a bar that tells how far a command is."""

from __future__ import annotations

import sys
import time

EVERY_S = 0.2
WIDTH = 30


class Bar:
    """Shown on standard error while it is a terminal; `what` stands before it."""

    def __init__(self, what: str) -> None:
        self.shown = sys.stderr is not None and sys.stderr.isatty()
        self._what = what
        self._next_s = time.monotonic() + EVERY_S

    def show(self, done: int, of: int, far: str) -> None:
        """Say how much is done, now and then; `far` in words."""
        if self.shown and time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + EVERY_S
            part = min(done / of, 1.0) if of else 1.0
            bar = ("█" * round(part * WIDTH)).ljust(WIDTH, "░")
            sys.stderr.write(f"\r\x1b[K{self._what} {bar} {part:4.0%}  {far}")
            sys.stderr.flush()

    def clear(self) -> None:
        """Take the line away."""
        if self.shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
