"""`runhist wait`: until runs have ended."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any, Dict, List

from ..connection import Connection
from . import names, render
from .main import FAILED, OK, TIMED_OUT, Complaint

ENDED = ("completed", "failed", "cancelled")
ENDS = ["run.completed", "run.failed", "run.cancelled"]


def add_parser(subparsers: Any) -> None:
    """The command's arguments."""
    parser = subparsers.add_parser(
        "wait", help="wait until runs have ended", description="Wait until all the runs have ended; 1 unless all completed."
    )
    names.add_run_argument(parser, "*")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="give up then, with 6 (default: never)")
    parser.add_argument("--json", action="store_true", help="print one object a run as it ends")


def run(args: argparse.Namespace) -> int:
    """Wait for them; 1 when one has not completed. Raises Complaint at the time-out."""
    deadline = None if args.timeout is None else time.monotonic() + args.timeout
    with Connection.open() as connection:
        wanted = [names.find(connection, name, args.namespace) for name in args.name or [None]]
        head = connection.call("GetStatus", {})["position"]
        open_runs = {run["run_id"]: run for run in (_now(connection, run) for run in wanted)}
    statuses: List[str] = []
    for found in list(open_runs.values()):
        if found["status"] in ENDED:
            statuses.append(_report(open_runs.pop(found["run_id"]), args.json))
    if open_runs:
        statuses += _follow(open_runs, head, deadline, args.json)
    return OK if all(status == "completed" for status in statuses) else FAILED


def _follow(open_runs: Dict[str, Any], head: int, deadline: Any, as_json: bool) -> List[str]:
    statuses: List[str] = []
    heartbeat_us = 500_000
    with Connection.open() as connection:
        asked = {"cursor": {"position": head}, "kinds": ENDS, "heartbeat_us": heartbeat_us}
        for reply in connection.stream("Follow", asked):
            for item in reply["items"]:
                event = item.get("event") or item["gap"]  # of a deleted run nobody knows how it ended: NoSuchRun
                found = open_runs.get(event["run_id"])
                if found is not None and found["namespace"] == event["namespace"]:
                    del open_runs[event["run_id"]]
                    with Connection.open() as reading:
                        statuses.append(_report(_now(reading, found), as_json))
            if not open_runs:
                return statuses
            if deadline is not None and time.monotonic() >= deadline:
                raise Complaint(f"{len(open_runs)} of the runs had not ended in time: {', '.join(open_runs)}", TIMED_OUT)
    return statuses


def _now(connection: Connection, found: Dict[str, Any]) -> Dict[str, Any]:
    return dict(connection.call("GetRun", names.address(found))["run"])


def _report(found: Dict[str, Any], as_json: bool) -> str:
    if as_json:
        sys.stdout.write(render.json_line(found))
    else:
        how = render.coloured(render.status_of(found["status"]), found["status"])
        sys.stdout.write(f"{render.escaped(found['short_id'])}  {how}\n")
    sys.stdout.flush()
    return str(found["status"])
