"""Holds a history after a chaos run against what its engines were told; every difference is a line."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

from runhist.reading import Reader, RunReader
from runhist.records import TERMINAL_KINDS, Event, RunRecord
from runhist.spool import DamagedSpool, quarantined, read_spool

from .journal import Told

STATUS_OF = {"run.completed": "completed", "run.failed": "failed", "run.cancelled": "cancelled"}


class Findings:
    """What differs, and what was counted on the way."""

    def __init__(self, told: Told) -> None:
        self.told = told
        self.lines: list[str] = [*told.faults]
        self.counts: Counter[str] = Counter()

    def hold_against(self, reader: Reader) -> None:
        """Read every run and check it."""
        if not self.told.acknowledged:
            self.lines.append("nothing was acknowledged")
        runs = {run.run_id: run for run in reader.list_runs({}, None)}
        safe: dict[str, dict[str, int]] = defaultdict(dict)
        for (run_id, session), number in self.told.acknowledged.items():
            safe[run_id][session] = number
        for run_id in safe.keys() - runs.keys():
            self.lines.append(f"run {run_id} was acknowledged and is not there")
        for run_id, run in runs.items():
            self.counts["runs"] += 1
            self.counts[f"runs {run.status}"] += 1
            items = list(RunReader(reader, None, run_id).events())
            events = [item for item in items if isinstance(item, Event)]
            if len(events) < len(items):
                self.lines.append(f"run {run_id} lost events to retention, which has nothing to remove here")
            self._check_run(run, events, safe[run_id])

    def _check_run(self, run: RunRecord, events: list[Event], safe: dict[str, int]) -> None:
        self.counts["events"] += len(events)
        if [event.seq for event in events] != list(range(1, run.last_seq + 1)):
            self.lines.append(f"run {run.run_id} has gaps in its seqs")
        recorded: dict[str, list[int]] = defaultdict(list)
        for event in events:
            if event.type == "work":
                recorded[event.data["session"]].append(event.data["i"])
        for session in recorded.keys() | safe.keys():
            numbers, number = recorded[session], safe.get(session, 0)
            if numbers != list(range(len(numbers))) or len(numbers) < number:
                seen = f"{len(numbers)} events, {len(set(numbers))} different, the last {numbers[-1:]}"
                self.lines.append(f"run {run.run_id}, session {session}: {number} were acknowledged, there are {seen}")
        self._check_end(run, events)
        for event in events:
            if event.kind == "run.incomplete":
                self._check_verdict(run, event)

    def _check_end(self, run: RunRecord, events: list[Event]) -> None:
        kinds = Counter(event.kind for event in events)
        for kind, count in self.told.ended[run.run_id].items():
            if kinds[kind] < count or (kind in TERMINAL_KINDS and run.status != STATUS_OF[kind]):
                self.lines.append(f"run {run.run_id} is {run.status}, and {kind} was acknowledged {count} times")
        if run.status == "running" or sum(kinds[kind] for kind in TERMINAL_KINDS) > 1:
            self.lines.append(f"run {run.run_id} is {run.status} after {dict(kinds)}")
        states = [event.kind for event in events if event.kind in ("run.paused", "run.incomplete", "run.resumed")]
        if run.status in ("paused", "incomplete") and states[-1:] != [f"run.{run.status}"]:
            self.lines.append(f"run {run.run_id} is {run.status} after {states}")

    def _check_verdict(self, run: RunRecord, event: Event) -> None:
        """The process that it names touched the run, and was over when it was seen to be dead."""
        self.counts["adoptions"] += 1
        data = event.data
        if data.get("reason") != "orphaned" or not data.get("evidence") or not data.get("by"):
            self.lines.append(f"run {run.run_id} became incomplete without evidence: {data}")
            return
        self.counts[f"seen by {data['by']}"] += 1
        lives = [life for life in self.told.lives if life.pid == data["pid"] and run.run_id in life.touched]
        if not any(life.over_us is not None and life.over_us <= data["seen_us"] for life in lives):
            self.lines.append(f"run {run.run_id} was adopted while its engine lived: {data}, {lives}")

    def look_at_spool(self, directory: Path) -> None:
        """It must be empty, and what was put aside explained."""
        for path in directory.iterdir() if directory.is_dir() else ():
            if not path.is_file():
                continue
            try:
                read_spool(path)
            except DamagedSpool:
                self.counts["torn before the first line"] += 1  # its writer was killed there; nothing was acknowledged
                continue
            self.lines.append(f"{path.name} is left in the spool")
        for path, reason in quarantined(directory):
            self.counts["quarantined"] += 1
            if not reason:
                self.lines.append(f"{path.name} is in quarantine without a reason")
