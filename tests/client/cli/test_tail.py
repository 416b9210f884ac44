"""`runhist tail`, and what `logs -f` shows of a step that is producing text, against a real daemon."""

from __future__ import annotations

import json
import signal
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runhist.cli.render import ending
from tests.client.cli.shells import RUNHIST, Terminal, run, start
from tests.client.cli.test_reading import Recorder

if TYPE_CHECKING:
    from tests.conftest import Daemon


@pytest.fixture
def recorder(daemon: Daemon) -> Recorder:
    return Recorder(daemon.start())


class Tail:
    """A tail in a process of its own."""

    def __init__(self, recorder: Recorder, *arguments: str) -> None:
        self.process = start("tail", *arguments, env=recorder.env)

    def __enter__(self) -> Tail:
        return self

    def __exit__(self, *_: object) -> None:
        with self.process:
            self.process.kill()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode()

    def event(self) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(self.line())
        return event

    def interrupted(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(30)


def follows(recorder: Recorder, count: int = 1) -> Callable[[], bool]:
    return lambda: bool(recorder.connection.call("GetStatus", {})["followers"] == count)


def test_it_shows_all_runs_from_now_on_one_line_an_event(recorder: Recorder, wait_until: Callable[..., None]) -> None:
    recorder.begin("before")
    with Tail(recorder) as tail:
        wait_until(follows(recorder), "it follows")
        recorder.begin("01a1fcee-a6cb-75a8-aa3d-e4ae77903da1", title="Build docs")
        recorder.begin("two", namespace="other")
        recorder.append("before", "output", {"text": "a\nb\x1b[2J", "stream": "stderr"}, step_id="s")
        recorder.append("before", "run.failed", {"error": "no\nway"})
        lines = [tail.line() for _ in range(4)]
        assert tail.interrupted() == 130
    assert [line.split()[1] for line in lines] == ["903da1", "two", "before", "before"]
    assert "● started: Build docs" in lines[0]
    assert lines[2].rstrip().endswith("s         ! a\\nb\\x1b[2J")
    assert lines[3].rstrip().endswith("✗ failed, 3 events: no\\nway")
    assert not [char for line in lines for char in line[:-1] if unicodedata.category(char) == "Cc"]


def test_a_position_begins_behind_it_and_0_with_the_oldest(recorder: Recorder) -> None:
    for run_id in ("one", "two", "three"):
        recorder.begin(run_id)
    for position, seen in (("0", ["one", "two", "three"]), ("2", ["three"])):
        with Tail(recorder, "--cursor", position, "--json") as tail:
            assert [tail.event()["run_id"] for _ in seen] == seen


def test_a_namespace_restricts_it(recorder: Recorder) -> None:
    recorder.begin("one")
    recorder.begin("two", namespace="other")
    recorder.begin("three")
    with Tail(recorder, "--cursor", "0", "--json", "--namespace", "other") as tail:
        assert tail.event()["run_id"] == "two"


def test_with_a_cursor_file_every_event_is_shown_over_kills_of_both(
    recorder: Recorder, daemon: Daemon, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    file = tmp_path / "cursor"
    seen: list[int] = []

    def take(count: int) -> None:
        with Tail(recorder, "--cursor-file", str(file), "--json") as tail:
            if not file.exists():
                wait_until(file.exists, "it has begun")  # from now, and now is written down at once
                recorder.begin("first")
            while len(seen) < count:
                position = tail.event()["position"]
                if position not in seen:
                    seen.append(position)

    take(1)
    recorder.begin("second")
    recorder.begin("third")
    take(2)
    with Tail(recorder, "--cursor-file", str(file), "--json") as tail:
        wait_until(follows(recorder), "it follows")
        daemon.kill()
        daemon.start()
        again = Recorder(daemon)
        again.counts = dict(recorder.counts)
        again.begin("fourth")
        while len(seen) < 4:
            position = tail.event()["position"]
            if position not in seen:
                seen.append(position)
        wait_until(lambda: json.loads(file.read_text())["position"] == 4, "the cursor is written")
    assert seen == [1, 2, 3, 4]
    assert json.loads(file.read_text()) == {
        "instance_id": again.connection.call("GetStatus", {})["instance_id"],
        "position": 4,
    }


def test_the_file_is_replaced_whole(recorder: Recorder, tmp_path: Path, wait_until: Callable[..., None]) -> None:
    file = tmp_path / "cursor"
    inodes: set[int] = set()
    with Tail(recorder, "--cursor-file", str(file)) as tail:
        wait_until(file.exists, "it has begun")
        recorder.begin("r")
        for _ in range(20):
            recorder.append("r", "note")
            tail.line()
            inodes.add(file.stat().st_ino)
            json.loads(file.read_text())  # at any moment
        tail.interrupted()
    assert len(inodes) > 1
    assert [path.name for path in tmp_path.iterdir() if "part" in path.name] == []


def test_a_cursor_of_another_history_is_an_error_that_says_what_to_do(recorder: Recorder, tmp_path: Path) -> None:
    file = tmp_path / "cursor"
    text = json.dumps({"instance_id": "11111111-1111-4111-8111-111111111111", "position": 0})
    file.write_text(text)
    done = run("tail", "--cursor-file", str(file), env=recorder.env)
    message = done.stderr.decode()
    assert done.returncode == 4 and file.read_text() == text
    instance_id = recorder.connection.call("GetStatus", {})["instance_id"]
    for part in (str(file), "another history", "11111111-1111-4111-8111-111111111111", instance_id, "remove the file"):
        assert part in message, message


def test_a_position_that_was_never_reached_is_an_error(recorder: Recorder) -> None:
    recorder.begin("r")
    done = run("tail", "--cursor", "7", env=recorder.env)
    assert done.returncode == 4 and b"position 7 lies beyond the newest event, which has position 1" in done.stderr
    done = run("tail", "--cursor", "-1", env=recorder.env)
    assert done.returncode == 2


@pytest.mark.parametrize("text", ["", "7", "[]", '{"position": 1}', '{"instance_id": "x", "position": -1}', "\udcff"])
def test_a_file_that_is_something_else_is_left_alone(recorder: Recorder, tmp_path: Path, text: str) -> None:
    file = tmp_path / "cursor"
    file.write_text(text, errors="surrogateescape")
    before = file.read_bytes()
    done = run("tail", "--cursor-file", str(file), env=recorder.env)
    assert done.returncode == 2 and b"no cursor file" in done.stderr and file.read_bytes() == before


def test_a_file_that_cannot_be_written_ends_it(recorder: Recorder, tmp_path: Path) -> None:
    done = run("tail", "--cursor-file", str(tmp_path / "nowhere" / "cursor"), env=recorder.env)
    assert done.returncode == 1 and b"cannot write" in done.stderr


def test_deleted_events_are_told_of(recorder: Recorder) -> None:
    recorder.begin("gone")
    recorder.append("gone", "run.completed")
    recorder.begin("here")
    recorder.connection.call("DeleteRun", {"run_id": "gone"})
    with Tail(recorder, "--cursor", "0") as tail:
        assert "events of gone were deleted here (rule: deleted)" in tail.line()
        assert "here" in tail.line()
    with Tail(recorder, "--cursor", "0", "--json") as tail:
        gap = tail.event()["gap"]
        assert (gap["run_id"], gap["from_position"], gap["to_position"]) == ("gone", 1, 2)


def test_without_a_daemon_it_says_so_with_5(daemon: Daemon) -> None:
    daemon.start().stop()
    assert run("tail", env=daemon.env).returncode == 5


def test_on_a_terminal_a_line_is_a_line(recorder: Recorder) -> None:
    recorder.begin("r")
    recorder.append("r", "output", {"text": "x" * 300})
    with Terminal([*RUNHIST, "tail", "--cursor", "0"], {**recorder.env, "COLUMNS": ""}, columns=80) as terminal:
        shown = terminal.until("…\r\n".encode()).decode()
    assert len(shown.splitlines()) == 2 and max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("columns", range(1, 12))
def test_an_ending_fits(columns: int) -> None:
    for text in ("", "abc", "abcdefghijklmnop", "日本語日本語日本語", "a日b本c語d"):
        fits = ending(text, columns)
        assert sum(2 if unicodedata.east_asian_width(char) == "W" else 1 for char in fits) <= columns
        assert text.endswith(fits.removeprefix("…"))


# --- logs -f ---


@pytest.fixture
def watching(recorder: Recorder, wait_until: Callable[..., None]) -> Iterator[Terminal]:
    """`logs -f` of the run `r`, with its step `answer` begun, on a terminal of 40 columns."""
    recorder.begin("r")
    recorder.append("r", "step.started", {"name": "answer"}, step_id="answer")
    env = {**recorder.env, "TERM": "xterm", "NO_COLOR": "1", "COLUMNS": ""}
    with Terminal([*RUNHIST, "logs", "-f", "r"], env, columns=40) as terminal:
        terminal.until(b"[step.started] name=answer\r\n")
        wait_until(follows(recorder), "it follows")
        yield terminal


def show(recorder: Recorder, text: Any, **members: Any) -> None:
    event = {"type": "delta", "kind": "output", "data": {"text": text}, "step_id": "answer", **members}
    recorder.connection.call("Publish", {"run_id": "r", "epoch": 1, "events": [event]})


def test_the_text_of_a_running_step_grows_in_its_place(recorder: Recorder, watching: Terminal) -> None:
    show(recorder, "Hel")
    watching.until("\r\x1b[Kanswer    … Hel".encode())
    show(recorder, "lo\nWorld\x1b[2J")
    watching.until("\r\x1b[Kanswer    … World\\x1b[2J".encode())
    show(recorder, "y" * 50)
    watching.until("\r\x1b[Kanswer    … …".encode() + b"y" * 26)
    recorder.append("r", "note", {"text": "between"})
    assert watching.until(b"[note] text=between\r\n").startswith(b"\r\x1b[K")
    watching.until("answer    … …".encode() + b"y" * 26)
    recorder.append("r", "output", {"text": "all of it"}, step_id="answer")
    assert watching.until(b"all of it\r\n").startswith(b"\r\x1b[K")
    recorder.append("r", "run.completed")
    status, rest = watching.rest()
    assert status == 0 and b"yyy" not in rest and b"\x1b" not in rest


def test_other_things_that_are_shown_are_left_out(recorder: Recorder, watching: Terminal) -> None:
    show(recorder, "no", type="thinking")
    show(recorder, {"no": 1})
    show(recorder, "of the run", step_id=None)
    shown = watching.until("          … of the run".encode())
    assert shown.count(b"\x1b[K") == 1
    recorder.append("r", "run.completed")
    watching.rest()


@pytest.mark.parametrize("term", [None, "dumb"])
def test_where_nothing_can_be_rewritten_nothing_is_shown_of_it(
    recorder: Recorder, wait_until: Callable[..., None], term: str | None
) -> None:
    recorder.begin("r")

    def work() -> None:
        wait_until(follows(recorder), "it follows")
        show(recorder, "token")
        recorder.append("r", "run.completed")

    if term is None:
        with start("logs", "-f", "r", env={**recorder.env, "TERM": "xterm"}) as following:
            work()
            out, _ = following.communicate(timeout=30)
    else:
        with Terminal([*RUNHIST, "logs", "-f", "r"], {**recorder.env, "TERM": term, "NO_COLOR": "1"}) as terminal:
            work()
            _, out = terminal.rest()
    assert b"completed" in out and b"token" not in out and b"\x1b" not in out
