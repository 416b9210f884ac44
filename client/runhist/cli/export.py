"""`runhist export`: runs as lines of JSON, for `runhist import jsonl` and for other programs."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any, Dict, Iterator, List, Set

from .. import jsonl
from ..connection import Connection
from ..protocol.errors import NoSuchRun
from . import names
from .list import STATUSES, since_us
from .main import FAILED, OK, run_name
from .progress import Bar

PAGE = 1000

DESCRIPTION = """\
Print runs with all that was recorded of them: a line for each run, event and piece of kept content. All runs, those
that are named, or those that match; the oldest first. What a run records while it is exported is left out.

The lines are {"v":1,"run":{…}}, {"v":1,"event":{…}} and {"v":1,"artifact":{…}}; the module runhist.jsonl says what is
in them. `runhist import jsonl` takes them in, here or elsewhere, as often as one likes: events come back as they were,
with their seqs, times and the bytes of their data. Positions, epochs and owners belong to a history and stay behind.

  runhist export > all.jsonl
  runhist export --agent coder --since 7d | gzip > week.jsonl.gz"""


def add_parser(subparsers: Any) -> None:
    """The command's arguments."""
    parser = subparsers.add_parser(
        "export",
        help="print runs as lines of JSON",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", metavar="RUN", nargs="*", type=run_name, help="only these (default: all that match)")
    parser.add_argument("--namespace", help="only this namespace (default: all)")
    parser.add_argument("--status", action="append", choices=STATUSES, help="only this status; may be repeated")
    parser.add_argument("--agent", help="only this agent's")
    parser.add_argument("--workflow", help="only of this workflow")
    parser.add_argument("--since", metavar="AGE", help="only begun within AGE: 90s, 15m, 2h, 7d, 4w")


class Texts(Connection):
    """A connection whose replies also have the texts of their events, as `event_texts`."""

    @staticmethod
    def decode(frame: bytes) -> Any:
        """The reply of a frame. Raises ValueError."""
        message = json.loads(frame)
        if "events" in message.get("parameters", {}):
            outer, _ = jsonl.members(str(frame, "utf-8"))
            inner, _ = jsonl.members(outer["parameters"])
            message["parameters"]["event_texts"] = list(jsonl.elements(inner["events"]))
        return message


def run(args: argparse.Namespace) -> int:
    """Print them; 1 when a run was deleted in the middle. Raises Refusal, Unreachable, Complaint."""
    status, bar = OK, Bar("exporting")
    with Texts.open() as connection:
        found = list(_wanted(connection, args))
        for i, one in enumerate(found):
            bar.show(i, len(found), f"{i:,} of {len(found):,} runs")
            try:
                for line in _lines(connection, one):
                    sys.stdout.write(line)
            except NoSuchRun:
                bar.clear()
                sys.stderr.write(f"run {one['run_id']!r} was deleted meanwhile; what was printed of it is not whole\n")
                status = FAILED
    bar.clear()
    return status


def _wanted(connection: Connection, args: argparse.Namespace) -> Iterator[Dict[str, Any]]:
    """The runs, the oldest first."""
    if args.names:
        for name in args.names:
            yield names.find(connection, name, args.namespace)
        return
    filters = {
        "namespace": args.namespace,
        "status": args.status,
        "agent_id": args.agent,
        "workflow": args.workflow,
        "since_us": None if args.since is None else since_us(args.since),
    }
    asked: Dict[str, Any] = {name: value for name, value in filters.items() if value is not None}
    runs: List[Dict[str, Any]] = []
    page = None
    while True:
        reply = connection.call("ListRuns", {**asked, "limit": PAGE, **({"page": page} if page else {})})
        runs += ({name: one[name] for name in ("namespace", "run_id")} for one in reply["runs"])
        page = reply["next_page"]
        if page is None:
            break
    yield from reversed(runs)


def _lines(connection: Connection, one: Dict[str, Any]) -> Iterator[str]:
    """The lines of one run, up to where it is now. Raises NoSuchRun."""
    name = names.address(one)
    found = connection.call("GetRun", name)
    last_seq = found["run"]["last_seq"]
    is_so = {"status": found["run"]["status"], "last_seq": last_seq, "pinned": found["detail"]["pinned"]}
    yield jsonl.plain_line("run", {"namespace": one["namespace"], "run_id": one["run_id"], **is_so})
    given: Set[str] = set()
    after_seq = 0
    while after_seq is not None and after_seq < last_seq:
        page = connection.call("GetEvents", {**name, "after_seq": after_seq, "limit": PAGE})
        for text in page["event_texts"]:
            texts, _ = jsonl.members(text)
            if int(texts["seq"]) > last_seq:
                return
            for sha256 in jsonl.contents_of(texts):
                if sha256 not in given:
                    given.add(sha256)
                    yield from _content_lines(connection, name, sha256)
            yield jsonl.event_line(texts)
        after_seq = page["next_after_seq"]


def _content_lines(connection: Connection, name: Dict[str, Any], sha256: str) -> Iterator[str]:
    of = {"namespace": name["namespace"], "run_id": name["run_id"], "sha256": sha256}
    for reply in connection.stream("GetBlob", {**name, "sha256": sha256}):
        chunk = {member: reply[member] for member in ("offset", "size", "base64")}
        yield jsonl.plain_line("artifact", {**of, **chunk})
