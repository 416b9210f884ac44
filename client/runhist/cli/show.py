"""`runhist show`: one run, its steps and what they cost, what it made, and the tree of the runs that it began."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any, Dict, List, Optional, Tuple

from ..connection import Connection
from . import names, render
from .tree import Tree

SHOWN_ARTIFACTS = 5
SILENT_US = 60_000_000  # what a live owner may well need for its next event
TITLES = ("STEP", "TRY", "STATUS", "TOOK", "TOKENS IN/OUT", "COST", "")


def add_parser(subparsers: Any) -> None:
    """The command's arguments."""
    text = "Show one run: its steps, times, tokens and cost, and the tree of its child runs."
    parser = subparsers.add_parser("show", help="show one run", description=text)
    names.add_run_argument(parser, reads=True)
    parser.add_argument("--json", action="store_true", help="print one object with all of it")


def run(args: argparse.Namespace) -> int:
    """Show it. Raises Complaint when there is no such run."""
    with Connection.open() as connection:
        found = names.find(connection, args.name, args.namespace, args.user)
        shown = connection.call("GetRun", names.address(found))
        steps = _all(connection, "GetSteps", "steps", found)
        rows = _all(connection, "GetUsage", "rows", found)
        artifacts = _all(connection, "GetArtifacts", "artifacts", found)
        tree = Tree(connection, found)
    if args.json:
        parts = {"steps": steps, "usage": rows, "artifacts": artifacts}
        sys.stdout.write(render.json_line({**shown, **parts, **tree.members()}))
        return 0
    sys.stdout.write(header(shown["run"]))
    if steps:
        sys.stdout.write(steps_table(shown["run"], steps, rows))
    sys.stdout.write(tree.text())
    sys.stdout.write(kept(shown["run"]["short_id"], shown["detail"], artifacts))
    sys.stdout.write(footer(shown["run"], rows, shown["detail"].get("evidence") or {}))
    return 0


def _all(connection: Connection, method: str, member: str, found: Dict[str, Any]) -> List[Dict[str, Any]]:
    items: List[Dict[str, Any]] = []
    page: Dict[str, Any] = {}
    while True:
        reply = connection.call(method, {**names.address(found), **page})
        items += reply[member]
        if not reply.get("next_page"):
            return items
        page = {"page": reply["next_page"]}


def header(found: Dict[str, Any]) -> str:
    """The first line: what, how, when, and the whole id."""
    title = found.get("title") or found.get("workflow") or "run"
    status = render.coloured(render.status_of(found["status"]), found["status"])
    if found.get("ended_us"):
        when = f"{render.moment(found['ended_us'])} after {render.took(found['started_us'], found['ended_us'])}"
    else:
        when = f"since {render.moment(found['started_us'])}"
    line = f"{render.escaped(title)}  {status} {when}\nrun    {render.escaped(found['run_id'])}"
    members = [("namespace", found["namespace"]), ("agent", found.get("agent_id")), ("parent", found.get("parent_run_id"))]
    line += "".join(f"  {name} {render.escaped(value)}" for name, value in members if value and value != "default")
    return line + "\n"


def steps_table(found: Dict[str, Any], steps: List[Dict[str, Any]], rows: List[Dict[str, Any]]) -> str:
    """The steps, nested ones indented under their parents."""
    used = _used(rows)
    depths: Dict[str, int] = {}
    now_us = time.time_ns() // 1000
    cells = []
    for step in steps:
        depth = depths[step["step_id"]] = depths.get(step.get("parent_step_id") or "", -1) + 1
        usage = used.get((step["step_id"], step["attempt"]))
        ended_us = step.get("ended_us") or (now_us if step["status"] == "running" else None)
        cells.append(
            [
                "  " * (depth + 1) + (step["name"] if step["name"] == step["step_id"] else step["step_id"]),
                str(step["attempt"]),
                render.status_of(step["status"]),
                render.took(step.get("started_us"), ended_us),
                f"{usage[0]:,}/{usage[1]:,}" if usage else "",
                render.cost({"cost_microcents": usage[2]}) if usage else "",
                step.get("error") or "",
            ]
        )
    return render.table(TITLES, cells, [step["status"] for step in steps], right="TRY TOOK COST")


def _used(rows: List[Dict[str, Any]]) -> Dict[Tuple[Optional[str], int], Tuple[int, int, int]]:
    used: Dict[Tuple[Optional[str], int], Tuple[int, int, int]] = {}
    for row in rows:
        key = (row.get("step_id"), row.get("attempt") or 0)
        a, b, c = used.get(key, (0, 0, 0))
        usage = row["usage"]
        used[key] = (a + usage["input_tokens"], b + usage["output_tokens"], c + usage["cost_microcents"])
    return used


def owner_text(found: Dict[str, Any], evidence: Dict[str, Any], now_us: int) -> str:
    """Who owns the run and since when it is silent, or how its owner is known to be dead; empty for no owner."""
    if found["status"] == "incomplete" and evidence.get("reason") == "orphaned":
        pid = f"pid {evidence['pid']} " if evidence.get("pid") else ""
        return f"{pid}{evidence['evidence']}, seen {render.clock(evidence['seen_us'])} by {evidence['by']}"
    if not found.get("owner_pid"):
        return ""
    silent_us = now_us - found["updated_us"]
    is_silent = found["status"] == "running" and silent_us >= SILENT_US
    return f"pid {found['owner_pid']}" + (f", silent for {render.took(0, silent_us)}" if is_silent else "")


def kept(short_id: str, detail: Dict[str, Any], artifacts: List[Dict[str, Any]]) -> str:
    """What the run made, and that retention leaves it alone; a line each, or none."""
    lines = []
    named = list(dict.fromkeys(artifact.get("name") or artifact.get("kind") or "?" for artifact in reversed(artifacts)))
    if named:
        shown = [render.escaped(name) for name in named[:SHOWN_ARTIFACTS]]
        more = [f"{len(named) - SHOWN_ARTIFACTS} more"] if len(named) > SHOWN_ARTIFACTS else []
        lines.append(f"made   {', '.join(shown + more)}; see: runhist artifacts {render.escaped(short_id)}")
    if detail.get("pinned"):
        lines.append(f"pinned retention leaves it alone until: runhist unpin {render.escaped(short_id)}")
    return "".join(f"{line}\n" for line in lines)


def footer(found: Dict[str, Any], rows: List[Dict[str, Any]], evidence: Dict[str, Any]) -> str:
    """Error, gate, usage, owner, and what to type next."""
    lines = []
    if found.get("error") and found["status"] != "incomplete":  # whose error is told with its owner
        lines.append(f"error  {render.escaped(found['error'])}")
    gate = found.get("gate")
    if gate:
        question = ": ".join(part for part in (gate.get("name"), gate.get("prompt")) if part)
        lines.append(f"gate   {render.escaped(question)}{' (answered)' if gate['answered'] else ''}")
    if rows:
        usage = found["usage"]
        cost = render.cost(usage)
        lines.append(f"usage  {usage['input_tokens']:,} tokens in, {usage['output_tokens']:,} out, {cost}")
    owner = owner_text(found, evidence, time.time_ns() // 1000)
    if owner:
        lines.append(f"owner  {render.escaped(owner)}")
    follow = "-f " if found["status"] in ("running", "paused", "pending") else ""
    lines.append(f"next   runhist logs {follow}{render.escaped(found['short_id'])}")
    return "\n".join(lines) + "\n"
