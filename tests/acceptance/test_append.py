"""Appends to a real daemon: exactly once, in order, and safe to send again whatever is killed."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from runhist.connection import Connection, Unreachable
from runhist.paths import SocketChoice
from runhist.protocol.errors import InvalidParameter, Refusal, ShuttingDown, TooLarge

if TYPE_CHECKING:
    from tests.conftest import Daemon

UUID = "00000000-0000-4000-8000-{:012}"


def connect(daemon: Daemon) -> Connection:
    return Connection.open(SocketChoice((daemon.socket,), "the test's own", True))


def begin(connection: Connection, run_id: str, number: int = 0) -> int:
    reply = connection.call("BeginRun", {"run": {"run_id": run_id}, "lease_key": UUID.format(number)})
    return int(reply["epoch"])


def request(run_id: str, epoch: int, first_n: int, *events: Any, writer: int = 1) -> dict[str, Any]:
    sent = list(events or [{"type": "output", "data": {"n": first_n}}])
    return {"run_id": run_id, "epoch": epoch, "writer": UUID.format(writer), "first_n": first_n, "events": sent}


@pytest.fixture
def connection(daemon: Daemon) -> Iterator[Connection]:
    daemon.start()
    with connect(daemon) as opened:
        yield opened


def raw(daemon: Daemon, data: bytes) -> bytes:
    """All that the daemon answers until it closes."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(30)
        peer.connect(str(daemon.socket))
        peer.sendall(data)
        peer.shutdown(socket.SHUT_WR)
        reply = b""
        while received := peer.recv(65536):
            reply += received
        return reply


def frame(method: str, parameters: Any, **members: Any) -> bytes:
    return json.dumps({"method": f"dev.runhist.History.{method}", "parameters": parameters, **members}).encode() + b"\0"


def test_pipelined_calls_are_answered_in_order_and_a_read_sees_the_appends_before_it(daemon: Daemon) -> None:
    daemon.start()
    sent = frame("BeginRun", {"run": {"run_id": "r"}, "lease_key": UUID.format(0)})
    sent += b"".join(frame("Append", request("r", 1, n)) for n in range(1, 101))
    sent += frame("GetRun", {"run_id": "r"}) + frame("Append", request("r", 1, 101))
    replies = [json.loads(reply)["parameters"] for reply in raw(daemon, sent).split(b"\0")[:-1]]
    assert [reply["last_seq"] for reply in replies[1:101]] == list(range(2, 102))
    assert replies[101]["run"]["last_seq"] == 101
    assert replies[102]["last_seq"] == 102


@pytest.mark.parametrize(
    ("events", "parameter"),
    [
        ([{"type": 5}], "events[0].type"),
        ([{}], "events[0].type"),
        ([{"type": "a"}, {"type": "b", "seq": 1}], "events[1].seq"),
        ([{"type": "a", "time_us": 2**63}], "events[0].time_us"),
        ([{"type": "a", "attempt": 1.5}], "events[0].attempt"),
        ([{"type": "a", "data": []}], "events[0].data"),
        ([{"type": "a", "data": {"x": "\0"}}], "events[0].data.x"),
        ([{"type": "a", "usage": {"input_tokens": -1}}], "events[0].usage.input_tokens"),
        ([{"type": "a", "kind": "b"}], "events[0].kind"),
        ([], "events"),
    ],
)
def test_what_does_not_fit_is_named_by_its_path_and_costs_nobody_else(
    daemon: Daemon, connection: Connection, events: list[Any], parameter: str
) -> None:
    epoch = begin(connection, "r")
    with connect(daemon) as other:
        with pytest.raises(InvalidParameter) as caught:
            connection.call("Append", {**request("r", epoch, 1), "events": events})
        assert caught.value.parameters == {"parameter": parameter}
        assert other.call("Append", request("r", epoch, 1))["stored"] == 1
    assert connection.call("Append", request("r", epoch, 2))["stored"] == 1


@pytest.mark.parametrize(
    ("method", "parameters", "parameter"),
    [
        ("ListRuns", {"limit": "5"}, "limit"),
        ("ListRuns", {"limit": True}, "limit"),
        ("ListRuns", {"limit": 1.0}, "limit"),
        ("ListRuns", {"status": ["running", "odd"]}, "status[1]"),
        ("GetEvents", {"run_id": "r", "from_checkpoint": "false"}, "from_checkpoint"),
        ("GetEvents", {"run_id": "r", "kinds": ["note", 5]}, "kinds[1]"),
        ("GetRun", {"run_id": "r", "surprise": 1}, "surprise"),
        ("GetRun", {}, "run_id"),
        ("GetRun", {"run_id": "a\nb"}, "run_id"),
    ],
)
def test_control_calls_convert_nothing(connection: Connection, method: str, parameters: Any, parameter: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        connection.call(method, parameters)
    assert caught.value.parameters == {"parameter": parameter}


def test_large_data_is_refused_and_a_frame_that_is_too_long_ends_its_connection(daemon: Daemon) -> None:
    daemon.config_file.write_text("[limits]\nframe_bytes = 65536\nevent_bytes = 2048\n")
    daemon.start()
    with connect(daemon) as connection:
        epoch = begin(connection, "r")
        with pytest.raises(TooLarge) as caught:
            connection.call("Append", request("r", epoch, 1, {"type": "a", "data": {"x": "x" * 3000}}))
        assert caught.value.parameters == {"parameter": "events[0].data", "limit": 2048}
        reply = json.loads(raw(daemon, b"x" * 100_000).rstrip(b"\0"))
        assert reply["parameters"] == {"parameter": "call", "limit": 65536}
        assert connection.call("Append", request("r", epoch, 1))["stored"] == 1


@pytest.mark.parametrize("bad", [b"{", b"[]", b"\xff", b'{"method":5}', b'{"method":"a.b","x":1}', b""])
def test_what_is_no_call_is_answered_and_ends_its_connection(daemon: Daemon, bad: bytes) -> None:
    daemon.start()
    reply = raw(daemon, frame("Describe", {}) + bad + b"\0" + frame("Describe", {})).split(b"\0")
    assert len(reply) == 3 and b"org.varlink.service.InvalidParameter" in reply[1]


def test_a_oneway_call_is_not_carried_out_and_ends_its_connection(daemon: Daemon, connection: Connection) -> None:
    epoch = begin(connection, "r")
    assert raw(daemon, frame("Append", request("r", epoch, 1), oneway=True) + frame("Describe", {})) == b""
    assert connection.call("GetRun", {"run_id": "r"})["run"]["last_seq"] == 1


def test_an_owner_is_named_only_by_one_who_counts_processes_as_we_do(connection: Connection) -> None:
    import os

    named = {"run": {"run_id": "r"}, "lease_key": UUID.format(0), "owner_pid": os.getppid()}
    for caller in ({}, {"caller_pid": 1}):
        with pytest.raises(InvalidParameter) as caught:
            connection.call("BeginRun", {**named, **caller})
        assert caught.value.parameters == {"parameter": "caller_pid"}
    connection.call("BeginRun", {**named, "caller_pid": os.getpid()})
    assert connection.call("GetRun", {"run_id": "r"})["run"]["owner_pid"] == os.getppid()


class Engine(threading.Thread):
    """Appends one event at a time and sends again what was not acknowledged, over any number of kills."""

    def __init__(self, daemon: Daemon, number: int, count: int) -> None:
        super().__init__()
        self.daemon_under_test, self.number, self.count = daemon, number, count
        self.acknowledged = 0
        self.resent = 0

    def run(self) -> None:
        run_id = f"engine-{self.number}"
        while self.acknowledged < self.count:
            try:
                with connect(self.daemon_under_test) as connection:
                    epoch = begin(connection, run_id, 100 + self.number)
                    while self.acknowledged < self.count:
                        reply = connection.call("Append", request(run_id, epoch, self.acknowledged + 1, writer=self.number))
                        self.resent += reply["duplicates"]
                        self.acknowledged += 1
            except (Unreachable, ShuttingDown):
                continue


def test_killing_the_daemon_again_and_again_loses_and_doubles_nothing(daemon: Daemon, wait_until: Any) -> None:
    daemon.start()
    engines = [Engine(daemon, number, 300) for number in range(1, 5)]
    for engine in engines:
        engine.start()
    for mark in (50, 120, 200):
        wait_until(lambda mark=mark: all(engine.acknowledged >= mark for engine in engines), "the engines go on")
        daemon.kill()
        daemon.start()
    for engine in engines:
        engine.join()
    with connect(daemon) as connection:
        for engine in engines:
            events: list[Any] = []
            for reply in connection.stream("GetEvents", {"run_id": f"engine-{engine.number}"}):
                events += reply["events"]
            assert [event["seq"] for event in events] == list(range(1, 302))
            assert [event["n"] for event in events[1:]] == list(range(1, 301))
    verified = subprocess.run([sys.executable, "-m", "runhistd", "verify"], env=daemon.env, capture_output=True, check=False)
    assert verified.returncode == 0, verified.stdout


def test_a_stop_under_load_answers_or_refuses_and_keeps_all_that_was_acknowledged(daemon: Daemon, wait_until: Any) -> None:
    daemon.start()
    engines = [Engine(daemon, number, 400) for number in range(1, 4)]
    for engine in engines:
        engine.start()
    wait_until(lambda: all(engine.acknowledged >= 50 for engine in engines), "the engines go on")
    daemon.stop()
    daemon.start()
    for engine in engines:
        engine.join()
    with connect(daemon) as connection:
        for engine in engines:
            assert connection.call("GetRun", {"run_id": f"engine-{engine.number}"})["run"]["last_seq"] == 401


def test_a_peer_that_never_reads_holds_up_nobody(daemon: Daemon, connection: Connection) -> None:
    epoch = begin(connection, "r")
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.connect(str(daemon.socket))
        deaf.setblocking(False)
        flood = frame("GetStatus", {}) * 500
        try:
            while True:
                deaf.send(flood)
        except BlockingIOError:
            pass
        for n in range(1, 50):
            assert connection.call("Append", request("r", epoch, n))["stored"] == 1


def test_a_typed_error_is_no_surprise_for_the_client(connection: Connection) -> None:
    for method, parameters, name in (
        ("GetRun", {"run_id": "nobody"}, "NoSuchRun"),
        ("Follow", {}, "ExpectedMore"),
        ("Nothing", {}, "MethodNotFound"),
    ):
        with pytest.raises(Refusal) as caught:
            connection.call(method, parameters)
        assert caught.value.name == name


def test_another_interface_is_not_found(daemon: Daemon) -> None:
    daemon.start()
    reply = raw(daemon, b'{"method":"some.where.Else","parameters":{}}\0')
    assert b"org.varlink.service.InterfaceNotFound" in reply
