"""What a run made, as an event's data: a file's path and measures, and its content if the daemon is to keep it."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, Iterable, Iterator, Mapping, Optional, Tuple, Union

from .connection import Connection
from .encoding import plain_text, present
from .ids import new_uuid
from .large import CHUNK_BYTES
from .protocol.errors import RunhistError

CHUNK_TIMEOUT_S = 10.0  # a daemon that lives may be busy with another's content
LAST_CHUNK_TIMEOUT_S = 60.0  # which is answered when all of it is on the disk


def gather(
    path: str, *, name: Optional[str], kind: Optional[str], digest: bool, keep: Optional[Callable[[], Connection]]
) -> Tuple[Dict[str, Any], Optional[Exception]]:
    """What is to be recorded of a file, and the fault if that is not all; over `keep` the daemon is given the content."""
    members: Dict[str, Any] = {"name": plain_text(name or path), "path": plain_text(path)}
    try:
        members = describe(path, name=name, kind=kind, digest=digest)
        if keep is not None:
            with Path(path).open("rb") as file, keep() as connection:
                members.update(put(connection, chunks_of(file)))
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
            for chunk in chunks_of(file):
                hashed.update(chunk)
        sha256 = hashed.hexdigest()
    return {
        "name": plain_text(name or absolute.name),
        "path": plain_text(str(absolute)),
        "size": found.st_size,
        "mtime_us": found.st_mtime_ns // 1000,
        **present(kind=kind, sha256=sha256),
    }


def put(connection: Connection, chunks: Iterable[bytes]) -> Dict[str, Any]:
    """Give the daemon content; `blob` and `size` of what it keeps. Raises Refusal, Unreachable, and what `chunks` raises."""
    upload, offset = new_uuid(), 0
    for chunk in chunks:
        encoded = base64.b64encode(chunk).decode("ascii")
        asked = {"upload": upload, "offset": offset, "base64": encoded}
        connection.call("PutBlob", asked, timeout=CHUNK_TIMEOUT_S)
        offset += len(chunk)
    asked = {"upload": upload, "offset": offset, "base64": "", "done": True}
    kept = connection.call("PutBlob", asked, timeout=LAST_CHUNK_TIMEOUT_S)
    return {"blob": kept["sha256"], "size": kept["size"]}


def content(connection: Connection, run: Mapping[str, Any], blob: str) -> Iterator[bytes]:
    """What the daemon keeps for an artifact or an event of that run, in chunks.

    Raises NoSuchBlob, NoSuchRun, Unreachable.
    """
    for reply in connection.stream("GetBlob", {**run, "sha256": blob}, timeout=CHUNK_TIMEOUT_S):
        yield base64.b64decode(reply["base64"])


def chunks_of(file: BinaryIO) -> Iterator[bytes]:
    """The content of an open file. Raises OSError."""
    while True:
        chunk = file.read(CHUNK_BYTES)
        if not chunk:
            return
        yield chunk
