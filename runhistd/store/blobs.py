"""What the database knows of blobs: who has given which content, and which runs use it, for artifacts or as data.

The files are the daemon's concern. A row is only made when its file is on the disk, and is gone before its file is: a row
never lacks its file. A blob that no run uses goes after UNUSED_US, which is the time that an uploader has to record the
artifact or the event that uses it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import apsw
import msgspec
from msgspec import Struct

from ..model.artifacts import Artifact, DropBlob, KeepBlob
from ..model.errors import NoSuchArtifact, NoSuchBlob, NoSuchRun
from ..model.events import Accepted
from ..model.views import ArtifactRow
from . import sql
from .heads import CachedRun
from .names import run_number
from .paging import page_of
from .tally import Tally

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

UNUSED_US = 3_600_000_000


class BlobKept(Struct, frozen=True):
    """The content may be used now."""


class BlobDropped(Struct, frozen=True):
    """`unlink` is True when nobody has the content any more: then the file is to go."""

    unlink: bool


def keep(connection: apsw.Connection, tally: Tally, request: KeepBlob, now_us: int) -> BlobKept:
    """Note that the user has given this content; again counts as new. Raises QuotaExceeded."""
    if connection.execute(sql.FIND_BLOB, (request.uid, request.sha256)).get is None:
        tally.check_bytes(request.uid, request.size)
        tally.add(request.uid, 0, request.size)
    connection.execute(sql.KEEP_BLOB, (request.uid, request.sha256, request.size, now_us))
    return BlobKept()


def drop(connection: apsw.Connection, tally: Tally, request: DropBlob, now_us: int) -> BlobDropped:
    """Forget content that is still unused."""
    dropped: list[Any] = connection.execute(sql.DROP_BLOB, (request.uid, request.sha256, now_us - UNUSED_US)).fetchall()
    for (size,) in dropped:
        tally.add(request.uid, 0, -size)
    return BlobDropped(connection.execute(sql.HOLDERS_OF_BLOB, (request.sha256,)).get == 0)


def check_uses(connection: apsw.Connection, uid: int, accepted: Sequence[Accepted]) -> None:
    """Refuse artifacts and data whose content the user has not given, or not with this size. Raises NoSuchBlob."""
    for sha256, size in used_by(accepted):
        given = connection.execute(sql.FIND_BLOB, (uid, bytes.fromhex(sha256))).get
        if given is None or size not in (None, given):
            raise NoSuchBlob(sha256)


def used_by(accepted: Iterable[Accepted]) -> list[tuple[str, int | None]]:
    """The content that these events use: as an artifact, which need not tell its size, and as their data."""
    used: list[tuple[str, int | None]] = []
    for new in accepted:
        if isinstance(new.payload, Artifact) and new.payload.blob is not None:
            used.append((new.payload.blob, None))
        if new.event.data_blob is not None:
            used.append((new.event.data_blob.sha256, new.event.data_blob.size))
    return used


def note_use(connection: apsw.Connection, run: CachedRun, blob: str) -> None:
    """Note that the run uses the blob, inside the transaction that stores the event."""
    connection.execute(sql.USE_BLOB, (run.number, bytes.fromhex(blob)))


def end_uses(connection: apsw.Connection, run: CachedRun, dropped: list[bytes]) -> None:
    """Note that events with that data are gone, inside the transaction that drops them."""
    if dropped:
        names = msgspec.json.encode([sha256.hex() for sha256 in dropped]).decode()
        connection.execute(sql.END_BLOB_USES, {"run": run.number, "blobs": names})


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


def is_given(connection: apsw.Connection, uid: int, sha256: str) -> bool:
    """Whether the user has given that content."""
    return connection.execute(sql.FIND_BLOB, (uid, bytes.fromhex(sha256))).get is not None


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
    run = run_number(connection, (uid, namespace, run_id))
    if name is not None:
        row = connection.execute(sql.ARTIFACT_NAMED, {"run": run, "name": name}).fetchone()
        if row is None:
            raise NoSuchArtifact(run_id, name)
        return [ArtifactRow(*row)], None
    wanted = {"run": run, "after_seq": after_seq, "limit": limit + 1}
    rows, more = page_of(connection.execute(sql.ARTIFACTS, wanted).fetchall(), limit)
    found = [ArtifactRow(*row) for row in rows]
    return found, found[-1].seq if more else None


def totals(connection: apsw.Connection) -> tuple[int, int]:
    """How many blobs there are, and their bytes."""
    ((count, size),) = connection.execute(sql.BLOB_TOTALS)
    return int(count), int(size)
