"""Cuts a program's output into the lines that are recorded.

A line ends with a newline. A carriage return begins a new state of the same line, as progress bars do, and only the last
state counts; the one before a newline, which a terminal adds, changes nothing. The bytes are not touched on their way to
the user: this works on a copy, and holds at most one unfinished line.
"""

from __future__ import annotations

import base64
from typing import Iterator, List, NamedTuple, Optional

MAX_LINE_BYTES = 64 * 1024  # with every escape and its base64 that is below the 1 MiB that one event may have
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Line(NamedTuple):
    """A recorded line, or a part of one that is too long. `base64` keeps the bytes when the text cannot say them."""

    text: str
    base64: Optional[str]
    size: int  # in bytes, without the newline


def decode(raw: bytes) -> Line:
    """The text of raw bytes. What is not UTF-8, and NUL, which JSON text of a history cannot hold, become U+FFFD."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("utf-8", "replace")
    else:
        if "\0" not in text:
            return Line(text, None, len(raw))
    return Line(text.replace("\0", REPLACEMENT), base64.b64encode(raw).decode("ascii"), len(raw))


class LineCutter:
    """Takes one stream's output in pieces of any size; gives out a line as soon as its end was seen."""

    def __init__(self, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._max_line_bytes = max_line_bytes
        self._unfinished = b""

    def feed(self, chunk: bytes) -> List[Line]:
        """The lines, and the full parts of an over-long one, that end in `chunk`."""
        *whole, unfinished = (self._unfinished + chunk).split(b"\n")
        raws = [part for raw in whole for part in self._split(_last_state(raw))]
        state = _last_state(unfinished)
        *full_parts, rest = self._split(state)
        self._unfinished = rest + b"\r" if unfinished.endswith(b"\r") else rest
        return [decode(raw) for raw in (*raws, *full_parts)]

    def finish(self) -> Optional[Line]:
        """The last line when it had no newline."""
        rest, self._unfinished = _last_state(self._unfinished), b""
        return decode(rest) if rest else None

    def _split(self, raw: bytes) -> Iterator[bytes]:
        """The parts of one line; the last is never empty unless the line is."""
        start = 0
        while len(raw) - start > self._max_line_bytes:
            end = _character_boundary(raw, start + self._max_line_bytes)
            yield raw[start:end]
            start = end
        yield raw[start:] if start else raw


def _last_state(raw: bytes) -> bytes:
    """What is left of a line after its carriage returns."""
    if b"\r" not in raw:
        return raw
    state = raw.rstrip(b"\r")
    return state[state.rfind(b"\r") + 1 :]


def _character_boundary(raw: bytes, end: int) -> int:
    """`end`, or up to 3 bytes before it, so that no UTF-8 character is cut in two."""
    for boundary in range(end, end - 4, -1):
        if raw[boundary] & 0xC0 != 0x80:
            return boundary
    return end
