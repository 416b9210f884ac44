"""What the service manager hears, at a real datagram socket."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest
import trio
import trio.testing

from runhistd.daemon.commit import Bounds, Committer
from runhistd.daemon.instance import Instance
from runhistd.daemon.notify import BEAT_S, Looker, Notifier
from runhistd.daemon.space import Space
from runhistd.store.log import EventLog


class Supervisor:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address.replace("@", "\0", 1))
        self.socket.settimeout(30)

    def hear(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.socket.recv(65536).decode().split("\n"))

    def heard_nothing(self) -> bool:
        """Whether nothing waits. What is sent arrives before the sender goes on."""
        self.socket.setblocking(False)
        try:
            self.socket.recv(65536)
        except BlockingIOError:
            return True
        finally:
            self.socket.settimeout(30)
        return False


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    made = Supervisor(os.path.relpath(tmp_path / "notify"))
    yield made
    made.socket.close()


def test_what_the_environment_tells_is_taken_out_of_it(supervisor: Supervisor) -> None:
    environment = {
        "NOTIFY_SOCKET": supervisor.address,
        "WATCHDOG_USEC": "3000000",
        "WATCHDOG_PID": str(os.getpid()),
        "HOME": "/",
    }
    notifier = Notifier.take(environment)
    assert environment == {"HOME": "/"}
    assert notifier.beat_s == 1.0
    notifier.ready("well")
    assert supervisor.hear() == {"READY": "1", "STATUS": "well"}
    notifier.beat("still well")
    assert supervisor.hear() == {"WATCHDOG": "1", "STATUS": "still well"}


@pytest.mark.parametrize("watchdog", [{}, {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}])
def test_nobody_is_told_of_a_watchdog_that_is_not_ours(supervisor: Supervisor, watchdog: dict[str, str]) -> None:
    notifier = Notifier.take({"NOTIFY_SOCKET": supervisor.address, **watchdog})
    assert notifier.beat_s == BEAT_S
    notifier.ready("well")
    notifier.beat("well")
    assert [supervisor.hear(), supervisor.hear()] == [{"READY": "1", "STATUS": "well"}, {"STATUS": "well"}]


def test_without_a_service_manager_nothing_is_sent_and_nothing_beats() -> None:
    notifier = Notifier.take({})
    assert notifier.beat_s == float("inf")
    with notifier.starting("opening"), notifier.reloading():
        notifier.ready("well")
        notifier.beat("well")
        notifier.stopping(1)


def test_an_abstract_socket_is_told_too() -> None:
    supervisor = Supervisor(f"@runhist-test-{os.getpid()}")
    Notifier(supervisor.address).ready("well")
    assert supervisor.hear()["READY"] == "1"
    supervisor.socket.close()


def test_a_name_cannot_forge_a_message(supervisor: Supervisor) -> None:
    Notifier(supervisor.address).ready("recording in /home/a\nSTOPPING=1\nb")
    assert supervisor.hear() == {"READY": "1", "STATUS": "recording in /home/a\ufffdSTOPPING=1\ufffdb"}


def test_a_reload_is_told_with_the_moment_it_began_and_that_it_is_over(supervisor: Supervisor) -> None:
    notifier = Notifier(supervisor.address)
    with notifier.reloading():
        assert supervisor.heard_nothing()  # a look before the daemon answers must not make it ready
    notifier.ready("well")
    supervisor.hear()
    asked_us = time.monotonic_ns() // 1000
    with notifier.reloading():
        told = supervisor.hear()
        assert told["RELOADING"] == "1"
        assert int(told["MONOTONIC_USEC"]) >= asked_us
        assert supervisor.heard_nothing()
    assert supervisor.hear() == {"READY": "1"}


def test_a_stop_asks_for_the_time_that_it_may_take_and_then_nothing_more_is_said(supervisor: Supervisor) -> None:
    notifier = Notifier(supervisor.address, watchdog_s=30)
    notifier.ready("well")
    supervisor.hear()
    notifier.stopping(600)
    told = supervisor.hear()
    assert told["STOPPING"] == "1"
    assert int(told["EXTEND_TIMEOUT_USEC"]) > 600_000_000
    notifier.beat("well")
    with notifier.reloading():
        pass
    assert supervisor.heard_nothing()


def test_a_thread_that_works_extends_the_time_for_its_start_and_one_that_hangs_does_not() -> None:
    extended: list[bool] = []
    looker = Looker(threading.get_ident(), lambda: extended.append(True))
    worked = threading.Event()

    def watch() -> None:
        while not extended:
            looker.look()
        worked.set()

    watching = threading.Thread(target=watch)
    watching.start()
    while not worked.is_set():
        pass
    watching.join()

    in_a_row = 0

    def look_at_one_who_waits() -> None:
        nonlocal in_a_row
        for _ in range(1_000_000):
            before = len(extended)
            looker.look()
            in_a_row = in_a_row + 1 if len(extended) == before else 0
            if in_a_row == 1000:
                return

    waited_for = threading.Thread(target=look_at_one_who_waits)
    waited_for.start()
    waited_for.join()
    assert in_a_row == 1000


def test_a_long_start_extends_its_time(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runhistd.daemon.notify.EXTEND_EVERY_S", 0.001)
    with Notifier(supervisor.address).starting("opening it"):
        at_once = supervisor.hear()
        while supervisor.heard_nothing():
            pass
        later = supervisor.hear()
    assert at_once == later == {"EXTEND_TIMEOUT_USEC": "60000000", "STATUS": "opening it"}


def test_a_manager_that_cannot_be_told_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier(str(tmp_path / "nobody"))
    notifier.ready("well")
    notifier.beat("well")
    assert [record.message for record in caplog.records] == ["the service manager cannot be told"]


async def test_an_idle_committer_beats_after_a_select_and_only_then(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    beats: list[float] = []
    with Instance.take(tmp_path / "state") as instance:
        log = EventLog.open(instance.database)
        beat = lambda: beats.append(trio.current_time())  # noqa: E731
        bounds = Bounds(1 << 20, 1 << 20, 1 << 30)
        committer = Committer(log, instance, Space(instance.state_dir), bounds, lambda _: None, 10.0, beat)
        with pytest.raises(ExceptionGroup) as ended:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(committer.run)
                await trio.sleep(60)
                assert len(beats) in (5, 6)
                log.close()  # from now on no select can succeed
                await trio.sleep(60)
        assert ended.group_contains(apsw.ConnectionClosedError)
        assert len(beats) in (5, 6)
