"""The runs that a run began, and those that they began: what `runhist show` draws as a tree.

A parent is only a name that its child gave, so there may be circles, and trees of any depth and size. Looked at are so many
levels and runs as a person can read; `more` says that there are others.
"""

from __future__ import annotations

import time
from typing import Any, Dict, Iterator, List, NamedTuple, Set

from ..connection import Connection
from . import list as listed
from . import render

MAX_DEPTH = 8
MAX_RUNS = 100
TITLES = ("CHILD RUN", *listed.TITLES[1:])


class Branch(NamedTuple):
    """A run in the tree, and how deep it lies; 0 is a child of the run that is shown."""

    run: Dict[str, Any]
    depth: int


class Tree:
    """The runs below one run, each before its own children, and those in the order in which they began."""

    def __init__(self, connection: Connection, root: Dict[str, Any]) -> None:
        self.more = False
        self._connection = connection
        self._seen: Set[str] = {root["run_id"]}
        self._children: Dict[str, List[Dict[str, Any]]] = {}
        level = [root]
        for depth in range(MAX_DEPTH + 1):  # level by level, so that no branch takes the room of its siblings
            level = [child for parent in level for child in self._look(parent, depth)]
        self.branches = list(self._below(root, 0))

    def _look(self, parent: Dict[str, Any], depth: int) -> List[Dict[str, Any]]:
        room = MAX_RUNS + 1 - len(self._seen) if depth < MAX_DEPTH else 0
        asked = {"namespace": parent["namespace"], "parent_run_id": parent["run_id"], "limit": room + 1}
        found = self._connection.call("ListRuns", asked)["runs"]
        new = [child for child in found if child["run_id"] not in self._seen]
        self.more = self.more or len(new) > room
        self._seen.update(child["run_id"] for child in new[:room])
        return self._children.setdefault(parent["run_id"], new[:room][::-1])

    def _below(self, parent: Dict[str, Any], depth: int) -> Iterator[Branch]:
        for child in self._children.get(parent["run_id"], []):
            yield Branch(child, depth)
            yield from self._below(child, depth + 1)

    def text(self) -> str:
        """The tree as a table."""
        if not self.branches:
            return ""
        now_us = time.time_ns() // 1000
        rows = []
        for run, depth in self.branches:
            name, *cells = listed.row(run, now_us)
            rows.append(["  " * (depth + 1) + name, *cells])
        table = render.table(TITLES, rows, [run["status"] for run, _ in self.branches], right="COST")
        return table + ("  … and more child runs, which are not shown here\n" if self.more else "")

    def members(self) -> Dict[str, Any]:
        """The tree in JSON."""
        return {"children": [run for run, _ in self.branches], "more_children": self.more}
