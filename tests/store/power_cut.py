"""What a disk may hold after the power failed: a file layer that remembers every write and sync, and makes such disks.

What was written before a file's last sync is there. Of what was written since, any 512-byte sector may have reached the
disk and any other not, in whatever order they were sent; a file that was removed may still be there, as it was.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
from attrs import define, field

SECTOR_BYTES = 512


@define
class Disk:
    """One file: what is certainly on the disk, and what may be."""

    durable: bytes = b""
    there: bool = True
    unsynced: list[tuple[str, int, bytes]] = field(factory=list)

    def do(self, operation: str, at: int, data: bytes) -> None:
        """Take in an operation."""
        self.unsynced.append((operation, at, data))
        if operation == "sync":
            self.settle(lambda: True)

    def settle(self, survives: Any) -> None:
        """Make everything durable for which `survives()` is true, in order."""
        content, there = bytearray(self.durable), self.there
        for operation, at, data in self.unsynced:
            if operation == "write":
                there = True
                for start, sector in _sectors(at, data):
                    if survives():
                        content.extend(bytes(max(0, start - len(content))))
                        content[start : start + len(sector)] = sector
            elif operation == "truncate" and survives():
                del content[at:]
            elif operation == "delete" and survives():
                content, there = bytearray(), False
        self.durable, self.there, self.unsynced = bytes(content), there, []


def _sectors(at: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    start = 0
    while start < len(data):
        end = min(len(data), start + SECTOR_BYTES - (at + start) % SECTOR_BYTES)
        yield at + start, data[start:end]
        start = end


class Recorder(apsw.VFS):
    """SQLite's files as ever, with a record of what was done to them. Reached through `recording`."""

    def __init__(self) -> None:
        self.operations: list[tuple[str, str, int, bytes]] = []  # operation, file name, place, bytes
        self.real = apsw.vfs_names()[0]
        super().__init__("power-cut", self.real, makedefault=True)

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> _File:
        return _File(self, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        super().xDelete(filename, syncdir)
        self.operations.append(("delete", Path(filename).name, 0, b""))
        if syncdir:
            self.operations.append(("sync", Path(filename).name, 0, b""))


class _File(apsw.VFSFile):
    def __init__(self, recorder: Recorder, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        self._operations = recorder.operations
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._name = Path(path or "").name
        super().__init__(recorder.real, name, flags)

    def xLock(self, level: int) -> None:
        try:
            super().xLock(level)
        except apsw.IOError as error:  # a read-only file cannot be locked for writing; SQLite itself only shrugs at that
            raise apsw.BusyError from error

    def xWrite(self, data: bytes, offset: int) -> None:
        super().xWrite(data, offset)
        self._operations.append(("write", self._name, offset, bytes(data)))

    def xTruncate(self, newsize: int) -> None:
        super().xTruncate(newsize)
        self._operations.append(("truncate", self._name, newsize, b""))

    def xSync(self, flags: int) -> None:
        super().xSync(flags)
        self._operations.append(("sync", self._name, 0, b""))


@contextmanager
def recording() -> Iterator[Recorder]:
    """Everything that SQLite writes in the block is recorded, whoever opens the database."""
    before = apsw.vfs_names()[0]
    recorder = Recorder()
    try:
        yield recorder
    finally:
        recorder.unregister()
        assert apsw.vfs_names()[0] == before


def disks_after(
    start: dict[str, bytes], operations: list[tuple[str, str, int, bytes]], seed: int
) -> Iterator[list[dict[str, bytes]]]:
    """After each operation, what a disk may hold: only what was synced, everything, and some of what was not.

    `start` is what it held, synced, before the first one. A file that is not there is left out.
    """
    files = {name: Disk(content) for name, content in start.items()}
    dice = random.Random(seed)
    for operation, name, at, data in operations:
        files.setdefault(name, Disk(there=False)).do(operation, at, data)
        yield [_materialised(files, survives) for survives in (_never, _always, lambda: dice.random() < 0.5)]


def _never() -> bool:
    return False


def _always() -> bool:
    return True


def _materialised(files: dict[str, Disk], survives: Any) -> dict[str, bytes]:
    held: dict[str, bytes] = {}
    for name, disk in files.items():
        copy = Disk(disk.durable, disk.there, list(disk.unsynced))
        copy.settle(survives)
        if copy.there:
            held[name] = copy.durable
    return held
