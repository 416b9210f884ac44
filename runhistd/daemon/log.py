"""Log lines for people and programs: logfmt on stderr, one record a line, whatever was recorded into it.

Everything in the daemon uses the standard library's loggers below `runhistd`; values go into
`extra={"fields": {"run_id": …}}`, never into the message, so that the message stays a constant that can be searched for.
A line is `ts=… level=… msg=… key=value …`; a value with anything but plain characters in it is a JSON string, in which
control characters and line ends are escaped, so that recorded text can neither forge a line nor drive a terminal.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from datetime import UTC, datetime

from .journal import JournalHandler, goes_to_journal

LOGGER = "runhistd"
STDERR = 2
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_PLAIN = re.compile(r"[!#-<>-\[\]-~]+")  # printable ASCII without space, quote, equals sign and backslash
# JSON leaves these alone: delete, the C1 controls, and what turns the direction of the text or ends a line in Unicode.
_HIDDEN = re.compile("[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


class LogfmtFormatter(logging.Formatter):
    """One logfmt line a record, traceback included; `stamped` with its time and level, which the journal has itself."""

    def __init__(self, *, stamped: bool = True) -> None:
        super().__init__()
        self._stamped = stamped

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds")
        pairs: dict[str, object] = {}
        if self._stamped:
            pairs = {"ts": moment.replace("+00:00", "Z"), "level": record.levelname.lower()}
        pairs["msg"] = record.getMessage()
        if record.name != LOGGER:
            pairs["logger"] = record.name.removeprefix(f"{LOGGER}.")
        pairs.update(getattr(record, "fields", {}))
        if record.exc_info and record.exc_info[0] is not None:
            pairs["traceback"] = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
        return " ".join(f"{key}={quote(value)}" for key, value in pairs.items())


def quote(value: object) -> str:
    """A value as logfmt holds it: bare where that is safe, else a JSON string."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    if _PLAIN.fullmatch(text):
        return text
    return _HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(text, ensure_ascii=False))


def configure(level: str) -> None:
    """Send everything from `level` on to stderr in this form, warnings of Python included. For the daemon's process only.

    Where stderr goes to systemd's journal, records go there with their fields.
    """
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogfmtFormatter())
    if goes_to_journal(STDERR):
        handler = JournalHandler(handler)
        handler.setFormatter(LogfmtFormatter(stamped=False))
    root = logging.getLogger()
    for replaced in root.handlers:
        if isinstance(replaced, JournalHandler):
            replaced.close()
    root.handlers[:] = [handler]
    root.setLevel(LEVELS[level])
    for library in ("watchfiles", "trio"):  # their debug lines are about themselves
        logging.getLogger(library).setLevel(max(LEVELS[level], logging.WARNING))
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # a reader of stderr that is gone must not cost a traceback a line
