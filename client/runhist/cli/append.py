"""`runhist append`: add events to a run, one by its arguments or many from standard input."""

from __future__ import annotations

import argparse
import json
import os
import select
import sys
from typing import TYPE_CHECKING, Any, Dict, List, Tuple

from .main import OK, USAGE, Complaint, run_name

if TYPE_CHECKING:
    from .feed import Feed

MAX_LINE_BYTES = 16 * 1024 * 1024  # the frame limit of a daemon that was not configured otherwise
READ_BYTES = 64 * 1024

DESCRIPTION = """\
Add events to the run that RUNHIST_RUN names, under the lease in RUNHIST_LEASE: `runhist exec` and `runhist begin` set both.
With - as TYPE, events are read from standard input, one JSON object a line with the members type, kind, key, step_id,
attempt, usage, data and time_us; every line is sent as it comes. The first line that is refused ends it, and is named.
While the daemon is away, events of that run go to the spool: a line on standard error says so, and the exit status is 0.
"""


def add_parser(subparsers: Any) -> None:
    """The command's arguments."""
    parser = subparsers.add_parser("append", help="add events to a run", description=DESCRIPTION)
    parser.add_argument("type", metavar="TYPE", help="your own word for what happened, or a kind; -: read from stdin")
    content = parser.add_mutually_exclusive_group()
    content.add_argument("--data", metavar="JSON", type=json_object, help="the event's data, a JSON object")
    content.add_argument("--text", help="short for --data '{\"text\": TEXT}'")
    parser.add_argument("--kind", help="what it means here (default: TYPE if that is a kind, else note)")
    parser.add_argument("--key", help="name of the event in its run: the same key again stores nothing")
    parser.add_argument("--step", metavar="ID", help="the step that it belongs to")
    parser.add_argument("--attempt", metavar="N", type=int, help="the step's attempt (default: its latest)")
    parser.add_argument("--run", metavar="RUN", type=run_name, help="another run than RUNHIST_RUN")
    parser.add_argument("--namespace", help="where to look for it (default: RUNHIST_NAMESPACE, else everywhere)")
    parser.add_argument("--json", action="store_true", help="print the receipts, one a line")


def json_object(text: str) -> Dict[str, Any]:
    """A JSON object, or an error that argparse shows."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError('not a JSON object; write for instance {"answer": 42}')
    return value


def run(args: argparse.Namespace) -> int:
    """Send; 0 when every event is stored. Raises Refusal, Unreachable and Complaint."""
    from ..encoding import Unencodable
    from .feed import Feed
    from .target import recording_is_off, target

    if recording_is_off():
        return OK
    feed = Feed(target(args.run, args.namespace), _print_receipt if args.json else _ignore_receipt)
    try:
        if args.type == "-":
            _feed_lines(feed)
        else:
            feed.add(_event(args))
            feed.finish()
    except Unencodable as error:
        raise Complaint(str(error), USAGE) from None
    finally:
        feed.close()
    return OK


def _event(args: argparse.Namespace) -> Dict[str, Any]:
    from ..encoding import plain_text, present

    data = args.data
    if args.text is not None:
        data = {"text": plain_text(args.text)}
        if (args.kind or args.type) == "output":
            data["stream"] = "log"
    return present(type=args.type, kind=args.kind, key=args.key, step_id=args.step, attempt=args.attempt, data=data)


def _feed_lines(feed: Feed) -> None:
    """Send every line of standard input as it comes, and wait for the receipts."""
    lines = _Lines()
    while not lines.ended:
        poll = select.poll()
        if feed.has_room:
            poll.register(0, select.POLLIN)
        interest = feed.interest()
        if interest is not None:
            connection, has_unsent = interest
            poll.register(connection, select.POLLIN | (select.POLLOUT if has_unsent else 0))
        if any(fd == 0 for fd, _ in poll.poll()):
            for number, line in lines.read():
                _add_line(feed, number, line)
        feed.step()
    feed.finish()


def _add_line(feed: Feed, number: int, line: bytes) -> None:
    from ..protocol.errors import Refusal
    from .feed import LineFault

    try:
        if len(line) > MAX_LINE_BYTES:
            raise ValueError(f"longer than {MAX_LINE_BYTES:,} bytes")
        event = json.loads(line)
        if not isinstance(event, dict):
            raise ValueError('not a JSON object; write for instance {"type": "turn", "data": {"answer": 42}}')
        feed.add(event, number)
    except (ValueError, RecursionError, Refusal) as error:
        feed.finish()  # what came before counts
        raise LineFault(number, error) from error


class _Lines:
    """Standard input in numbered lines, without the empty ones."""

    def __init__(self) -> None:
        self.ended = False
        self._number = 0
        self._unfinished = b""

    def read(self) -> List[Tuple[int, bytes]]:
        """The lines that one read brings; at its end, and when it is too long to go on, the unfinished one too."""
        chunk = os.read(0, READ_BYTES)
        *lines, self._unfinished = (self._unfinished + chunk).split(b"\n")
        self.ended = not chunk
        if self.ended or len(self._unfinished) > MAX_LINE_BYTES:
            lines.append(self._unfinished)
        first = self._number + 1
        self._number += len(lines)
        return [(number, line) for number, line in enumerate(lines, first) if line.strip()]


def _print_receipt(receipt: Dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(receipt, separators=(",", ":")) + "\n")
    sys.stdout.flush()


def _ignore_receipt(receipt: Dict[str, Any]) -> None:
    """Silence is success."""
