"""`runhist gc`: forget what the retention settings say, now."""

from __future__ import annotations

import argparse
import sys
from typing import Any, Dict, Tuple

from ..connection import Connection
from . import render
from .main import OK

DESCRIPTION = """\
Forget the closed runs that the retention settings no longer keep, as the daemon does by itself every hour. The
settings are in its file, see: runhistd config show. Live, paused and pinned runs always stay."""


def add_parser(subparsers: Any) -> None:
    """The command's arguments."""
    parser = subparsers.add_parser("gc", help="forget what retention no longer keeps", description=DESCRIPTION)
    parser.add_argument("--dry-run", action="store_true", help="only tell what would go, and by which rule")
    parser.add_argument("--json", action="store_true", help="print one object a run, with run_id, size and rule")


def run(args: argparse.Namespace) -> int:
    """Ask for a pass and print what went. Raises Refusal, Unreachable."""
    with Connection.open() as connection:
        found = connection.call("CollectGarbage", {"dry_run": args.dry_run}, timeout=None)
    decisions = [_named(decision) for decision in found["decisions"]]
    if args.json:
        sys.stdout.write("".join(map(render.json_line, decisions)))
    elif decisions:
        rows = [_row(one) for one in decisions]
        titles = ("RUN", "STATUS", "ENDED", "SIZE", "RULE")
        sys.stdout.write(render.table(titles, rows, [one["status"] for one in decisions]))
    if found.get("skipped"):
        sys.stderr.write(f"skipped {render.escaped(found['skipped'])}\n")
    if not args.json:
        total = render.size(sum(one["size"] for one in decisions))
        verb = "would go" if args.dry_run else "removed"
        sys.stdout.write(f"{len(decisions)} run{'' if len(decisions) == 1 else 's'} {verb}, {total}\n")
    return OK


def _row(one: Dict[str, Any]) -> Tuple[str, ...]:
    status, ended = render.status_of(one["status"]), render.moment(one["ended_us"])
    return one["run_id"], status, ended, render.size(one["size"]), one["rule"]


def _named(decision: Dict[str, Any]) -> Dict[str, Any]:
    members = ("namespace", "run_id", "status", "ended_us")
    return {**{name: decision[name] for name in members}, "size": decision["bytes"], "rule": decision["rule"]}
