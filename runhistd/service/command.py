"""The command `service`: have the daemon started by the first client that connects, and looked after from then on."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runhistd.terminal import complain, printable, tell

if TYPE_CHECKING:
    from .target import Target

SERVICE = """\
install    put the units (macOS: the job) in place; --enable lets the first client of every session start the
           daemon, --now lets it from now on
uninstall  stop the daemon and undo exactly what `install` did; the history stays
status     how the service stands

`install` may be repeated: what is as it should be is not done again. After an upgrade run it again, and then
restart the daemon: systemctl --user restart runhistd. Clients wait meanwhile and lose nothing.

--user is the daemon of this user (the default); --system is one for all users of the machine, and needs root.
With --dry-run nothing is changed.

exit status: 0 done (`status`: it is installed, and clients are served), 1 refused or failed (`status`: not so)."""


def add_commands(commands: Any) -> None:
    """Add what is here to the commands of `runhistd`."""
    summary = "have the daemon started and looked after by systemd or launchd"
    command = commands.add_parser("service", help=summary, description=f"{summary}.".capitalize(), ending=SERVICE)
    actions = command.add_subparsers(title="actions", metavar="ACTION", required=True)
    for name, run in (("install", run_install), ("uninstall", run_uninstall), ("status", run_status)):
        action = actions.add_parser(name, help=f"{name} (see above)", description=SERVICE)
        scope = action.add_mutually_exclusive_group()
        scope.add_argument("--user", dest="scope", action="store_const", const="user", help="for this user (the default)")
        scope.add_argument("--system", dest="scope", action="store_const", const="system", help="for all users")
        if name == "install":
            action.add_argument("--enable", action="store_true", help="also start with every session, or boot")
            action.add_argument("--now", action="store_true", help="also start now")
        if name == "status":
            action.add_argument("--json", action="store_true", help="print one object")
        else:
            action.add_argument("--dry-run", action="store_true", help="tell what would be done, and change nothing")
        action.set_defaults(run=run, scope="user")


def run_install(chosen: argparse.Namespace) -> int:
    """Install, and say what was done and what comes next."""
    from .install import Steps, install, state_of
    from .target import refuse_unfit

    def act(target: Target, steps: Steps) -> None:
        refuse_unfit(chosen.scope, own_command())
        install(target, steps, enable=chosen.enable, now=chosen.now)
        if not steps.done:
            tell(f"{target.name}: all is as it should be\n")
        if target.hint:
            tell(f"note     {target.hint}\n")
        stands = state_of(target)
        wanted = [flag for flag, is_so in (("--enable", stands["enabled"]), ("--now", stands["active"])) if not is_so]
        if wanted and not chosen.dry_run:
            scope = " --system" if chosen.scope == "system" else ""
            tell(f"next     runhistd service install{scope} {' '.join(wanted)}\n")

    return carry_out(chosen, act)


def run_uninstall(chosen: argparse.Namespace) -> int:
    """Uninstall, and say what was done and what stays."""
    from .install import Steps, uninstall

    def act(target: Target, steps: Steps) -> None:
        uninstall(target, steps)
        if not steps.done:
            tell(f"{target.name}: nothing of ours is installed\n")
        if target.serves.exists():
            tell(f"kept     {printable(str(target.serves))}, where the history is\n")

    return carry_out(chosen, act)


def carry_out(chosen: argparse.Namespace, act: Callable[[Target, Any], None]) -> int:
    """Do it to the chosen target; what an operator can mend becomes a sentence."""
    from .install import ServiceFailed, Steps
    from .target import ServiceRefused, choose, refuse_without_rights

    try:
        target = choose(chosen.scope, own_command())
        refuse_without_rights(chosen.scope, own_command())
        act(target, Steps(target, lambda line: tell(f"{printable(line)}\n"), dry_run=chosen.dry_run))
    except (ServiceRefused, ServiceFailed) as fault:
        return complain(str(fault), 1)
    except OSError as error:
        return complain(f"{error.filename or 'a command'}: {error.strerror}", 1)
    return 0


def run_status(chosen: argparse.Namespace) -> int:
    """Say how the service stands."""
    from .install import state_of
    from .target import ServiceRefused, choose

    try:
        found = state_of(choose(chosen.scope, own_command()))
    except ServiceRefused as fault:
        return complain(str(fault), 1)
    tell(json.dumps(found) + "\n" if chosen.json else state_as_text(found))
    return 0 if found["installed"] and found["active"] and not found["failing"] else 1


def state_as_text(found: dict[str, Any]) -> str:
    """What a person reads."""
    if not found["installed"]:
        stands = "not installed; next: runhistd service install --enable --now"
    else:
        enabled = "enabled" if found["enabled"] else "not enabled"
        stands = f"installed, {enabled}, {'waits for clients' if found['active'] else 'not active'}"
    lines = [f"service  {found['target']}: {stands}"]
    lines += [f"file     {path} ({state})" for path, state in found["files"].items()]
    if found["unit"] and found["unit"] not in found["files"]:
        lines.append(f"unit     {found['unit']} (not installed by `runhistd service install`)")
    serving = f"served by process {found['pid']}" if found["pid"] else "not served now"
    lines.append(f"history  {found['state_dir']}, {serving}")
    if found["failing"]:
        lines.append(f"failing  the daemon ends again and again; see: {found['failing']}")
    return "".join(f"{printable(line)}\n" for line in lines)


def own_command() -> Path:
    """The installed `runhistd` that belongs to the interpreter that runs. Raises ServiceRefused when there is none."""
    from .target import ServiceRefused

    command = Path(sys.executable).absolute().with_name("runhistd")
    if not os.access(command, os.X_OK):
        raise ServiceRefused(f"there is no {command} for a service to start; install runhistd with pip, pipx or uv")
    return command
