"""PostgreSQL with its defaults (synchronous_commit on), spoken to through libpq with a prepared statement."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import REQUEST_EVENTS, event_text
from .child import Child

TITLE = "PostgreSQL"
WORKLOADS = frozenset({"one", "request"})
WITHIN_ONE = False
TABLE = "CREATE TABLE events (id bigserial PRIMARY KEY, run_id text, seq bigint, event text)"
INSERT = "INSERT INTO events (run_id, seq, event) VALUES "


def missing() -> str | None:
    """Why it cannot take part here."""
    if _programs() is None:
        return "postgres is not installed"
    if importlib.util.find_spec("psycopg") is None:
        return "psycopg is not installed (the extra `bench`)"
    return None


def _programs() -> Path | None:
    """Where initdb and postgres are, which Debian keeps out of PATH."""
    found = shutil.which("initdb")
    versions = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    return Path(found).parent if found else max(versions, default=None)


def _user() -> str | None:
    """Whom it runs as: it refuses to run as root."""
    if os.geteuid() != 0:
        return None
    return next((user.pw_name for user in pwd.getpwall() if user.pw_name == "postgres"), "nobody")


def start(directory: Path, env: Mapping[str, str]) -> Child:
    """A cluster of our own, at a Unix socket in the directory."""
    programs, user = _programs(), _user()
    assert programs is not None
    if user is not None:
        shutil.chown(directory, user)
    cluster = directory / "cluster"
    init = [str(programs / "initdb"), "-D", str(cluster), "-N", "-A", "trust", "-U", "bench", "--no-locale", "-E", "UTF8"]
    subprocess.run(init, check=True, stdout=subprocess.DEVNULL, user=user, cwd=directory)
    command = [str(programs / "postgres"), "-D", str(cluster), "-k", str(directory), "-c", "listen_addresses="]
    server = Child(command, env, directory / "log", signal.SIGQUIT, user)
    server.wait_until(lambda: _make_table(directory))
    return server


def _make_table(directory: Path) -> bool:
    psycopg = importlib.import_module("psycopg")
    try:
        with psycopg.connect(_address(directory), autocommit=True) as connection:
            connection.execute(TABLE)
    except psycopg.OperationalError:
        return False
    return True


def _address(directory: Path) -> str:
    return f"host={directory} user=bench dbname=postgres"


class Inserter:
    """A connection of its own, used through psycopg's thin layer over libpq: no cursor, no conversions."""

    window = 0

    def __init__(self, directory: Path, index: int) -> None:
        psycopg = importlib.import_module("psycopg")
        self._pq: Any = psycopg.pq.PGconn.connect(_address(directory).encode())
        self._stored = psycopg.pq.ExecStatus.COMMAND_OK
        self._run_id, self._seq = f"run-{index}".encode(), 0
        self._prepare(b"one", 1)
        self._prepare(b"request", REQUEST_EVENTS)

    def _prepare(self, name: bytes, rows: int) -> None:
        values = ",".join(f"(${3 * i + 1},${3 * i + 2},${3 * i + 3})" for i in range(rows))
        self._check(self._pq.prepare(name, (INSERT + values).encode()))

    def _check(self, result: Any) -> None:
        if result.status != self._stored:
            raise RuntimeError(result.error_message.decode())

    def _insert(self, name: bytes, rows: int) -> int:
        values: list[bytes] = []
        for _ in range(rows):
            self._seq += 1
            values += (self._run_id, b"%d" % self._seq, event_text(self._seq).encode())
        self._check(self._pq.exec_prepared(name, values))
        return rows

    def one(self) -> int:
        """A statement of one row."""
        return self._insert(b"one", 1)

    def request(self) -> int:
        """A statement of many rows."""
        return self._insert(b"request", REQUEST_EVENTS)

    def send(self, events: int) -> None:
        """A connection has one transaction at a time."""
        raise NotImplementedError

    def receive(self) -> int:
        """A connection has one transaction at a time."""
        raise NotImplementedError


def connect(directory: Path, index: int) -> Inserter:
    """A connection to the cluster in the directory."""
    return Inserter(directory, index)
