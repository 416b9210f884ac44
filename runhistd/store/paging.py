"""Pages of a list: so many rows, and so much text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

PAGE_CHARS = 1024 * 1024  # as JSON they may take six times that, and a client takes replies of 16 MiB
NEWEST = 2**63 - 1  # beyond every run, seq and position

Row = tuple[Any, ...]


def page_of(rows: Sequence[Row], limit: int) -> tuple[Sequence[Row], bool]:
    """The rows up to the limit and PAGE_CHARS of text, at least one if there is one, and whether more follow."""
    room = PAGE_CHARS
    for i, row in enumerate(rows):
        room -= sum([len(column) for column in row if column.__class__ is str])  # a list is faster than a generator
        if i == limit or (i and room < 0):
            return rows[:i], True
    return rows, False
