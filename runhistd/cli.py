"""The command line of the daemon: `serve`, `config`, `verify`, `demo`, and those of `backups`, `rescue` and `service`.

Exit codes: 0 done, 1 it failed (or `verify` found a difference), 2 the command line or the settings are wrong. What a user
can mend is said on stderr with the next step; a traceback means a bug. The parts are imported when their command runs,
because `--version` and `verify` need no event loop.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import runhistd
from runhist import paths

from . import backups, rescue
from .service import command as service
from .terminal import SYSTEM, Progress, complain, count, difference_as_text

if TYPE_CHECKING:
    from runhistd.config import Config
    from runhistd.store.verify import Verdict

DESCRIPTION = """\
runhistd keeps one durable, shared history of every agent and workflow run on this machine.

Engines write into it and people read it through a Unix socket, with the command `runhist` or the Python
package of that name. One daemon serves one user. New here? `runhistd demo` shows it on real work."""

SERVE = """\
Serves until SIGTERM or SIGINT (Ctrl-C), then stops gracefully; a second signal ends it at once.
Whatever ends it, what was acknowledged is on the disk. Log lines go to stderr.

files:
  state     {state}
  sockets   {sockets}
  settings  {config}

environment:
  RUNHIST_STATE_DIR  another state directory, a history of its own; clients must be given the same
  RUNHIST_CONFIG     another settings file

A change of the settings file is taken over while serving (SIGHUP makes it look at once). One that is
not usable changes nothing; `runhist status` names its faults, and `runhistd config check` too.

settings (TOML; what is left out keeps its default, which is shown):
{settings}"""

VERIFY = """\
Reads every run's events again, computes what they amount to, compares that with what the history says of
the run, and lets SQLite check the file itself. Works beside a running daemon and changes nothing.

exit status: 0 all agrees, 1 something differs or the history cannot be read."""

CONFIG = """\
check  read the settings file and name everything that is wrong in it
show   print every setting that would be in force, and where its value comes from

exit status: 0 usable, 2 not usable."""

DEMO = """\
Starts a private daemon in a temporary directory, lets four engines do real work on this machine at the
same time while they record it, and shows what the history knows afterwards. Touches nothing else."""


class CommandParser(argparse.ArgumentParser):
    """A command's parser, whose help may end with text that is only made when somebody reads it."""

    def __init__(self, *, ending: str | Callable[[], str] = "", **options: object) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)  # type: ignore[arg-type]
        self.ending = ending

    def format_help(self) -> str:
        """The help with its ending."""
        self.epilog = self.ending if isinstance(self.ending, str) else self.ending()
        return super().format_help()


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


def make_parser() -> argparse.ArgumentParser:
    """The commands with their help."""
    parser = CommandParser(prog="runhistd", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"runhistd {runhistd.__version__}")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    summary = "serve the history of this user"
    command = commands.add_parser("serve", help=summary, description=f"{summary}.".capitalize(), ending=serve_text)
    command.add_argument("--config", metavar="FILE", type=Path, help="read the settings from FILE, which must exist")
    command.add_argument("--system", action="store_true", help="serve all users of this machine, each with runs of its own")
    command.set_defaults(run=run_serve)

    summary = "check or show the settings"
    command = commands.add_parser("config", help=summary, description=f"{summary}.".capitalize(), ending=CONFIG)
    command.add_argument("action", choices=("check", "show"))
    command.add_argument("--config", metavar="FILE", type=Path, help="read the settings from FILE, which must exist")
    command.add_argument("--json", action="store_true", help="print one object")
    command.set_defaults(run=run_config)

    summary = "check that the history agrees with its events"
    command = commands.add_parser("verify", help=summary, description=f"{summary}.".capitalize(), ending=VERIFY)
    command.add_argument("--system", action="store_true", help=SYSTEM)
    command.add_argument("--json", action="store_true", help="print one object a difference, then one with the totals")
    command.set_defaults(run=run_verify)

    backups.add_commands(commands)
    rescue.add_commands(commands)
    service.add_commands(commands)

    summary = "show in a minute what this is, on real work"
    command = commands.add_parser("demo", help=summary, description=f"{summary}.".capitalize(), ending=DEMO)
    command.set_defaults(run=run_demo)
    return parser


def serve_text() -> str:
    """The end of the help of `serve`, with this user's own paths and the defaults."""
    from runhistd.config import describe

    return SERVE.format(
        state=paths.state_dir(),
        sockets="\n            ".join(map(str, paths.user_sockets())),
        config=paths.config_file(),
        settings=describe(),
    )


def run_serve(chosen: argparse.Namespace) -> int:
    """Serve until a signal."""
    from runhistd import config
    from runhistd.daemon import log

    file, required = chosen.config or paths.config_file(system=chosen.system), chosen.config is not None
    try:
        settings = config.load(file, required=required)
    except config.ConfigFaults as faults:
        return complain(str(faults), 2)
    log.configure(settings.log_level)
    directory = paths.state_dir(system=chosen.system)
    status = serve_directory(directory, file, settings, required=required, serves_all=chosen.system)
    sys.stderr.flush()
    os._exit(status)  # all is closed: the interpreter would only wait for the watching thread's next look


def serve_directory(state_dir: Path, file: Path, settings: Config, *, required: bool, serves_all: bool) -> int:
    """Hold the directory and serve it; what an operator can mend becomes a sentence."""
    from runhistd.daemon import activation, signals
    from runhistd.daemon.instance import Instance, InstanceFault
    from runhistd.daemon.listen import Doors, ListenFault
    from runhistd.daemon.notify import Notifier
    from runhistd.daemon.reload import Reload
    from runhistd.store.database import NewerSchema, StorageFault

    status = 0
    try:
        notifier, doors = Notifier.take(), Doors(activation.take_passed(), serves_all)
        serve_anew = True
        while serve_anew:
            with Instance.take(state_dir) as instance:
                signals.run(instance, Reload(file, settings, required=required), notifier, doors)
            serve_anew = instance.replaced
    except* (InstanceFault, ListenFault, NewerSchema, StorageFault) as faults:
        for fault in leaves(faults):
            status = complain(str(fault), 1)
    return status


def leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """The exceptions of a group, however deep they lie."""
    found: list[BaseException] = []
    for error in group.exceptions:
        found += leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def run_config(chosen: argparse.Namespace) -> int:
    """Check the settings file, or show what it amounts to."""
    from runhistd import config

    file = chosen.config or paths.config_file()
    try:
        settings = config.load(file, required=chosen.config is not None)
    except config.ConfigFaults as faults:
        if chosen.json:
            found = [{"key": key, "message": message} for key, message in faults.faults]
            sys.stdout.write(json.dumps({"file": str(file), "faults": found}) + "\n")
        return complain(str(faults), 2)
    origins = config.origins(file)
    if chosen.action == "check":
        origin = f"{file} is usable" if file.exists() else f"there is no {file}; the defaults hold"
        sys.stdout.write(json.dumps({"file": str(file), "faults": []}) + "\n" if chosen.json else origin + "\n")
        return 0
    shown = {key: {"value": config.value_of(settings, key), "from": origin} for key, origin in origins.items()}
    if chosen.json:
        sys.stdout.write(json.dumps(shown) + "\n")
        return 0
    lines = [(f"{key} = {json.dumps(found['value'])}", found["from"]) for key, found in shown.items()]
    width = max(len(line) for line, _ in lines)
    sys.stdout.write("".join(f"{line:{width}}  # {origin}\n" for line, origin in lines))
    return 0


def run_verify(chosen: argparse.Namespace) -> int:
    """Recompute the history of this user and say what differs."""
    import apsw

    from runhistd.store.verify import verify

    database = paths.state_dir(system=chosen.system) / paths.DATABASE_NAME
    if not database.exists():
        return complain(f"there is no history at {database}; `runhistd serve` makes one", 1)
    progress = Progress("checking runs")
    try:
        verdict = verify(database, progress.show)
    except apsw.Error as error:
        progress.clear()
        return complain(f"{database} cannot be read: {error}", 1)
    progress.clear()
    sys.stdout.write(verdict_as_json(verdict) if chosen.json else verdict_as_text(verdict))
    return 1 if verdict.differences else 0


def verdict_as_text(verdict: Verdict) -> str:
    """What a person reads. Names are shown as literals, so that recorded text cannot drive the terminal."""
    checked = f"{count(verdict.runs, 'run')}, {count(verdict.events, 'event')} checked"
    if not verdict.differences:
        return f"{checked}; the history agrees with its events\n"
    lines = [f"{checked}; {count(len(verdict.differences), 'difference')}:", *map(difference_as_text, verdict.differences)]
    return "\n".join(lines) + "\n"


def verdict_as_json(verdict: Verdict) -> str:
    """One object a difference, then one with the totals."""
    import attrs

    totals = {"runs": verdict.runs, "events": verdict.events, "differences": len(verdict.differences)}
    return "".join(json.dumps(line) + "\n" for line in (*map(attrs.asdict, verdict.differences), totals))


def run_demo(chosen: argparse.Namespace) -> int:
    """Show the whole on real work."""
    from runhistd import demo

    return int(demo.main())
