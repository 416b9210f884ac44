"""`runhist end`: end a run that a shell script began."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any, Dict, List, Tuple

from .main import OK, REFUSED, USAGE, Complaint, run_name
from .target import NO_RUN

if TYPE_CHECKING:
    from .target import Target

DESCRIPTION = """\
End a run: completed, or with another exit code than 0 failed, or cancelled. Without RUN it is the one that RUNHIST_RUN
names. A run that this shell did not begin is claimed first, which needs --takeover while its owner is alive.
"""


def add_parser(subparsers: Any) -> None:
    """The command's arguments."""
    parser = subparsers.add_parser("end", help="end a run that a shell script began", description=DESCRIPTION)
    text = "id, beginning, ending, or @running … (default: RUNHIST_RUN)"
    parser.add_argument("name", metavar="RUN", nargs="?", type=run_name, help=text)
    parser.add_argument("--namespace", help="where to look for it (default: RUNHIST_NAMESPACE, else everywhere)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--exit-code", metavar="N", type=int, help="0: completed; another: failed; in a script: $?")
    how.add_argument("--cancelled", action="store_true", help="the run was given up")
    parser.add_argument("--error", metavar="TEXT", help="what went wrong, or why it was given up, in one line")
    parser.add_argument("--takeover", action="store_true", help="also when another process, which is alive, owns the run")
    parser.add_argument("--json", action="store_true", help="print the receipt")


def run(args: argparse.Namespace) -> int:
    """End it; 0 when that is stored. Raises Refusal, Unreachable and Complaint."""
    import json

    from .target import own_target, recording_is_off

    if recording_is_off():
        return OK
    kind, data = _ending(args)
    own = None if args.takeover else own_target(args.name, args.namespace)
    receipt = _claim(args, kind, data) if own is None else _append(own, kind, data)
    if args.json:
        sys.stdout.write(json.dumps(receipt, separators=(",", ":")) + "\n")
    return OK


def _append(own: Target, kind: str, data: Dict[str, Any]) -> Dict[str, Any]:
    from .feed import Feed

    receipts: List[Dict[str, Any]] = []
    feed = Feed(own, receipts.append)
    try:
        feed.add({"type": kind, "data": data})
        feed.finish()
    finally:
        feed.close()
    return receipts[0]


def _claim(args: argparse.Namespace, kind: str, data: Dict[str, Any]) -> Dict[str, Any]:
    """Claim the run and end it, in one transaction."""
    import time

    from ..connection import Connection, call_again_if_lost
    from ..environment import own_run
    from ..ids import new_uuid
    from ..protocol.errors import LeaseHeld
    from .names import address, find

    if args.name is None and own_run() is None:
        raise Complaint(NO_RUN, USAGE)
    with Connection.open() as connection:
        found = find(connection, args.name, args.namespace)
    key = new_uuid()
    event = {"type": kind, "key": key, "time_us": time.time_ns() // 1000, "data": data}
    claim = {**address(found), "lease_key": key, "takeover": args.takeover, "events": [event]}
    try:
        return call_again_if_lost("ClaimRun", claim)
    except LeaseHeld as held:
        raise Complaint(f"{held}: runhist end {found['short_id']} --takeover", REFUSED) from None


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
