"""What a run made: a path, or content that the daemon keeps under its SHA-256.

An artifact is an event of that kind. Its name is the one it gives itself, else its path; of several with one name the last
counts. A relative path is meant below the run's root.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

MAX_INT = 2**63 - 1  # what the wire and SQLite take
Hash = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Artifact(Struct, frozen=True):
    """artifact: size in bytes, mtime_us of the file; `blob` is the SHA-256 of content that the daemon keeps."""

    name: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    path: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    kind: Annotated[str, Meta(max_length=255)] | None = None
    size: Annotated[int, Meta(ge=0, le=MAX_INT)] | None = None
    mtime_us: Annotated[int, Meta(ge=-MAX_INT, le=MAX_INT)] | None = None
    sha256: Hash | None = None
    blob: Hash | None = None


class DataBlob(Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """Content that the daemon keeps and that is the data of an event: its SHA-256, and its size in bytes."""

    sha256: Hash
    size: Annotated[int, Meta(ge=0, le=MAX_INT)]


class KeepBlob(Struct, frozen=True):
    """A request to remember content whose file is on the disk."""

    uid: int
    sha256: bytes
    size: int


class DropBlob(Struct, frozen=True):
    """A request to forget content that no run uses."""

    uid: int
    sha256: bytes
