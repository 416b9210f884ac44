"""Opening the database: settings, the schema's version, and the end of recovery.

`synchronous=FULL` in WAL mode makes every COMMIT return only after its frames are synced. SQLite's automatic checkpoint
is off, because it hides errors; the daemon checkpoints itself. A database of a newer version is recognised through a
read-only connection and left untouched: opening it for writing would already rewrite its WAL.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import apsw
from msgspec import Struct

from . import sql
from .contents import sync_directory

SCHEMA_VERSION = 7
PAGE_BYTES = 4096
CACHE_KIB = 16 * 1024  # pages of live runs' index leaves; the daemon stays under 60 MB idle
LOOK_STEPS = 20_000  # of SQLite's machine, between two looks whether a read may go on: about a millisecond
BUSY_TIMEOUT_MS = 2000  # the only other writer could be a person with a SQLite shell

Reader = apsw.Connection  # for those who hand a connection from one function of the store to another, and no more


class NewerSchema(Exception):
    """The database was written by a newer runhistd; it was not touched."""

    def __init__(self, found: int) -> None:
        super().__init__(
            f"the database has schema {found} and this runhistd knows up to {SCHEMA_VERSION}; install a newer runhistd"
        )
        self.found = found


class DamagedDatabase(Exception):
    """SQLite cannot make sense of the file; it was left as it is."""


class StorageFault(Exception):
    """Reading or writing the database failed. What was being committed may or may not be on the disk: nobody may be
    answered, and the process must end and read afresh what is there."""


class DiskFull(StorageFault):
    """There is no room to open the database; nothing is wrong with it."""


class ReadCutOff(Exception):
    """A read went on for longer than it may, and was ended."""


class Counters(Struct):
    """The numbers that only grow: the newest position, epoch and run."""

    position: int
    epoch: int
    run: int


def schema_text() -> str:
    """The statements that make the tables of the current version."""
    return resources.files(__package__).joinpath("schema.sql").read_text(encoding="utf-8")


def migration_text(version: int) -> str:
    """The statements that make the tables of `version` from those of the version before."""
    return resources.files(__package__).joinpath("migrations", f"{version}.sql").read_text(encoding="utf-8")


def open_writer(database: Path) -> apsw.Connection:
    """The one connection that writes: made or migrated if needed, recovered, and checkpointed down to the disk.

    Raises NewerSchema, DamagedDatabase, StorageFault.
    """
    try:
        if database.exists() and database.stat().st_size > 0:
            _refuse_newer(database)
        connection = apsw.Connection(str(database))
        try:
            _configure(connection)
            _migrate(connection)
            _check_readable(connection)
            # A duplicate's receipt must rest on the disk, not on what a killed predecessor left in the page cache.
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        except BaseException:
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            connection.close()
            raise
        sync_directory(database.parent)
    except (apsw.CorruptError, apsw.NotADBError) as error:
        raise DamagedDatabase(str(error)) from error
    except (apsw.IOError, apsw.ReadOnlyError, apsw.CantOpenError, apsw.FullError) as error:
        if is_full(error):
            raise DiskFull(f"cannot open {database}: the disk is full; make some room and start again") from error
        raise StorageFault(f"cannot open {database}: {error}") from error
    return connection


def open_reader(database: Path, busy_ms: int = BUSY_TIMEOUT_MS) -> apsw.Connection:
    """A read-only connection, for one thread at a time. It waits so long for a lock that another program has."""
    connection = apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READONLY)
    connection.set_busy_timeout(busy_ms)
    connection.execute("PRAGMA query_only = 1")
    return connection


def is_full(error: apsw.Error) -> bool:
    """Whether a fault only says that there is no room: for the file, or for the index of the write-ahead log."""
    return isinstance(error, apsw.FullError) or getattr(error, "extendedresult", None) == apsw.SQLITE_IOERR_SHMSIZE


@contextmanager
def snapshot(connection: apsw.Connection) -> Iterator[None]:
    """One read transaction: everything read inside belongs to the same commit."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")


@contextmanager
def telling_damage() -> Iterator[None]:
    """Turn what SQLite says of a damaged file in the block into DamagedDatabase."""
    try:
        yield
    except (apsw.CorruptError, apsw.NotADBError) as error:
        raise DamagedDatabase(str(error)) from error


@contextmanager
def telling_cut_off() -> Iterator[None]:
    """The same, and turn an end by `end_reads`, or a lock that was not given in time, into ReadCutOff."""
    try:
        with telling_damage():
            yield
    except (apsw.InterruptError, apsw.BusyError) as error:
        raise ReadCutOff from error


def end_reads(connection: apsw.Connection, when: Callable[[], bool], steps: int) -> None:
    """End whatever the connection reads as soon as `when()`, asked every so many steps of SQLite's machine, says so."""
    connection.set_progress_handler(when, steps)


def read_history(connection: apsw.Connection) -> tuple[str, Counters]:
    """The instance_id, and the counters as they were committed last."""
    for instance_id, position, epoch, run in connection.execute(sql.READ_HISTORY):
        return instance_id, Counters(position, epoch, run)
    raise DamagedDatabase("the history has no identity")


def _refuse_newer(database: Path) -> None:
    reader = apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        found = int(reader.pragma("user_version"))
    finally:
        reader.close()
    if found > SCHEMA_VERSION:
        raise NewerSchema(found)


def _configure(connection: apsw.Connection) -> None:
    connection.set_busy_timeout(BUSY_TIMEOUT_MS)
    if connection.pragma("page_count") == 0:  # both only work before the first table
        connection.pragma("page_size", PAGE_BYTES)
        connection.pragma("auto_vacuum", "INCREMENTAL")
    if connection.pragma("journal_mode", "WAL") != "wal":
        raise StorageFault("the file system does not support SQLite's write-ahead log")
    connection.pragma("synchronous", "FULL")
    connection.pragma("fullfsync", 1)  # macOS: a plain fsync does not reach the platter
    connection.pragma("checkpoint_fullfsync", 1)
    connection.pragma("wal_autocheckpoint", 0)
    connection.pragma("cache_size", -CACHE_KIB)
    connection.pragma("temp_store", "MEMORY")


def _check_readable(connection: apsw.Connection) -> None:
    """Read what every history has, before a checkpoint writes over anything."""
    try:
        read_history(connection)
    except apsw.SQLError as error:  # the tables are not those that we have made
        raise DamagedDatabase(str(error)) from error


def _migrate(connection: apsw.Connection) -> None:
    """Bring the schema to SCHEMA_VERSION in one transaction; a new database gets all tables at once."""
    found = int(connection.pragma("user_version"))
    if found == SCHEMA_VERSION:
        return
    with connection:
        if found == 0:
            connection.execute(schema_text())
            connection.execute(sql.INSERT_HISTORY, (str(uuid.uuid4()),))
        for version in range(found + 1, SCHEMA_VERSION + 1) if found else ():
            connection.execute(migration_text(version))
        connection.pragma("user_version", SCHEMA_VERSION)
