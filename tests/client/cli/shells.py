"""The command line run as people run it: as a process of its own, through pipes or typed at on a terminal."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

DEADLINE_S = 30.0
RUNHIST = [sys.executable, "-c", "import sys; from runhist.cli.main import main; sys.exit(main())"]
# The same where there is no signalfd, as on macOS.
PORTABLE = [*RUNHIST[:2], f"import runhist.cli.signals as s; s._signalfd = s._wakeup_fd\n{RUNHIST[2]}"]
PYTHON = [sys.executable, "-u", "-c"]


def run(
    *arguments: str, env: Mapping[str, str], stdin: bytes | None = None, timeout: float = DEADLINE_S
) -> subprocess.CompletedProcess[bytes]:
    """`runhist ARGUMENTS` to its end."""
    given = subprocess.DEVNULL if stdin is None else subprocess.PIPE
    with subprocess.Popen(
        [*RUNHIST, *arguments], env=env, stdin=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            stdout, stderr = process.communicate(stdin, timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def start(
    *arguments: str, env: Mapping[str, str], stdin: int = subprocess.DEVNULL, runhist: Sequence[str] = RUNHIST
) -> subprocess.Popen[bytes]:
    """`runhist ARGUMENTS` with its output in pipes."""
    return subprocess.Popen(
        [*runhist, *arguments], env=env, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    )


class Terminal:
    """A program on a terminal that somebody sits at."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], rows: int = 24, columns: int = 80) -> None:
        self._unread = b""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            try:
                resize(0, rows, columns)
                os.execvpe(argv[0], list(argv), dict(env))
            finally:
                os._exit(126)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self.fd)  # hangs up
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self.fd, keys)

    def until(self, text: bytes) -> bytes:
        """What is shown up to and with `text`."""
        end = time.monotonic() + DEADLINE_S
        while text not in self._unread:
            if not self._read(end):
                raise AssertionError(f"waited in vain for {text!r} in {self._unread!r}")
        shown, _, self._unread = self._unread.partition(text)
        return shown + text

    def paste(self, keys: bytes) -> None:
        """Press many keys, while what is shown is taken in for a later `until`."""
        os.set_blocking(self.fd, False)
        end = time.monotonic() + DEADLINE_S
        while keys:
            readable, writable, _ = select.select([self.fd], [self.fd], [], DEADLINE_S)
            assert readable or writable, f"{len(keys)} keys are not taken"
            if readable:
                self._read(end)
            if writable:
                keys = keys[os.write(self.fd, keys[:1000]) :]
        os.set_blocking(self.fd, True)

    def rest(self) -> tuple[int, bytes]:
        """The program's wait status, and all that it still shows until its end."""
        end = time.monotonic() + DEADLINE_S
        while self._read(end):
            pass
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        return status, self._unread

    def _read(self, end: float) -> bool:
        if not select.select([self.fd], [], [], max(0.0, end - time.monotonic()))[0]:
            raise AssertionError(f"nothing more than {self._unread!r}")
        try:
            shown = os.read(self.fd, 65536)
        except OSError:  # how a pseudo-terminal ends
            return False
        self._unread += shown
        return bool(shown)


def resize(fd: int, rows: int, columns: int) -> None:
    """Give a terminal another size."""
    import termios

    termios.tcsetwinsize(fd, (rows, columns))


def shell(env: Mapping[str, str]) -> Terminal:
    """A bash that does job control, at its prompt."""
    terminal = Terminal(["bash", "--norc", "--noprofile", "-i"], {**env, "TERM": "dumb"})
    terminal.type(b"PS1='READ''Y> '; bind 'set enable-bracketed-paste off'\n")
    terminal.until(b"READY> ")
    return terminal
