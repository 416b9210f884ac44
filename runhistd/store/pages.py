"""Reading a SQLite file page by page, without SQLite: for one that it cannot make sense of any more.

Only leaf pages are looked at. They hold all rows, and each can be read without any other page but those that a long row
overflows into; so one damaged page costs its own rows, whatever it was the parent of. The write-ahead log is laid over the
file as far as its checksums hold, up to its last commit. Pages that the file says are free are left out, as what is in
them was deleted; where the page that says so is damaged itself, they are taken.

The format: https://www.sqlite.org/fileformat2.html. Our files have pages of 4096 bytes, nothing reserved in them, UTF-8
text, and pointer maps (auto_vacuum).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

PAGE_BYTES = 4096
TABLE_LEAF, INDEX_LEAF = 13, 10
POINTERS_A_MAP = PAGE_BYTES // 5
FREE_PAGE = b"\x02\0\0\0\0"  # its type, and no parent
BTREE_TYPES = (2, 5, 10, 13)  # no overflow page begins so: it would have to continue on a page beyond 32 million
WAL_MAGIC = (0x377F0682, 0x377F0683)
MAX_ROW_BYTES = 64 * 1024 * 1024  # a longer one is not ours, but a damaged length
_INTEGER_BYTES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}

Value = int | float | str | bytes | None


@frozen
class Row:
    """A row of a table (or of one WITHOUT ROWID, then rowid is None)."""

    rowid: int | None
    columns: list[Value]


class Pages:
    """The pages of a database file with what its write-ahead log has newer. `unusable` counts what could not be read."""

    def __init__(self, database: Path) -> None:
        self._file = database.open("rb")
        wal = database.with_name(f"{database.name}-wal")
        self._wal = wal.open("rb") if wal.exists() else None
        self._newer: dict[int, int] = {}  # page number: where in the write-ahead log
        self.count = -(-database.stat().st_size // PAGE_BYTES)
        self.unusable = 0
        if self._wal is not None:
            self._read_wal(self._wal.read(32))

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._wal is not None:
            self._wal.close()

    def page(self, number: int) -> bytes:
        """The newest content of a page, filled up with zeroes where the file ends in it."""
        if number in self._newer and self._wal is not None:
            self._wal.seek(self._newer[number])
            return self._wal.read(PAGE_BYTES)
        self._file.seek((number - 1) * PAGE_BYTES)
        return self._file.read(PAGE_BYTES).ljust(PAGE_BYTES, b"\0")

    def rows(self, number: int) -> Iterator[Row]:
        """The rows of a leaf page; none of another one. What is damaged in it is left out and counted."""
        if self._is_free(number):
            return
        page = self.page(number)
        start = 100 if number == 1 else 0
        if page[start] not in BTREE_TYPES and page[start] != 0:
            self.unusable += not self._is_map(number)
        if page[start] not in (TABLE_LEAF, INDEX_LEAF):
            return
        (count,) = struct.unpack_from(">H", page, start + 3)
        for i in range(min(count, (PAGE_BYTES - start - 8) // 2)):
            (at,) = struct.unpack_from(">H", page, start + 8 + 2 * i)
            try:
                yield self._row(page, at, in_table=page[start] == TABLE_LEAF)
            except (ValueError, IndexError, struct.error):
                self.unusable += 1

    def _is_map(self, number: int) -> bool:
        return number >= 2 and (number - 2) % (POINTERS_A_MAP + 1) == 0

    def _is_free(self, number: int) -> bool:
        """Whether the pointer map says so; an entry that could not be one says nothing."""
        if number < 2 or self._is_map(number):
            return False
        map_page = (number - 2) // (POINTERS_A_MAP + 1) * (POINTERS_A_MAP + 1) + 2
        at = 5 * (number - map_page - 1)
        return self.page(map_page)[at : at + 5] == FREE_PAGE

    def _row(self, page: bytes, at: int, *, in_table: bool) -> Row:
        size, at = varint(page, at)
        rowid = None
        if in_table:
            rowid, at = varint(page, at)
        return Row(rowid, record(self._payload(page, at, size, in_table=in_table)))

    def _payload(self, page: bytes, at: int, size: int, *, in_table: bool) -> bytes:
        if size > MAX_ROW_BYTES:
            raise ValueError("too long")
        most = PAGE_BYTES - 35 if in_table else (PAGE_BYTES - 12) * 64 // 255 - 23
        least = (PAGE_BYTES - 12) * 32 // 255 - 23
        if size <= most:
            return self._cut(page, at, size)
        here = least + (size - least) % (PAGE_BYTES - 4)
        here = here if here <= most else least
        parts = [self._cut(page, at, here)]
        left = size - here
        (following,) = struct.unpack_from(">I", page, at + here)
        while left > 0:
            if not 0 < following <= max(self.count, *self._newer, 0):
                raise ValueError("the rest is lost")
            overflow = self.page(following)
            (following,) = struct.unpack_from(">I", overflow)
            parts.append(overflow[4 : 4 + left])
            left -= len(parts[-1])
        return b"".join(parts)

    def _cut(self, page: bytes, at: int, size: int) -> bytes:
        if at + size > PAGE_BYTES:
            raise ValueError("beyond the page")
        return page[at : at + size]

    def _read_wal(self, header: bytes) -> None:
        """Find the newest committed frame of each page (section 4 of the format)."""
        if self._wal is None or len(header) < 32:
            return
        magic, _, page_bytes, _ = struct.unpack_from(">4I", header)
        if magic not in WAL_MAGIC or page_bytes != PAGE_BYTES:
            self.unusable += 1
            return
        order = ">" if magic & 1 else "<"
        salt, sums = header[16:24], checksum(header[:24], (0, 0), order)
        waiting: dict[int, int] = {}
        while len(frame := self._wal.read(24 + PAGE_BYTES)) == 24 + PAGE_BYTES:
            number, committed = struct.unpack_from(">2I", frame)
            sums = checksum(frame[24:], checksum(frame[:8], sums, order), order)
            if frame[8:16] != salt or struct.unpack_from(">2I", frame, 16) != sums:
                break  # what lies behind belongs to an older log, or is damaged
            waiting[number] = self._wal.tell() - PAGE_BYTES
            if committed:
                self._newer.update(waiting)
                self.count = max(self.count, committed)
                waiting.clear()


def checksum(content: bytes, sums: tuple[int, int], order: str) -> tuple[int, int]:
    """The running checksum of a write-ahead log."""
    one, two = sums
    words = struct.unpack(f"{order}{len(content) // 4}I", content)
    for i in range(0, len(words), 2):
        one = (one + words[i] + two) & 0xFFFFFFFF
        two = (two + words[i + 1] + one) & 0xFFFFFFFF
    return one, two


def varint(content: bytes, at: int) -> tuple[int, int]:
    """A number of 1 to 9 bytes, and where it ends."""
    value = 0
    for i in range(8):
        byte = content[at + i]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + i + 1
    value = value << 8 | content[at + 8]
    return value - (1 << 64) if value >= 1 << 63 else value, at + 9


def record(payload: bytes) -> list[Value]:
    """The columns of a row. Raises ValueError where the bytes are none."""
    header_bytes, at = varint(payload, 0)
    serials = []
    while at < header_bytes:
        serial, at = varint(payload, at)
        serials.append(serial)
    if at != header_bytes:
        raise ValueError("no header")
    columns = []
    for serial in serials:
        value, size = _value(payload, at, serial)
        at += size
        columns.append(value)
    if at != len(payload):
        raise ValueError("of another length")
    return columns


def _value(payload: bytes, at: int, serial: int) -> tuple[Value, int]:
    if serial == 0:
        return None, 0
    if serial in _INTEGER_BYTES:
        size = _INTEGER_BYTES[serial]
        return int.from_bytes(payload[at : at + size], "big", signed=True), size
    if serial == 7:
        return float(struct.unpack_from(">d", payload, at)[0]), 8
    if serial in (8, 9):
        return serial - 8, 0
    if serial < 12:
        raise ValueError("of no known type")
    size = (serial - 12) // 2
    content = payload[at : at + size]
    if len(content) != size:
        raise ValueError("cut off")
    return (content.decode("utf-8") if serial % 2 else content), size
