"""Shared fixtures: a real `runhistd serve` in a private directory, and the rule for tools that a machine may lack.

A test that names the types writes `if TYPE_CHECKING: from tests.conftest import Daemon`; nothing here needs importing.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import runhistd
from runhist import environment
from runhist.paths import MAX_SOCKET_PATH_BYTES, SOCKET_NAME

# Or every program that a test starts, and that is hundreds, would compile all modules anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

for _lent in (environment.RUN, environment.NAMESPACE, environment.LEASE, environment.TRACEPARENT):
    os.environ.pop(_lent, None)  # whoever records the tests lends them a run, which is not theirs to add to

# No test depends on how fast the machine is.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

ROOT = Path(__file__).parent.parent
DEADLINE_S = 30.0  # for another program to do what was asked; generous, since two cores may be shared with much else
GET_INFO = b'{"method":"org.varlink.service.GetInfo","parameters":{}}\0'


def wait_until(condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Look again every 20 ms until `condition()` is true; fail the test with `what` after `deadline_s`."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"waited {deadline_s:g} s in vain: {what}")
        time.sleep(0.02)


def answers(path: Path) -> bool:
    """Whether something answers GetInfo at that socket."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(5)
        peer.connect(str(path))
        peer.sendall(GET_INFO)
        reply = b""
        while not reply.endswith(b"\0"):
            received = peer.recv(65536)
            if not received:
                return False
            reply += received
        return b"dev.runhist.History" in reply
    return False


def isolated_environment(state_dir: Path, config_file: Path) -> dict[str, str]:
    """This process's environment without the user's own history: clients and daemons in it meet at `state_dir`.

    Nor with what somebody has set for Python: what a program prints into a pipe waits in its buffer.
    """
    own = ("RUNHIST", "XDG_", "NO_COLOR", "PYTHON")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    imports_from = Path(runhistd.__file__).parent.parent  # the same code as in this process, whatever the cwd
    environment.update(
        HOME=str(state_dir.parent),
        PYTHONPATH=str(imports_from),
        RUNHIST_STATE_DIR=str(state_dir),
        RUNHIST_CONFIG=str(config_file),
    )
    return environment


class Daemon:
    """One daemon's directory, and the process that serves it now and then.

    `env` is what a client needs to find it; write `config_file` before `start()` to configure it.
    """

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.socket = state_dir / SOCKET_NAME
        self.database = state_dir / "history.db"
        self.config_file = state_dir.parent / f"{state_dir.name}.toml"
        self.log_file = state_dir.parent / f"{state_dir.name}.log"
        self.env = isolated_environment(state_dir, self.config_file)
        self.process: subprocess.Popen[bytes] | None = None

    def launch(self, *, wrapper: Sequence[str] = (), env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start the process without waiting for anything. `wrapper` is put before the command (strace …)."""
        assert self.process is None or self.process.poll() is not None, "the daemon runs already"
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*wrapper, sys.executable, "-m", "runhistd", "serve"],
                env={**self.env, **(env or {})},
                cwd=self.state_dir.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self.process

    def start(self, *, wrapper: Sequence[str] = (), env: Mapping[str, str] | None = None) -> Daemon:
        """Start and wait until it answers; an early end fails the test with the log."""
        process = self.launch(wrapper=wrapper, env=env)

        def ready() -> bool:
            if process.poll() is not None:
                pytest.fail(f"the daemon ended with {process.returncode} at its start:\n{self.log_text()}")
            return answers(self.socket)

        try:
            wait_until(ready, "the daemon answers")
        except BaseException:
            sys.stderr.write(self.log_text())
            raise
        return self

    @property
    def pid(self) -> int:
        """Of the daemon itself, also under a wrapper: what the lock file names."""
        return int((self.state_dir / "runhistd.lock").read_text())

    def kill(self) -> None:
        """SIGKILL, wrapper included, and wait for the end."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(DEADLINE_S)

    def stop(self) -> None:
        """SIGTERM; the daemon must end with 0."""
        assert self.process is not None, "the daemon was never started"
        os.kill(self.pid, signal.SIGTERM)
        status = self.process.wait(DEADLINE_S)
        assert status == 0, f"the daemon ended with {status}:\n{self.log_text()}"

    def log_text(self) -> str:
        """All that the daemon wrote so far, over all its starts."""
        return self.log_file.read_text("utf-8", "replace") if self.log_file.exists() else ""


@pytest.fixture
def new_daemon(tmp_path: Path) -> Iterator[Callable[[], Daemon]]:
    """Makes daemons that were not started yet, each with a directory of its own; whatever runs at the end is killed."""
    with contextlib.ExitStack() as stack:
        numbers = itertools.count(1)

        def make() -> Daemon:
            name = f"state{next(numbers)}"
            home = tmp_path
            if len(os.fsencode(home / name / SOCKET_NAME)) > MAX_SOCKET_PATH_BYTES:
                home = Path(tempfile.mkdtemp(prefix="rh"))
                stack.callback(shutil.rmtree, home, ignore_errors=True)
            made = Daemon(home / name)
            stack.callback(made.kill)
            return made

        yield make


@pytest.fixture
def daemon(new_daemon: Callable[[], Daemon]) -> Daemon:
    """One daemon, not started yet."""
    return new_daemon()


@pytest.fixture
def lead_to(monkeypatch: pytest.MonkeyPatch) -> Callable[[Daemon], Daemon]:
    """`lead_to(daemon)`: clients in this process find that daemon; returns it."""

    def lead(daemon: Daemon) -> Daemon:
        for name in list(os.environ):
            if name.startswith("RUNHIST") and name != "RUNHIST_CI":
                monkeypatch.delenv(name)
        for name, value in daemon.env.items():
            if name.startswith("RUNHIST"):
                monkeypatch.setenv(name, value)
        return daemon

    return lead


@pytest.fixture
def away(daemon: Daemon, lead_to: Callable[[Daemon], Daemon]) -> Daemon:
    """A daemon that was installed and is stopped; clients in this process would find it."""
    lead_to(daemon).start()
    daemon.stop()
    return daemon


@pytest.fixture(name="wait_until")
def wait_until_fixture() -> Callable[..., None]:
    """`wait_until(condition, what)`: for what other processes do."""
    return wait_until


@pytest.fixture
def need() -> Callable[[str], str]:
    """`need("strace")` is the tool's path; where it is missing the test is skipped, in CI it fails."""

    def find(tool: str) -> str:
        found = shutil.which(tool)
        if found is None:
            missing(f"{tool} is not installed")
        return str(found)

    return find


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both wheels, built from the checkout, by distribution."""
    built = tmp_path_factory.mktemp("wheels")
    for project in (ROOT, ROOT / "client"):
        command: list[str | Path] = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", built]
        ended = subprocess.run(command, cwd=project, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    return {path.name.partition("-")[0]: path for path in built.iterdir()}


def missing(reason: str) -> None:
    """Skip for that reason; in CI, which installs all that the tests need, fail."""
    if os.environ.get("RUNHIST_CI"):
        pytest.fail(f"{reason}, and CI does not skip")
    pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test logged may hold lone surrogates, and such a report could not be sent to the process that prints it."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


def pytest_xdist_auto_num_workers() -> int:
    """Two a processor: for half of its time a test waits for the programs that it has started."""
    return 2 * (os.cpu_count() or 1)
