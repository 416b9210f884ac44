"""Finding the daemon, and saying why it cannot be reached."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runhist import NoSuchRun, Unreachable
from runhist.connection import Connection
from runhist.paths import SocketChoice

if TYPE_CHECKING:
    from tests.client.conftest import SmallHistory


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


def choice(*paths: Path, installed: bool = True) -> SocketChoice:
    return SocketChoice(paths, "the test says so", installed)


@contextmanager
def answering(path: Path, *answers: bytes) -> Iterator[None]:
    """Something that listens and gives each connection an answer, whatever it is asked; b"" closes at once."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            for answer in answers:
                peer, _ = listener.accept()
                with peer:
                    peer.recv(65536)
                    peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join(30)


def reason_of(attempt: Callable[[], Any]) -> str:
    with pytest.raises(Unreachable) as caught:
        attempt()
    error = caught.value
    assert str(error.sockets[0]) in str(error) or error.reason == "path_too_long"
    assert error.why in str(error) and error.next_command in str(error)
    return error.reason


def test_no_socket_is_not_running_and_never_installed_where_nothing_was(path: Path) -> None:
    assert reason_of(lambda: Connection.open(choice(path))) == "not_running"
    assert reason_of(lambda: Connection.open(choice(path, installed=False))) == "not_installed"
    assert reason_of(lambda: Connection.open(choice(path / "below"))) == "not_running"


def test_a_socket_that_nobody_listens_at_is_refused(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert reason_of(lambda: Connection.open(choice(path))) == "refused"


def test_a_datagram_socket_is_not_a_history(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        assert reason_of(lambda: Connection.open(choice(path))) == "not_a_history"


def test_a_path_that_fits_no_address_says_so(tmp_path: Path) -> None:
    assert reason_of(lambda: Connection.open(choice(tmp_path / ("x" * 200)))) == "path_too_long"


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to make a socket that another user may not use")
def test_a_socket_of_someone_else_is_not_permitted(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        path.chmod(0o600)
        path.parent.chmod(0o755)
        script = (
            "import os, sys; os.setgid(65534); os.setuid(65534)\n"
            "from pathlib import Path; from runhist.connection import *; from runhist.paths import SocketChoice\n"
            "try: Connection.open(SocketChoice((Path(sys.argv[1]),), '', True))\n"
            "except Unreachable as error: sys.stdout.write(error.reason)\n"
        )
        # The client is imported before the user is changed, who may not read this checkout.
        script = "import runhist.connection\n" + script
        told = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert told.stdout == "not_permitted"


def test_of_several_sockets_the_first_that_takes_a_connection_is_used(tmp_path: Path, small: SmallHistory) -> None:
    with Connection.open(choice(tmp_path / "none", small.path)) as connection:
        assert connection.socket_path == small.path
        assert connection.call("Describe", {})["instance_id"] == "small"


def test_of_several_failures_the_most_telling_is_reported(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    assert reason_of(lambda: Connection.open(choice(tmp_path / "none", tmp_path / "dead"))) == "refused"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"[]\0",
        b'{"half',
        b"{not json}\0",
        b'{"error":"org.varlink.service.InterfaceNotFound","parameters":{"interface":"dev.runhist.History"}}\0',
    ],
)
def test_another_program_is_found_out_at_its_first_reply(path: Path, answer: bytes) -> None:
    with answering(path, answer), Connection.open(choice(path)) as connection:
        assert reason_of(lambda: connection.call("Describe", {})) == "not_a_history"
        assert connection.closed


def test_a_silent_end_is_lost(path: Path) -> None:
    with answering(path, b""), Connection.open(choice(path)) as connection:
        assert reason_of(lambda: connection.call("Describe", {})) == "lost"
        assert reason_of(lambda: connection.call("Describe", {})) == "lost"


def test_a_reply_before_the_end_is_given_out_first(path: Path) -> None:
    with answering(path, b'{"parameters":{"a":1}}\0'), Connection.open(choice(path)) as connection:
        assert connection.call("Describe", {}) == {"a": 1}
        assert reason_of(lambda: connection.call("Describe", {})) == "lost"


def test_a_reply_that_does_not_come_in_time_closes_the_connection(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with Connection.open(choice(path)) as connection:
            assert reason_of(lambda: connection.call("Describe", {}, timeout=0.01)) == "timeout"
            assert connection.closed


def test_a_full_backlog_times_out(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        opened = []

        def open_more() -> None:
            for _ in range(5):
                opened.append(Connection.open(choice(path), timeout=0.02))

        assert reason_of(open_more) == "timeout"
        assert opened


def test_a_typed_error_is_its_exception_and_leaves_the_connection_open(path: Path) -> None:
    refusal = b'{"error":"dev.runhist.History.NoSuchRun","parameters":{"namespace":"default","run_id":"r"}}\0'
    with answering(path, refusal + b'{"parameters":{}}\0'), Connection.open(choice(path)) as connection:
        connection.send("GetRun", {"run_id": "r"})
        with pytest.raises(NoSuchRun, match="'r'") as caught:
            connection.call("Describe", {})
        assert caught.value.run_id == "r"
        assert connection.receive() and not connection.closed


def test_a_stream_ends_with_its_last_reply_and_closing_it_early_closes_the_connection(path: Path) -> None:
    replies = b"".join(b'{"parameters":{"i":%d},"continues":true}\0' % i for i in range(3)) + b'{"parameters":{}}\0'
    with answering(path, replies, replies):
        with Connection.open(choice(path)) as connection:
            assert list(connection.stream("Follow", {})) == [{"i": 0}, {"i": 1}, {"i": 2}, {}]
            assert not connection.closed
        with Connection.open(choice(path)) as connection:
            stream = connection.stream("Follow", {})
            assert next(stream) == {"i": 0}
            stream.close()  # type: ignore[attr-defined]
            assert connection.closed


def test_a_large_call_to_a_slow_reader_arrives_whole(small: SmallHistory) -> None:
    with Connection.open() as connection:
        events = [{"type": "x" * 50_000}] * 100
        begun = connection.call("BeginRun", {"run": {"run_id": "r"}, "lease_key": "k"})
        parameters = {**begun, "writer": "w", "first_n": 1, "events": events}
        del parameters["position"]
        assert connection.call("Append", parameters, timeout=30)["stored"] == 100


def test_a_forgotten_connection_is_closed_without_a_warning(small: SmallHistory) -> None:
    connection = Connection.open()
    descriptor = connection.fileno()
    del connection
    with pytest.raises(OSError):
        os.fstat(descriptor)
