"""What people see: tables that fit, times and amounts in a few characters, and recorded text that cannot drive a terminal.

On a terminal times are relative and columns are cut to fit; elsewhere times are ISO and nothing is cut.
"""

from __future__ import annotations

import os
import sys
import time
import unicodedata
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence

GLYPHS = {
    "pending": "○",
    "running": "●",
    "paused": "‖",
    "incomplete": "?",
    "completed": "✓",
    "failed": "✗",
    "cancelled": "⊘",
    "skipped": "–",
    "unfinished": "…",
}
COLOURS = {"running": "36", "paused": "33", "incomplete": "33", "completed": "32", "failed": "31", "cancelled": "35"}
NONE = "–"
GAP = "  "
MICROCENTS = 10**8  # of one USD


def on_terminal() -> bool:
    """Whether a person reads what we print."""
    return sys.stdout.isatty()


def may_rewrite() -> bool:
    """Whether a line that is printed can be replaced: on a terminal that knows how."""
    return on_terminal() and os.environ.get("TERM", "dumb") != "dumb"


def columns() -> int:
    """How wide the terminal is."""
    import shutil

    return shutil.get_terminal_size((100, 24)).columns


def coloured(text: str, status: str) -> str:
    """The text in the colour of that status, on a terminal that wants colours (https://no-color.org)."""
    code = COLOURS.get(status)
    if code is None or not on_terminal() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{code}m{text}\x1b[0m"


def escaped(text: str) -> str:
    r"""Recorded text with what a terminal acts on shown as \x1b, \u202e …

    Control characters, separators of lines, half surrogates, and marks that turn the direction of the text around them.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(char) for char in text)


_TURNING = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def _escape(char: str) -> str:
    if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or char in _TURNING:
        short = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
        return short.get(char) or (f"\\x{ord(char):02x}" if char < "\x80" else f"\\u{ord(char):04x}")
    return char


def width(text: str) -> int:
    """Columns that a terminal takes for the text."""
    if text.isascii():
        return len(text)
    return sum(_columns(char) for char in text)


def _columns(char: str) -> int:
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def fitted(text: str, columns: int) -> str:
    """The text in at most so many columns, its end replaced by … where it is longer."""
    if width(text) <= columns:
        return text
    taken, used = "", 0
    for char in text:
        used += _columns(char)
        if used > columns - 1:
            break
        taken += char
    return taken + "…"


def ending(text: str, columns: int) -> str:
    """The end of the text in at most so many columns, its beginning replaced by … where it is longer."""
    if width(text) <= columns:
        return text
    start, used = len(text), 1
    while used + _columns(text[start - 1]) <= columns:
        start -= 1
        used += _columns(text[start])
    return "…" + text[start:]


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], statuses: Sequence[str], right: str = "") -> str:
    """Rows under titles. The last text column takes what room is left; `right` names the columns set flush right."""
    cells = [[escaped(cell) for cell in row] for row in rows]
    widths = [max(map(width, column)) for column in zip(titles, *cells)]
    if on_terminal():
        _shrink(widths, columns() - len(GAP) * (len(widths) - 1))
    lines = []
    for row, status in zip([list(titles), *cells], ["", *statuses]):
        parts = []
        for title, cell, room in zip(titles, row, widths):
            shown = fitted(cell, room)
            pad = " " * (room - width(shown))
            text = coloured(shown, status) if title == "STATUS" else shown
            parts.append(pad + text if title in right.split() else text + pad)
        lines.append(GAP.join(parts).rstrip())
    return "\n".join(lines) + "\n"


def _shrink(widths: List[int], room: int) -> None:
    """Take columns from the widest until all fit, and leave each at least six."""
    while sum(widths) > room and max(widths) > 6:
        widths[widths.index(max(widths))] -= 1


def moment(at_us: Optional[int], now_us: Optional[int] = None) -> str:
    """When: "2 min ago" on a terminal, ISO 8601 in UTC elsewhere."""
    if at_us is None:
        return NONE
    if not on_terminal():
        return iso(at_us)
    seconds = max(0, ((time.time_ns() // 1000 if now_us is None else now_us) - at_us) // 1_000_000)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit} ago"
    return f"{seconds} s ago" if seconds else "now"


def iso(at_us: int) -> str:
    """2026-11-21T14:02:07.980000Z."""
    seconds, micros = divmod(at_us, 1_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{micros:06d}Z"


def clock(at_us: int) -> str:
    """14:02:07.980, local, on a terminal; ISO elsewhere."""
    if not on_terminal():
        return iso(at_us)
    seconds, micros = divmod(at_us, 1_000_000)
    return time.strftime("%H:%M:%S", time.localtime(seconds)) + f".{micros // 1000:03d}"


def took(from_us: Optional[int], to_us: Optional[int]) -> str:
    """12.0 s, 2m04s, 1h12m, 3d04h."""
    if from_us is None or to_us is None:
        return NONE
    seconds = max(0, to_us - from_us) / 1_000_000
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds >= 0.95 else f"{seconds * 1000:.0f} ms"
    whole = int(seconds)
    for big, small, length, part in (("d", "h", 86400, 3600), ("h", "m", 3600, 60), ("m", "s", 60, 1)):
        if whole >= length:
            return f"{whole // length}{big}{whole % length // part:02d}{small}"
    return NONE


def cost(usage: Dict[str, Any]) -> str:
    """$1.08; a fraction of a cent keeps two figures that say something."""
    microcents = usage["cost_microcents"]
    if not microcents:
        return NONE
    usd = microcents / MICROCENTS
    return f"${usd:,.2f}" if usd >= 0.01 else f"${usd:.2g}"


def status_of(status: str) -> str:
    """A glyph and the word."""
    return f"{GLYPHS.get(status, '·')} {status}"


def size(count: int) -> str:
    """412 MB."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 10 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def json_line(value: Any) -> str:
    """A wire object on one line."""
    import json

    return json.dumps(value, ensure_ascii=True, separators=(",", ":")) + "\n"


def json_line_parts(content: Iterable[bytes]) -> Iterator[str]:
    """JSON that comes in chunks of UTF-8, made fit for one line as `json_line` does: ASCII, without line breaks."""
    import codecs
    import json
    import re

    decode = codecs.getincrementaldecoder("utf-8")().decode
    for chunk in content:
        text = decode(chunk)
        if not (text.isascii() and text.isprintable()):
            text = re.sub("[^ -~]", lambda found: json.dumps(found[0])[1:-1] if found[0] >= " " else " ", text)
        yield text
