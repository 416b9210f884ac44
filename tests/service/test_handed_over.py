"""A real daemon under a service manager: the messages it sends and the sockets it is handed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from runhist.connection import Connection
from runhist.paths import SocketChoice

if TYPE_CHECKING:
    from tests.conftest import Daemon

# What a manager does between fork and exec.
HAND_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, "-m", "runhistd", "serve"])
"""
GET_INFO = b'{"method":"org.varlink.service.GetInfo"}\0'


@pytest.fixture
def told(daemon: Daemon) -> Iterator[socket.socket]:
    """Where the daemon's messages arrive."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(daemon.state_dir.parent / "notify"))
        heard.settimeout(30)
        yield heard


def hear(told: socket.socket, wanted: str, status: str = "") -> dict[str, str]:
    """The next message that holds the wanted line, and this in its status."""
    while True:
        message = dict(line.split("=", 1) for line in told.recv(65536).decode().split("\n"))
        if wanted in message and status in message.get("STATUS", ""):
            return message


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[socket.socket]:
    """A listening socket that a manager keeps."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(tmp_path / "kept"))
        listening.listen()
        yield listening


def hand_over(daemon: Daemon, kept: socket.socket) -> subprocess.Popen[bytes]:
    """A daemon that was handed the socket as a manager does."""
    with daemon.log_file.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", HAND_OVER, str(kept.fileno())],
            env=daemon.env,
            cwd=daemon.state_dir.parent,
            pass_fds=[kept.fileno()],
            stdout=log,
            stderr=log,
        )


def connect(kept: socket.socket) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(30)
    peer.connect(kept.getsockname())
    peer.sendall(GET_INFO)
    return peer


def test_the_manager_hears_when_the_daemon_answers_works_reloads_and_stops(daemon: Daemon, told: socket.socket) -> None:
    daemon.launch(env={"NOTIFY_SOCKET": told.getsockname(), "WATCHDOG_USEC": "300000"})
    hear(told, "EXTEND_TIMEOUT_USEC", f"opening {daemon.database}")
    hear(told, "EXTEND_TIMEOUT_USEC", "adopting")
    ready = hear(told, "READY")
    assert ready["STATUS"] == f"recording in {daemon.database}, position 0, 0 connections"
    with Connection.open(SocketChoice((daemon.socket,), "a test", True)) as connection:
        assert connection.call("GetStatus", {})["state"] == "recording"
        for _ in range(5):  # nothing is written, and still it proves that it could
            hear(told, "WATCHDOG", "position 0, 1 connections")
    daemon.config_file.write_text("[limits]\nconnections = 0\n")
    os.kill(daemon.pid, signal.SIGHUP)
    assert int(hear(told, "RELOADING")["MONOTONIC_USEC"]) > 0
    hear(told, "READY")
    hear(told, "WATCHDOG", "the settings file is not usable")
    daemon.stop()
    assert int(hear(told, "STOPPING")["EXTEND_TIMEOUT_USEC"]) > 10_000_000


def test_whoever_connects_while_the_daemon_is_dead_is_served_by_the_next_one(daemon: Daemon, kept: socket.socket) -> None:
    inode = Path(kept.getsockname()).stat().st_ino
    first = hand_over(daemon, kept)
    try:
        with connect(kept) as peer:
            assert peer.recv(65536)
    finally:
        first.kill()
        first.wait()
    with connect(kept) as early:
        second = hand_over(daemon, kept)
        try:
            assert b"dev.runhist.History" in early.recv(65536)
            with connect(kept) as late:
                assert late.recv(65536)
        finally:
            second.terminate()
            assert second.wait(30) == 0, daemon.log_text()
    assert Path(kept.getsockname()).stat().st_ino == inode
    assert not daemon.socket.exists()  # its own one it took away


def test_a_socket_of_the_wrong_kind_ends_the_start_with_what_to_do(daemon: Daemon) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wrong:
        process = hand_over(daemon, wrong)
        assert process.wait(30) == 1
    assert "runhistd: the passed socket 3 is not a listening Unix stream socket (ListenStream=/path)" in daemon.log_text()


def test_systemd_socket_activate_starts_the_daemon_at_the_first_connection(
    daemon: Daemon, need: Callable[[str], str]
) -> None:
    variables = [f"--setenv={name}={value}" for name, value in daemon.env.items() if name.startswith(("RUNHIST", "PYTHON"))]
    daemon.state_dir.mkdir(mode=0o700)
    tool = need("systemd-socket-activate")
    daemon.start(wrapper=[tool, f"--listen={daemon.socket}", "--fdname=varlink", *variables])
    with Connection.open(SocketChoice((daemon.socket,), "a test", True)) as connection:
        assert connection.call("GetStatus", {})["sockets"] == [str(daemon.socket)]
        environment = Path(f"/proc/{daemon.pid}/environ").read_bytes()
        assert b"LISTEN_FDNAMES=varlink" in environment
    daemon.stop()
    assert daemon.socket.exists()
