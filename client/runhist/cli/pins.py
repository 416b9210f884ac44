"""What `runhist pin` and `runhist unpin` have in common."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ..connection import Connection
from . import names, render
from .main import OK


def add_parser(subparsers: Any, command: str, text: str) -> None:
    """The arguments of both."""
    parser = subparsers.add_parser(command, help=text, description=f"{text.capitalize()}.")
    names.add_run_argument(parser, "+")
    parser.add_argument("--json", action="store_true", help="print one object a run")


def mark(args: argparse.Namespace, method: str) -> int:
    """Set or take away the mark, of all or, where a name is unknown, of none. Raises Complaint, Refusal."""
    with Connection.open() as connection:
        found = [names.find(connection, name, args.namespace) for name in args.name]
        for run in found:
            connection.call(method, names.address(run))
            done = {**names.address(run), "pinned": method == "PinRun"}
            text = f"{render.escaped(run['run_id'])}  {'pinned' if done['pinned'] else 'not pinned'}\n"
            sys.stdout.write(render.json_line(done) if args.json else text)
    return OK
