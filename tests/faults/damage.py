"""Damaging a database as a bad disk does, at a place of one's choice."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path

PAGE = 4096


def root_of(database: Path, name: str) -> int:
    """The number of the first page of a table or index."""
    with closing(sqlite3.connect(database)) as connection:
        return int(connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (name,)).fetchone()[0])


def flip(database: Path, page: int, *, start: int = 0, length: int = PAGE) -> None:
    """Write noise over a part of a page; the same each time."""
    with database.open("r+b") as file:
        file.seek((page - 1) * PAGE + start)
        file.write(random.Random(page).randbytes(length))


def page_with(database: Path, text: bytes) -> int:
    """The number of the first table leaf page (its first byte is 13) that holds the text."""
    content = database.read_bytes()
    for page in range(2, len(content) // PAGE + 1):
        held = content[(page - 1) * PAGE : page * PAGE]
        if held[0] == 13 and text in held:
            return page
    raise AssertionError(f"no page holds {text!r}")
