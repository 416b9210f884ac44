"""The command line of the daemon: `serve`, `verify`, `demo`.

Exit codes: 0 done, 1 it failed (or `verify` found a difference), 2 the command line or the configuration is wrong. What a
user can mend is one line on stderr with the next step; a traceback means a bug. The parts are imported when their command
runs, because `--help` and `verify` need no event loop.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import runhistd
from runhist import paths

DESCRIPTION = """\
runhistd keeps one durable, shared history of every agent and workflow run on this machine.

Engines write into it and people read it through a Unix socket, with the command `runhist` or the
Python package of that name. One daemon serves one user; it starts with an empty history."""

SERVE = """\
Serves until SIGTERM or SIGINT (Ctrl-C), then stops gracefully: everything that was acknowledged
is on disk, whatever ends it. A second signal ends it at once. Log lines go to stderr.

files:
  state      {state}
  socket     {sockets}
  settings   {config}

environment:
  RUNHIST_STATE_DIR   another state directory, a history of its own: clients must be given the same
  RUNHIST_CONFIG      another settings file

settings (TOML; what is left out keeps its default):
{settings}"""

VERIFY = """\
Reads every run's events again, computes what they amount to, and compares that with what the history
says of the run; then SQLite checks the file itself. Works beside a running daemon and changes nothing.

exit status: 0 all agrees, 1 something differs (each difference is printed) or the file cannot be read."""

DEMO = """\
Starts a private daemon in a temporary directory, lets four engines do real work on this machine at the
same time while they record it, and shows what the history knows afterwards. Touches nothing else."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    parser = make_parser()
    chosen = parser.parse_args(arguments)
    if chosen.run is None:
        parser.print_help(sys.stderr)
        return 2
    run: Callable[[argparse.Namespace], int] = chosen.run
    try:
        return run(chosen)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # or the interpreter complains about the pipe at its end
        return 1


def make_parser() -> argparse.ArgumentParser:
    """The commands with their help."""
    parser = argparse.ArgumentParser(
        prog="runhistd", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"runhistd {runhistd.__version__}")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], int], summary: str, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=run)
        return command

    serving = add("serve", run_serve, "serve the history of this user", serve_text())
    serving.add_argument("--config", metavar="FILE", type=Path, help="read the settings from FILE, which must exist")
    verifying = add("verify", run_verify, "check that the history agrees with its events", VERIFY)
    verifying.add_argument("--json", action="store_true", help="print one JSON object a difference, then the totals")
    add("demo", run_demo, "show in a minute what this is, on real work", DEMO)
    return parser


def serve_text() -> str:
    """The help of `serve` with this user's own paths and the defaults."""
    from runhistd.config import describe

    return SERVE.format(
        state=paths.state_dir(),
        sockets="\n             ".join(map(str, paths.user_sockets())),
        config=paths.config_file(),
        settings=describe(),
    ).replace("%", "%%")


def run_serve(chosen: argparse.Namespace) -> int:
    """Serve until a signal."""
    from runhistd import config
    from runhistd.daemon import instance, listen, log, process

    try:
        settings = config.load(chosen.config or paths.config_file(), required=chosen.config is not None)
    except config.ConfigFaults as faults:
        return complain(str(faults), 2)
    log.configure(settings.log_level)
    try:
        with instance.Instance.take(paths.state_dir()) as taken:
            process.run(taken, settings)
    except (instance.InstanceFault, listen.ListenFault) as fault:
        return complain(str(fault), 1)
    return 0


def run_demo(chosen: argparse.Namespace) -> int:
    """Show the whole on real work."""
    from runhistd import demo

    return int(demo.main())


def complain(text: str, status: int) -> int:
    """Say what is wrong and return the exit status."""
    sys.stderr.write(f"runhistd: {text}\n")
    return status
