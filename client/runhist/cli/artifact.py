"""`runhist artifact get` and `runhist artifact add`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any, BinaryIO, Dict

from .. import artifacts
from ..connection import Connection
from ..encoding import present
from ..ids import new_uuid
from . import names
from .main import FAILED, OK, Complaint, run_name
from .target import recording_is_off, target


def add_parser(subparsers: Any) -> None:
    """The command's arguments."""
    text = "Get an artifact of a run, or add one."
    parser = subparsers.add_parser("artifact", help="get or add one thing that a run made", description=text)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)
    get = actions.add_parser("get", help="write its content out", description="Write an artifact's content out.")
    names.add_run_argument(get, "?")
    get.add_argument("artifact", metavar="NAME", help="the artifact's name, see: runhist artifacts")
    get.add_argument("-o", "--output", metavar="FILE", help="where to (default: standard output)")
    add = actions.add_parser("add", help="record a file", description="Record a file as an artifact of a run.")
    add.add_argument("path", metavar="FILE")
    add.add_argument("--keep", action="store_true", help="keep the content in the history, whatever becomes of the file")
    add.add_argument("--name", help="what to call it (default: the file's name)")
    add.add_argument("--kind", help="your own word for what it is")
    add.add_argument("--sha256", action="store_true", help="record the content's SHA-256")
    add.add_argument("--run", metavar="RUN", type=run_name, help="which run (default: RUNHIST_RUN)")
    add.add_argument("--namespace", help="where to look for it (default: RUNHIST_NAMESPACE, else everywhere)")
    for each in (get, add):
        each.add_argument(
            "--json", action="store_true", help="print the artifact as one object (not its content)"
        )


def run(args: argparse.Namespace) -> int:
    """Do it. Raises Refusal, Unreachable, Complaint."""
    return _get(args) if args.action == "get" else _add(args)


def _get(args: argparse.Namespace) -> int:
    from . import render

    with Connection.open() as connection:
        found = names.address(names.find(connection, args.name, args.namespace))
        (one,) = connection.call("GetArtifacts", {**found, "name": args.artifact})["artifacts"]
        if args.json:
            sys.stdout.write(render.json_line(one))
        elif args.output is None:
            _write(connection, found, one, sys.stdout.buffer)
        else:
            _write_file(connection, found, one, Path(args.output))
    return OK


def _write_file(connection: Connection, found: Dict[str, Any], one: Dict[str, Any], path: Path) -> None:
    """All of it under that name, or nothing."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("xb") as file:
            _write(connection, found, one, file)
        part.replace(path)
    except OSError as error:
        raise Complaint(f"cannot write {path}: {error.strerror}", FAILED) from error
    finally:
        if part.exists():
            part.unlink()


def _write(connection: Connection, found: Dict[str, Any], one: Dict[str, Any], file: BinaryIO) -> None:
    if one["blob"]:
        for chunk in artifacts.content(connection, found, one["blob"]):
            file.write(chunk)
        file.flush()
        return
    if not one["path"]:
        raise Complaint(f"artifact {one['name']!r} has neither content nor a path", FAILED)
    try:
        source = Path(one["path"]).open("rb")
    except OSError as error:
        raise Complaint(f"the content of {one['path']} was not kept, and the file: {error.strerror}", FAILED) from error
    with source:
        import shutil

        shutil.copyfileobj(source, file)
        file.flush()


def _add(args: argparse.Namespace) -> int:
    from . import render

    if recording_is_off():
        return OK
    meant = target(args.run, args.namespace)
    try:
        members = artifacts.describe(args.path, name=args.name, kind=args.kind, digest=args.sha256)
        with Connection.open() as connection:
            if args.keep:
                with Path(args.path).open("rb") as file:
                    members.update(artifacts.put(connection, artifacts.chunks_of(file)))
            event = {"type": "artifact", "key": f"artifact:{new_uuid()}", "data": members}
            name = present(namespace=meant.namespace, run_id=meant.run_id, epoch=meant.epoch)
            connection.call("Append", {**name, "events": [event]})
    except OSError as error:
        raise Complaint(f"cannot read {args.path}: {error.strerror}", FAILED) from error
    if args.json:
        sys.stdout.write(render.json_line(members))
    return OK
