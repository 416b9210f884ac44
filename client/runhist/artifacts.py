"""What a run made, as an event's data: a file's path and measures, and its content if the daemon is to keep it."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, Iterator, Mapping, Optional, Tuple, Union

from .connection import Connection
from .encoding import plain_text, present
from .ids import new_uuid
from .protocol.errors import RunhistError

CHUNK_BYTES = 256 * 1024  # of content in one message: neither side ever holds more of it


def gather(
    path: str, *, name: Optional[str], kind: Optional[str], digest: bool, keep: Optional[Callable[[], Connection]]
) -> Tuple[Dict[str, Any], Optional[Exception]]:
    """What is to be recorded of a file, and the fault if that is not all; over `keep` the daemon is given the content."""
    members: Dict[str, Any] = {"name": plain_text(name or path), "path": plain_text(path)}
    try:
        members = describe(path, name=name, kind=kind, digest=digest)
        if keep is not None:
            with Path(path).open("rb") as file, keep() as connection:
                members.update(put(connection, file))
    except (OSError, RunhistError) as error:
        return members, error
    return members, None


def describe(
    path: Union[str, "os.PathLike[str]"], *, name: Optional[str] = None, kind: Optional[str] = None, digest: bool = False
) -> Dict[str, Any]:
    """The members of an artifact that is a file, as it is now; with `digest` its SHA-256 too. Raises OSError."""
    absolute = Path(path).absolute()
    found = absolute.stat()
    sha256 = None
    if digest:
        hashed = hashlib.sha256()
        with absolute.open("rb") as file:
            for chunk in _chunks(file):
                hashed.update(chunk)
        sha256 = hashed.hexdigest()
    return {
        "name": plain_text(name or absolute.name),
        "path": plain_text(str(absolute)),
        "size": found.st_size,
        "mtime_us": found.st_mtime_ns // 1000,
        **present(kind=kind, sha256=sha256),
    }


def put(connection: Connection, file: BinaryIO) -> Dict[str, Any]:
    """Give the daemon the content of an open file; `blob` and `size` of what it keeps.

    Raises Refusal, Unreachable, OSError.
    """
    upload, offset = new_uuid(), 0
    for chunk in _chunks(file):
        encoded = base64.b64encode(chunk).decode("ascii")
        connection.call("PutBlob", {"upload": upload, "offset": offset, "base64": encoded})
        offset += len(chunk)
    kept = connection.call("PutBlob", {"upload": upload, "offset": offset, "base64": "", "done": True})
    return {"blob": kept["sha256"], "size": kept["size"]}


def content(connection: Connection, run: Mapping[str, Any], blob: str) -> Iterator[bytes]:
    """What the daemon keeps for an artifact of that run, in chunks. Raises NoSuchBlob."""
    for reply in connection.stream("GetBlob", {**run, "sha256": blob}):
        yield base64.b64decode(reply["base64"])


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while True:
        chunk = file.read(CHUNK_BYTES)
        if not chunk:
            return
        yield chunk
