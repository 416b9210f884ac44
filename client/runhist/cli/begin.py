"""`runhist begin`: begin a run for a shell script, which goes on to own it."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any, Dict, Optional

from .. import environment
from .main import OK, USAGE, Complaint

if TYPE_CHECKING:
    from ..connection import Unreachable

DESCRIPTION = """\
Begin a run that another process owns, and print the assignments by which `runhist append` and `runhist end` find it:
    eval "$(runhist begin --owner-pid $$ --workflow nightly)"
While the daemon is away the run is begun in the spool: a line on standard error says so, and the exit status is 0.
"""


def add_parser(subparsers: Any) -> None:
    """The command's arguments."""
    parser = subparsers.add_parser(
        "begin",
        help="begin a run for a shell script",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--owner-pid", metavar="PID", type=int, required=True, help="the process that owns the run; in a script: $$"
    )
    parser.add_argument("--namespace", help="the history of its own that the run goes to (default: default)")
    parser.add_argument("--agent", metavar="ID", help="the lasting identity of the agent that the run belongs to")
    parser.add_argument("--workflow", metavar="NAME", help="what is run")
    parser.add_argument("--title", help="a title for people")
    parser.add_argument("--run-id", metavar="ID", help="an id of your own (default: a new one)")
    parser.add_argument("--root", metavar="DIR", help="with --dir: a directory of the run's own (see: runhist rm --files)")
    parser.add_argument("--dir", metavar="DIR", help="where below --root it lies")
    parser.add_argument("--json", action="store_true", help="print the daemon's reply instead of assignments")


def run(args: argparse.Namespace) -> int:
    """Begin; 0 when the run is stored or in the spool. Raises Refusal, Unreachable and Complaint."""
    import json
    import shlex
    import time
    from pathlib import Path

    from ..connection import Unreachable, call_again_if_lost
    from ..encoding import present
    from ..ids import new_run_id, new_uuid
    from .target import recording_is_off

    if recording_is_off():
        return OK
    namespace = args.namespace or environment.own_namespace()
    spec = present(
        run_id=args.run_id or new_run_id(),
        namespace=namespace,
        workflow=args.workflow,
        agent_id=args.agent,
        title=args.title,
        root=None if args.root is None else str(Path(args.root).resolve()),
        dir=args.dir,
        parent_run_id=_parent(namespace, args.owner_pid),
        traceparent=environment.own_traceparent(),
        time_us=time.time_ns() // 1000,
    )
    key = new_uuid()
    request = {"run": spec, "lease_key": key, "owner_pid": args.owner_pid, "caller_pid": os.getpid()}
    try:
        begun = call_again_if_lost("BeginRun", request)
    except Unreachable as trouble:
        begun = _begin_in_spool(spec, key, args.owner_pid, trouble)
    run = environment.RunName(begun["namespace"], begun["run_id"])
    lease = begun["epoch"] or key
    variables = environment.lend(run, lease, None, None)  # the shell has the other two already
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    sys.stdout.write("\n".join([json.dumps(begun)] if args.json else lines) + "\n")
    return OK


def _begin_in_spool(spec: Dict[str, Any], key: str, owner_pid: int, trouble: Unreachable) -> Dict[str, Any]:
    """Leave the BeginRun to the daemon; returns what stands for its reply. Raises Complaint, and `trouble`."""
    from ..encoding import encode
    from .spooled import SpooledRequests, is_away

    if not is_away(trouble):
        raise trouble
    try:
        os.kill(owner_pid, 0)
    except (ProcessLookupError, PermissionError, OverflowError) as error:
        raise Complaint(f"--owner-pid {owner_pid} is no process of yours", USAGE) from error
    spooled = SpooledRequests(trouble, key, spec.get("namespace"), spec["run_id"], owner_pid)
    spooled.add("BeginRun", encode({"run": spec, "lease_key": key}))
    spooled.seal()
    namespace = spec.get("namespace", "default")
    return {"namespace": namespace, "run_id": spec["run_id"], "epoch": None, "position": None, "durable": "spooled"}


def _parent(namespace: Optional[str], owner_pid: int) -> Optional[str]:
    """The run that this one is begun in.

    A shell cannot be made to forget the run that it began before: that, and one that has ended, is a sibling.
    """
    from ..connection import Unreachable, call_again_if_lost
    from ..protocol.errors import NoSuchRun
    from ..records import TERMINAL_STATUSES

    outer = environment.parent_of(namespace, environment.own_run())
    if outer is None:
        return None
    try:
        found = call_again_if_lost("GetRun", {"namespace": namespace, "run_id": outer})["run"]
    except (NoSuchRun, Unreachable):
        return outer
    sibling = found["owner_pid"] == owner_pid or found["status"] in TERMINAL_STATUSES
    parent: Optional[str] = found["parent_run_id"] if sibling else outer
    return parent
