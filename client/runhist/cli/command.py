"""Starts the command that `exec` records, with pipes or on a pseudo-terminal, and tells what becomes of it.

With pipes the command is a plain child, in our process group, so that the terminal's Ctrl-C and Ctrl-Z reach it without
our help. On a pseudo-terminal it needs a session whose leader is not the command itself: the kernel ignores Ctrl-Z for a
process group that nobody of its own session watches over. So a forked monitor leads the session, starts the command in
a foreground group, and reports every stop and the end over a pipe. It lives until its other pipe is closed, because its
death would hang the pseudo-terminal up before all output was read.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, List, Mapping, NamedTuple, NoReturn, Optional, Sequence, Set, Tuple, Union

from .signals import SignalSource
from .terminal import PseudoTerminal

_RSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024

_REPORT = struct.Struct("=cqqqq")  # what the monitor writes: a tag, a pid, errno or status, and the figures
_STARTED, _NOT_STARTED, _STOPPED, _ENDED = b"b", b"n", b"s", b"e"
_KILLED = _REPORT.pack(_ENDED, signal.SIGKILL, 0, 0, 0)  # a monitor that says nothing was killed


class NotStarted(Exception):
    """The command could not be started. `exit_status` is 127 for not found, 125 when we are at fault, else 126."""

    def __init__(self, command: str, number: int) -> None:
        self.number = number  # an errno
        self.exit_status = {errno.ENOENT: 127, errno.EAGAIN: 125, errno.ENOMEM: 125}.get(number, 126)
        super().__init__(f"{command}: {'not found' if number == errno.ENOENT else os.strerror(number)}")


class Stopped(NamedTuple):
    """The command was stopped, for instance by Ctrl-Z."""

    number: int


class Ended(NamedTuple):
    """The command ended. `status` is as `wait` returns it; the figures include what it started and waited for.

    A max_rss_bytes below this process's own size at the start cannot be told: the kernel counts from the fork.
    """

    status: int
    user_us: int
    system_us: int
    max_rss_bytes: int


Change = Union[Stopped, Ended]


class Output(NamedTuple):
    """Where the command's output is read, the stream's name in the history, and our descriptor that it goes to."""

    fd: int
    stream: str
    sink: int


class Plain:
    """The command as our own child, its output in two pipes."""

    in_our_group = True  # the terminal's signals reach it without us

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], signals: SignalSource) -> None:
        stdout, stdout_end = os.pipe()
        stderr, stderr_end = os.pipe()
        try:
            self._child = _start(argv, env, signals.restore_in_child, stdout=stdout_end, stderr=stderr_end)
        except BaseException:
            _close(stdout, stderr)
            raise
        finally:
            _close(stdout_end, stderr_end)
        self.outputs: Tuple[Output, ...] = (Output(stdout, "stdout", 1), Output(stderr, "stderr", 2))

    def report_fd(self) -> Optional[int]:
        """What to poll for changes besides SIGCHLD."""
        return None

    def changes(self) -> List[Change]:
        """What became of it since the last call; never waits."""
        if self._child.returncode is not None:
            return []
        pid, status, usage = os.wait4(self._child.pid, os.WNOHANG)
        if pid == 0:
            return []
        self._child.returncode = os.waitstatus_to_exitcode(status)
        return [Ended(status, *_figures(usage))]

    def send_signal(self, number: int) -> None:
        """Pass a signal on, unless the command has ended."""
        if self._child.returncode is None:
            os.kill(self._child.pid, number)

    def resume(self) -> None:
        """Nothing to do: what continues us continues our whole group."""

    def close(self) -> None:
        """Let go of what is left once it ended."""


class OnTerminal:
    """The command on a pseudo-terminal, under a monitor. Its stdin is the terminal too, unless `stdin_inherited`."""

    in_our_group = False

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        signals: SignalSource,
        terminal: PseudoTerminal,
        stdin_inherited: bool,
    ) -> None:
        self._reports, reports_end = os.pipe()
        control_end, self._control = os.pipe()
        self._monitor_pid = os.fork()
        if self._monitor_pid == 0:
            stdin = None if stdin_inherited else terminal.slave
            _monitor(argv, env, signals.restore_in_child, terminal.slave, stdin, reports_end, control_end)
        _close(reports_end, control_end, terminal.slave)
        self.outputs: Tuple[Output, ...] = (Output(terminal.master, "terminal", 1),)
        self._ended = False
        tag, number, *_ = _REPORT.unpack(os.read(self._reports, _REPORT.size) or _KILLED)
        if tag != _STARTED:
            self.close()
            raise NotStarted(argv[0], number if tag == _NOT_STARTED else errno.EAGAIN)
        self._pid = number
        os.set_blocking(self._reports, False)

    def report_fd(self) -> Optional[int]:
        """What to poll for changes besides SIGCHLD."""
        return None if self._ended else self._reports

    def changes(self) -> List[Change]:
        """What became of it since the last call; never waits."""
        try:
            reports = b"" if self._ended else os.read(self._reports, _REPORT.size * 16) or _KILLED
        except BlockingIOError:
            return []
        changes: List[Change] = []
        for tag, status, *figures in _REPORT.iter_unpack(reports):
            self._ended = tag == _ENDED
            changes.append(Ended(status, *figures) if self._ended else Stopped(os.WSTOPSIG(status)))
        return changes

    def send_signal(self, number: int) -> None:
        """Pass a signal on, unless the command has ended."""
        if not self._ended:
            with suppress(ProcessLookupError):
                os.kill(self._pid, number)

    def resume(self) -> None:
        """Continue the command's whole job after it was stopped."""
        if not self._ended:
            with suppress(ProcessLookupError):
                os.killpg(self._pid, signal.SIGCONT)

    def close(self) -> None:
        """Let the monitor end, which hangs up what still runs on the pseudo-terminal."""
        _close(self._control, self._reports)
        os.waitpid(self._monitor_pid, 0)


def _start(
    argv: Sequence[str],
    env: Mapping[str, str],
    prepare: Callable[[], None],
    stdin: Optional[int] = None,
    *,
    stdout: int,
    stderr: int,
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            list(argv), stdin=stdin, stdout=stdout, stderr=stderr, env=dict(env), preexec_fn=prepare, bufsize=0
        )
    except OSError as error:
        raise NotStarted(argv[0], error.errno or 0) from None


def _monitor(
    argv: Sequence[str],
    env: Mapping[str, str],
    restore_signals: Callable[[], None],
    slave: int,
    stdin: Optional[int],
    reports: int,
    control: int,
) -> NoReturn:
    """The whole life of the monitor. It keeps only the descriptors that it needs, and none of the pseudo-terminal."""
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        _close_all_but({0, 1, 2, slave, reports, control})
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

        def prepare() -> None:
            os.setpgid(0, 0)
            os.tcsetpgrp(slave, os.getpid())
            restore_signals()

        child = _start(argv, env, prepare, stdin, stdout=slave, stderr=slave)
        os.write(reports, _REPORT.pack(_STARTED, child.pid, 0, 0, 0))
        _close_all_but({reports, control})
        _hand_down_hangups(child.pid)
        tag = _STOPPED
        while tag == _STOPPED:
            _, status, usage = os.wait4(child.pid, os.WUNTRACED)
            tag = _STOPPED if os.WIFSTOPPED(status) else _ENDED
            os.write(reports, _REPORT.pack(tag, status, *_figures(usage)))
        os.read(control, 1)
    except NotStarted as error:
        os.write(reports, _REPORT.pack(_NOT_STARTED, error.number, 0, 0, 0))
    finally:
        os._exit(0)


def _hand_down_hangups(group: int) -> None:
    """A terminal that is hung up tells only its session's leader, which is the monitor and not the command."""

    def hand_down(*_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGHUP)
            os.killpg(group, signal.SIGCONT)

    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, hand_down)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])


def _figures(usage: Any) -> Tuple[int, int, int]:
    return round(usage.ru_utime * 1e6), round(usage.ru_stime * 1e6), usage.ru_maxrss * _RSS_UNIT_BYTES


def _close(*fds: int) -> None:
    for fd in fds:
        os.close(fd)


def _close_all_but(kept: Set[int]) -> None:
    for fd in [int(entry.name) for entry in Path("/dev/fd").iterdir()]:
        if fd not in kept:
            with suppress(OSError):  # the listing's own descriptor
                os.close(fd)
