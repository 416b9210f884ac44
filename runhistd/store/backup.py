"""A copy of a history that somebody writes to meanwhile: the database and the content of its blobs, of one moment.

The database is copied by SQLite page by page inside one read transaction that is held from the first page to the last.
Without it every commit of the writer would start the copy anew, and under load it would never end. The price is that the
write-ahead log cannot be reset meanwhile; where it passes its bound the copy is given up, because recording goes before
copying. The content of blobs never changes under its name, so it only has to be kept from being removed (see `contents`).

What is made is not called history.db before it is whole and was read through once.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import apsw
from attrs import frozen

from . import sql
from .contents import BLOBS_NAME, keeping, path_of, sync_directory
from .database import PAGE_BYTES, open_reader, read_history
from .verify import Verdict, verify

STEP_PAGES = 256  # copied at once: about a millisecond, so that the bound of the log is looked at often
PARTIAL = ".partial"
FULL = (errno.ENOSPC, errno.EDQUOT)

Progress = Callable[[int, int], None]
Content = list[tuple[str, int]]
"""The names and sizes of blobs."""


class BackupFault(Exception):
    """No copy was made. The text says what to do."""


@frozen
class Backup:
    """What a copy holds: of which history, up to which position, how much, and what verifying it found."""

    instance_id: str
    position: int
    blobs: int
    bytes: int
    verdict: Verdict


def back_up(database: Path, directory: Path, *, wal_bytes: int, progress: Progress) -> Backup:
    """Copy the history at `database` into an empty directory; `progress(bytes, of)` is called as it goes.

    `wal_bytes` is how long the write-ahead log may get meanwhile. Raises BackupFault; what was copied is removed then.
    """
    open_empty(directory)
    name = directory / database.name
    partial = directory / f"{database.name}{PARTIAL}"
    blobs = database.parent / BLOBS_NAME
    try:
        with keeping(blobs):
            instance_id, position, contents = _copy_database(database, partial, wal_bytes, progress)
            size = partial.stat().st_size
            copy_contents(blobs, directory / BLOBS_NAME, contents, size, progress)
        verdict = verify(partial, lambda checked, of: None)
        partial.rename(name)
        sync_directory(directory)
    except BaseException as error:
        clear(directory, partial)
        if isinstance(error, OSError | apsw.Error):
            raise BackupFault(f"no copy was made: {explain(error, database)}") from error
        raise
    return Backup(instance_id, position, len(contents), size + sum(size for _, size in contents), verdict)


def explain(error: OSError | apsw.Error, database: Path) -> str:
    """What a fault of the storage means, with the next step."""
    if isinstance(error, apsw.FullError) or (isinstance(error, OSError) and error.errno in FULL):
        return "the disk is full"
    if isinstance(error, apsw.CorruptError | apsw.NotADBError):
        return f"{database} is damaged ({error}); `runhistd recover --help` tells how what can be read is saved"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def open_empty(directory: Path) -> None:
    """Make the directory where it is missing. Raises BackupFault when there is something in it."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = next(directory.iterdir(), None)
    except OSError as error:
        raise BackupFault(f"{directory} cannot be used: {error.strerror}; name a new directory") from error
    if found is not None:
        raise BackupFault(f"{directory} is not empty ({found.name} is in it); name a new directory")


def _copy_database(database: Path, target: Path, wal_bytes: int, progress: Progress) -> tuple[str, int, Content]:
    """Copy the database of one moment; its identity, head and blobs."""
    source = open_reader(database)
    try:
        source.execute("BEGIN")
        instance_id, counters = read_history(source)
        contents = [(sha256.hex(), size) for sha256, size in source.execute(sql.VERIFY_BLOBS)]
        content_bytes = sum(size for _, size in contents)
        copy = apsw.Connection(str(target))
        try:
            with copy.backup("main", source, "main") as pages:
                while not pages.done:
                    pages.step(STEP_PAGES)
                    done = pages.page_count - pages.remaining
                    progress(done * PAGE_BYTES, pages.page_count * PAGE_BYTES + content_bytes)
                    _check_wal(database, wal_bytes)
            copy.pragma("journal_mode", "DELETE")  # so that the file stands alone, on a medium that is only read too
        finally:
            copy.close()
    finally:
        source.close()
    return instance_id, counters.position, contents


def _check_wal(database: Path, wal_bytes: int) -> None:
    wal = database.with_name(f"{database.name}-wal")
    size = wal.stat().st_size if wal.exists() else 0
    if size > wal_bytes:
        raise BackupFault(
            f"given up: the write-ahead log grew to {size:,} bytes while the copy was made, and it must not grow without "
            "bound; try again when less is recorded, write to a faster disk, or raise limits.wal_bytes in the settings"
        )


def copy_contents(source: Path, target: Path, contents: Content, begun: int, progress: Progress) -> None:
    """Copy the content of blobs, synced; `begun` bytes were copied before. What is missing is left out: `verify` tells."""
    target.mkdir(mode=0o700, exist_ok=True)
    of = begun + sum(size for _, size in contents)
    for sha256, size in contents:
        found, copy = path_of(source, sha256), path_of(target, sha256)
        copy.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            with found.open("rb") as reader, copy.open("xb") as writer:
                shutil.copyfileobj(reader, writer, 1024 * 1024)
                writer.flush()
                os.fsync(writer.fileno())
        except FileNotFoundError:
            continue
        begun += size
        progress(begun, of)
    for directory in {path_of(target, sha256).parent for sha256, _ in contents}:
        sync_directory(directory)
    sync_directory(target)


def clear(directory: Path, partial: Path) -> None:
    """Remove what an attempt left, and nothing else."""
    for path in partial.parent.glob(f"{partial.name}*"):
        path.unlink(missing_ok=True)
    shutil.rmtree(directory / BLOBS_NAME, ignore_errors=True)
