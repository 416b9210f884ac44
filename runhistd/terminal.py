"""What the commands of `runhistd` have in common when they speak to a person."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runhistd.store.verify import Difference

PROGRESS_S = 0.2  # between two updates of the progress line
SYSTEM = "the history of the daemon for all users of this machine; for root"
BAR_WIDTH = 30
UNITS = ("B", "kB", "MB", "GB", "TB")


def complain(text: str, status: int) -> int:
    """Say what is wrong and return the exit status."""
    sys.stderr.write(f"runhistd: {text}\n")
    return status


def tell(text: str) -> None:
    """Print to stdout."""
    sys.stdout.write(text)


def count(number: int, noun: str, many: str | None = None) -> str:
    """A number with its noun; `many` is the plural where that is not just an s more."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {many or noun + 's'}"


def size_text(size: float) -> str:
    """Bytes as people read them, in powers of a thousand."""
    for unit in UNITS[:-1]:
        if size < 999.5:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.0f} {UNITS[-1]}"


def printable(text: str) -> str:
    """Text that cannot drive a terminal, whatever was recorded."""
    return text if text.isprintable() else ascii(text)


def difference_as_text(difference: Difference) -> str:
    """One difference that `verify` found, on one line."""
    where = "the file" if difference.run_id is None else f"run {difference.run_id!r} of {difference.namespace!r}"
    expected, found, what = map(printable, (difference.expected, difference.found, difference.what))
    return f"  {where}: {what}: expected {expected}, found {found}"


class Progress:
    """One line on a terminal with a bar that tells how far a command is; nothing off a terminal.

    `what` stands before the bar; `in_bytes` shows sizes, else plain numbers.
    """

    def __init__(self, what: str, *, in_bytes: bool = False) -> None:
        self.shown = sys.stderr.isatty()
        self._what = what
        self._in_bytes = in_bytes
        self._next_s = time.monotonic() + PROGRESS_S

    def show(self, done: int, of: int) -> None:
        """Say how much is done, now and then."""
        if self.shown and time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + PROGRESS_S
            part = min(done / of, 1.0) if of else 1.0
            bar = ("█" * round(part * BAR_WIDTH)).ljust(BAR_WIDTH, "░")
            far = f"{size_text(done)} of {size_text(of)}" if self._in_bytes else f"{done:,} of {of:,}"
            sys.stderr.write(f"\r\x1b[K{self._what} {bar} {part:4.0%}  {far}")
            sys.stderr.flush()

    def clear(self) -> None:
        """Take the line away."""
        if self.shown:
            sys.stderr.write("\r\x1b[K")
