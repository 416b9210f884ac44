"""What the engines record, told in lines while it happens: read from the history itself, as any follower would."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from runhist.connection import Connection

SHORT_S = 0.05  # steps that took less and went well are not worth a line
LAST_S = 10.0  # for the events of engines that have ended already
MARKS = {
    "step.completed": "✓",
    "step.failed": "✗",
    "step.retrying": "✗",
    "step.skipped": "–",
    "run.completed": "✓",
    "run.failed": "✗",
    "run.cancelled": "✗",
}
ENDS = frozenset({"run.completed", "run.failed", "run.cancelled"})


class Progress:
    """Takes the replies of a Follow call from the beginning; `runs` are the run ids by workflow, `ended` those that did."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.runs: dict[str, str] = {}
        self.ended: set[str] = set()
        self._say = say
        self._workflows: dict[str, str] = {}
        self._begun_us: dict[tuple[str, str | None, int | None], int] = {}
        self._counts: dict[str, Counter[str]] = {}

    def take(self, connection: Connection) -> None:
        """Tell what has come since, without waiting. Raises Refusal and Unreachable."""
        connection.push()
        for reply in connection.receive():
            if reply.error is not None:
                raise connection.refusal(reply)
            for item in reply.parameters["items"]:
                if item.get("event") is not None:
                    self._tell(item["event"])

    def finish(self, connection: Connection, runs: int) -> None:
        """Wait until so many runs have been seen to end, but not for ever."""
        deadline = time.monotonic() + LAST_S
        while len(self.ended) < runs and time.monotonic() < deadline:
            connection.wait(deadline - time.monotonic())
            self.take(connection)

    def _tell(self, event: dict[str, Any]) -> None:
        run_id, kind, data = event["run_id"], event["kind"], event["data"]
        if kind == "run.started":
            workflow = self._workflows[run_id] = data["workflow"]
            self.runs[workflow] = run_id
        counts = self._counts.setdefault(run_id, Counter())
        counts[kind] += 1
        place = (run_id, event.get("step_id"), event.get("attempt"))
        if kind in ("run.started", "step.started"):
            self._begun_us[place] = event["time_us"]
        if kind in ENDS:
            self.ended.add(run_id)
        if kind in MARKS:
            took_s = (event["time_us"] - self._begun_us.get(place, event["time_us"])) / 1e6
            if kind == "step.completed" and took_s < SHORT_S:
                return
            what = event.get("step_id") or f"all of it: {counts['step.started']} steps, {counts['output']} lines of output"
            why = data.get("error") or data.get("reason")
            line = f"  {self._workflows[run_id]:<17}{MARKS[kind]} {took_s:6.2f} s  {what}{f': {why}' if why else ''}"
            self._say(f"{line}\n")
