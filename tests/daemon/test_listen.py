"""The sockets: bound without a race, bound again, removed by nobody but their owner."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest
import trio
import trio.testing

from runhist.paths import MAX_SOCKET_PATH_BYTES, SOCKET_NAME
from runhistd.daemon import listen


@pytest.fixture
def runtime() -> Iterator[Path]:
    """A directory whose sockets' paths are short enough, wherever pytest has its own."""
    with tempfile.TemporaryDirectory(prefix="rh") as directory:
        yield Path(directory) / "run"


async def greet(stream: trio.SocketStream) -> None:
    async with stream:
        await stream.send_all(b"here")


@contextlib.asynccontextmanager
async def serving(*paths: Path) -> AsyncIterator[Sequence[listen.Endpoint]]:
    with trio.fail_after(30):
        async with listen.open_listeners(paths) as endpoints, trio.open_nursery() as nursery:
            for endpoint in endpoints:
                nursery.start_soon(trio.serve_listeners, greet, [endpoint])
            yield endpoints
            nursery.cancel_scope.cancel()


async def reach(path: Path) -> bytes:
    async with await trio.open_unix_socket(str(path)) as stream:
        return bytes(await stream.receive_some())


def listening_socket(path: Path) -> socket.socket:
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(str(path))
    bound.listen()
    return bound


async def test_a_socket_is_ours_alone_and_goes_with_the_listener(runtime: Path) -> None:
    runtime.parent.mkdir(exist_ok=True)
    path = runtime / SOCKET_NAME
    before = os.umask(0)
    try:
        async with serving(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(runtime.stat().st_mode) == 0o700
            assert await reach(path) == b"here"
            assert [found.name for found in runtime.iterdir()] == [SOCKET_NAME]
    finally:
        os.umask(before)
    assert list(runtime.iterdir()) == []


async def test_a_dead_socket_is_replaced_and_leftovers_of_a_killed_daemon_too(runtime: Path) -> None:
    runtime.mkdir()
    path = runtime / SOCKET_NAME
    listening_socket(path).close()
    listening_socket(runtime / listen.BINDING_NAME).close()
    async with serving(path):
        assert await reach(path) == b"here"


async def test_what_is_not_a_socket_is_never_replaced(runtime: Path) -> None:
    runtime.mkdir()
    path = runtime / SOCKET_NAME
    path.write_text("mine")
    with pytest.raises(listen.ListenFault, match="not a socket; move it away"):
        async with listen.open_listeners([path]):
            pass
    assert path.read_text() == "mine"


async def test_one_place_that_cannot_be_bound_does_not_keep_the_others_from_serving(runtime: Path) -> None:
    good, bad = runtime / SOCKET_NAME, runtime / "missing" / "parent" / SOCKET_NAME
    async with serving(bad, good) as endpoints:
        assert endpoints[0].fault
        assert await reach(good) == b"here"


async def test_a_directory_of_another_user_is_not_used(runtime: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory away")
    runtime.mkdir(mode=0o777)
    os.chown(runtime, 65534, 65534)
    with pytest.raises(listen.ListenFault, match="not a directory of our own"):
        async with listen.open_listeners([runtime / SOCKET_NAME]):
            pass


async def test_the_longest_path_that_the_system_takes_works_and_a_longer_one_says_what_to_do(tmp_path: Path) -> None:
    room = MAX_SOCKET_PATH_BYTES - len(os.fsencode(tmp_path)) - len(SOCKET_NAME) - 2
    path = tmp_path / ("d" * room) / SOCKET_NAME
    async with serving(path):
        assert await reach(path) == b"here"
    with pytest.raises(listen.ListenFault, match="RUNHIST_STATE_DIR to a shorter one"):
        async with listen.open_listeners([tmp_path / ("d" * (room + 1)) / SOCKET_NAME]):
            pass


async def test_a_vanished_socket_is_bound_again(runtime: Path, autojump_clock: trio.testing.MockClock) -> None:
    path = runtime / SOCKET_NAME
    async with serving(path):
        for _ in range(2):
            path.unlink()
            await trio.sleep(listen.LOOK_AGAIN_S + 1)
            assert await reach(path) == b"here"


async def test_a_vanished_directory_is_made_again(runtime: Path, autojump_clock: trio.testing.MockClock) -> None:
    path = runtime / SOCKET_NAME
    async with serving(path):
        path.unlink()
        runtime.rmdir()
        await trio.sleep(listen.LOOK_AGAIN_S + 1)
        assert await reach(path) == b"here"


async def test_a_place_that_comes_back_is_bound(runtime: Path, autojump_clock: trio.testing.MockClock) -> None:
    late, good = runtime / "user" / "runhist" / SOCKET_NAME, runtime / SOCKET_NAME
    async with serving(late, good):
        late.parent.parent.mkdir()
        await trio.sleep(listen.LOOK_AGAIN_S + 1)
        assert await reach(late) == b"here"


async def test_who_waits_in_accept_does_not_notice_that_the_socket_was_bound_again(runtime: Path) -> None:
    runtime.mkdir()
    endpoint = listen.Endpoint(runtime / SOCKET_NAME)
    endpoint.bind()
    async with endpoint, trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, greet, [endpoint])
        await trio.testing.wait_all_tasks_blocked()
        endpoint.path.unlink()
        endpoint.bind()
        assert await reach(endpoint.path) == b"here"
        nursery.cancel_scope.cancel()


async def test_a_socket_that_another_daemon_bound_meanwhile_is_left_alone(runtime: Path) -> None:
    path = runtime / SOCKET_NAME
    runtime.mkdir()
    endpoint = listen.Endpoint(path)
    endpoint.bind()
    path.unlink()
    with listening_socket(path):
        await endpoint.aclose()
        assert path.exists()


async def test_a_closed_endpoint_ends_who_waits_in_accept(runtime: Path) -> None:
    runtime.mkdir()
    endpoint = listen.Endpoint(runtime / SOCKET_NAME)
    endpoint.bind()

    async def wait_for_the_end() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await endpoint.accept()

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_for_the_end)
            await trio.testing.wait_all_tasks_blocked()
            await endpoint.aclose()


async def test_all_who_connected_before_are_accepted_before_a_verdict(runtime: Path) -> None:
    path = runtime / SOCKET_NAME
    returned = []
    async with listen.open_listeners([path]) as endpoints, trio.open_nursery() as nursery:
        early = [await trio.open_unix_socket(str(path)) for _ in range(3)]

        async def wait() -> None:
            await listen.all_accepted(endpoints)
            returned.append(len(accepted))

        nursery.start_soon(wait)
        accepted: list[trio.SocketStream] = []
        for _ in early:
            await trio.testing.wait_all_tasks_blocked()
            assert not returned
            accepted.append(await endpoints[0].accept())
        await trio.testing.wait_all_tasks_blocked()
        assert returned == [3]
        for stream in (*early, *accepted):
            await stream.aclose()
