"""Following a real daemon: every event once, in order, over restarts, however slow the follower is."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runhist.connection import Unreachable
from runhist.protocol.errors import PositionExpired, ShuttingDown
from tests.acceptance.test_append import begin, connect, frame, request

if TYPE_CHECKING:
    from tests.conftest import Daemon


def take(daemon: Daemon, cursor: dict[str, Any], count: int, **wanted: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """That many events behind the cursor, and the cursor behind them."""
    events: list[dict[str, Any]] = []
    with connect(daemon) as connection:
        for reply in connection.stream("Follow", {"cursor": cursor, **wanted}):
            events += [item["event"] for item in reply["items"]]
            cursor = reply["cursor"]
            if len(events) >= count:
                break
    return events, cursor


def test_every_event_arrives_once_in_order_over_a_kill(daemon: Daemon) -> None:
    daemon.start()
    with connect(daemon) as connection:
        epochs = [begin(connection, f"r{i}", i) for i in range(2)]
        for n in range(1, 151):
            connection.call("Append", request(f"r{n % 2}", epochs[n % 2], (n + 1) // 2))
    first, cursor = take(daemon, {"position": 0}, 100)
    daemon.kill()
    daemon.start()
    with connect(daemon) as connection:
        connection.call("Append", request("r1", epochs[1], 76))
    rest, _ = take(daemon, cursor, 153 - len(first))
    assert [event["position"] for event in first + rest] == list(range(1, 154))


def test_filters_choose_and_heartbeats_move_the_cursor(daemon: Daemon) -> None:
    daemon.start()
    with connect(daemon) as connection, connect(daemon) as following:
        epoch = begin(connection, "mine")
        other = begin(connection, "other", 1)
        replies = following.stream("Follow", {"run_id": "mine", "namespace": "default", "heartbeat_us": 1000})
        start = next(replies)["cursor"]["position"]
        connection.call("Append", request("other", other, 1))
        moved = next(reply for reply in replies if reply["cursor"]["position"] > start)
        assert moved["items"] == []
        connection.call("Append", request("mine", epoch, 1))
        seen = next(reply for reply in replies if reply["items"])
        assert [item["event"]["run_id"] for item in seen["items"]] == ["mine"]


def test_a_cursor_of_another_history_or_beyond_the_head_is_refused(daemon: Daemon) -> None:
    daemon.start()
    for cursor in ({"position": 1}, {"position": 0, "instance_id": "11111111-1111-4111-8111-111111111111"}):
        with connect(daemon) as connection, pytest.raises(PositionExpired) as caught:
            next(connection.stream("Follow", {"cursor": cursor}))
        assert caught.value.parameters["head"] == 0


def test_a_stop_tells_followers(daemon: Daemon) -> None:
    daemon.start()
    with connect(daemon) as connection:
        replies = connection.stream("Follow", {})
        next(replies)
        daemon.stop()
        with pytest.raises((ShuttingDown, Unreachable)) as caught:
            next(replies)
    assert caught.type is ShuttingDown


def resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


def test_fifty_stalled_followers_neither_slow_appends_nor_grow_memory(daemon: Daemon) -> None:
    daemon.start()
    stalled = []
    with connect(daemon) as connection:
        epoch = begin(connection, "r")
        for _ in range(50):
            peer = socket.socket(socket.AF_UNIX)
            peer.connect(str(daemon.socket))
            peer.sendall(frame("Follow", {"cursor": {"position": 0}}, more=True))
            stalled.append(peer)
        before = resident_kib(daemon.pid)
        events = [{"type": "output", "data": {"text": "x" * 10_000}}] * 20
        for n in range(1, 4001, 20):
            connection.call("Append", request("r", epoch, n, *events))
        grown = resident_kib(daemon.pid) - before
        assert grown < 300 * 1024, f"{grown} KiB"  # a page each is 100 MB; 50 queues of what was appended would be 2 GB
    for peer in stalled:
        peer.close()
    seen, _ = take(daemon, {"position": 0}, 4001)
    assert [event["position"] for event in seen] == list(range(1, 4002))


def test_the_stock_client_of_varlink_can_use_the_daemon(daemon: Daemon) -> None:
    import subprocess
    import sys

    def varlink(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "ignore", "-m", "varlink.cli", *arguments]
        return subprocess.run(command, env=daemon.env, capture_output=True, text=True, timeout=60, check=False)

    daemon.start()
    with connect(daemon) as connection:
        begin(connection, "r")
    address = f"unix:{daemon.socket}"
    assert "dev.runhist.History" in varlink("info", address).stdout
    assert "method BeginRun" in varlink("help", f"{address}/dev.runhist.History").stdout
    assert '"run_id": "r"' in varlink("call", f"{address}/dev.runhist.History.ListRuns", "{}").stdout
    assert "run.started" in varlink("call", "-m", f"{address}/dev.runhist.History.GetEvents", '{"run_id":"r"}').stdout
    refused = varlink("call", f"{address}/dev.runhist.History.GetRun", '{"run_id":"nobody"}')
    assert "dev.runhist.History.NoSuchRun" in refused.stdout + refused.stderr
