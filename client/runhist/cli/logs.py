"""`runhist logs`: a run's events, and with -f those to come.

Following begins behind the last event that was printed, so that nothing between reading and following is lost or shown
twice; when the daemon is restarted it goes on from there. On a terminal the last line shows the text that a step is
producing right now, as far as it is shown and not stored.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any, Dict, Iterator, List, Optional

from ..connection import Connection
from . import large_data, names, render
from .following import patiently
from .live import LiveLine
from .main import FAILED, OK

ENDS = {"run.completed": "completed", "run.failed": "failed", "run.cancelled": "cancelled"}
PAGE = 500


def add_parser(subparsers: Any) -> None:
    """The command's arguments."""
    parser = subparsers.add_parser(
        "logs", help="print a run's events", description="Print a run's events, output as text; `!` marks stderr."
    )
    names.add_run_argument(parser, reads=True)
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the run has ended")
    parser.add_argument("--type", action="append", metavar="TYPE", help="only events of this type; may be repeated")
    parser.add_argument("--after-seq", type=int, default=0, metavar="N", help="only events behind seq N")
    parser.add_argument("--exit-status", action="store_true", help="exit with 1 unless the run has completed")
    parser.add_argument("--json", action="store_true", help="print one object an event")


def run(args: argparse.Namespace) -> int:
    """Print them. 1 with --exit-status when the run is not completed."""
    with Connection.open() as connection:
        found = names.find(connection, args.name, args.namespace, args.user)
    ended = None
    printed = 0
    live = LiveLine() if args.follow and not args.json and args.type is None and render.may_rewrite() else None
    for event in events(found, args.after_seq, follow=args.follow, live=live):
        ended = ENDS.get(event["kind"], ended)
        if args.type is None or event["type"] in args.type:
            printed += 1
            if live is not None:
                live.clear()
            for part in _parts(event, found, as_json=args.json):
                sys.stdout.write(part)
            if live is not None:
                live.pass_by(event)
            if args.follow:
                sys.stdout.flush()
    if not printed:
        sys.stderr.write(f"no such events; see: runhist show {render.escaped(found['short_id'])}\n")
    status = ended or found["status"]
    return FAILED if args.exit_status and status != "completed" else OK


def _parts(event: Dict[str, Any], found: Dict[str, Any], *, as_json: bool) -> Iterator[str]:
    if as_json:
        yield from large_data.json_parts(event, found)
    else:
        yield line(large_data.whole(event, found), found["started_us"])


def events(
    found: Dict[str, Any], after_seq: int, *, follow: bool, live: Optional[LiveLine] = None
) -> Iterator[Dict[str, Any]]:
    """The run's events of the wire behind `after_seq`; with `follow` until its end, over restarts of the daemon.

    What is only shown goes to `live`.
    """
    seq, position, is_over = after_seq, None, False
    for event in patiently(lambda: _stored(found, seq), retry=follow):  # noqa: B023 - meant: where we are by then
        seq, position = event["seq"], event["position"]
        is_over = is_over or event["kind"] in ENDS
        yield event
    if not follow or is_over:
        return
    if position is None and found["status"] in ENDS.values():
        return
    for event in patiently(lambda: _followed(found, position, live), retry=follow):  # noqa: B023
        if event["seq"] > seq:
            seq, position = event["seq"], event["position"]
            yield event
        if event["kind"] in ENDS:
            return


def _stored(found: Dict[str, Any], after_seq: int) -> Iterator[Dict[str, Any]]:
    next_seq: Optional[int] = after_seq
    with Connection.open() as connection:
        while next_seq is not None:
            reply = connection.call("GetEvents", {**names.address(found), "after_seq": next_seq, "limit": PAGE})
            for gap in reply["gaps"]:
                sys.stderr.write(f"events were dropped here (rule: {gap['rule']}), see: runhistd config show\n")
            yield from reply["events"]
            next_seq = reply.get("next_after_seq")


def _followed(found: Dict[str, Any], position: Optional[int], live: Optional[LiveLine]) -> Iterator[Dict[str, Any]]:
    asked = {**names.address(found), "cursor": {"position": position or 0}, "published": live is not None}
    with Connection.open() as connection:
        try:
            for reply in connection.stream("Follow", asked):
                for item in reply["items"]:
                    if item.get("gap"):
                        with Connection.open() as reading:  # it may be about an older run of that name
                            reading.call("GetRun", names.address(found))
                    if item.get("event"):
                        yield item["event"]
                    if item.get("published") and live is not None:
                        live.grow(item["published"])
        finally:
            if live is not None:
                live.clear()


def line(event: Dict[str, Any], started_us: Optional[int], run: str = "") -> str:
    """One event for a person. With `run`, what names it among others, on a terminal the line is cut to fit."""
    head = f"{render.clock(event.get('time_us') or event['received_us'])}  {run}"
    status = ENDS.get(event["kind"])
    text = _text(event, started_us)
    if run and render.on_terminal():
        text = render.fitted(text, max(10, render.columns() - render.width(head)))
    if status is not None:
        word = render.status_of(status)
        text = render.coloured(word, status) + text[len(word) :]
    return f"{head}{text}".rstrip() + "\n"


def _text(event: Dict[str, Any], started_us: Optional[int]) -> str:
    kind, data = event["kind"], event["data"]
    if kind in ENDS:
        reason = data.get("error") or data.get("reason")
        tail = f": {render.escaped(str(reason))}" if reason else ""
        took = render.took(started_us, event.get("time_us") or event["received_us"])
        after = "" if started_us is None else f" after {took}"
        return f"{render.status_of(ENDS[kind])}{after}, {event['seq']:,} events{tail}"
    if kind == "run.started":
        return f"● started: {render.escaped(data.get('title') or data.get('workflow') or event['run_id'])}"
    step = render.escaped(event.get("step_id") or "")
    if kind == "output":
        mark = "!" if data.get("stream") == "stderr" else " "
        return f"{step:<10}{mark} {render.escaped(str(data.get('text', '')))}"
    return f"{step:<10}  [{render.escaped(event['type'])}] {_summary(data)}"


def _summary(data: Dict[str, Any]) -> str:
    parts: List[str] = []
    for name, value in data.items():
        if value is None or value == {} or value == []:
            continue
        text = value if isinstance(value, str) else render.json_line(value).strip()
        parts.append(render.escaped(f"{name}={text}"))
    return render.fitted(" ".join(parts), 200) if render.on_terminal() else " ".join(parts)
