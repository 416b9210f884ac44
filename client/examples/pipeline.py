"""A pipeline of three steps that stops at a gate, and goes on in another process from where it was.

    python pipeline.py                           count, then wait for somebody's approval
    python pipeline.py RUN --answer true         approve, and go on
    python pipeline.py RUN                       go on where it was killed

It may be killed at any point: everything up to the last checkpoint is done, and everything behind it is done again by
whoever claims the run.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Dict

import runhist


def main() -> int:
    """Begin the pipeline, or go on with it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_id", metavar="RUN", nargs="?", help="go on with this run")
    parser.add_argument("--answer", metavar="JSON", type=json.loads, help="what the gate is answered with")
    args = parser.parse_args()
    history = runhist.connect(require=True)
    if args.run_id is None:
        begin(history)
        return 0
    answer = {} if args.answer is None else {"answer": args.answer}
    with history.claim_run(args.run_id, **answer) as run:  # exactly one process gets it
        go_on(run, run.checkpoint_data or {}, run.answer)
    return 0


def begin(history: runhist.History) -> None:
    """The first step, up to the gate."""
    with history.begin_run(workflow="report", agent_id="docs-bot", title="Count the examples") as run:
        with run.step("count") as step:
            lines = sum(len(path.read_text().splitlines()) for path in Path(__file__).parent.glob("*.py"))
            step.output(f"{lines} lines")
        run.checkpoint({"lines": lines})
        run.pause("approve", prompt="Publish the count?", answer_schema={"type": "boolean"})
        sys.stdout.write(f"{run.run_id}\n")


def go_on(run: runhist.ClaimedRun, checkpoint: Dict[str, Any], answer: Any) -> None:
    """The second and third step; a checkpoint behind the second skips it."""
    if "report" not in checkpoint:
        if answer is not True:
            run.cancel("not approved")
            return
        with run.step("format") as step:
            checkpoint = {"report": f"{checkpoint['lines']} lines of examples"}
            step.output(checkpoint["report"])
        run.checkpoint(checkpoint)
        run.flush()
    sys.stdin.readline()  # where a person may look at the report, and the process may be killed
    with run.step("publish") as step:
        step.output(f"published: {checkpoint['report']}")


if __name__ == "__main__":
    sys.exit(main())
