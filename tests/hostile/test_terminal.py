"""Recorded text cannot drive a terminal: every command shows it escaped, whatever member it was recorded in."""

from __future__ import annotations

import io
import sys
import unicodedata
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from runhist.cli import render
from runhist.cli.main import main
from tests.conftest import Daemon
from tests.hostile.peers import Peer, frame

# Clear the screen; a title; C1's CSI; overrides, marks and isolates of direction; a line of our own making; a bell.
SEQUENCES = "\x1b[2J\x1b]0;title\x07\x9b31m\x85\x7f\x08\x0c\u202e\u200f\u2066\u061c\u2028\u2029\r\nFORGED line\tend"
BIDI = "evil\u202e\u200f\u061c\u2066\u2028"  # what a name may hold of it
TURNING = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
NAMESPACE = f"ns-{BIDI}"
RUN_ID = f"{BIDI}-run-one"


def hostile(member: str) -> str:
    return f"{member}{SEQUENCES}"[:250]


def events() -> list[dict[str, Any]]:
    """An event of every kind, each with all its texts."""
    named = {"step_id": hostile("step"), "attempt": 1}
    usage = {name: hostile(name) for name in ("model", "provider", "response_id")}
    return [
        {"type": "run.updated", "data": {name: hostile(name) for name in ("title", "current_step")}},
        {"type": "run.updated", "data": {name: {hostile("key"): hostile(name)} for name in ("metadata", "state", "output")}},
        {"type": "step.started", **named, "data": {"name": hostile("name"), "parent_step_id": hostile("parent")}},
        {"type": "output", **named, "data": {"text": hostile("out"), "stream": "stdout"}},
        {"type": "output", **named, "data": {"text": hostile("err"), "stream": "stderr", hostile("more"): 1}},
        {"type": "output", "data": {"text": {hostile("not"): hostile("text")}}},
        {"type": hostile("type"), "kind": "note", "key": hostile("key"), "data": {hostile("member"): hostile("value")}},
        {"type": "note", "data": {"nested": [{hostile("member"): [hostile("value")]}]}},
        {"type": "note", "data": {"large": hostile("large") + "x" * 200_000}},
        {"type": "usage", **named, "usage": {**usage, "input_tokens": 1}},
        {"type": "checkpoint", "data": {hostile("state"): hostile("value")}},
        {"type": "artifact", "data": {"name": hostile("file"), "path": "/tmp/" + hostile("path"), "kind": hostile("kind")}},
        {"type": "step.retrying", **named, "data": {"error": hostile("error"), "reason": hostile("reason")}},
        {"type": "step.started", "step_id": hostile("open"), "data": {"name": hostile("open")}},
    ]


@pytest.fixture(scope="module")
def served(make_served: Callable[[str], Daemon]) -> Daemon:
    return make_served("[retention]\nmax_runs_per_agent = 1\n")  # so that there is something to forget


@pytest.fixture(scope="module")
def recorded(served: Daemon) -> Daemon:
    """A failed run, its paused child, and a third one that shares its beginning, all with texts of that sort."""
    with Peer(served.socket) as peer:
        for run_id, end in (
            (RUN_ID, {"type": "run.failed", "data": {"error": hostile("error"), "reason": hostile("reason")}}),
            (f"{BIDI}-run-two", {"type": "run.paused", "data": {"name": hostile("gate"), "prompt": hostile("prompt")}}),
            (f"{BIDI}-run-three", {"type": "run.cancelled", "data": {"reason": hostile("reason")}}),
        ):
            names = {name: hostile(name) for name in ("workflow", "agent_id", "team_id", "team_run_id", "title")}
            run = {"namespace": NAMESPACE, "run_id": run_id, **names, "metadata": {hostile("key"): hostile("value")}}
            run["parent_run_id"] = hostile("parent") if run_id == RUN_ID else RUN_ID
            begun = peer.ask(frame("BeginRun", {"run": run, "lease_key": str(uuid4())}))
            assert begun is not None and "error" not in begun, begun
            name = {"namespace": NAMESPACE, "run_id": run_id, "epoch": begun["parameters"]["epoch"]}
            call = frame("Append", {**name, "writer": str(uuid4()), "first_n": 1, "events": [*events(), end]})
            stored = peer.ask(call)
            assert stored is not None and "error" not in stored, stored
    return served


COMMANDS = [
    ["list"],
    ["list", "--status", "failed"],
    ["list", "-q"],
    ["list", "--json"],
    ["list", "--agent", hostile("nobody")],
    ["show", RUN_ID],
    ["show", RUN_ID, "--json"],
    ["show", f"{BIDI}-run-two"],
    ["show", "evil"],
    ["show", hostile("nobody")],
    ["show", "@" + hostile("nobody")],
    ["logs", RUN_ID],
    ["logs", RUN_ID, "--json"],
    ["logs", "-f", RUN_ID],
    ["logs", RUN_ID, "--type", hostile("no such type")],
    ["wait", RUN_ID, f"{BIDI}-run-three"],
    ["wait", RUN_ID, "--json"],
    ["artifacts", RUN_ID],
    ["artifacts", RUN_ID, "--json"],
    ["artifact", "get", RUN_ID, hostile("file")],
    ["artifact", "get", RUN_ID, hostile("no such file")],
    ["pin", RUN_ID],
    ["unpin", RUN_ID],
    ["gc", "--dry-run"],
    ["gc", "--dry-run", "--json"],
    ["status"],
    ["status", "--json"],
    ["status", "--spool"],
    ["resume", RUN_ID, "--answer", "1"],
    ["resume", f"{BIDI}-run-two", "--answer", "1"],
    ["append", hostile("type"), "--run", RUN_ID, "--text", hostile("text")],
    ["append", "note", "--data", hostile("no JSON")],
    ["end", RUN_ID],
    ["end", hostile("no such end")],
    ["rm", f"{BIDI}-run-two"],
    ["rm", hostile("nobody")],
    [hostile("no such command")],
    ["list", "--status", hostile("no such status")],
]


def harm(text: str) -> list[str]:
    """What in the text a terminal would act on, and lines that a recorded text has begun."""
    acts = [
        f"{char!r} in {text[max(0, at - 40) : at + 20]!r}"
        for at, char in enumerate(text)
        if char != "\n" and (unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or char in TURNING)
    ]
    return acts + [f"forged: {line!r}" for line in text.splitlines() if line.lstrip().startswith("FORGED")]


@pytest.fixture
def at_home(recorded: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process finds that daemon, and colours nothing."""
    for name in [name for name in recorded.env if name.startswith("RUNHIST")]:
        monkeypatch.setenv(name, recorded.env[name])
    monkeypatch.delenv("RUNHIST", raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))


@pytest.mark.parametrize("is_terminal", [False, True], ids=["through a pipe", "on a terminal"])
def test_every_command_shows_recorded_text_escaped(
    at_home: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_terminal: bool
) -> None:
    monkeypatch.setattr(render, "on_terminal", lambda: is_terminal)
    found = []
    told = 0
    for command in COMMANDS:
        try:
            main(command)
        except SystemExit:  # argparse
            pass
        shown = capsys.readouterr()
        told += "FORGED" in shown.out + shown.err or "evil" in shown.out + shown.err
        found += [f"{command}: {fault}" for fault in harm(shown.out) + harm(shown.err)]
    assert not found, "\n".join(found[:30])
    assert told >= len(COMMANDS) // 2


def test_runs_that_a_name_may_mean_stand_on_lines_of_their_own(at_home: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "evil"]) == 2
    first, *lines = capsys.readouterr().err.splitlines()
    assert first == "runhist: evil may mean:"
    assert len(lines) == 3 and all(line.startswith("  evil\\u202e") for line in lines)
