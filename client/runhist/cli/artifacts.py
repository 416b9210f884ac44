"""`runhist artifacts`: what a run made."""

from __future__ import annotations

import argparse
import sys
from typing import Any, Dict, Iterator

from ..connection import Connection
from . import names, render
from .main import OK


def add_parser(subparsers: Any) -> None:
    """The command's arguments."""
    text = "List what a run made: files by their path, and content that is kept in the history."
    parser = subparsers.add_parser("artifacts", help="list what a run made", description=text)
    names.add_run_argument(parser, reads=True)
    parser.add_argument("--json", action="store_true", help="print one object an artifact")


def run(args: argparse.Namespace) -> int:
    """List them. Raises Complaint where there is no such run."""
    with Connection.open() as connection:
        found = names.find(connection, args.name, args.namespace, args.user)
        artifacts = list(_all(connection, names.address(found)))
    if args.json:
        sys.stdout.write("".join(map(render.json_line, artifacts)))
    elif artifacts:
        rows = [[*(_text(one[member]) for member in ("name", "kind")), _size(one), _place(one)] for one in artifacts]
        sys.stdout.write(render.table(("NAME", "KIND", "SIZE", "WHERE"), rows, [""] * len(rows), right="SIZE"))
    else:
        sys.stderr.write(f"run {render.escaped(found['short_id'])} has made nothing that was recorded\n")
    return OK


def _all(connection: Connection, run: Dict[str, Any]) -> Iterator[Dict[str, Any]]:
    page = None
    while True:
        reply = connection.call("GetArtifacts", {**run, **({"page": page} if page else {})})
        yield from reply["artifacts"]
        page = reply.get("next_page")
        if page is None:
            return


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _size(one: Dict[str, Any]) -> str:
    return "" if one["size"] is None else render.size(one["size"])


def _place(one: Dict[str, Any]) -> str:
    kept = "kept" if one["blob"] else ""
    return ", ".join(filter(None, (kept, _text(one["path"]))))
