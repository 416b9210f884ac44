"""Removing the directory that a run declared as its own, with this user's rights and no further than that directory.

The run's `dir` is walked down from its `root`, one name at a time, each opened relative to the one before and never
through a symbolic link; what is removed is removed relative to those descriptors. So it does not matter what anybody
swaps meanwhile: a link that appears on the way stops us, and links inside are removed as links.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import Iterator

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class NotRemovable(Exception):
    """The directory is not what may be removed; nothing was."""


def check(root: str, relative: str) -> bool:
    """Whether there is such a directory; False when it is gone already. Raises NotRemovable."""
    try:
        with _parent(root, relative) as (parent, name):
            return _inspect(parent, name)
    except FileNotFoundError:
        return False


def remove(root: str, relative: str) -> bool:
    """Remove it with all that is in it; False when it is gone already. Raises NotRemovable, and OSError halfway."""
    try:
        with _parent(root, relative) as (parent, name):
            if not _inspect(parent, name):
                return False
            _empty(parent, name)
            os.rmdir(name, dir_fd=parent)
            return True
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _parent(root: str, relative: str) -> Iterator["tuple[int, str]"]:
    """The open directory that holds the one meant, and that one's name."""
    names = relative.split("/")
    if not root.startswith("/") or "\0" in root + relative or {"", ".", ".."} & set(names):
        raise NotRemovable(f"{relative!r} does not lie below {root!r} by its name alone")
    above = [name for name in os.path.realpath(root).split("/") if name]
    if not above:
        raise NotRemovable("the root is the file system's own")
    with contextlib.ExitStack() as opened:
        at = os.open("/", _DIRECTORY)
        opened.callback(os.close, at)
        for name in (*above, *names[:-1]):
            try:
                at = os.open(name, _DIRECTORY, dir_fd=at)
            except FileNotFoundError:
                raise
            except OSError as error:
                raise NotRemovable(f"{name!r} on the way to {root}/{relative} is no plain directory") from error
            opened.callback(os.close, at)
        yield at, names[-1]


def _inspect(parent: int, name: str) -> bool:
    """Look through it before anything is removed. Raises NotRemovable, and FileNotFoundError."""
    found = os.stat(name, dir_fd=parent, follow_symlinks=False)
    if not stat.S_ISDIR(found.st_mode):
        raise NotRemovable(f"{name!r} is no plain directory")
    if found.st_dev != os.fstat(parent).st_dev:
        raise NotRemovable(f"another file system is mounted at {name!r}")
    for path, _, _, directory in os.fwalk(name, dir_fd=parent, onerror=_raise):
        if os.fstat(directory).st_dev != found.st_dev:
            raise NotRemovable(f"another file system is mounted at {path!r}")
    return True


def _empty(parent: int, name: str) -> None:
    for _, directories, files, inside in os.fwalk(name, topdown=False, dir_fd=parent, onerror=_raise):
        for file in files:
            os.unlink(file, dir_fd=inside)
        for directory in directories:
            if stat.S_ISLNK(os.stat(directory, dir_fd=inside, follow_symlinks=False).st_mode):
                os.unlink(directory, dir_fd=inside)
            else:
                os.rmdir(directory, dir_fd=inside)


def _raise(error: OSError) -> None:
    raise error
