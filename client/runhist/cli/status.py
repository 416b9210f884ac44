"""`runhist status`: how the daemon stands, and which one is meant."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any, Dict, Iterable, List, Optional

from .. import __version__
from ..connection import Connection
from ..paths import choose_sockets
from ..spool import OPEN, SEALED, quarantined, spool_dir
from . import render


def add_parser(subparsers: Any) -> None:
    """The command's arguments."""
    text = "How the daemon stands, and which one is meant."
    parser = subparsers.add_parser("status", help="how the daemon stands", description=text)
    parser.add_argument("--spool", action="store_true", help="list what waits in the spool and what was put aside, and why")
    parser.add_argument("--json", action="store_true", help="print the daemon's answer as one object")


def run(args: argparse.Namespace) -> int:
    """Ask it. 1 when it needs somebody. Raises Unreachable when it does not answer.

    With --spool only the directory is looked at, which needs no daemon; 1 when something was put aside.
    """
    if args.spool:
        return show_spool(args.json)
    choice = choose_sockets()
    with Connection.open(choice) as connection:
        found = connection.call("GetStatus", {})
        socket = connection.socket_path
    troubles = needs(found)
    if args.json:
        sys.stdout.write(render.json_line(found))
    else:
        for trouble in troubles:
            sys.stdout.write(render.coloured("✗ needs you", "failed") + f"   {trouble}\n")
        sys.stdout.write(text(found, str(socket), choice.why))
    return 1 if troubles else 0


def show_spool(as_json: bool) -> int:
    """One line a file: what waits, and what was put aside with the reason."""
    directory = spool_dir()
    paths = sorted(path for ending in (SEALED, OPEN) for path in directory.glob("*" + ending))
    aside = quarantined(directory)
    found = [{"file": str(path), "state": "waits", "reason": None} for path in paths]
    found += [{"file": str(path), "state": "put aside", "reason": reason} for path, reason in aside]
    for one in found:
        reason = f": {one['reason']}" if one["reason"] else ""
        line = render.escaped(f"{one['state']}  {one['file']}{reason}") + "\n"
        sys.stdout.write(render.json_line(one) if as_json else line)
    if not found and not as_json:
        sys.stdout.write(f"the spool is empty ({render.escaped(str(directory))})\n")
    return 1 if aside else 0


def needs(found: Dict[str, Any]) -> List[str]:
    """What somebody must see to, with the next step."""
    troubles = []
    for trouble in found.get("troubles", ()):
        troubles.append(f"{render.escaped(trouble['what'])}; type: {render.escaped(trouble['command'])}")
    for fault in found["config"]["faults"]:
        what = render.escaped(f"{fault['key']}: {fault['message']}" if fault["key"] else fault["message"])
        troubles.append(f"the changed settings are not in force: {what}; mend {render.escaped(found['config']['file'])}")
    spool = found.get("spool")
    if spool and spool["quarantined"]:
        troubles.append(f"{spool['quarantined']:,} spool files were put aside; see: runhist status --spool")
    for delayed in found.get("delayed", ()):
        who = f"process {delayed['pid']}" if delayed.get("pid") else "a process"
        kept = f"{delayed['runs']:,} runs stay" if delayed["runs"] > 1 else "run stays"
        why = render.escaped(delayed["why"])
        troubles.append(f"{who} was dead {render.moment(delayed['since_us'])}, and its {kept} open: {why}")
    return troubles


def text(found: Dict[str, Any], socket: str, why: str) -> str:
    """Four lines for a person."""
    commit = found["commit"]
    live = sum(count["runs"] for count in found["runs"] if count["status"] in ("running", "paused", "pending"))
    total = sum(count["runs"] for count in found["runs"])
    up = render.took(found["started_us"], time.time_ns() // 1000)
    peers = f"{found['connections']} connections, {found['followers']} followers"
    runs = f"{live:,} live of {total:,}; position {found['position']:,}"
    if not found["instance_id"]:
        runs = "unknown while the database is closed"
    return (
        f"daemon  {found['version']}, pid {found['pid']}, up {up}; client {__version__}\n"
        f"        commit p50 {commit['p50_us'] / 1000:.1f} ms, p99 {commit['p99_us'] / 1000:.1f} ms; {peers}\n"
        f"socket  {render.escaped(socket)} ({why})\n"
        f"runs    {runs}\n"
        f"keeps   {render.size(found['database_bytes'])} + {render.size(found['wal_bytes'])} write-ahead log in "
        f"{render.escaped(found['database'])}, {render.size(found['free_bytes'])} free\n"
        f"        {retention(found['retention'])}\n"
        f"{mine(found.get('shares', ()))}"
        f"{spooled(found.get('spool'))}"
    )


def mine(shares: Iterable[Dict[str, Any]]) -> str:
    """A line when the daemon limits what a user may have stored."""
    limited = {share["what"]: share for share in shares if share["limit"] is not None}
    parts = []
    if runs := limited.get("runs_per_user"):
        parts.append(f"{runs['used']:,} of {runs['limit']:,} runs")
    if stored := limited.get("bytes_per_user"):
        parts.append(f"{render.size(stored['used'])} of {render.size(stored['limit'])}")
    return f"yours   {', '.join(parts)}\n" if parts else ""


def spooled(spool: Optional[Dict[str, Any]]) -> str:
    """A line when there is something in the spool."""
    if not spool or not (spool["files"] or spool["quarantined"]):
        return ""
    aside = f", {spool['quarantined']:,} put aside" if spool["quarantined"] else ""
    return f"spool   {spool['files']:,} files wait ({render.size(spool['bytes'])}){aside}\n"


def retention(found: Dict[str, Any]) -> str:
    """What was forgotten, and when it goes on."""
    forgotten = f"{found['removed']:,} runs removed, {render.size(found['freed_bytes'])} freed since the start"
    if found["last_us"] is None or found["next_us"] is None:
        return forgotten
    skipped = f", skipped {render.escaped(found['skipped'])}" if found.get("skipped") else ""
    return f"{forgotten}; last pass {_hour(found['last_us'])}{skipped}, next {_hour(found['next_us'])}"


def _hour(at_us: int) -> str:
    return time.strftime("%H:%M", time.localtime(at_us / 1_000_000))
