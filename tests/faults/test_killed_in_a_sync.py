"""The hard case of a durable receipt: killed inside the sync of a commit, started again, sent again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from runhist.connection import Unreachable
from runhist.protocol.errors import Damaged
from tests.acceptance.test_append import begin, connect, request

if TYPE_CHECKING:
    from tests.conftest import Daemon


def injected(strace: str, fault: str, when: str) -> list[str]:
    """The command that runs another with a fault in its n-th fdatasync."""
    return [strace, "-f", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", f"inject=fdatasync:{fault}:when={when}"]


@pytest.mark.parametrize("when", range(1, 6))
def test_killed_inside_a_sync_the_resend_is_stored_once_and_recovery_is_on_the_disk(
    daemon: Daemon, need: Callable[[str], str], when: int
) -> None:
    daemon.start()
    with connect(daemon) as connection:
        epoch = begin(connection, "r")
        for n in range(1, 4):
            connection.call("Append", request("r", epoch, n))
    daemon.stop()
    daemon.start(wrapper=injected(need("strace"), "signal=SIGKILL", str(when)))
    acknowledged = 3
    with connect(daemon) as connection:
        try:
            for n in range(4, 20):
                connection.call("Append", request("r", epoch, n))
                acknowledged = n
        except Unreachable:
            pass
    assert acknowledged < 19, "the fault never came"
    daemon.kill()
    daemon.start()
    assert daemon.database.with_name("history.db-wal").stat().st_size == 0  # recovery ended with a checkpoint
    with connect(daemon) as connection:
        reply = connection.call("Append", request("r", epoch, acknowledged + 1))
        assert reply["stored"] + reply["duplicates"] == 1
        events = connection.call("GetEvents", {"run_id": "r"})["events"]
    assert [event.get("n") for event in events] == [None, *range(1, acknowledged + 2)]


def test_a_failing_disk_answers_nobody_and_after_three_times_the_daemon_only_reads(
    daemon: Daemon, need: Callable[[str], str]
) -> None:
    daemon.start()
    with connect(daemon) as connection:
        epoch = begin(connection, "r")
    daemon.stop()
    for _ in range(3):
        process = daemon.start(wrapper=injected(need("strace"), "error=EIO", "1+")).process
        with connect(daemon) as connection, pytest.raises(Unreachable):
            connection.call("Append", request("r", epoch, 1), timeout=30)
        assert process is not None and process.wait(30) == 1
    daemon.start()
    with connect(daemon) as connection:
        assert connection.call("GetStatus", {})["state"] == "damaged"
        assert connection.call("GetRun", {"run_id": "r"})["run"]["status"] == "running"
        with pytest.raises(Damaged):
            connection.call("Append", request("r", epoch, 1))
