"""Opening: settings, versions, and what is left untouched."""

from __future__ import annotations

import re
from pathlib import Path

import apsw
import pytest

from runhistd.model.errors import RunClosed
from runhistd.model.holder import Holder
from runhistd.store.database import (
    SCHEMA_VERSION,
    DamagedDatabase,
    NewerSchema,
    migration_text,
    open_reader,
    open_writer,
    schema_text,
)
from runhistd.store.log import EventLog
from tests.store.histories import History, append, event

SCHEMA_1 = Path(__file__).with_name("schema_1.sql")


def test_every_commit_is_synced_and_sqlite_never_checkpoints_by_itself(history: History) -> None:
    connection = history.log._connection
    settings = {
        name: connection.pragma(name) for name in ("journal_mode", "synchronous", "auto_vacuum", "wal_autocheckpoint")
    }
    assert settings == {"journal_mode": "wal", "synchronous": 2, "auto_vacuum": 2, "wal_autocheckpoint": 0}


def test_syncs_reach_the_platter_on_macos_too(history: History) -> None:
    connection = history.log._connection
    assert (connection.pragma("fullfsync"), connection.pragma("checkpoint_fullfsync")) == (1, 1)


def test_a_newer_database_is_refused_and_not_a_byte_of_it_changes(tmp_path: Path) -> None:
    database = tmp_path / "history.db"
    open_writer(database).close()
    newer = apsw.Connection(str(database))
    newer.pragma("user_version", SCHEMA_VERSION + 1)
    newer.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    newer.close()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if not path.name.endswith("-shm")}
    assert "history.db-wal" in before
    with pytest.raises(NewerSchema, match="newer runhistd"):
        EventLog.open(database)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if not path.name.endswith("-shm")} == before


def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    database = tmp_path / "history.db"
    database.write_bytes(b"not a database, " * 1000)
    with pytest.raises(DamagedDatabase):
        EventLog.open(database)
    assert database.read_bytes() == b"not a database, " * 1000


def test_opening_ends_recovery_with_an_empty_wal(history: History) -> None:
    epoch = history.begin("r")
    history.append("r", epoch, 1, event())
    wal = history.database.with_name("history.db-wal")
    assert wal.stat().st_size > 0
    history.reopen(clean=False)
    assert wal.stat().st_size == 0
    assert history.log.position == 2


def test_abandoning_leaves_the_wal_as_it_is(history: History) -> None:
    history.begin("r")
    wal = history.database.with_name("history.db-wal")
    before = wal.read_bytes()
    history.log.abandon()
    assert wal.read_bytes() == before
    history.log = EventLog.open(history.database)


def test_the_identity_is_drawn_once(history: History) -> None:
    first = history.log.instance_id
    history.reopen(clean=True)
    assert history.log.instance_id == first


def test_a_reader_cannot_write(history: History) -> None:
    history.begin("r")
    reader = open_reader(history.database)
    with pytest.raises(apsw.ReadOnlyError):
        reader.execute("DELETE FROM runs")
    reader.close()


def tables(schema: str, path: Path) -> set[tuple[str, str]]:
    connection = apsw.Connection(str(path))
    connection.execute(schema)
    found = {
        (name, re.sub(r"\s*([(),])\s*", r"\1", " ".join(sql.split())))
        for name, sql in connection.execute("SELECT name, sql FROM sqlite_schema WHERE sql NOT NULL")
    }
    connection.close()
    return found


def test_the_schema_equals_the_migrations_from_the_first_version(tmp_path: Path) -> None:
    """`schema_1.sql` is frozen: what version 1 was."""
    migrations = "".join(migration_text(version) for version in range(2, SCHEMA_VERSION + 1))
    old, new = tables(SCHEMA_1.read_text() + migrations, tmp_path / "old.db"), tables(schema_text(), tmp_path / "new.db")
    assert old == new


def test_a_database_of_the_first_version_is_migrated_with_what_it_holds(tmp_path: Path) -> None:
    database = tmp_path / "history.db"
    old = apsw.Connection(str(database))
    old.pragma("auto_vacuum", "INCREMENTAL")
    old.execute(SCHEMA_1.read_text())
    old.execute(RUNS_OF_SCHEMA_1)
    old.pragma("user_version", 1)
    old.close()
    history = History(database)
    assert [(held.run_id, held.holders) for held in history.log.held()] == [("live", frozenset({Holder(42)}))]
    history.append("live", 1, 1, event("run.completed"))
    assert isinstance(history.refused(append("ended", 2, 1, event())), RunClosed)
    assert history.differences() == []
    history.log.close()


RUNS_OF_SCHEMA_1 = """
INSERT INTO history VALUES (1, 'an instance', 3, 2, 2);
INSERT INTO runs VALUES (1, 1000, 'default', 'live', 'evil', x'00', 42, 'running', NULL, NULL, NULL, NULL, NULL, NULL, NULL,
  NULL, NULL, NULL, 1, 1, NULL, 5, NULL, 5, 5, NULL, 0, 0, 0, 0, 0, 0);
INSERT INTO runs VALUES (2, 1000, 'default', 'ended', 'dedne', x'01', 43, 'completed', NULL, NULL, NULL, NULL, NULL, NULL,
  NULL, NULL, NULL, NULL, 2, 2, NULL, 5, 6, 5, 6, 6, 0, 0, 0, 0, 0, 0);
INSERT INTO events (position, run, seq, epoch, type, kind, received_us, data) VALUES
  (1, 1, 1, 1, 'run.started', 'run.started', 5, '{"run_id":"live"}'),
  (2, 2, 1, 2, 'run.started', 'run.started', 5, '{"run_id":"ended"}'),
  (3, 2, 2, 2, 'run.completed', 'run.completed', 6, '{}');
"""
