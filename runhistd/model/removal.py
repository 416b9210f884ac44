"""Removing runs, and protecting them from being removed.

A deletion hides the run at once and for good, in one transaction that leaves a tombstone; its rows are cleared away
afterwards, some at a time, so that nobody waits for it. The tombstone refuses whoever still believes in the run: a writer
with its old lease, or a spool with its BeginRun. Another begin may take the name; its epoch is higher than any before.
"""

from __future__ import annotations

from msgspec import Struct

from .errors import InvalidParameter, RunLive

BY_REQUEST = "deleted"  # the rule of runs that somebody named
LIVE = frozenset({"pending", "running", "paused"})


class Delete(Struct, frozen=True):
    """A request to delete a run. `rule` says why, for whoever misses it. With `closed_us` it is left alone unless it is
    closed since then and not pinned: a decision that was made from what was read must still hold."""

    uid: int
    namespace: str
    run_id: str
    rule: str = BY_REQUEST
    closed_us: int | None = None


class Clear(Struct, frozen=True):
    """A request to clear away some rows of deleted runs, whoever they belonged to."""

    uid: None = None

class Compact(Struct, frozen=True):
    """A request to drop some events of that kind from a run, if it is still closed since then and not pinned."""

    uid: int
    namespace: str
    run_id: str
    kind: str
    closed_us: int


class Pin(Struct, frozen=True):
    """A request to set or take away the mark that retention leaves the run alone."""

    uid: int
    namespace: str
    run_id: str
    pinned: bool


def check_deletable(status: str) -> None:
    """Refuse a run that somebody still works on, or waits for."""
    if status in LIVE:
        raise RunLive(status)


def check_directory(root: str | None, relative: str | None) -> None:
    """Refuse what cannot be a run's own directory: it must lie strictly below its root, by its name alone."""
    if (root is None) != (relative is None):
        raise InvalidParameter("run.root" if root is None else "run.dir")
    if root is None or relative is None:
        return
    if not root.startswith("/") or not root.strip("/") or "\0" in root or {".", ".."} & set(root.split("/")):
        raise InvalidParameter("run.root")
    if "\0" in relative or {"", ".", ".."} & set(relative.split("/")):  # "" is what an absolute path begins with
        raise InvalidParameter("run.dir")
