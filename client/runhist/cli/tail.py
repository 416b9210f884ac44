"""`runhist tail`: the events of all runs as they are committed, one line each.

A cursor file makes it go on where it stopped: it is replaced after what it stands for was printed, so that a tail which
is killed tells some events again and leaves none out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Dict, Iterator, Optional

from .. import environment
from ..connection import Connection
from ..encoding import present
from ..protocol.errors import NoSuchBlob, NoSuchRun, PositionExpired
from . import large_data, logs, names, render
from .following import patiently
from .main import FAILED, OK, REFUSED, USAGE, Complaint

HEARTBEAT_US = 5_000_000  # so that the cursor moves on also where nothing of this namespace happens
SHORT_ID = 6

Cursor = Dict[str, Any]
"""instance_id and position."""


def add_parser(subparsers: Any) -> None:
    """The command's arguments."""
    parser = subparsers.add_parser(
        "tail",
        help="show the events of all runs as they come",
        description="Show the events of all runs as they are recorded, one line each, until it is interrupted.",
        epilog='With --json each line is an event, or {"gap": …} where events were deleted before they were shown.',
    )
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument("--cursor", type=int, metavar="N", help="begin behind position N; 0 is the oldest event")
    begin.add_argument("--cursor-file", type=Path, metavar="FILE", help="go on where the tail with this file stopped")
    parser.add_argument("--namespace", help="only runs of this one (default: $RUNHIST_NAMESPACE, else all)")
    parser.add_argument("--json", action="store_true", help="print one object an event")


def run(args: argparse.Namespace) -> int:
    """Print until interrupted. Raises Complaint for a cursor that is none of this history's."""
    if args.cursor is not None and args.cursor < 0:
        raise Complaint("--cursor is a position: 0, 1, 2 …", USAGE)
    with Connection.open() as connection:
        status = connection.call("GetStatus", {})
    cursor = {"instance_id": status["instance_id"], "position": status["position"]}
    if args.cursor is not None:
        cursor["position"] = args.cursor
    elif args.cursor_file is not None:
        cursor = read_cursor(args.cursor_file) or cursor
    namespace = args.namespace or environment.own_namespace()
    try:
        for reply in _replies(cursor, present(namespace=namespace, heartbeat_us=HEARTBEAT_US)):
            for item in reply["items"]:
                for part in _told(item) if args.json else (_line(item),):
                    sys.stdout.write(part)
            sys.stdout.flush()
            if args.cursor_file is not None:
                write_cursor(args.cursor_file, cursor)
    except PositionExpired as error:
        raise Complaint(_why_expired(error, cursor, args.cursor_file), REFUSED) from error
    return OK


def _replies(cursor: Cursor, filters: Dict[str, Any]) -> Iterator[Dict[str, Any]]:
    """What Follow replies from the cursor on, which is moved; over restarts of the daemon."""

    def begin() -> Iterator[Dict[str, Any]]:
        with Connection.open() as connection:
            for reply in connection.stream("Follow", {**filters, "cursor": cursor}):
                cursor.update(reply["cursor"])
                yield reply

    return patiently(begin)


def _told(item: Dict[str, Any]) -> Iterator[str]:
    event: Optional[Dict[str, Any]] = item.get("event")
    if event is not None:
        try:
            yield from large_data.json_parts(event, event)
            return
        except (NoSuchRun, NoSuchBlob):
            pass
    yield render.json_line({"gap": _gap_of(item)})


def _gap_of(item: Dict[str, Any]) -> Dict[str, Any]:
    """The gap that the item is, or what is told instead of an event that was deleted before its data could be read."""
    event: Dict[str, Any] = item.get("event") or {}
    at = event.get("position")
    return item.get("gap") or {**names.address(event), "from_position": at, "to_position": at, "rule": "deleted"}


def _line(item: Dict[str, Any]) -> str:
    event: Optional[Dict[str, Any]] = item.get("event")
    try:
        event = None if event is None else large_data.whole(event, event)
    except (NoSuchRun, NoSuchBlob):
        event = None
    if event is None:
        gap = _gap_of(item)
        of = render.escaped(gap["run_id"] or "some runs")
        return f"events of {of} were deleted here (rule: {gap['rule']}), see: runhistd config show\n"
    run_id = event["run_id"]
    name = run_id if len(run_id.encode()) <= 2 * SHORT_ID else run_id[-SHORT_ID:]
    return logs.line(event, None, f"{render.escaped(name):<{2 * SHORT_ID}}  ")


def _why_expired(error: PositionExpired, cursor: Cursor, file: Optional[Path]) -> str:
    head, instance_id = error.parameters["head"], error.parameters["instance_id"]
    where = f"position {cursor['position']}" + ("" if file is None else f" in {file}")
    if instance_id != cursor["instance_id"]:
        return (
            f"{where} is of another history ({cursor['instance_id']}) than the one that answers ({instance_id}); "
            "it was restored, or replaced. To begin with what comes now, remove the file; to see all: --cursor 0"
        )
    return f"{where} lies beyond the newest event, which has position {head}"


def read_cursor(path: Path) -> Optional[Cursor]:
    """What the file holds; None where there is none yet. Raises Complaint."""
    try:
        cursor = json.loads(path.read_text("utf-8"))
        if isinstance(cursor["instance_id"], str) and type(cursor["position"]) is int and cursor["position"] >= 0:
            return {"instance_id": cursor["instance_id"], "position": cursor["position"]}
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Complaint(f"cannot read {path}: {error.strerror}", FAILED) from error
    except (ValueError, KeyError, TypeError):
        pass
    raise Complaint(f"{path} is no cursor file of runhist tail; name another one, or remove it", USAGE)


def write_cursor(path: Path, cursor: Cursor) -> None:
    """Replace the file in one step, on the disk before it has its name. Raises Complaint."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(json.dumps(cursor) + "\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise Complaint(f"cannot write {path}: {error.strerror}", FAILED) from error
    finally:
        with suppress(OSError):
            part.unlink()  # is there only where something came between
