"""The tree of child runs that `runhist show` draws, against a real daemon."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from runhist.cli import tree
from runhist.connection import Connection
from runhist.paths import SocketChoice
from tests.client.cli.shells import run

if TYPE_CHECKING:
    from tests.conftest import Daemon

Begin = Callable[..., None]


@pytest.fixture
def connection(daemon: Daemon) -> Connection:
    return Connection.open(SocketChoice((daemon.start().socket,), "the test's own", True))


@pytest.fixture
def begin(connection: Connection) -> Begin:
    """begin(run_id, parent_run_id=…): a run."""

    numbers = itertools.count()

    def begin(run_id: str, **spec: Any) -> None:
        lease_key = f"00000000-0000-4000-8000-{next(numbers):012}"
        connection.call("BeginRun", {"run": {"run_id": run_id, **spec}, "lease_key": lease_key})

    return begin


def shown(daemon: Daemon, *arguments: str) -> str:
    done = run("show", *arguments, env=daemon.env)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def names(text: str) -> list[str]:
    """The first column of the tree, with its indentation."""
    lines = text.partition("CHILD RUN")[2].splitlines()[1:]
    return [line[: len(line) - len(line.lstrip())] + line.split()[0] for line in lines if line.startswith("  ")]


def test_child_runs_are_drawn_as_a_tree_in_the_order_in_which_they_began(daemon: Daemon, begin: Begin) -> None:
    begin("nightly", workflow="nightly")
    begin("fetch", parent_run_id="nightly", workflow="fetch", agent_id="me")
    begin("build", parent_run_id="nightly", workflow="build")
    begin("unpack", parent_run_id="fetch")
    begin("stranger")
    begin("foreign", parent_run_id="nightly", namespace="other")
    text = shown(daemon, "nightly")
    assert names(text) == ["  fetch", "    unpack", "  build"]
    line = next(line for line in text.splitlines() if " fetch" in line)
    assert "● running" in line and " me " in line and text.splitlines()[-1].startswith("next ")
    assert names(shown(daemon, "fetch")) == ["  unpack"] and "parent nightly" in shown(daemon, "fetch")
    assert "CHILD RUN" not in shown(daemon, "unpack")


def test_json_has_the_children_as_objects_of_the_wire(daemon: Daemon, begin: Begin) -> None:
    begin("top")
    begin("a", parent_run_id="top")
    begin("b", parent_run_id="a")
    told = json.loads(shown(daemon, "top", "--json"))
    assert [(child["run_id"], child["parent_run_id"]) for child in told["children"]] == [("a", "top"), ("b", "a")]
    assert told["more_children"] is False


def test_a_circle_of_parents_is_drawn_once(daemon: Daemon, begin: Begin) -> None:
    begin("a", parent_run_id="c")
    begin("b", parent_run_id="a")
    begin("c", parent_run_id="b")
    begin("self", parent_run_id="self")
    assert names(shown(daemon, "a")) == ["  b", "    c"]
    assert "CHILD RUN" not in shown(daemon, "self")


def test_a_tree_has_so_many_levels_and_says_when_there_are_others(daemon: Daemon, begin: Begin) -> None:
    for i in range(tree.MAX_DEPTH + 2):
        begin(f"run{i}", **({"parent_run_id": f"run{i - 1}"} if i else {}))
    text = shown(daemon, "run1")
    assert names(text) == ["  " * i + f"run{i + 1}" for i in range(1, tree.MAX_DEPTH + 1)]
    assert "not shown" not in text
    text = shown(daemon, "run0")
    assert names(text)[-2:] == ["  " * tree.MAX_DEPTH + f"run{tree.MAX_DEPTH}", "  …"] and "not shown" in text


def test_a_tree_has_so_many_runs_and_one_branch_does_not_take_the_room_of_its_siblings(
    daemon: Daemon, connection: Connection, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree, "MAX_RUNS", 5)
    begin("top")
    begin("a", parent_run_id="top")
    begin("b", parent_run_id="top")
    for i in range(5):
        begin(f"a{i}", parent_run_id="a")
    grown = tree.Tree(connection, {"run_id": "top", "namespace": "default"})
    assert [branch.run["run_id"] for branch in grown.branches] == ["a", "a2", "a3", "a4", "b"]
    assert grown.more
