"""Retention against a real daemon."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

import runhist
from runhist.connection import Connection
from runhist.paths import SocketChoice
from tests.client.cli.shells import run

if TYPE_CHECKING:
    from tests.conftest import Daemon

Wait = Callable[..., None]
DAY_US = 86_400_000_000
STRICT = "[retention]\nmax_runs_per_agent = 2\n"


class Runs:
    """Makes runs and looks at what is left of them."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.connection = Connection.open(SocketChoice((daemon.socket,), "a test", True))

    def closed(self, run_id: str, kind: str = "run.completed", size: int = 10, **spec: Any) -> None:
        lease_key = f"00000000-0000-4000-8000-{int.from_bytes(run_id.encode(), 'big') % 16**12:012x}"
        asked = {"run": {"run_id": run_id, **spec}, "lease_key": lease_key}
        epoch = self.connection.call("BeginRun", asked)["epoch"]
        events = [{"type": "note", "key": "n", "data": {"text": "x" * size}}, {"type": kind, "key": "end"}]
        self.connection.call("Append", {"run_id": run_id, "epoch": epoch, "events": events})

    def ids(self) -> set[str]:
        return {found["run_id"] for found in self.connection.call("ListRuns", {})["runs"]}

    def status(self) -> dict[str, Any]:
        return dict(self.connection.call("GetStatus", {})["retention"])

    def gc(self, *words: str) -> list[dict[str, Any]]:
        done = run("gc", "--json", *words, env=self.daemon.env)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]


@contextmanager
def started(daemon: Daemon, config: str) -> Iterator[Runs]:
    daemon.config_file.write_text(config)
    runs = Runs(daemon.start())
    yield runs
    runs.connection.close()


@pytest.fixture
def strict(daemon: Daemon) -> Iterator[Runs]:
    """A daemon that keeps two runs of an agent, and has done the pass of its start."""
    with started(daemon, STRICT) as runs:
        yield runs


def test_the_dry_run_tells_what_the_real_one_then_does(strict: Runs, wait_until: Wait) -> None:
    wait_until(lambda: strict.status()["last_us"], "the pass of the start is over")
    for i in range(5):
        strict.closed(f"run-{i}", agent_id="me")
    foretold = strict.gc("--dry-run")
    assert [(one["run_id"], one["rule"]) for one in foretold] == [(f"run-{i}", "max_runs_per_agent") for i in range(3)]
    assert all(one["size"] > 10 for one in foretold)
    assert len(strict.ids()) == 5
    assert strict.gc() == foretold
    assert strict.ids() == {"run-3", "run-4"}
    assert strict.gc() == []


def test_a_pass_is_made_at_the_start(strict: Runs, wait_until: Wait) -> None:
    wait_until(lambda: strict.status()["last_us"], "the pass of the start is over")
    for i in range(4):
        strict.closed(f"run-{i}", agent_id="me")
    strict.connection.close()
    strict.daemon.stop()
    again = Runs(strict.daemon.start())
    wait_until(lambda: again.ids() == {"run-2", "run-3"}, "the oldest two are gone")
    wait_until(lambda: again.status()["freed_bytes"] > 0, "their rows are gone")
    status = again.status()
    assert status["removed"] == 2
    assert 0.89 * 3600 < (status["next_us"] - status["last_us"]) / 1_000_000 < 1.11 * 3600
    shown = run("status", env=again.daemon.env).stdout.decode()
    assert re.search(r"2 runs removed, .* freed .*; last pass \d\d:\d\d, next \d\d:\d\d\n", shown)
    again.connection.close()


def test_passes_go_on_by_themselves(daemon: Daemon, wait_until: Wait) -> None:
    with started(daemon, STRICT + "interval_s = 1\n") as runs:
        for i in range(4):
            runs.closed(f"run-{i}", agent_id="me")
        wait_until(lambda: runs.ids() == {"run-2", "run-3"}, "the oldest two are gone")


def test_a_changed_cap_is_heeded_at_once(strict: Runs, wait_until: Wait) -> None:
    wait_until(lambda: strict.status()["last_us"], "the pass of the start is over")
    for i in range(2):
        strict.closed(f"run-{i}", agent_id="me")
    strict.daemon.config_file.write_text("[retention]\nmax_runs_per_agent = 1\n")
    wait_until(lambda: strict.ids() == {"run-1"}, "the older one is gone")


def test_pinned_and_live_runs_stay(strict: Runs, wait_until: Wait) -> None:
    wait_until(lambda: strict.status()["last_us"], "the pass of the start is over")
    strict.closed("pinned", agent_id="me")
    strict.connection.call("PinRun", {"run_id": "pinned"})
    live = {"run": {"run_id": "live", "agent_id": "me"}, "lease_key": "00000000-0000-4000-8000-00000000aaaa"}
    strict.connection.call("BeginRun", live)
    for i in range(3):
        strict.closed(f"run-{i}", agent_id="me")
    assert [one["run_id"] for one in strict.gc()] == ["run-0"]
    assert strict.ids() == {"pinned", "live", "run-1", "run-2"}
    strict.connection.call("UnpinRun", {"run_id": "pinned"})
    assert [one["run_id"] for one in strict.gc()] == ["pinned"]


def test_the_oldest_go_when_the_history_is_too_large_and_the_file_shrinks(daemon: Daemon, wait_until: Wait) -> None:
    with started(daemon, '[retention]\nmax_runs_per_agent = "off"\nmax_bytes = 2000000\n') as runs:
        wait_until(lambda: runs.status()["last_us"], "the pass of the start is over")
        for i in range(80):
            runs.closed(f"run-{i:02}", size=50_000)
        gone = runs.gc()
        assert {one["rule"] for one in gone} == {"max_bytes"}
        assert [one["run_id"] for one in gone] == [f"run-{i:02}" for i in range(len(gone))]
        assert 35 <= len(gone) <= 50
        wait_until(
            lambda: runs.connection.call("GetStatus", {})["database_bytes"] < 2_200_000, "the file gives the space back"
        )


def test_a_run_goes_by_its_age_and_followers_hear_why(daemon: Daemon, wait_until: Wait) -> None:
    runs = Runs(daemon.start())
    runs.closed("old")
    runs.closed("young")
    runs.connection.close()
    daemon.stop()
    with closing(sqlite3.connect(daemon.database)) as database, database:
        database.execute("UPDATE runs SET closed_us = closed_us - ? WHERE run_id = 'old'", (31 * DAY_US,))
    runs = Runs(daemon.start())
    wait_until(lambda: runs.ids() == {"young"}, "the old one is gone")
    first = next(runs.connection.stream("Follow", {"cursor": {"position": 0}}))
    assert [(item["gap"]["run_id"], item["gap"]["rule"]) for item in first["items"] if item.get("gap")] == [
        ("old", "max_age_days")
    ]
    runs.connection.close()


def test_the_age_of_a_run_counts_from_when_its_end_was_received(daemon: Daemon, wait_until: Wait) -> None:
    with started(daemon, "") as runs:
        wait_until(lambda: runs.status()["last_us"], "the pass of the start is over")
        long_ago_us = time.time_ns() // 1000 - 100 * DAY_US
        asked = {"run": {"run_id": "long", "time_us": long_ago_us}, "lease_key": "00000000-0000-4000-8000-000000000001"}
        epoch = runs.connection.call("BeginRun", asked)["epoch"]
        end = {"type": "run.completed", "key": "end", "time_us": long_ago_us}
        runs.connection.call("Append", {"run_id": "long", "epoch": epoch, "events": [end]})
        assert runs.gc() == []
        assert runs.ids() == {"long"}


def test_nothing_goes_by_its_age_when_the_clock_was_set_while_the_daemon_was_away(daemon: Daemon, wait_until: Wait) -> None:
    with started(daemon, "") as runs:
        wait_until(lambda: runs.status()["last_us"], "the pass of the start is over")
        runs.closed("old")
    daemon.stop()
    with closing(sqlite3.connect(daemon.database)) as database, database:
        database.execute("UPDATE runs SET closed_us = closed_us - ?", (31 * DAY_US,))
    clocks = daemon.state_dir / "clocks.json"  # as if the clock had gone wrong before, and right now
    seen = json.loads(clocks.read_text())
    clocks.write_text(json.dumps({**seen, "offset_s": seen["offset_s"] - 31 * 86_400}))
    with started(daemon, "") as runs:
        wait_until(lambda: runs.status()["last_us"], "the pass of the start is over")
        assert runs.status()["skipped"] == "max_age_days: the wall clock has jumped"
        assert runs.ids() == {"old"}
    daemon.stop()
    clocks.unlink()
    with started(daemon, "") as runs:
        wait_until(lambda: not runs.ids(), "it goes where nothing is known of a jump")


def test_appends_go_on_while_a_pass_works(daemon: Daemon, wait_until: Wait) -> None:
    with started(daemon, '[retention]\nmax_runs_per_agent = "off"\n') as runs:
        for i in range(300):
            runs.closed(f"run-{i:03}", agent_id="me", size=10_000)
        begin = {"run": {"run_id": "w"}, "lease_key": "00000000-0000-4000-8000-00000000bbbb"}
        epoch = runs.connection.call("BeginRun", begin)["epoch"]
        daemon.config_file.write_text("[retention]\nmax_runs_per_agent = 1\n")
        other = Runs(daemon)
        seen_midway, key = False, 0
        while len(counts := other.connection.call("ListRuns", {"limit": 1000})["runs"]) > 2:
            key += 1
            event = {"type": "note", "key": str(key)}
            reply = runs.connection.call("Append", {"run_id": "w", "epoch": epoch, "events": [event]})
            assert reply["stored"] == 1
            seen_midway = seen_midway or 2 < len(counts) < 301
        assert seen_midway, "the pass lets others in between its transactions"
        other.connection.close()


def test_output_is_dropped_after_its_days_and_the_run_stays(
    daemon: Daemon, wait_until: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Runs(daemon.start())
    begin = {"run": {"run_id": "r"}, "lease_key": "00000000-0000-4000-8000-00000000cccc"}
    epoch = runs.connection.call("BeginRun", begin)["epoch"]
    events = [{"type": "output", "data": {"text": "x"}}] * 3 + [{"type": "run.completed"}]
    named = {"run_id": "r", "epoch": epoch, "writer": "00000000-0000-4000-9000-000000000001", "first_n": 1}
    runs.connection.call("Append", {**named, "events": events})
    runs.connection.close()
    daemon.stop()
    with closing(sqlite3.connect(daemon.database)) as database, database:
        database.execute("UPDATE runs SET closed_us = closed_us - ?", (8 * DAY_US,))
        database.execute("UPDATE events SET received_us = received_us - ? WHERE seq = 5", (8 * DAY_US,))
    daemon.config_file.write_text("[retention]\ninterval_s = 100000\n")
    runs = Runs(daemon.start())
    wait_until(lambda: runs.status()["last_us"], "the pass of the start is over")
    daemon.config_file.write_text("[retention.events]\noutput = 7\n")
    wait_until(lambda: "key=retention.events" in daemon.log_text(), "the setting is taken over")
    wait_until(lambda: len(runs.connection.call("GetEvents", {"run_id": "r"})["events"]) == 2, "the output is dropped")
    found = runs.connection.call("GetEvents", {"run_id": "r"})
    assert [event["seq"] for event in found["events"]] == [1, 5]
    assert [gap["rule"] for gap in found["gaps"]] == ["events.output"]
    assert runs.ids() == {"r"}
    assert runs.gc() == []
    assert b"rule: events.output" in run("logs", "r", env=daemon.env).stderr
    monkeypatch.setenv("RUNHIST_SOCKET", str(daemon.socket))
    history = runhist.connect()
    for follow in (False, True):
        gap, *kept = history.run("r").events(follow=follow)
        assert gap == runhist.Gap("default", "r", 2, 4, "events.output")
        assert [event.seq for event in kept] == [1, 5]
    history.close()
    runs.connection.close()
