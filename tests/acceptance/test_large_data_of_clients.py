"""Large data as an engine hands it over and as readers get it back, with the daemon there, away, and in between."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import runhist
from runhist import artifacts
from runhist.client import History
from runhist.records import Event, Gap
from tests.acceptance.making import Made
from tests.client.cli.shells import run

if TYPE_CHECKING:
    from tests.conftest import Daemon

Wait = Callable[..., None]
MIB = 1024 * 1024
SIZES = (100_000, MIB - 20, MIB + 20, 3 * MIB)


@pytest.fixture
def history(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[History]:
    daemon.start()
    for name, value in daemon.env.items():
        monkeypatch.setenv(name, value)
    connected = runhist.connect()
    yield connected
    connected.close()


def text_of(size: int) -> str:
    """Text of many kinds of characters, whose JSON has about so many bytes."""
    return ("ab\"\\\n\u00e9\u20ac\U0001f600" * (size // 15 + 1))[: size // 2]


def events_of(items: Iterator[Event | Gap]) -> list[Event]:
    """The events among them, which must be all."""
    found = list(items)
    assert all(isinstance(item, Event) for item in found)
    return [item for item in found if isinstance(item, Event)]


def test_data_of_any_size_is_given_back_as_it_was_recorded(history: History) -> None:
    payloads = [{"text": text_of(size), "more": [{"n": i} for i in range(size // 100)]} for size in SIZES]
    with history.begin_run(run_id="r") as recording:
        for payload in payloads:
            recording.append("turn", payload)
            recording.append("small", {"n": 1})
        assert recording.flush().durable == "committed"
        found = events_of(recording.events(types=["turn"]))
        assert [event.data for event in found] == payloads
        assert all(event.data_blob is not None for event in found)
    follower = history.follow(cursor=0, types=["turn"])
    assert [event.data for event in events_of(itertools.islice(follower, len(payloads)))] == payloads
    follower.close()
    kinds = [event.type for event in events_of(history.run("r").events(follow=True))]
    assert kinds == ["run.started", *["turn", "small"] * len(SIZES), "run.completed"]


def test_large_data_of_a_failure_says_what_failed(history: History) -> None:
    with history.begin_run(run_id="r") as recording:
        recording.append("judged", {"error": "too bad", "log": text_of(3 * MIB)}, kind="step.failed", step_id="s")
    (step,) = history.run("r").steps()
    assert (step.status, step.error) == ("failed", "too bad")
    assert len(events_of(history.run("r").events(types=["judged"]))[0].data["log"]) == 3 * MIB // 2


def test_what_a_run_amounts_to_has_a_bound_and_the_rest_is_recorded(history: History) -> None:
    with history.begin_run(run_id="r") as recording:
        recording.update(state={"text": "x" * (MIB + 1)})
        recording.append("turn", {"n": 1})
        assert recording.faults == 1
    assert [event.type for event in events_of(history.run("r").events())] == ["run.started", "turn", "run.completed"]


def test_the_same_key_with_the_same_large_data_is_stored_once(history: History) -> None:
    with history.begin_run(run_id="r") as recording:
        for _ in range(2):
            recording.append("turn", {"text": text_of(3 * MIB)}, key="k")
        receipt = recording.flush()
        assert (receipt.stored, receipt.duplicates) == (1, 1)
        recording.append("turn", {"text": text_of(3 * MIB) + "x"}, key="k")
        with pytest.raises(runhist.Conflict):
            recording.flush()


def test_while_the_daemon_is_away_what_the_spool_takes_is_spooled_and_the_rest_is_a_fault(
    history: History, daemon: Daemon, wait_until: Wait
) -> None:
    daemon.stop()
    with history.begin_run(run_id="r") as recording:
        recording.append("turn", {"text": "x" * 500_000})
        recording.append("lost", {"text": "x" * (MIB + 1)})
        recording.append("turn", {"text": "x" * 900_000})
        assert recording.faults == 1
    daemon.start()
    made = Made(daemon)
    wait_until(lambda: made.connection.call("ListRuns", {"status": ["completed"]})["runs"], "the spool is empty")
    assert [event["data_blob"]["size"] for event in made.events("r")[1:3]] == [500_011, 900_011]
    assert [event["type"] for event in made.events("r")] == ["run.started", "turn", "turn", "run.completed"]
    assert list((daemon.state_dir / "spool").iterdir()) == []
    made.connection.close()


def test_a_daemon_that_hangs_costs_the_event_and_not_the_engine(
    history: History, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "CHUNK_TIMEOUT_S", 0.5)
    recording = history.begin_run(run_id="r")
    os.kill(daemon.pid, signal.SIGSTOP)
    recording.append("lost", {"text": "x" * (MIB + 1)})
    assert recording.faults == 1
    os.kill(daemon.pid, signal.SIGCONT)
    monkeypatch.undo()
    recording.append("turn", {"text": "x" * (MIB + 1)})
    recording.complete()
    recording.flush()
    assert [event.type for event in events_of(recording.events())] == ["run.started", "turn", "run.completed"]


def test_a_restart_in_the_middle_loses_and_repeats_nothing(history: History, daemon: Daemon) -> None:
    with history.begin_run(run_id="r") as recording:
        recording.append("turn", {"text": text_of(3 * MIB)})
        recording.flush()
        follower = history.follow(cursor=0, types=["turn"])
        first = next(follower)
        daemon.kill()
        daemon.start()
        recording.append("turn", {"text": "second", "more": text_of(3 * MIB)})
        recording.flush()
        second = next(follower)
        follower.close()
        assert recording.faults == 0
    assert isinstance(first, Event) and isinstance(second, Event)
    assert (first.data["text"], second.data["text"]) == (text_of(3 * MIB), "second")


def test_who_reads_an_event_whose_run_was_deleted_in_between_hears_of_a_gap(history: History, daemon: Daemon) -> None:
    with history.begin_run(run_id="r") as recording:
        recording.append("turn", {"text": text_of(3 * MIB)})
    follower = history.follow(cursor=0)
    begun = next(follower)  # and with it came the turn
    assert run("rm", "--yes", "r", env=daemon.env).returncode == 0
    gap = next(follower)
    follower.close()
    assert isinstance(begun, Event) and isinstance(gap, Gap)
    assert (gap.run_id, gap.from_position, gap.rule) == ("r", begun.position + 1, "deleted")


def test_logs_prints_large_data_unchanged(history: History, daemon: Daemon) -> None:
    text = text_of(3 * MIB)
    with history.begin_run(run_id="some-run") as recording:
        recording.append("line", {"text": "an output " + "x" * 100_000}, kind="output")
        recording.append("turn", {"text": text, "c1": "\x9b\x85"})
    printed = run("logs", "--json", "some-run", env=daemon.env).stdout
    assert printed.isascii()
    events = [json.loads(line) for line in printed.splitlines()]
    assert [event["seq"] for event in events] == [1, 2, 3, 4]
    assert events[2]["data"] == {"text": text, "c1": "\x9b\x85"}
    plain = run("logs", "some-run", env=daemon.env)
    assert "an output " + "x" * 100_000 in plain.stdout.decode()
    assert "[turn]" in plain.stdout.decode()
    assert "event 3 of run some-run has 3.3 MB of data, see: runhist logs --json" in plain.stderr.decode()


def test_a_shell_appends_data_of_any_size(history: History, daemon: Daemon) -> None:
    recording = history.begin_run(run_id="some-run")
    recording.flush()
    large, too_large = ({"type": "x", "data": {"output" * i: text_of(3 * MIB)}} for i in (2, 1))
    lines = [json.dumps(large), json.dumps({**too_large, "type": "run.completed"})]
    done = run("append", "--run", "some-run", "-", env=daemon.env, stdin="\n".join(lines).encode())
    assert (done.returncode, done.stderr.decode()) == (4, "runhist: line 2: data is larger than 1048576 bytes\n")
    (event,) = events_of(history.run("some-run").events(after_seq=1))
    assert event.data == large["data"]
    daemon.stop()
    done = run("append", "--run", "some-run", "-", env=daemon.env, stdin=lines[0].encode())
    assert done.returncode == 5, done.stderr


PEAK = """
import re, sys

def peak_kib():
    return int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
"""
ENGINE = """
import runhist

payload = {"text": "\\u00e9" + "x" * 100_000_000}
history = runhist.connect()
with history.begin_run(run_id="large-run") as run:
    run.append("warm", {"text": "x" * 2_000_000})
    run.flush()
    before = peak_kib()
    run.append("turn", payload)
    assert run.flush().durable == "committed"
    sys.stderr.write(str(peak_kib() - before))
"""
PRINTING = """
from runhist.cli.main import main

assert main(["logs", "--json", "--type", "turn", "large-run"]) == 0
sys.stderr.write(str(peak_kib()))
"""


def peak_of(code: str, env: Mapping[str, str], output: Path) -> int:
    """Run a program of Python; returns the KiB of memory that it says."""
    with output.open("wb") as file:
        words = [sys.executable, "-c", PEAK + code]
        done = subprocess.run(words, env=env, stdout=file, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return int(done.stderr)


@pytest.mark.long
def test_a_hundred_megabytes_cost_bounded_memory_on_both_sides(history: History, daemon: Daemon, tmp_path: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("memory is read in /proc")

    def daemon_peak_kib() -> int:
        found = re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{daemon.pid}/status").read_text())
        assert found is not None
        return int(found[1])

    before = daemon_peak_kib()
    assert peak_of(ENGINE, daemon.env, tmp_path / "nothing") < 20_000  # beside the engine's own object
    assert peak_of(PRINTING, daemon.env, tmp_path / "printed") < 50_000
    event: dict[str, Any] = json.loads((tmp_path / "printed").read_bytes())
    assert event["data"]["text"] == "\u00e9" + "x" * 100_000_000
    assert daemon_peak_kib() - before < 30_000
