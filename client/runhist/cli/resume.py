"""`runhist resume`: answer the gate that a run waits at, and go on with a run that nobody owns."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any, Dict, List

from .main import OK, REFUSED, USAGE, Complaint, run_name

MAX_VARIABLE_BYTES = 100 * 1024  # the kernel takes 128 KiB for one

DESCRIPTION = """\
Answer the gate that a paused run waits at, or go on with a paused or incomplete run: CMD is run and recorded into it, as
`runhist exec` does. With both, the answer and the resumption are one: of several that try, one wins.
"""
EPILOG = """\
CMD finds the last checkpoint's data in RUNHIST_CHECKPOINT and the gate's answer in RUNHIST_ANSWER, both JSON, each unset
where there is none (or where it is above 100 KiB: read it with `runhist logs --json`), besides the variables that exec sets.
Its exit status ends the run, and is ours; 4: the run is not to be had, because somebody else goes on with it, or was faster.

examples:
  runhist resume @paused --answer '{"approved": true}'
  runhist resume @paused --answer true -- python pipeline.py
  runhist resume 4f2a -- python pipeline.py
"""


def add_parser(subparsers: Any) -> None:
    """The command's arguments."""
    parser = subparsers.add_parser(
        "resume",
        help="answer a paused run's gate, or go on with an interrupted run",
        usage="runhist resume RUN [options] [-- CMD...]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="RUN", type=run_name, help="id, beginning, ending, or @paused …")
    parser.add_argument("--namespace", help="only look here (default: $RUNHIST_NAMESPACE, else everywhere)")
    parser.add_argument("--answer", metavar="JSON", help="what the gate is answered with")
    parser.add_argument("--takeover", action="store_true", help="take the run from an owner that is alive")
    terminal = parser.add_mutually_exclusive_group()
    terminal.add_argument("--pty", action="store_true", default=None, help="on a pseudo-terminal (default: on a terminal)")
    terminal.add_argument("--no-pty", dest="pty", action="store_false", help="with pipes, output and errors apart")


def run(args: argparse.Namespace) -> int:
    """Answer, or run the command; its exit status. Raises Refusal, Unreachable and Complaint."""
    from ..client import connect
    from ..connection import Connection
    from .names import find

    argv: List[str] = args.behind_dashes
    if not argv and args.answer is None:
        raise Complaint("resume with what? --answer JSON answers the run's gate, -- CMD… goes on with the run", USAGE)
    answer = {} if args.answer is None else {"answer": _parsed(args.answer)}
    with Connection.open() as connection:
        found = find(connection, args.name, args.namespace)
    history = connect(namespace=found["namespace"], require=True)
    if history.mode == "off":
        raise Complaint("RUNHIST=off: nothing can be resumed without the history", REFUSED)
    if not argv:
        history.answer_gate(found["run_id"], answer["answer"])
        sys.stdout.write(f"answered; to go on: runhist resume {found['short_id']} -- CMD…\n")
        return OK
    claimed = history.claim_run(found["run_id"], takeover=args.takeover, expect_status=_expected(args), **answer)
    return _go_on(args, argv, claimed)


def _expected(args: argparse.Namespace) -> List[str]:
    """An answer is for a paused run; without a takeover a run that is going on is refused with its owner's name."""
    return ["paused"] if args.answer is not None else ["pending", "running", "paused", "incomplete"]


def _parsed(text: str) -> Any:
    import json

    try:
        return json.loads(text)
    except ValueError as error:
        raise Complaint(f"--answer is no JSON ({error}); a text needs quotes: --answer '\"yes\"'", USAGE) from None


def _go_on(args: argparse.Namespace, argv: List[str], claimed: Any) -> int:
    from ..paths import choose_sockets
    from .exec import MAX_OUTPUT_BYTES, carry_out
    from .recording import Recording

    name = {"namespace": claimed.namespace, "run_id": claimed.run_id}
    recording = Recording(choose_sockets(), name, MAX_OUTPUT_BYTES, claimed.epoch)
    return carry_out(argv, args.pty, recording, recording.begin(), _variables(claimed))


def _variables(claimed: Any) -> Dict[str, str]:
    """What the command is told of where the run stood. A variable of an outer resumption must not be taken for ours."""
    import json

    for name in ("RUNHIST_CHECKPOINT", "RUNHIST_ANSWER"):
        os.environ.pop(name, None)
    values = {"RUNHIST_CHECKPOINT": claimed.checkpoint_data, "RUNHIST_ANSWER": claimed.answer}
    texts = {name: json.dumps(value) for name, value in values.items() if value is not None}
    return {name: text for name, text in texts.items() if len(text.encode()) <= MAX_VARIABLE_BYTES}
