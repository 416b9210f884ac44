"""`runhist import`: take runs in that another history has exported."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import uuid
from pathlib import Path
from typing import Any, BinaryIO, Dict, List, Optional, Tuple

from .. import jsonl
from ..connection import Connection, Unreachable
from ..ids import new_uuid
from ..protocol.errors import PASSING, Refusal, RunhistError
from . import render
from .main import INTERRUPTED, OK, REFUSED, UNREACHABLE, USAGE, Complaint
from .progress import Bar

BATCH_EVENTS = 500
BATCH_BYTES = 1024 * 1024  # at most half of what the daemon takes in one message, so that the rest of it fits too
KEYS = uuid.UUID("6a0c6f2e-6d1f-5c3e-9a53-0f6b7d1c8e44")  # the space of names that import keys are made in

DESCRIPTION = """\
Take in the runs of FILE, which `runhist export` has written. Every event comes back as it was, with its seq, its times
and the bytes of its data; kept content and pins too. Importing again changes nothing: what is there is compared, and
only what is missing is stored. A run that is here already, and is another one, is refused, and the others go on.

Imported runs have no owner here. Retention counts from when they ended, as for all runs, so old ones may go soon:
`runhist gc --dry-run` tells which, `runhist pin` keeps them.

An import that was interrupted says how to go on where it was.

exit status: 0 all imported, 4 some run was refused, 2 FILE is no export, 5 the daemon cannot be reached."""


def add_parser(subparsers: Any) -> None:
    """The command's arguments."""
    parser = subparsers.add_parser(
        "import",
        help="take in runs that were exported",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("format", choices=("jsonl",), help="what FILE is: the lines of runhist export")
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--from", dest="start", type=int, default=0, metavar="BYTE", help="go on there, where a run begins")
    parser.add_argument("--json", action="store_true", help="print one object with the totals")


def run(args: argparse.Namespace) -> int:
    """Import, and say what became of it. Raises Complaint."""
    try:
        file = Path(args.file).open("rb")
    except OSError as error:
        raise Complaint(f"cannot read {args.file}: {error.strerror}", USAGE) from error
    with file, Connection.open() as connection:
        importer = Importer(connection, args.start)
        try:
            importer.run(file)
        except (*PASSING, Unreachable, KeyboardInterrupt) as error:
            importer.bar.clear()
            return _stopped(args, importer, error)
        _tell(importer, as_json=args.json)
        _warn_of_retention(connection)
    return REFUSED if importer.refused else OK


class Importer:
    """Reads the lines and sends what they hold. `position` is where the run begins that is gone through."""

    def __init__(self, connection: Connection, start: int) -> None:
        self.position = start
        self.runs = self.stored = self.duplicates = 0
        self.refused: List[Tuple[str, str]] = []
        self.bar = Bar("importing")
        self._connection = connection
        limits = connection.call("Describe", {})["limits"]
        self._batch_bytes = min(BATCH_BYTES, limits["frame_bytes"] // 2)
        self._run: Optional[_Run] = None
        self._line = 0
        self._start = start

    def run(self, file: BinaryIO) -> None:
        """Import from `position` on. Raises Complaint, Refusal of a passing kind, Unreachable."""
        size = os.fstat(file.fileno()).st_size
        at = file.seek(self.position)
        for line in file:
            self._line += 1
            try:
                self._take(str(line, "utf-8"), at)
            except (jsonl.BadLine, UnicodeDecodeError) as error:
                self.bar.clear()
                raise Complaint(f"line {self._line} from byte {self._start} on: {error}", USAGE) from None
            at += len(line)
            self.bar.show(at, size, f"{render.size(at)} of {render.size(size)}, {self.runs:,} runs")
        self._end()
        self.bar.clear()

    def _take(self, text: str, at: int) -> None:
        kind, texts = jsonl.read_line(text)
        if kind == "run":
            self._end()
            self.position = at
            self._run = _Run(self._connection, texts, self._batch_bytes)
            return
        if self._run is None:
            raise jsonl.BadLine("it stands before the line of its run")
        if (jsonl.text_of(texts, "namespace"), jsonl.text_of(texts, "run_id")) != self._run.name:
            raise jsonl.BadLine("it is of another run than the lines before it")
        self._run.try_to(lambda current: current.take_event(texts) if kind == "event" else current.take_content(texts))

    def _end(self) -> None:
        done, self._run = self._run, None
        if done is None:
            return
        done.try_to(_Run.end)
        self.runs += done.refusal is None
        self.stored += done.stored
        self.duplicates += done.duplicates
        if done.refusal is not None:
            self.refused.append((done.name[1], str(done.refusal)))


class _Run:
    """One run on its way in. After a refusal its other lines are passed over."""

    def __init__(self, connection: Connection, texts: Dict[str, str], batch_bytes: int) -> None:
        self._batch_bytes = batch_bytes
        self.name = (jsonl.text_of(texts, "namespace"), jsonl.text_of(texts, "run_id"))
        self.stored = self.duplicates = 0
        self.refusal: Optional[RunhistError] = None
        self._last_seq = jsonl.value_of(texts, "last_seq")
        self._pinned = jsonl.value_of(texts, "pinned")
        self._connection = connection
        self._key = ""
        self._events: List[bytes] = []
        self._bytes = 0
        self._reached = 0
        self._uploads: Dict[str, str] = {}

    def try_to(self, step: Any) -> None:
        """Do something for the run, unless it was refused before. Raises what stops the whole import."""
        if self.refusal is None:
            try:
                step(self)
            except PASSING:
                raise
            except Refusal as refusal:
                self.refusal = refusal

    def take_event(self, texts: Dict[str, str]) -> None:
        """Send the event, with others."""
        if not self._key:  # nothing that is told of a run elsewhere could be the same by chance
            began = json.dumps([*self.name, jsonl.value_of(texts, "received_us")])
            self._key = str(uuid.uuid5(KEYS, began))
        text = jsonl.event_text(texts).encode("utf-8")
        if len(self._events) >= BATCH_EVENTS or self._bytes + len(text) > self._batch_bytes:
            self._send()
        self._events.append(text)
        self._bytes += len(text)

    def take_content(self, texts: Dict[str, str]) -> None:
        """Give the daemon a piece of content; the events behind it name it."""
        sha256, offset, size = (jsonl.value_of(texts, name) for name in ("sha256", "offset", "size"))
        encoded = jsonl.text_of(texts, "base64")
        upload = self._uploads.setdefault(sha256, new_uuid())
        ends = offset + len(encoded) // 4 * 3 - encoded.count("=") >= size
        asked = {"upload": upload, "offset": offset, "base64": encoded, "done": ends}
        kept = self._connection.call("PutBlob", asked, timeout=None)
        if ends and kept["sha256"] != sha256:
            raise jsonl.BadLine(f"the content is not that of the SHA-256 {sha256}")

    def end(self) -> None:
        """Send the rest; the run must be as it was then."""
        self._send()
        if self._reached < self._last_seq:
            missing = f"{self._reached + 1} to {self._last_seq}"
            raise jsonl.BadLine(f"before it, run {self.name[1]!r} lacks the lines of its events {missing}")
        if self._pinned is True:
            self._connection.call("PinRun", {"namespace": self.name[0], "run_id": self.name[1]})

    def _send(self) -> None:
        if not self._events:
            return
        namespace, run_id = map(json.dumps, self.name)
        start = f'{{"namespace":{namespace},"run_id":{run_id},"import_key":"{self._key}","events":['
        parameters = start.encode("utf-8") + b",".join(self._events) + b"]}"
        self._events, self._bytes = [], 0
        reply = self._connection.call("ImportEvents", parameters, timeout=None)
        self._reached = reply["last_seq"]
        self.stored += reply["stored"]
        self.duplicates += reply["duplicates"]


def _stopped(args: argparse.Namespace, importer: Importer, error: BaseException) -> int:
    """Say how to go on, and with what status this ends."""
    why = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
    again = f"runhist import jsonl {shlex.quote(args.file)} --from {importer.position}"
    sys.stderr.write(f"runhist: {render.escaped(why)}\n{importer.runs:,} runs are imported; go on with: {again}\n")
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return UNREACHABLE if isinstance(error, Unreachable) else REFUSED


def _warn_of_retention(connection: Connection) -> None:
    """Say how many runs the next pass takes: those that ended long ago came in with the time of their end."""
    doomed = connection.call("CollectGarbage", {"dry_run": True}, timeout=None)["decisions"]
    if doomed:
        runs = "1 run" if len(doomed) == 1 else f"{len(doomed):,} runs"
        sys.stderr.write(f"the next pass of retention takes {runs}: runhist gc --dry-run; keep some: runhist pin RUN\n")


def _tell(importer: Importer, *, as_json: bool) -> None:
    if as_json:
        refused = [{"run_id": run_id, "message": message} for run_id, message in importer.refused]
        totals = {"runs": importer.runs, "stored": importer.stored, "duplicates": importer.duplicates, "refused": refused}
        sys.stdout.write(render.json_line(totals))
        return
    there = f", {importer.duplicates:,} were there already" if importer.duplicates else ""
    sys.stdout.write(f"imported {importer.runs:,} runs: {importer.stored:,} events stored{there}\n")
    for run_id, message in importer.refused:
        sys.stdout.write(f"  {render.escaped(run_id)}  refused: {render.escaped(message)}\n")
