"""Events whose data is kept apart for its size, as the commands print them: in full, and in bounded memory."""

from __future__ import annotations

import sys
from typing import Any, Dict, Iterator

from ..connection import Connection
from . import names, render

MAX_SHOWN_BYTES = 1024 * 1024  # to a person; what has more is for programs


def whole(event: Dict[str, Any], run: Dict[str, Any]) -> Dict[str, Any]:
    """An event of the run with all its data, where that is not too long to be shown.

    Raises NoSuchRun, NoSuchBlob, Unreachable.
    """
    if "data_blob" not in event:
        return event
    size = event["data_blob"]["size"]
    if size > MAX_SHOWN_BYTES:
        shown = f"event {event['seq']} of run {render.escaped(event['run_id'])} has {render.size(size)} of data"
        sys.stderr.write(f"{shown}, see: runhist logs --json\n")
        return event
    import json

    return {**event, "data": json.loads(b"".join(_content(event, run)))}


def json_parts(event: Dict[str, Any], run: Dict[str, Any]) -> Iterator[str]:
    """An event of the run on a line of JSON, with its data at the end where that is kept apart: it may be long.

    Raises as `whole` does, before the first part where the data was deleted.
    """
    if "data_blob" not in event:
        yield render.json_line(event)
        return
    parts = render.json_line_parts(_content(event, run))
    first = next(parts, "")
    yield render.json_line({name: value for name, value in event.items() if name != "data"})[:-2] + ',"data":' + first
    yield from parts
    yield "}\n"


def _content(event: Dict[str, Any], run: Dict[str, Any]) -> Iterator[bytes]:
    from ..artifacts import content

    with Connection.open() as connection:
        yield from content(connection, names.address(run), event["data_blob"]["sha256"])
