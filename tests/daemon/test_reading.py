"""No read goes on for longer than it may, and whoever is cut off is told so."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw
import pytest
import trio

from runhistd.daemon import reading
from runhistd.daemon.reading import Readers
from runhistd.model.errors import Busy
from runhistd.store.database import open_writer, snapshot
from tests.acceptance.test_append import begin, connect, request

if TYPE_CHECKING:
    from tests.conftest import Daemon

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
LOCKING = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA locking_mode = EXCLUSIVE")
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""
BIG = {"type": "output", "data": {"text": "x" * 60_000}}


@pytest.fixture
def readers(tmp_path: Path) -> Iterator[Readers]:
    open_writer(tmp_path / "history.db").close()
    made = Readers(tmp_path / "history.db")
    yield made
    made.close()


def query(connection: apsw.Connection, statement: str) -> Any:
    return connection.execute(statement).get


async def test_a_read_that_is_cut_off_leaves_its_connection_as_it_was(
    readers: Readers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "AT_ONCE_STEPS", 1)
    monkeypatch.setattr(reading, "AT_ONCE_S", float("inf"))

    def cut_off_in_a_snapshot(connection: apsw.Connection) -> Any:
        with snapshot(connection):
            monkeypatch.setattr(reading, "AT_ONCE_S", -1.0)
            return connection.execute("SELECT 1").get

    assert await readers.read_page(cut_off_in_a_snapshot) == 1  # in a thread, after all
    assert readers._at_once is not None and not readers._at_once.connection.in_transaction
    assert readers._allowance._left_s < reading.BURST_S  # and its time counts


async def test_a_read_that_goes_on_for_too_long_is_busy_and_the_next_one_is_not(
    readers: Readers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "READ_S", 0.1)
    with pytest.raises(Busy) as caught:
        await readers.read(query, ENDLESS)
    assert caught.value.parameters == {"retry_after_us": reading.RETRY_AFTER_US}
    assert readers.cut_off == 1
    assert await readers.read(query, "SELECT 1") == 1


async def test_all_reads_are_ended_at_once_when_they_hold_up_the_log(readers: Readers) -> None:
    refused = []

    async def read() -> None:
        with pytest.raises(Busy) as caught:
            await readers.read(query, ENDLESS)
        refused.append(caught.value)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        nursery.start_soon(read)
        while len(refused) < 2:  # a thread may have begun only after the first call
            readers.end_all()
            await trio.sleep(0.01)
    assert await readers.read(query, "SELECT 1") == 1


async def test_a_page_is_read_on_the_loops_own_thread(readers: Readers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "AT_ONCE_S", float("inf"))

    def thread(connection: apsw.Connection) -> int:
        assert query(connection, "SELECT 1") == 1
        return threading.get_ident()

    assert await readers.read_page(thread) == threading.get_ident()
    assert await readers.read(thread) != threading.get_ident()


async def test_a_page_that_takes_longer_is_read_again_in_a_thread(
    readers: Readers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "AT_ONCE_S", -1.0)
    threads = []

    def count(connection: apsw.Connection) -> Any:
        threads.append(threading.get_ident())
        return query(connection, ENDLESS.replace("FROM n)", "FROM n LIMIT 1000)"))

    assert await readers.read_page(count) == 1000
    assert threads[0] == threading.get_ident() != threads[1]
    assert readers.cut_off == 0, "nobody was told to try again"


async def test_reads_have_no_more_than_a_share_of_the_loops_time(
    readers: Readers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "SHARE", 0.0)
    monkeypatch.setattr(reading, "BURST_S", 1e-9)
    here = [await readers.read_page(lambda connection: threading.get_ident()) == threading.get_ident() for _ in range(3)]
    assert here == [True, False, False]


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """The database for the block in the hands of a program that lets nobody else read."""
    command = [sys.executable, "-c", LOCKING, str(database)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as outside:
        assert outside.stdout is not None and outside.stdout.readline() == b"locked\n"
        yield
        outside.communicate()


async def test_whoever_another_program_locks_out_is_told_to_try_again(readers: Readers, tmp_path: Path) -> None:
    with locked(tmp_path / "history.db"), pytest.raises(Busy):
        await readers.read_page(query, "SELECT count(*) FROM runs")
    assert await readers.read_page(query, "SELECT count(*) FROM runs") == 0


def test_a_reader_outside_makes_the_log_grow_and_status_says_how_to_find_it(daemon: Daemon) -> None:
    daemon.config_file.write_text(f"[limits]\nwal_bytes = {1024 * 1024}\n")
    daemon.start()
    with connect(daemon) as connection, closing(sqlite3.connect(daemon.database, isolation_level=None)) as outside:
        epoch = begin(connection, "r")
        outside.execute("BEGIN")
        assert outside.execute("SELECT count(*) FROM runs").fetchone() == (1,)
        connection.call("Append", request("r", epoch, 1, *[BIG] * 80))
        connection.call("Append", request("r", epoch, 81, *[BIG] * 80))
        found = connection.call("GetStatus", {})
        commands = [trouble["command"] for trouble in found["troubles"]]
        assert f"fuser -v {daemon.database}-wal" in commands
        assert connection.call("GetRun", {"run_id": "r"})["run"]["last_seq"] == 161, "readers of ours go on"
