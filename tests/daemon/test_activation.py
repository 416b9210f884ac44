"""Sockets that a service manager passed."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from runhist.paths import SOCKET_NAME
from runhistd.daemon import listen
from runhistd.daemon.activation import passed_by_launchd

# launch_activate_socket(3) as the manual page has it, for a job whose sockets `hand_over` names.
LAUNCHD = """
#include <stdlib.h>
#include <string.h>
#include <errno.h>
static int handed[2], size, status = ESRCH;
void refuse_with(int error) { status = error; }
void hand_over(int first, int second) { handed[0] = first; handed[1] = second; size = 2; status = 0; }
int launch_activate_socket(const char *name, int **fds, size_t *cnt) {
    if (status) return status;
    if (strcmp(name, "varlink")) return ENOENT;
    status = EALREADY;
    *fds = malloc(sizeof handed);
    memcpy(*fds, handed, sizeof handed);
    *cnt = size;
    return 0;
}
"""

# A process that was passed the descriptors in its arguments. LISTEN_PID is its own pid, unless it is given.
PASSED = """
import json, os, sys
for number, inherited in enumerate(map(int, sys.argv[1:])):
    os.dup2(inherited, 3 + number)
os.environ.setdefault("LISTEN_PID", str(os.getpid()))
from runhistd.daemon.activation import take_passed
from runhistd.daemon.listen import ListenFault, path_of
try:
    found = take_passed()
except ListenFault as fault:
    told = {"fault": str(fault)}
else:
    told = {"paths": [str(path_of(one)) for one in found], "inheritable": [one.get_inheritable() for one in found]}
told["left"] = sorted(name for name in os.environ if name.startswith("LISTEN"))
sys.stdout.write(json.dumps(told))
"""


def listener(path: Path, kind: int = socket.SOCK_STREAM) -> socket.socket:
    bound = socket.socket(socket.AF_UNIX, kind)
    bound.bind(str(path))
    if kind == socket.SOCK_STREAM:
        bound.listen()
    return bound


def take(passed: Sequence[socket.socket], **environment: str) -> Any:
    """What a process makes of these sockets and this environment."""
    spread = [os.dup2(one.fileno(), 50 + number) for number, one in enumerate(passed)]
    try:
        ended = subprocess.run(
            [sys.executable, "-c", PASSED, *map(str, spread)],
            env={**os.environ, **environment},
            pass_fds=spread,
            capture_output=True,
            text=True,
        )
    finally:
        for descriptor in spread:
            os.close(descriptor)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_a_passed_socket_is_taken_closed_to_children_and_the_variables_go(tmp_path: Path) -> None:
    with listener(tmp_path / "one") as one:
        told = take([one], LISTEN_FDS="1", LISTEN_FDNAMES="whatever", LISTEN_PIDFDID="7")
    assert told == {"paths": [str(tmp_path / "one")], "inheritable": [False], "left": []}


def test_of_several_those_named_varlink_are_taken(tmp_path: Path) -> None:
    with listener(tmp_path / "a") as a, listener(tmp_path / "b") as b, listener(tmp_path / "c") as c:
        told = take([a, b, c], LISTEN_FDS="3", LISTEN_FDNAMES="varlink:other:varlink")
        assert told["paths"] == [str(tmp_path / "a"), str(tmp_path / "c")]
        unnamed = take([a, b], LISTEN_FDS="2")
    said = "2 sockets were passed and none is named varlink; set FileDescriptorName=varlink"
    assert unnamed == {"fault": said, "left": []}


@pytest.mark.parametrize(
    "variables", [{"LISTEN_FDS": "1", "LISTEN_PID": "1"}, {"LISTEN_FDS": "0"}, {"LISTEN_FDS": "many"}, {}]
)
def test_what_was_meant_for_another_process_is_left_alone(tmp_path: Path, variables: dict[str, str]) -> None:
    with listener(tmp_path / "one") as one:
        assert take([one], **variables) == {"paths": [], "inheritable": [], "left": []}


def test_what_cannot_be_listened_at_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with listener(tmp_path / "one", socket.SOCK_DGRAM) as datagrams, socket.socket(socket.AF_UNIX) as silent:
        for wrong in (datagrams, silent):
            assert "not a listening Unix stream socket (ListenStream=" in take([wrong], LISTEN_FDS="1")["fault"]
    with (tmp_path / "file").open("w") as file:
        assert "is not a socket" in take([file], LISTEN_FDS="1")["fault"]  # type: ignore[list-item]
    assert "is not open" in take([], LISTEN_FDS="60", LISTEN_FDNAMES="")["fault"]
    assert "at most 64" in take([], LISTEN_FDS="100000")["fault"]


async def test_a_passed_socket_is_neither_bound_nor_removed_and_its_path_is_not_bound_twice(tmp_path: Path) -> None:
    path, other = tmp_path / SOCKET_NAME, tmp_path / "other"
    with listener(path) as kept:
        inode = path.stat().st_ino
        async with listen.open_listeners([path, other], [kept.dup()]) as endpoints:
            assert [endpoint.path for endpoint in endpoints] == [path, other]
            assert path.stat().st_ino == inode
            async with await trio.open_unix_socket(str(path)), await endpoints[0].accept():
                pass
        assert path.stat().st_ino == inode
        assert not other.exists()
        waiting = socket.socket(socket.AF_UNIX)
        waiting.connect(str(path))  # nobody serves, and still nobody is refused
        async with listen.open_listeners([], [kept.dup()]) as endpoints, await endpoints[0].accept() as served:
            await served.send_all(b"here")
        assert waiting.recv(10) == b"here"
        waiting.close()


async def test_a_passed_socket_that_was_removed_is_not_bound_again(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    path = tmp_path / SOCKET_NAME
    with listener(path) as kept:
        async with listen.open_listeners([], [kept.dup()]):
            path.unlink()
            await trio.sleep(3 * listen.LOOK_AGAIN_S)
            assert not path.exists()


@pytest.fixture(scope="module")
def launchd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that stands in for Apple's."""
    return tmp_path_factory.mktemp("launchd") / "launchd.so"


@pytest.fixture
def library(launchd: Path, need: Callable[[str], str]) -> ctypes.CDLL:
    if not launchd.exists():
        compiler = [need("gcc"), "-shared", "-fPIC", "-x", "c", "-", "-o", str(launchd)]
        subprocess.run(compiler, input=LAUNCHD, text=True, check=True)
    return ctypes.CDLL(str(launchd))


def test_launchd_hands_its_sockets_over_once_and_they_are_closed_to_children(tmp_path: Path, library: ctypes.CDLL) -> None:
    with listener(tmp_path / "a") as a, listener(tmp_path / "b") as b:
        handed = os.dup(a.fileno()), os.dup(b.fileno())
        for descriptor in handed:
            os.set_inheritable(descriptor, True)
        library.hand_over(*handed)
        taken = passed_by_launchd(library)
        assert [listen.path_of(one) for one in taken] == [tmp_path / "a", tmp_path / "b"]
        assert [one.get_inheritable() for one in taken] == [False, False]
        for one in taken:
            one.close()
        with pytest.raises(listen.ListenFault, match=r"does not hand over the socket varlink \(.*already"):
            passed_by_launchd(library)


@pytest.mark.parametrize("error", [errno.ESRCH, errno.ENOENT])
def test_whoever_was_not_started_by_launchd_binds_for_himself(library: ctypes.CDLL, error: int) -> None:
    library.refuse_with(error)
    assert passed_by_launchd(library) == []
