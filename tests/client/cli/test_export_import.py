"""Runs go out as lines and come in again as they were, however often."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runhist import jsonl
from tests.acceptance.test_append import begin, connect, request
from tests.client.cli.shells import RUNHIST
from tests.conftest import Daemon

ODD = b'{ "z": 1.50, "a": [1e3, "\\u00e9\xc3\xa9"],\t"same": 12345678901234567890 }'
BROKEN = b'{"lines":\n [1,\r\n 2]}'
LEASE = "00000000-0000-4000-8000-{:012}"


def runhist(daemon: Daemon, *words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run([*RUNHIST, *map(str, words)], env=daemon.env, capture_output=True, text=True, timeout=120)
    assert not check or ended.returncode == 0, ended.stderr
    return ended


def exported(daemon: Daemon, path: Path, *words: str) -> list[dict[str, Any]]:
    path.write_text(runhist(daemon, "export", *words).stdout, "utf-8")
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def filled(new_daemon: Callable[[], Daemon], tmp_path: Path) -> Daemon:
    """A daemon with runs of every sort: ended, live, paused, claimed again, pinned, with large data and kept content."""
    daemon = new_daemon().start()
    made = tmp_path / "made.txt"
    made.write_bytes(b"content \xff" * 60_000)
    with connect(daemon) as connection:
        epoch = begin(connection, "one", 1)
        usage = {"input_tokens": 5, "model": "m", "response_id": "x"}
        connection.call("Append", request("one", epoch, 1, {"type": "step.started", "step_id": "s", "usage": usage}))
        odd = b'{"run_id":"one","epoch":%d,"writer":"%s","first_n":2,"events":[%s]}'
        events = b'{"type":"x","data":%s},{"type":"y","data":%s}' % (ODD, BROKEN)
        connection.call("Append", odd % (epoch, LEASE.format(1).encode(), events))
        large = {"type": "checkpoint", "key": "k", "data": {"text": "x" * 200_000}}
        connection.call("Append", {"run_id": "one", "epoch": epoch, "events": [large]})
        runhist(daemon, "artifact", "add", "--keep", made, "--run", "one")
        connection.call("Append", request("one", epoch, 4, {"type": "run.completed", "data": {"output": {"a": 1}}}))
        epoch = begin(connection, "two", 2)
        connection.call("ReleaseRun", {"run_id": "two", "epoch": epoch})
        claimed = connection.call("ClaimRun", {"run_id": "two", "lease_key": LEASE.format(22)})
        connection.call("Append", request("two", claimed["epoch"], 1, {"type": "run.paused", "data": {"name": "gate"}}))
        epoch = begin(connection, "live", 3)
        connection.call("Append", request("live", epoch, 1))
        connection.call("PinRun", {"run_id": "one"})
    return daemon


@pytest.fixture
def empty(new_daemon: Callable[[], Daemon]) -> Daemon:
    return new_daemon().start()


def test_what_comes_in_goes_out_again_line_by_line_and_byte_by_byte(filled: Daemon, empty: Daemon, tmp_path: Path) -> None:
    lines = exported(filled, tmp_path / "a.jsonl")
    done = json.loads(runhist(empty, "import", "jsonl", tmp_path / "a.jsonl", "--json").stdout)
    assert (done["runs"], done["duplicates"], done["refused"]) == (3, 0, [])
    assert done["stored"] == sum("event" in line for line in lines)
    exported(empty, tmp_path / "b.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    for run_id in ("one", "two", "live"):
        with connect(filled) as there, connect(empty) as here:
            runs = [connection.call("GetRun", {"run_id": run_id}) for connection in (there, here)]
            for found in runs:
                for name in ("epoch", "lease", "owner_pid"):
                    found["run"].pop(name)
            assert runs[0] == runs[1]
    empty.stop()
    checked = subprocess.run([RUNHIST[0], "-m", "runhistd", "verify"], env=empty.env)
    assert checked.returncode == 0


def test_the_data_of_events_is_the_bytes_that_were_recorded(filled: Daemon, empty: Daemon, tmp_path: Path) -> None:
    exported(filled, tmp_path / "a.jsonl", "one")
    text = (tmp_path / "a.jsonl").read_bytes()
    assert ODD in text
    assert json.dumps(BROKEN.decode()).encode() in text
    runhist(empty, "import", "jsonl", tmp_path / "a.jsonl")
    got = runhist(empty, "artifact", "get", "one", "made.txt", "-o", tmp_path / "got")
    assert got.returncode == 0
    assert (tmp_path / "got").read_bytes() == (tmp_path / "made.txt").read_bytes()


def test_an_import_tells_what_the_next_pass_of_retention_takes(filled: Daemon, empty: Daemon, tmp_path: Path) -> None:
    lines = exported(filled, tmp_path / "a.jsonl", "one")
    for line in lines:
        for times in (line.get("run", {}), line.get("event", {})):
            times.update({name: times[name] - 40 * 86400 * 1_000_000 for name in times if name.endswith("_us")})
        line.get("run", {}).update(pinned=False)
    (tmp_path / "b.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")
    assert "retention" not in runhist(empty, "import", "jsonl", tmp_path / "a.jsonl").stderr  # it is young, and pinned
    runhist(filled, "unpin", "one")
    runhist(filled, "rm", "one", "--yes")
    said = runhist(filled, "import", "jsonl", tmp_path / "b.jsonl").stderr
    assert said.startswith("the next pass of retention takes 1 run: runhist gc --dry-run")
    assert "one" in runhist(filled, "gc", "--dry-run").stdout


def test_importing_again_here_or_there_stores_nothing(filled: Daemon, empty: Daemon, tmp_path: Path) -> None:
    lines = exported(filled, tmp_path / "a.jsonl")
    events = sum("event" in line for line in lines)
    runhist(empty, "import", "jsonl", tmp_path / "a.jsonl")
    for daemon in (empty, filled):
        done = json.loads(runhist(daemon, "import", "jsonl", tmp_path / "a.jsonl", "--json").stdout)
        assert (done["stored"], done["duplicates"], done["refused"]) == (0, events, [])


def test_a_later_export_of_a_run_goes_on_behind_what_was_imported(filled: Daemon, empty: Daemon, tmp_path: Path) -> None:
    exported(filled, tmp_path / "a.jsonl", "live")
    runhist(empty, "import", "jsonl", tmp_path / "a.jsonl")
    with connect(filled) as connection:
        epoch = connection.call("GetRun", {"run_id": "live"})["run"]["epoch"]
        connection.call("Append", request("live", epoch, 2, {"type": "output"}, {"type": "run.completed"}))
    exported(filled, tmp_path / "b.jsonl", "live")
    done = json.loads(runhist(empty, "import", "jsonl", tmp_path / "b.jsonl", "--json").stdout)
    assert (done["stored"], done["duplicates"]) == (2, 2)
    with connect(empty) as connection:
        assert connection.call("GetRun", {"run_id": "live"})["run"]["status"] == "completed"


def test_another_run_of_the_same_name_is_refused_and_the_others_go_on(filled: Daemon, empty: Daemon, tmp_path: Path) -> None:
    exported(filled, tmp_path / "a.jsonl")
    with connect(empty) as connection:
        begin(connection, "one", 9)
    done = runhist(empty, "import", "jsonl", tmp_path / "a.jsonl", check=False)
    assert done.returncode == 4
    assert "imported 2 runs" in done.stdout and "one  refused: " in done.stdout
    with connect(empty) as connection:
        assert connection.call("GetRun", {"run_id": "one"})["run"]["last_seq"] == 1, "nothing was mixed into it"


def test_an_interrupted_import_says_where_it_was_and_goes_on_there(filled: Daemon, empty: Daemon, tmp_path: Path) -> None:
    exported(filled, tmp_path / "a.jsonl")
    program = (
        "import sys, importlib; from runhist.cli import main; m = importlib.import_module('runhist.cli.import');"
        "old = m._Run.end; n = [0]\n"
        "def end(run):\n    n[0] += 1\n    if n[0] == 2:\n        raise KeyboardInterrupt\n    old(run)\n"
        "m._Run.end = end\nsys.exit(main.main())"
    )
    command = [RUNHIST[0], "-c", program, "import", "jsonl", str(tmp_path / "a.jsonl")]
    stopped = subprocess.run(command, env=empty.env, capture_output=True, text=True)
    assert stopped.returncode == 130
    words = stopped.stderr.splitlines()[-1].partition("go on with: runhist ")[2].split()
    assert words[:2] == ["import", "jsonl"] and int(words[-1]) > 0
    done = json.loads(runhist(empty, *words, "--json").stdout)
    assert done["runs"] == 2
    exported(empty, tmp_path / "b.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_missing_seqs_are_a_gap_that_readers_are_told_of(filled: Daemon, empty: Daemon, tmp_path: Path) -> None:
    exported(filled, tmp_path / "a.jsonl", "one")
    kept = [line for line in (tmp_path / "a.jsonl").read_text("utf-8").splitlines() if '"seq":3,' not in line]
    (tmp_path / "b.jsonl").write_text("\n".join(kept) + "\n", "utf-8")
    runhist(empty, "import", "jsonl", tmp_path / "b.jsonl")
    with connect(empty) as connection:
        page = connection.call("GetEvents", {"run_id": "one"})
    assert 3 not in [event["seq"] for event in page["events"]]
    assert [gap["rule"] for gap in page["gaps"]] == ["events.lost"]
    exported(empty, tmp_path / "c.jsonl")
    assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "c.jsonl").read_bytes()
    empty.stop()
    checked = subprocess.run([RUNHIST[0], "-m", "runhistd", "verify"], env=empty.env)
    assert checked.returncode == 0


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"v":2,"run":{}}', "version 2"),
        ('{"v":1,"thing":{}}', "'thing' is no kind of line"),
        ("not json", "no line of an export"),
        ('{"v":1,"event":{"namespace":"default","run_id":"r"}}', "before the line of its run"),
        ('{"v":1,"run":{"namespace":"default"}}', "run_id is missing"),
        ('{"v":1,"run":{}} {}', "something stands behind it"),
        ("[" * 5000, "no line of an export"),
    ],
)
def test_a_file_that_is_no_export_is_told_with_its_line(line: str, told: str, empty: Daemon, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(line + "\n")
    ended = runhist(empty, "import", "jsonl", tmp_path / "x.jsonl", check=False)
    assert ended.returncode == 2
    assert "line 1" in ended.stderr and told in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    "change",
    [
        {"seq": 7},
        {"seq": 2**53 + 1},
        {"kind": "unheard"},
        {"data": {"workflow": 5}},
        {"received_us": -1},
        {"writer": LEASE.format(5)},
        {"new": 1},
    ],
)
def test_an_event_that_cannot_be_one_is_refused_with_its_field(
    change: dict[str, Any], empty: Daemon, tmp_path: Path
) -> None:
    name = {"namespace": "default", "run_id": "r"}
    event = {**name, "seq": 1, "type": "run.started", "received_us": 1, "data": {"run_id": "r"}}
    run = {**name, "status": "running", "last_seq": 1, "pinned": False}
    lines = [json.dumps({"v": 1, "run": run}), json.dumps({"v": 1, "event": {**event, **change}})]
    (tmp_path / "x.jsonl").write_text("\n".join(lines) + "\n")
    ended = runhist(empty, "import", "jsonl", tmp_path / "x.jsonl", check=False)
    assert ended.returncode == 4
    assert "events[0]" in ended.stdout
    assert runhist(empty, "list", "-q").stdout == ""


def test_an_import_keeps_to_the_longest_message_that_the_daemon_takes(
    filled: Daemon, new_daemon: Callable[[], Daemon], tmp_path: Path
) -> None:
    small = new_daemon()
    small.config_file.write_text("[limits]\nframe_bytes = 65536\nevent_bytes = 30000\n")
    small.start()
    with connect(filled) as connection:
        epoch = begin(connection, "many", 4)
        events = [{"type": "output", "data": {"text": "é" * 1000, "n": n}} for n in range(200)]
        connection.call("Append", request("many", epoch, 1, *events))
    exported(filled, tmp_path / "a.jsonl", "many")
    done = json.loads(runhist(small, "import", "jsonl", tmp_path / "a.jsonl", "--json").stdout)
    assert (done["stored"], done["refused"]) == (201, [])


def test_a_seq_that_is_far_off_costs_nobody_any_time(empty: Daemon, tmp_path: Path) -> None:
    name = {"namespace": "default", "run_id": "r"}
    far = 2**53 - 10
    begun = {**name, "seq": 1, "type": "run.started", "received_us": 1, "data": {"run_id": "r"}}
    late = {**name, "seq": far, "type": "note", "received_us": 1, "data": {}}
    run = {**name, "status": "running", "last_seq": far, "pinned": False}
    lines = [json.dumps({"v": 1, kind: one}) for kind, one in (("run", run), ("event", begun), ("event", late))]
    (tmp_path / "x.jsonl").write_text("\n".join(lines) + "\n")
    runhist(empty, "import", "jsonl", tmp_path / "x.jsonl")
    with connect(empty) as connection:
        assert len(connection.call("GetEvents", {"run_id": "r"})["events"]) == 2
    empty.stop()
    checked = subprocess.run([RUNHIST[0], "-m", "runhistd", "verify"], env=empty.env, timeout=30)
    assert checked.returncode == 0


def test_export_takes_names_and_filters_the_oldest_first(filled: Daemon, tmp_path: Path) -> None:
    def names(*words: str) -> list[str]:
        return [line["run"]["run_id"] for line in exported(filled, tmp_path / "x", *words) if "run" in line]

    assert names() == ["one", "two", "live"]
    assert names("two") == ["two"]
    assert names("--status", "paused", "--status", "completed") == ["one", "two"]
    assert names("--agent", "nobody") == []


@pytest.mark.parametrize("text", ["{}", '{"a":1}', ' { "a" : [1, {"b":"}"}] , "c":"\\"" } ', '{"a":1.50,"b":{}}'])
def test_members_are_the_texts_of_what_json_means(text: str) -> None:
    found, end = jsonl.members(text)
    assert {name: json.loads(inner) for name, inner in found.items()} == json.loads(text)
    assert text[end:].strip() == ""
    assert all(inner in text for inner in found.values())


@pytest.mark.parametrize("text", ["", "{", '{"a"}', '{"a":1', '{"a":1,}', '{a:1}', '{"a":1,"a":2}', '{"a":}', '{1:2}'])
def test_what_is_no_object_is_a_fault(text: str) -> None:
    with pytest.raises(ValueError):
        jsonl.members(text)
