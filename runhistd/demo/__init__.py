"""`runhistd demo`: a private daemon, four engine processes that do real work at the same time, and what is left of it.

Everything happens in a temporary directory with a socket of its own; the user's own history is not touched. The files
stay, so that they can be looked at; the demo says where they are and how to remove them.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from runhist.connection import Connection, Unreachable
from runhist.paths import SOCKET_NAME, SocketChoice, check_socket_path
from runhist.protocol.errors import RunhistError
from runhistd.demo.engines import ENGINES
from runhistd.demo.interrupts import Interrupts
from runhistd.demo.progress import Progress

START_S = 20.0
STOP_S = 15.0
INTERRUPTED = 128 + signal.SIGINT
LOOK_S = 0.2  # how often the engines' processes are looked at while nothing is recorded


class DemoFailed(Exception):
    """Something of the demo did not work; the text says what and what there is to read."""


def main() -> int:
    """Show it; 0 when everything worked, 1 when not."""
    interrupts = Interrupts()
    directory = _directory()
    status = 0
    try:
        with _daemon(directory, interrupts) as environment:
            _say("Four engines record what they do, at the same time:\n")
            progress = _work(directory, environment, interrupts)
            _say("\nAll runs:\n")
            _show(environment, interrupts, "list")
            _say("\nThe steps of one of them, with durations and costs (at a made-up price a CPU second):\n")
            _show(environment, interrupts, "show", progress.runs["small-pipeline"])
            _tell_files(directory)
            if sys.stdin.isatty() and sys.stdout.isatty():
                _tell_commands(directory, interrupts)
    except (DemoFailed, RunhistError) as failure:
        _say(f"\nThe demo failed: {failure}\n")
        status = 1
    except KeyboardInterrupt:
        status = INTERRUPTED
    _say(f"\nThe daemon has stopped. To remove its files: rm -r {shlex.quote(str(directory))}\n")
    return status


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _directory() -> Path:
    """A new temporary directory whose socket path fits the system's limit."""
    directory = Path(tempfile.mkdtemp(prefix="runhist-demo-"))
    try:
        check_socket_path(_socket(directory))
    except ValueError:
        directory.rmdir()
        directory = Path(tempfile.mkdtemp(prefix="runhist-demo-", dir="/tmp"))
    return directory


def _socket(directory: Path) -> Path:
    return directory / "state" / SOCKET_NAME


def _environment(directory: Path) -> dict[str, str]:
    """Ours, but every client finds the demo's daemon, and nothing that surrounds us shines through."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("RUNHIST")}
    return {**ours, "RUNHIST": "on", "RUNHIST_SOCKET": str(_socket(directory))}


@contextlib.contextmanager
def _daemon(directory: Path, interrupts: Interrupts) -> Iterator[dict[str, str]]:
    """A daemon in `directory` that answers; gives its clients' environment. It is stopped at the end, whatever happens."""
    environment = _environment(directory)
    private = {"RUNHIST_STATE_DIR": str(directory / "state"), "RUNHIST_CONFIG": str(directory / "config.toml")}
    with (directory / "daemon.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "runhistd", "serve"],
            env={**environment, **private},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # the terminal's Ctrl-C is for us; we stop it gracefully
        )
    try:
        _await_daemon(directory, process, interrupts)
        yield environment
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_daemon(directory: Path, process: subprocess.Popen[bytes], interrupts: Interrupts) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            with _connect(directory) as connection:
                connection.call("Describe", {})
                return
        except Unreachable as why:
            if process.poll() is not None or time.monotonic() > deadline:
                log = (directory / "daemon.log").read_text("utf-8", "replace")
                raise DemoFailed(f"the daemon does not answer: {why}\n{log}") from None
        with interrupts.pausing():
            time.sleep(0.05)


def _connect(directory: Path) -> Connection:
    return Connection.open(SocketChoice((_socket(directory),), "it is the demo's own", True))


def _work(directory: Path, environment: Mapping[str, str], interrupts: Interrupts) -> Progress:
    """Start the engines and show what they record, until all have ended."""
    logs = {name: directory / f"{name}.log" for name in ENGINES}
    processes: dict[str, subprocess.Popen[bytes]] = {}
    with _connect(directory) as connection:
        progress = Progress(_say)
        connection.send("Follow", {"cursor": {"position": 0}}, more=True)
        try:
            for name, log in logs.items():
                with log.open("wb") as output:
                    command = [sys.executable, "-m", "runhistd.demo", name]
                    processes[name] = subprocess.Popen(
                        command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
                    )
            while any(process.poll() is None for process in processes.values()):
                with interrupts.pausing():
                    connection.wait(LOOK_S)
                progress.take(connection)
        finally:
            for process in processes.values():
                process.kill()
                process.wait()
        with interrupts.pausing():
            progress.finish(connection, len(ENGINES))
    for name, process in processes.items():
        if process.returncode != 0:
            text = logs[name].read_text("utf-8", "replace")
            raise DemoFailed(f"the engine {name} ended with {process.returncode}\n{text}")
    if len(progress.ended) < len(ENGINES):
        raise DemoFailed(f"only {len(progress.ended)} of {len(ENGINES)} runs were seen to end")
    return progress


def _show(environment: Mapping[str, str], interrupts: Interrupts, *arguments: str) -> None:
    """Run the command line as anybody would, and show the command."""
    _say(f"$ runhist {shlex.join(arguments)}\n")
    status = subprocess.run([*_runhist(), *arguments], env=environment, stdin=subprocess.DEVNULL, check=False).returncode
    with interrupts.pausing():  # Ctrl-C reached the command too
        pass
    if status != 0:
        raise DemoFailed(f"runhist {shlex.join(arguments)} ended with {status}")


def _runhist() -> list[str]:
    """The command line that was installed with this Python: by its name where the shell finds it by that."""
    beside = Path(sys.executable).parent / "runhist"
    found = shutil.which("runhist")
    if found is not None and (not beside.exists() or Path(found).samefile(beside)):
        return ["runhist"]
    if beside.exists():
        return [str(beside)]
    return [sys.executable, "-c", "import sys; from runhist.cli.main import main; sys.exit(main())"]


def _tell_files(directory: Path) -> None:
    _say(f"\nThe files are in {directory}:\n")
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        _say(f"  {path.relative_to(directory)!s:<28}{path.stat().st_size:>10,} bytes\n")


def _tell_commands(directory: Path, interrupts: Interrupts) -> None:
    """Keep the daemon until Enter, or the end of the input."""
    command = f"RUNHIST_SOCKET={shlex.quote(str(_socket(directory)))} {shlex.join(_runhist())}"
    _say("\nThe daemon still runs. In another terminal, try:\n\n")
    for arguments in ("show @failed", "logs @failed", "exec --agent me -- uname -a"):
        _say(f"  {command} {arguments}\n")
    _say("\nPress Enter here to stop it. ")
    with contextlib.suppress(KeyboardInterrupt), interrupts.pausing():
        sys.stdin.readline()
