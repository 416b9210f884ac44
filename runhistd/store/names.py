"""From the name of a run to its number."""

from __future__ import annotations

import apsw

from ..model.errors import NoSuchRun
from . import sql
from .heads import Name


def find_number(connection: apsw.Connection, name: Name) -> int | None:
    """The number of the run, None when there is none."""
    row = connection.execute(sql.RUN_NUMBER, name).fetchone()
    return row[0] if row else None


def run_number(connection: apsw.Connection, name: Name) -> int:
    """The number of the run. Raises NoSuchRun."""
    number = find_number(connection, name)
    if number is None:
        raise NoSuchRun(name[1], name[2])
    return number
