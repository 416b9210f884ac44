"""`runhist list`: runs, newest first."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any, Dict, List, Optional

from ..connection import Connection
from . import render
from .main import USAGE, Complaint
from .names import uid_of

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
STATUSES = ("pending", "running", "paused", "incomplete", "completed", "failed", "cancelled")
TITLES = ("RUN", "STATUS", "STARTED", "TOOK", "AGENT", "WORKFLOW", "NOW", "COST")
PAGE = 1000


def add_parser(subparsers: Any) -> None:
    """The command's arguments."""
    parser = subparsers.add_parser("list", help="list runs, newest first", description="List runs, newest first.")
    parser.add_argument("-n", type=int, default=20, metavar="N", help="at most N runs (default: 20)")
    parser.add_argument("-q", "--quiet", action="store_true", help="print run ids only, whole")
    parser.add_argument("--namespace", help="only this namespace (default: all)")
    parser.add_argument("--status", action="append", choices=STATUSES, help="only this status; may be repeated")
    parser.add_argument("--agent", help="only this agent's")
    parser.add_argument("--workflow", help="only of this workflow")
    parser.add_argument("--since", metavar="AGE", help="only begun within AGE: 90s, 15m, 2h, 7d, 4w")
    parser.add_argument("--page", metavar="TOKEN", help="go on where an earlier list ended, which printed the token")
    users = parser.add_mutually_exclusive_group()
    users.add_argument("--user", help="this user's runs, for root and the admin group (default: your own)")
    users.add_argument("--all-users", action="store_true", help="the runs of all users, for root and the admin group")
    parser.add_argument("--json", action="store_true", help="print one object a run")


def run(args: argparse.Namespace) -> int:
    """List them; 0 also when there is none."""
    if args.n < 1:
        raise Complaint("-n must be 1 or more", USAGE)
    filters = _filters(args)
    with Connection.open() as connection:
        runs, total, next_page = _collect(connection, filters, args.n, args.page)
    if args.json:
        sys.stdout.writelines(map(render.json_line, runs))
    elif args.quiet:
        sys.stdout.writelines(f"{render.escaped(found['run_id'])}\n" for found in runs)
    elif runs:
        _print_table(runs, total, next_page, with_user=args.all_users)
    if not runs:
        filtered = total and "no run matches; all of them: runhist list"
        sys.stderr.write((filtered or "no runs yet; record one: runhist exec -- CMD") + "\n")
    return 0


def _filters(args: argparse.Namespace) -> Dict[str, Any]:
    found = {
        "namespace": args.namespace,
        "status": args.status,
        "agent_id": args.agent,
        "workflow": args.workflow,
        "since_us": None if args.since is None else since_us(args.since),
        "uid": None if args.user is None else uid_of(args.user),
        "all_users": args.all_users or None,
    }
    return {name: value for name, value in found.items() if value is not None}


def since_us(age: str) -> int:
    """The moment that long ago, in microseconds. Raises Complaint."""
    number, unit = age[:-1], age[-1:]
    if unit not in UNITS or not number.isdecimal():
        raise Complaint(f"--since {age!r} is no age; use for instance 90s, 15m, 2h, 7d, 4w", USAGE)
    return max(0, time.time_ns() // 1000 - int(number) * UNITS[unit] * 1_000_000)


def _collect(connection: Connection, filters: Dict[str, Any], count: int, page: Optional[str]) -> Any:
    """The runs, how many there are in all, and the token of the page behind them."""
    runs: List[Dict[str, Any]] = []
    while True:
        reply = connection.call("ListRuns", {**filters, "page": page, "limit": min(count - len(runs), PAGE)})
        runs += reply["runs"]
        page = reply.get("next_page")
        if len(runs) >= count or page is None:
            return runs, reply["total"], page


def _print_table(runs: List[Dict[str, Any]], total: int, next_page: Optional[str], *, with_user: bool) -> None:
    now_us = time.time_ns() // 1000
    titles, rows = list(TITLES), [row(found, now_us) for found in runs]
    if with_user:
        titles.insert(1, "USER")
        for cells, found in zip(rows, runs):
            cells.insert(1, user_name(found["uid"]))
    sys.stdout.write(render.table(titles, rows, [found["status"] for found in runs], right="COST"))
    if render.on_terminal():
        more = f"; the next ones: the same with --page {next_page}" if next_page is not None else ""
        sys.stdout.write(f"{len(runs):,} of {total:,} runs{more}\n")


def user_name(uid: int) -> str:
    """The user's name, or the number of one that is gone."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def row(found: Dict[str, Any], now_us: int) -> List[str]:
    """One line of the table."""
    is_open = found["status"] in ("running", "pending")
    ended_us = now_us if is_open else found.get("ended_us") or found["updated_us"]
    return [
        found["short_id"],
        render.status_of(found["status"]),
        render.moment(found["started_us"]),
        render.took(found["started_us"], ended_us),
        found.get("agent_id") or render.NONE,
        found.get("workflow") or render.NONE,
        now(found),
        render.cost(found["usage"]),
    ]


def now(found: Dict[str, Any]) -> str:
    """What a run does, waits for, or ended with."""
    gate = found.get("gate")
    if gate:
        return ": ".join(part for part in (gate.get("name"), gate.get("prompt")) if part) or "paused"
    step, error = found.get("current_step"), found.get("error")
    if error:
        return str(error)
    return str(step or "") if found["status"] in ("running", "incomplete") else ""


