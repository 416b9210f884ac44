"""`runhist end`: end a run that a shell script began."""

from __future__ import annotations

import argparse
import sys
from typing import Any, Dict, List, Tuple

from .main import OK

DESCRIPTION = """\
End a run: completed, or with another exit code than 0 failed, or cancelled. Without RUN it is the one that RUNHIST_RUN
names; a run that this shell did not begin is ended under its present lease.
"""


def add_parser(subparsers: Any) -> None:
    """The command's arguments."""
    parser = subparsers.add_parser("end", help="end a run that a shell script began", description=DESCRIPTION)
    parser.add_argument("name", metavar="RUN", nargs="?", help="id, beginning, ending, or @running … (default: RUNHIST_RUN)")
    parser.add_argument("--namespace", help="where to look for it (default: RUNHIST_NAMESPACE, else everywhere)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--exit-code", metavar="N", type=int, help="0: completed; another: failed; in a script: $?")
    how.add_argument("--cancelled", action="store_true", help="the run was given up")
    parser.add_argument("--error", metavar="TEXT", help="what went wrong, or why it was given up, in one line")
    parser.add_argument("--json", action="store_true", help="print the receipt")


def run(args: argparse.Namespace) -> int:
    """End it; 0 when that is stored. Raises Refusal, Unreachable and Complaint."""
    import json

    from .feed import Feed
    from .target import recording_is_off, target

    if recording_is_off():
        return OK
    kind, data = _ending(args)
    receipts: List[Dict[str, Any]] = []
    feed = Feed(target(args.name, args.namespace), receipts.append)
    try:
        feed.add({"type": kind, "data": data})
        feed.finish()
    finally:
        feed.close()
    if args.json:
        sys.stdout.write(json.dumps(receipts[0], separators=(",", ":")) + "\n")
    return OK


def _ending(args: argparse.Namespace) -> Tuple[str, Dict[str, Any]]:
    from ..encoding import plain_text, present

    error = None if args.error is None else plain_text(" ".join(args.error.split()))
    if args.cancelled:
        return "run.cancelled", present(reason=error)
    if args.exit_code:
        return "run.failed", {"error": error or f"exit {args.exit_code}", "exit_code": args.exit_code}
    if error is not None:
        return "run.failed", {"error": error}
    return "run.completed", {}
