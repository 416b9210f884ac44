"""`runhist rm`: delete runs for good."""

from __future__ import annotations

import argparse
import sys
from typing import Any, Dict, List

from ..connection import Connection
from ..protocol.errors import Refusal
from . import names, own_files, render
from .main import FAILED, NO_SUCH_RUN, OK, REFUSED, USAGE, Complaint

DESCRIPTION = """\
Delete runs for good, with all their events. Runs that are pending, running or paused are refused: end them first.
A run that is not there is no fault. Files stay, unless --files asks for the directory that a run declared as its own."""
BAR = 30


def add_parser(subparsers: Any) -> None:
    """The command's arguments."""
    parser = subparsers.add_parser("rm", help="delete runs for good", description=DESCRIPTION)
    names.add_run_argument(parser, "+")
    parser.add_argument("--yes", action="store_true", help="do not ask; needed where there is no terminal to ask at")
    parser.add_argument(
        "--files", action="store_true", help="also remove the directories that the runs declared"
    )
    parser.add_argument("--json", action="store_true", help="print one object a run")


def run(args: argparse.Namespace) -> int:
    """Delete them; 0 when none of them is left, 4 when one was refused, 1 when files could not be removed."""
    with Connection.open() as connection:
        found = [_find(connection, name, args.namespace) for name in dict.fromkeys(args.name)]
        if not args.yes:
            _confirm(found, files=args.files)
        results = []
        for done, wanted in enumerate(found):
            _progress(done, len(found))
            results.append(_delete(connection, wanted, files=args.files))
        _progress(len(found), len(found))
    for result in results:
        sys.stdout.write(render.json_line(result) if args.json else _text(result))
    if any(result["refused"] for result in results):
        return REFUSED
    return FAILED if any(result["files_kept"] for result in results) else OK


def _find(connection: Connection, name: str, namespace: Any) -> Dict[str, Any]:
    """The run of that name, or {"run_id"} alone where there is none."""
    try:
        return names.find(connection, name, namespace)
    except Complaint as complaint:
        if complaint.status != NO_SUCH_RUN or name.startswith("@"):
            raise
        return {"run_id": name, "namespace": namespace}


def _confirm(found: List[Dict[str, Any]], *, files: bool) -> None:
    """Ask at the terminal. Raises Complaint unless the answer is yes."""
    present = [wanted for wanted in found if "status" in wanted]
    if not present:
        return
    if not sys.stdin.isatty():
        raise Complaint("deleting is for good; where there is no terminal to ask at, say --yes", USAGE)
    for wanted in present:
        title = wanted["title"] or wanted["workflow"] or ""
        words = (wanted["short_id"], wanted["status"], render.moment(wanted["started_us"]), title)
        sys.stderr.write("  " + "  ".join(map(render.escaped, words)) + "\n")
    what = "this run" if len(present) == 1 else f"these {len(present)} runs"
    sys.stderr.write(f"delete {what}{' and their own directories' if files else ''} for good? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Complaint("nothing was deleted", FAILED)


def _delete(connection: Connection, wanted: Dict[str, Any], *, files: bool) -> Dict[str, Any]:
    """Delete one run, and then its directory; nothing at all where the directory may not be removed."""
    result: Dict[str, Any] = {"namespace": wanted["namespace"], "run_id": wanted["run_id"], "deleted": False}
    result.update(refused=None, files=None, files_kept=None)
    if "status" not in wanted:
        return result
    try:
        detail = connection.call("GetRun", names.address(wanted))["detail"] if files else {}
        own = (detail["root"], detail["dir"]) if detail.get("root") else None
        if own is not None:
            own_files.check(*own)
        result["deleted"] = connection.call("DeleteRun", names.address(wanted))["deleted"]
    except own_files.NotRemovable as fault:
        result["files_kept"] = f"{fault}; the run is kept too"
        return result
    except Refusal as refusal:
        result["refused"] = str(refusal)
        return result
    if own is not None:
        try:
            result["files"] = "/".join(own) if own_files.remove(*own) else None
        except (own_files.NotRemovable, OSError) as fault:
            result["files_kept"] = str(fault)
    return result


def _progress(done: int, of: int) -> None:
    """One line on a terminal, when there is more than one to delete."""
    if of > 1 and sys.stderr.isatty():
        filled = BAR * done // of
        end = "\r\x1b[K" if done == of else ""
        sys.stderr.write(f"\r[{'#' * filled}{'.' * (BAR - filled)}] {done} of {of} runs{end}")
        sys.stderr.flush()


def _text(result: Dict[str, Any]) -> str:
    run_id = render.escaped(result["run_id"])
    lines = [f"{run_id}  deleted" if result["deleted"] else f"{run_id}  was not there"]
    if result["refused"]:
        lines = [f"{run_id}  not deleted: {render.escaped(result['refused'])}"]
    if result["files"]:
        lines.append(f"{run_id}  removed {render.escaped(result['files'])}")
    if result["files_kept"]:
        lines = [line for line in lines if result["deleted"]]
        lines.append(f"{run_id}  files kept: {render.escaped(result['files_kept'])}")
    return "".join(f"{line}\n" for line in lines)
