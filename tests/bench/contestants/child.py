"""A server that is a process of ours."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

START_S = 60.0


class Child:
    """A process that serves until `stop`, which sends it `end_signal`. Its output is kept in `log`."""

    def __init__(
        self,
        command: Sequence[str | os.PathLike[str]],
        env: Mapping[str, str],
        log: Path,
        end_signal: signal.Signals = signal.SIGTERM,
        user: str | None = None,
    ) -> None:
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, user=user, cwd=log.parent
            )
        self._log = log
        self._end_signal = end_signal
        self.pid = self._process.pid

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Return when `ready()` is true or raises no OSError; what it logged is the error otherwise."""
        deadline_s = time.monotonic() + START_S
        while not _quietly(ready):
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                self.stop()
                raise RuntimeError(f"it did not start:\n{self._log.read_text('utf-8', 'replace')}")
            time.sleep(0.01)

    def stop(self) -> None:
        """End it, by force after a while."""
        self._process.send_signal(self._end_signal)
        try:
            self._process.wait(START_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def connected(path: Path) -> socket.socket:
    """A connection to a Unix socket. Raises OSError."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(os.fspath(path))
    except OSError:
        connection.close()
        raise
    return connection


def _quietly(ready: Callable[[], bool]) -> bool:
    try:
        return ready()
    except OSError:
        return False
