"""Who a process is, and when it is gone: asked of the kernel with real processes."""

from __future__ import annotations

import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from runhist import identity
from runhistd.daemon import processes
from runhistd.daemon.processes import Evidence, Exits, Process, Processes
from runhistd.model.holder import Holder

SLEEPER = [sys.executable, "-c", "import sys; sys.stdin.read()"]


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives until it is killed, or its standard input is closed."""
    with subprocess.Popen(SLEEPER, stdin=subprocess.PIPE) as started:
        yield started
        started.kill()


@pytest.fixture
def without_pidfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel as it was before Linux 6.9."""
    monkeypatch.setattr(identity, "has_pidfs", lambda: False)


def refuse(*_: object) -> str:
    """What /proc does where a service may not look."""
    raise PermissionError


def find(known: Processes, pid: int) -> Process:
    found = known.find(pid)
    assert found is not None
    return found


def kill_and_leave(child: subprocess.Popen[bytes]) -> None:
    """Kill it, and do not wait: it is a zombie."""
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)


def test_the_peer_is_the_process_that_connected_even_through_another_ones_hands(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        code = f"import os, socket, sys; s = socket.socket(socket.AF_UNIX); s.connect({path!r})\nif os.fork(): os._exit(0)\n"
        with subprocess.Popen([sys.executable, "-c", code + "sys.stdin.read()"], stdin=subprocess.PIPE) as parent:
            connected, _ = listener.accept()
            parent.wait()
            peer = Processes().peer(connected)
            assert peer.holder.pid == parent.pid and peer.is_dead()  # although its child lives and holds the socket
            peer.close()
            connected.close()


def test_a_process_is_the_same_whoever_asks_and_no_other_one(child: subprocess.Popen[bytes]) -> None:
    one, again, other = find(Processes(), child.pid), find(Processes(), child.pid), find(Processes(), os.getpid())
    assert one.holder == again.holder != other.holder
    assert one.holder.boot_id == identity.BOOT_ID_FILE.read_text().strip()
    assert not one.is_dead()
    for process in (one, again, other):
        process.close()


@pytest.mark.parametrize("waited_for", [False, True])
def test_a_zombie_is_as_dead_as_one_that_was_waited_for(child: subprocess.Popen[bytes], waited_for: bool) -> None:
    process = find(Processes(), child.pid)
    kill_and_leave(child)
    if waited_for:
        child.wait()
    assert process.is_dead()
    assert Processes().find(child.pid) is None
    evidence = Processes().find_again(process.holder)
    assert evidence == Evidence("gone" if waited_for else "exited", "pidfd")
    process.close()


@pytest.mark.usefixtures("without_pidfs")
def test_an_older_kernel_tells_processes_apart_by_their_start(child: subprocess.Popen[bytes]) -> None:
    known = Processes()
    process = find(known, child.pid)
    process.close()
    assert process.holder.identity.startswith("start:")
    found = known.find_again(process.holder)
    assert isinstance(found, Process)
    found.close()
    ticks = int(process.holder.identity.removeprefix("start:").split()[0])
    earlier = msgspec.structs.replace(process.holder, identity=process.holder.identity.replace(str(ticks), str(ticks - 1)))
    assert known.find_again(earlier) == Evidence("replaced", "start_time")
    kill_and_leave(child)
    assert known.find_again(process.holder) == Evidence("gone", "start_time")


def test_a_kernel_without_pidfds_notices_the_same(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, without_pidfs: None
) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    known = Processes()
    process = find(known, child.pid)
    assert process.pidfd is None and process.holder.identity.startswith("start:")
    assert isinstance(known.find_again(process.holder), Process)
    assert not Exits().watch(process)
    kill_and_leave(child)
    assert known.find_again(process.holder) == Evidence("gone", "start_time")
    assert known.find(child.pid) is None


def test_a_recorded_process_of_another_boot_is_dead_whoever_has_its_pid_now() -> None:
    mine = find(Processes(), os.getpid())
    mine.close()
    assert Processes("another boot").find_again(mine.holder) == Evidence("boot changed", "boot_id")
    assert identity.boot_id({"RUNHIST_BOOT_ID": "named"}) == "named"


def test_the_boot_as_systemd_writes_it_is_the_same_as_the_kernels() -> None:
    kernels = identity.BOOT_ID_FILE.read_text().strip()
    assert identity.boot_id({"RUNHIST_BOOT_ID": kernels.replace("-", "")}) == identity.boot_id({}) == kernels


def test_nothing_is_known_of_a_process_that_has_no_pid_here() -> None:
    known = Processes()
    mine = find_identity(known)
    assert known.find_again(Holder(0, mine, known.boot_id)) is None
    elsewhere = mine.partition(" ")[0] + " pidns:1"
    assert known.find_again(Holder(os.getpid(), elsewhere, known.boot_id)) is None


def find_identity(known: Processes) -> str:
    process = find(known, os.getpid())
    process.close()
    return process.holder.identity


def test_what_cannot_be_told_apart_counts_as_found_again() -> None:
    known = Processes()
    found = known.find_again(Holder(os.getpid(), "", known.boot_id))
    assert isinstance(found, Process)
    found.close()
    assert known.find_again(Holder(2**22 - 1, "", known.boot_id)) == Evidence("gone", "pidfd")


def test_a_pid_that_was_given_again_is_another_process() -> None:
    """In a pid namespace of its own, where the next pid can be chosen."""
    if os.geteuid() != 0:
        pytest.skip("only root may make a pid namespace")
    code = """
        import os, signal, sys
        from pathlib import Path
        from runhistd.daemon.processes import Processes
        def fork():
            pid = os.fork()
            if pid == 0:
                while True:
                    signal.pause()
            return pid
        known, pid = Processes(), fork()
        process = known.find(pid)
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        assert fork() == pid
        sys.stdout.write(repr(known.find_again(process.holder)))
        os.kill(pid, 9)
    """
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, stdin=subprocess.PIPE, capture_output=True, text=True, timeout=30)
    assert done.stdout == repr(Evidence("replaced", "pidfd")), done.stderr


def test_a_peer_without_a_pid_here_is_watched_through_its_pidfd(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may make a pid namespace")
    code = f"""
        import socket, sys
        from runhistd.daemon.processes import Exits, Processes
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind({str(tmp_path / "socket")!r})
            listener.listen()
            print("listening", flush=True)
            connected, _ = listener.accept()
        peer, exits = Processes().peer(connected), Exits()
        assert peer.holder.pid == 0 and exits.watch(peer) and not exits.take()
        print(peer.holder.identity, flush=True)
        sys.stdin.readline()
        assert exits.take() == [peer]
    """
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as inner:
        assert inner.stdout is not None and inner.stdout.readline() == "listening\n"
        client = f"import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect({str(tmp_path / 'socket')!r})"
        with subprocess.Popen([sys.executable, "-c", client + "; sys.stdin.read()"], stdin=subprocess.PIPE):
            assert inner.stdout.readline().startswith("pidfd:")
        inner.communicate("it has exited\n", timeout=30)
        assert inner.returncode == 0


def test_exits_are_told_once_and_not_of_those_forgotten() -> None:
    children = [subprocess.Popen(SLEEPER, stdin=subprocess.PIPE) for _ in range(3)]
    known, exits = Processes(), Exits()
    watched = [find(known, child.pid) for child in children]
    assert all(exits.watch(process) for process in watched)
    exits.forget(watched[2])
    for child in children[1:]:
        child.communicate()
    assert processes.is_readable(exits.fileno())
    assert exits.take() == [watched[1]]
    assert exits.take() == []
    children[0].communicate()
    assert exits.take() == [watched[0]]
    for process in watched:
        exits.forget(process)
        process.close()
    exits.close()


def test_without_a_descriptor_left_a_process_is_still_told_by_its_start(child: subprocess.Popen[bytes]) -> None:
    here, there = socket.socketpair()
    known = Processes()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    holds = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(here.fileno(), there.fileno()) + 8, limits[1]))
        while True:
            try:
                holds.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                break
        os.close(holds.pop())  # one is needed to look
        spare = os.open("/dev/null", os.O_RDONLY)
        os.close(spare)
        crowded = find(known, child.pid)  # the last descriptor is its own now
        holds.append(crowded.pidfd or -1)
        peer = known.peer(here)
        assert peer.pidfd is None and not peer.is_dead()
        found = known.find_again(crowded.holder)
        assert isinstance(found, Process) and found.pidfd is None
    finally:
        for descriptor in holds:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert known.find_again(crowded.holder) == Evidence("gone", "pidfd")
    here.close()
    there.close()


def test_the_user_of_a_process_is_its_effective_one(child: subprocess.Popen[bytes]) -> None:
    assert identity.user_of(child.pid) == os.geteuid()
    assert identity.user_of(2**22 - 1) is None


def test_the_user_of_a_process_that_is_hidden_in_proc_is_told_by_its_pidfd(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    with subprocess.Popen(["sleep", "100"], cwd="/", user=4711) as other:
        if identity._user_by_pidfd(os.getpid()) is None:
            other.kill()
            pytest.skip("the kernel has no PIDFD_GET_INFO (Linux 6.13)")
        monkeypatch.setattr(Path, "read_text", refuse)
        assert identity.user_of(other.pid) == 4711
        other.kill()


def test_on_macos_the_peer_is_told_by_two_options_of_its_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    class MacSocket:
        """Answers as unix(4) of macOS promises: LOCAL_PEERCRED with a struct xucred, LOCAL_PEERPID with a number."""

        def getsockopt(self, level: int, option: int, size: int = 0) -> bytes | int:
            if (level, option, size) == (0, 1, 76):
                return struct.pack("=IIh2x16I", 0, 501, 1, *[20] * 16)
            assert (level, option, size) == (0, 2, 0)
            return 4711

    monkeypatch.setattr(sys, "platform", "darwin")
    assert processes.peer_credentials(MacSocket()) == (4711, 501)  # type: ignore[arg-type]
