"""What the database knows of blobs: who has given which content, and which runs use it.

The files are the daemon's concern. A row is only made when its file is on the disk, and is gone before its file is: a row
never lacks its file. A blob that no run uses goes after UNUSED_US, which is the time that an uploader has to record the
artifact that uses it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import apsw
from msgspec import Struct

from ..model.artifacts import Artifact, DropBlob, KeepBlob
from ..model.decide import Accepted
from ..model.errors import NoSuchArtifact, NoSuchBlob, NoSuchRun
from ..model.views import ArtifactRow
from . import sql
from .heads import CachedRun

if TYPE_CHECKING:
    from collections.abc import Sequence

UNUSED_US = 3_600_000_000


class BlobKept(Struct, frozen=True):
    """The content may be used by artifacts now."""


class BlobDropped(Struct, frozen=True):
    """`unlink` is True when nobody has the content any more: then the file is to go."""

    unlink: bool


def keep(connection: apsw.Connection, request: KeepBlob, now_us: int) -> BlobKept:
    """Note that the user has given this content; again counts as new."""
    connection.execute(sql.KEEP_BLOB, (request.uid, request.sha256, request.size, now_us))
    return BlobKept()


def drop(connection: apsw.Connection, request: DropBlob, now_us: int) -> BlobDropped:
    """Forget content that is still unused."""
    connection.execute(sql.DROP_BLOB, (request.uid, request.sha256, now_us - UNUSED_US))
    if not connection.changes():
        return BlobDropped(False)
    return BlobDropped(connection.execute(sql.HOLDERS_OF_BLOB, (request.sha256,)).get == 0)


def check_uses(connection: apsw.Connection, uid: int, accepted: Sequence[Accepted]) -> None:
    """Refuse artifacts whose content the user has not given. Raises NoSuchBlob."""
    for new in accepted:
        if isinstance(new.payload, Artifact) and new.payload.blob is not None:
            if connection.execute(sql.FIND_BLOB, (uid, bytes.fromhex(new.payload.blob))).get is None:
                raise NoSuchBlob(new.payload.blob)


def note_use(connection: apsw.Connection, run: CachedRun, blob: str) -> None:
    """Note that the run uses the blob, inside the transaction that stores the artifact."""
    connection.execute(sql.USE_BLOB, (run.number, bytes.fromhex(blob)))


def size_of(connection: apsw.Connection, uid: int, namespace: str, run_id: str, sha256: str) -> int:
    """The size of a blob that this run uses. Raises NoSuchRun, NoSuchBlob."""
    run = connection.execute(sql.RUN_NUMBER, (uid, namespace, run_id)).get
    if run is None:
        raise NoSuchRun(namespace, run_id)
    row = connection.execute(sql.USED_BLOB, (uid, bytes.fromhex(sha256), run)).fetchone()
    if row is None:
        raise NoSuchBlob(sha256)
    (size,) = row
    assert isinstance(size, int)
    return size


def unused(connection: apsw.Connection, now_us: int) -> list[tuple[int, bytes]]:
    """Whose blobs may go."""
    rows = connection.execute(sql.UNUSED_BLOBS, (now_us - UNUSED_US,))
    return [(uid, sha256) for uid, sha256 in rows]


def known(connection: apsw.Connection) -> set[str]:
    """The names of all files that there must be."""
    return {row[0].hex() for row in connection.execute(sql.ALL_BLOBS)}


def artifacts(
    connection: apsw.Connection, uid: int, namespace: str, run_id: str, name: str | None, after_seq: int, limit: int
) -> tuple[list[ArtifactRow], int | None]:
    """One page of a run's artifacts in the order of recording, and the seq to go on behind. With `name` only the last of it.

    Paths are resolved against the run's root. Raises NoSuchRun, NoSuchArtifact.
    """
    run = connection.execute(sql.RUN_NUMBER, (uid, namespace, run_id)).get
    if run is None:
        raise NoSuchRun(namespace, run_id)
    if name is not None:
        row = connection.execute(sql.ARTIFACT_NAMED, {"run": run, "name": name}).fetchone()
        if row is None:
            raise NoSuchArtifact(run_id, name)
        return [ArtifactRow(*row)], None
    wanted = {"run": run, "after_seq": after_seq, "limit": limit + 1}
    rows = [ArtifactRow(*row) for row in connection.execute(sql.ARTIFACTS, wanted)]
    return rows[:limit], rows[limit - 1].seq if len(rows) > limit else None


def totals(connection: apsw.Connection) -> tuple[int, int]:
    """How many blobs there are, and their bytes."""
    ((count, size),) = connection.execute(sql.BLOB_TOTALS)
    return int(count), int(size)
