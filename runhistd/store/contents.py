"""The directory that holds the content of blobs: where each lies, and who may remove some now.

The lock is the kernel's (flock) on the directory itself. Whoever removes content holds it alone, from before the row goes
until the file is gone; whoever copies the directory shares it with others, from before the rows are read. So a copy finds
every file that its rows name, and appends never wait for either.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BLOBS_NAME = "blobs"


def path_of(directory: Path, sha256: str) -> Path:
    """Where that content lies in a directory of blobs."""
    return directory / sha256[:2] / sha256


@contextmanager
def keeping(directory: Path) -> Iterator[None]:
    """Nothing is removed from the directory, made where it is missing, during the block. Waits for a removal to end."""
    descriptor = _open(directory)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def removing(directory: Path) -> Iterator[bool]:
    """Whether something may be removed during the block; False while somebody copies the directory."""
    descriptor = _open(directory)
    try:
        yield _take_alone(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(directory: Path) -> None:
    """Have the names in the directory on the disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open(directory: Path) -> int:
    directory.mkdir(mode=0o700, exist_ok=True)
    return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _take_alone(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
