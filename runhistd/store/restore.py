"""Bringing a copy of a history back as a history of its own, and putting the one before it out of the way.

What was recorded after the copy was taken is not in it, though engines and followers were told that it is recorded. So a
restored history is another one, and none of them can take it for theirs:

- It draws a new instance_id: a cursor of a follower, and a spool file, of the one before are refused.
- Its epochs go on from the time in microseconds, beyond all that any history before it can have granted, also one that
  was restored from the same copy earlier: nobody's epoch from after the copy is good here.
- A run that was going on becomes incomplete (`restored`) under a new epoch. Its engine, which may have been told of events
  that are not here, is refused as StaleEpoch. Whoever goes on with the run claims it. Runs without a lease stay as they are,
  because their writers name every event by a key and can give them again.

Everything is made beside the history and takes its place in two renames, content first.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import apsw
from attrs import frozen

from ..model.lease import Fence
from . import sql
from .backup import PARTIAL, STEP_PAGES, BackupFault, Progress, copy_contents, explain
from .contents import BLOBS_NAME, sync_directory
from .database import PAGE_BYTES, SCHEMA_VERSION, DamagedDatabase, NewerSchema, StorageFault, open_reader, open_writer
from .log import EventLog
from .verify import Verdict, verify

STAGE_NAME = "restoring"  # in the state directory; what a killed restore left there is removed by the next
FENCED_AT_ONCE = 500  # runs in one transaction


@frozen
class Restored:
    """The history that is now in its place: its identity, what it holds, and which of its runs were going on."""

    instance_id: str
    verdict: Verdict
    fenced: list[tuple[str, str]]
    """Namespace and run_id."""


def history_files(state_dir: Path) -> list[Path]:
    """What a history consists of, as far as it is there."""
    names = ("history.db", "history.db-wal", "history.db-shm", "history.db-journal", BLOBS_NAME)
    return [path for path in (state_dir / name for name in names) if path.exists()]


def move_aside(state_dir: Path, why: str) -> Path:
    """Move the history, as it is, into a directory of its own beside it; returns that. Nothing in it is changed."""
    aside = state_dir / time.strftime(f"{why}-%Y%m%d-%H%M%S", time.gmtime())
    aside.mkdir(mode=0o700)
    for path in history_files(state_dir):
        path.rename(aside / path.name)
    sync_directory(aside)
    sync_directory(state_dir)
    return aside


def restore(source: Path, state_dir: Path, now_us: int, *, before: Callable[[], None], progress: Progress) -> Restored:
    """Put the copy in the directory `source` into the state directory, which the caller holds.

    `before` is called when everything is ready to take its place, to make room there. Raises BackupFault; then the state
    directory holds what it held.
    """
    with staging(source, state_dir, "nothing was restored", before) as stage:
        database = stage / "history.db"
        _copy_database(source, database, progress)
        instance_id, fenced = renew(database, now_us, "restored")
        _copy_contents(source, stage, database, progress)
        verdict = verify(database, lambda checked, of: None)
    return Restored(instance_id, verdict, fenced)


@contextlib.contextmanager
def staging(source: Path, state_dir: Path, failure: str, before: Callable[[], None]) -> Iterator[Path]:
    """An empty directory; what the block makes there out of `source` is the history afterwards, when `before` was called.

    Raises BackupFault, which begins with `failure`; then the state directory holds what it held.
    """
    stage = state_dir / STAGE_NAME
    try:
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(mode=0o700)
        yield stage
        before()
        for name in (BLOBS_NAME, "history.db"):  # content first, so that no row ever lacks its file
            (stage / name).rename(state_dir / name)
        sync_directory(state_dir)
    except (OSError, apsw.Error, DamagedDatabase, StorageFault, NewerSchema) as error:
        text = explain(error, source) if isinstance(error, OSError | apsw.Error) else str(error)
        raise BackupFault(f"{failure}: {text}") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _copy_database(source: Path, target: Path, progress: Progress) -> None:
    """Copy and check the database, by SQLite, which also takes what lies in a write-ahead log beside it."""
    found = source / "history.db"
    if not found.is_file():
        unfinished = (source / f"history.db{PARTIAL}").exists()
        hint = "; the backup into it was not finished" if unfinished else ""
        raise BackupFault(f"there is no history.db in {source}{hint}")
    connection = open_reader(found)
    try:
        version = int(connection.pragma("user_version"))
        if version > SCHEMA_VERSION:
            raise NewerSchema(version)
        if version < 1:
            raise BackupFault(f"{found} is no history")
        copied = apsw.Connection(str(target))
        try:
            with copied.backup("main", connection, "main") as pages:
                while not pages.done:
                    pages.step(STEP_PAGES)
                    progress((pages.page_count - pages.remaining) * PAGE_BYTES, pages.page_count * PAGE_BYTES)
            fault = copied.execute("PRAGMA integrity_check(1)").get
        finally:
            copied.close()
    finally:
        connection.close()
    if fault != "ok":
        raise BackupFault(f"{found} is damaged ({fault}); `runhistd recover {source}` saves what can be read")


def _copy_contents(source: Path, stage: Path, database: Path, progress: Progress) -> None:
    connection = open_reader(database)
    contents = [(sha256.hex(), size) for sha256, size in connection.execute(sql.VERIFY_BLOBS)]
    connection.close()
    copy_contents(source / BLOBS_NAME, stage / BLOBS_NAME, contents, database.stat().st_size, progress)


def renew(database: Path, now_us: int, reason: str) -> tuple[str, list[tuple[str, str]]]:
    """Make a history of its own of a copy: its new identity, and the runs that were going on in it, which are incomplete
    now for that reason."""
    instance_id = str(uuid4())
    connection = open_writer(database)
    with connection:
        connection.execute(sql.RENEW_HISTORY, (instance_id, now_us))
    owned: list[Any] = connection.execute(sql.OWNED_RUNS).fetchall()
    connection.close()
    log = EventLog.open(database)
    for start in range(0, len(owned), FENCED_AT_ONCE):
        log.apply([_fence(reason, *row) for row in owned[start : start + FENCED_AT_ONCE]], now_us)
    log.close()
    return instance_id, [(namespace, run_id) for _, namespace, run_id, _ in owned]


def _fence(reason: str, uid: int, namespace: str, run_id: str, owner_pid: int | None) -> Fence:
    evidence = json.dumps({"reason": reason, "pid": owner_pid})
    return Fence(uid, namespace, run_id, uuid4(), evidence.encode())
