"""Limits per user: what is refused at them, what is not, and that one user's do not touch another's."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import runhist
from runhist.connection import Connection
from runhist.paths import SocketChoice
from runhist.protocol.errors import Busy, QuotaExceeded
from tests.acceptance.making import UPLOAD, Made
from tests.acceptance.test_reload import write_by_rename
from tests.acceptance.test_users import ANNA, BERT, KNOCK, System, as_user

if TYPE_CHECKING:
    from tests.conftest import Daemon

Wait = Callable[..., None]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be several users")


@pytest.fixture
def system(daemon: Daemon) -> Iterator[System]:
    with tempfile.TemporaryDirectory(prefix="rh") as directory:
        made = System(daemon, Path(directory))
        made.start()
        yield made
        made.close()


@pytest.fixture
def limited(daemon: Daemon) -> Iterator[Callable[[str], Made]]:
    """Starts the daemon with these limits."""
    opened: list[Made] = []

    def start(limits: str) -> Made:
        daemon.config_file.write_text(f"[limits]\n{limits}\n")
        opened.append(Made(daemon.start()))
        return opened[0]

    yield start
    for made in opened:
        made.connection.close()


def share(connection: Connection, what: str) -> tuple[int, int | None]:
    (found,) = (one for one in connection.call("GetStatus", {})["shares"] if one["what"] == what)
    return found["used"], found["limit"]


def test_at_the_limit_of_runs_none_begins_until_one_is_deleted(limited: Callable[[str], Made]) -> None:
    made = limited("runs_per_user = 2")
    epoch = made.begin("a")
    made.begin("b")
    with pytest.raises(QuotaExceeded) as refused:
        made.begin("c")
    assert refused.value.parameters == {"what": "runs_per_user", "limit": 2}
    assert made.begin("a") == epoch  # its repeat
    assert share(made.connection, "runs_per_user") == (2, 2)
    made.end("a", epoch)
    made.connection.call("DeleteRun", {"run_id": "a"})
    assert share(made.connection, "runs_per_user") == (1, 2)
    made.begin("c")


def test_at_the_limit_of_bytes_runs_still_end_and_nothing_else_is_taken(limited: Callable[[str], Made]) -> None:
    made = limited("bytes_per_user = 100000")
    epoch = made.begin("r")
    made.append("r", epoch, "first", "output", data={"text": "x" * 50_000})
    with pytest.raises(QuotaExceeded) as refused:
        made.append("r", epoch, "second", "output", data={"text": "x" * 50_000})
    assert refused.value.parameters == {"what": "bytes_per_user", "limit": 100_000}
    assert made.append("r", epoch, "first", "output", data={"text": "x" * 50_000})["duplicates"] == 1
    used, limit = share(made.connection, "bytes_per_user")
    assert limit is not None and 50_000 < used < limit
    made.end("r", epoch)
    assert made.connection.call("GetRun", {"run_id": "r"})["run"]["status"] == "completed"


def test_refused_content_leaves_no_file(limited: Callable[[str], Made]) -> None:
    made = limited("bytes_per_user = 100000\ninline_limit = 10000")
    epoch = made.begin("r")
    made.chunk(UPLOAD, 0, b"x" * 60_000)
    with pytest.raises(QuotaExceeded):
        made.chunk(UPLOAD, 60_000, b"x" * 60_000)
    with pytest.raises(QuotaExceeded):
        made.append("r", epoch, "large", "output", data={"text": "x" * 120_000})
    assert made.files() == []
    sha256 = made.put(b"x" * 60_000)
    assert [path.name for path in made.files()] == [sha256]
    with pytest.raises(QuotaExceeded):
        made.append("r", epoch, "large", "output", data={"text": "y" * 60_000})
    assert [path.name for path in made.files()] == [sha256]


def test_the_chunks_of_all_uploads_of_a_user_count_together(limited: Callable[[str], Made]) -> None:
    made = limited("bytes_per_user = 100000")
    other = UPLOAD[:-1] + "0"
    made.chunk(UPLOAD, 0, b"x" * 60_000)
    with pytest.raises(QuotaExceeded):
        made.chunk(other, 0, b"x" * 60_000)
    assert made.chunk(UPLOAD, 60_000, b"", done=True)["size"] == 60_000


def test_a_changed_limit_holds_at_once_and_a_restart_forgets_no_figures(
    limited: Callable[[str], Made], wait_until: Wait
) -> None:
    made = limited("runs_per_user = 1")
    epoch = made.begin("a")
    write_by_rename(made.daemon, "[limits]\nruns_per_user = 2\nconnections_per_user = 3\nqueue_bytes_per_user = 2000000\n")
    wait_until(lambda: share(made.connection, "runs_per_user") == (1, 2), "the new limit holds")
    assert share(made.connection, "connections_per_user") == (1, 3)
    assert share(made.connection, "queue_bytes_per_user") == (0, 2_000_000)
    made.begin("b")
    made.end("a", epoch)
    before = share(made.connection, "bytes_per_user")
    made.daemon.stop()
    made.daemon.start()
    again = Made(made.daemon)
    assert share(again.connection, "bytes_per_user") == before
    with pytest.raises(QuotaExceeded):
        again.begin("c")
    again.connection.close()


def test_status_says_what_is_short_and_what_to_type(limited: Callable[[str], Made]) -> None:
    made = limited("runs_per_user = 1")
    command = [sys.executable, "-m", "runhist.cli.main", "status"]
    assert subprocess.run(command, env=made.daemon.env, check=False, capture_output=True).returncode == 0
    made.begin("a")
    told = subprocess.run(command, env=made.daemon.env, check=False, capture_output=True, text=True)
    assert told.returncode == 1
    assert "this user has 1 of the 1 that limits.runs_per_user allows; type: runhist gc" in told.stdout
    assert "\nyours   1 of 1 runs\n" in told.stdout


def test_an_engine_at_its_limit_goes_on_and_is_told(
    limited: Callable[[str], Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = limited("bytes_per_user = 20000")
    for name, value in made.daemon.env.items():
        if name.startswith("RUNHIST"):
            monkeypatch.setenv(name, value)
    history = runhist.connect(deadline=60.0)
    with history.begin_run(run_id="r") as run:
        for _ in range(10):
            run.append("output", {"text": "x" * 5000})
    assert run.faults == 7
    (record,) = history.list_runs()
    assert (record.status, record.last_seq) == ("completed", 5)
    history.close()


def test_more_connections_of_a_user_than_allowed_are_told_to_come_again(
    limited: Callable[[str], Made], wait_until: Wait
) -> None:
    made = limited("connections_per_user = 2")
    wait_until(lambda: share(made.connection, "connections_per_user") == (1, 2), "whoever looked for the daemon is gone")
    choice = SocketChoice((made.daemon.socket,), "a test", True)
    with Connection.open(choice) as second:
        assert share(second, "connections_per_user") == (2, 2)
        with pytest.raises(Busy), Connection.open(choice) as third:
            third.call("Describe", {})
        assert share(made.connection, "connections_per_user") == (2, 2)


@as_root
def test_the_limits_of_one_user_are_not_anothers(system: System, wait_until: Wait) -> None:
    anna, bert = system.user(ANNA), system.user(BERT)
    anna.begin("first")
    limits = "runs_per_user = 1\nbytes_per_user = 3000\nconnections_per_user = 1\n"
    write_by_rename(system.daemon, f"[limits]\n{limits}")
    wait_until(lambda: "key=limits.connections_per_user value=1" in system.daemon.log_text(), "the limits hold")
    assert anna.call("BeginRun", run={"run_id": "second"}, lease_key=UPLOAD) == {"error": "QuotaExceeded"}
    epoch = bert.begin("first")["epoch"]
    assert anna.call("PutBlob", upload="u", offset=0, base64="A" * 8000) == {"error": "QuotaExceeded"}
    note: dict[str, Any] = {"type": "note", "key": "k", "data": {"text": "x" * 1000}}
    assert bert.call("Append", run_id="first", epoch=epoch, events=[note])["stored"] == 1
    shares = {one["what"]: one["used"] for one in bert.call("GetStatus")["shares"]}
    assert (shares["runs_per_user"], shares["connections_per_user"]) == (1, 1)
    assert 1200 < shares["bytes_per_user"] < 2000
    told = subprocess.run(as_user(ANNA, KNOCK), env=system.env, check=True, capture_output=True, text=True)
    assert "History.Busy" in told.stdout
    assert bert.call("Describe")["version"]

