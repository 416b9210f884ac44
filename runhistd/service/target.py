"""What a service consists of on this machine: files, and the commands of the manager that owns them.

Three targets are known: systemd for one user, systemd for all users of the machine, and launchd for one user. What is the
same for all of them, writing, asking and undoing, is in `install`; here is what differs, and why one is refused.
"""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from attrs import field, frozen

from runhist import paths

from . import files

Command = Sequence[str | Path]
LINGERING = Path("/var/lib/systemd/linger")  # a file for each user whose manager runs without a session
FAILING = ("auto-restart", "failed")  # of systemd's states of a service
# What the system's service cannot see (ProtectHome=, PrivateTmp=), and so cannot be started from.
HIDDEN_FROM_SYSTEM = tuple(map(Path, ("/home", "/root", "/run/user", "/tmp", "/var/tmp")))


class ServiceRefused(Exception):
    """The service cannot be installed like that, or removed. The text says what to do; nothing was changed."""


@frozen
class Target:
    """A place for the service. The commands that ask answer with their exit status; where one is absent nothing is to do."""

    name: str
    files: Mapping[Path, str]  # as they are shipped, filled in for this machine
    comment: tuple[str, str]  # what a comment line of the files begins and ends with
    serves: Path  # the state directory
    reload: Command | None
    is_enabled: Command | None
    enable: Command | None
    disable: Command | None
    is_active: Command
    start: Command
    restart: Command  # the daemon, after the files have changed; only if it runs
    stop: Command
    where_from: Command | None  # prints the file that the manager knows the service by
    fails: tuple[Command, Command] | None  # prints the daemon's state, FAILING when it ends again and again; shows why
    listens: Sequence[Path] = ()  # sockets that the manager makes, but not the directories that they lie in
    hint: str = ""
    environment: Mapping[str, str] = field(factory=dict)


def choose(scope: str, command: Path) -> Target:
    """The target for the scope, "user" or "system". Raises ServiceRefused when there is none on this machine."""
    if sys.platform == "darwin":
        if scope == "system":
            raise ServiceRefused("on macOS there is no service for all users; leave --system out")
        return launchd(command, paths.home_dir(), os.getuid())
    if not Path("/run/systemd/system").is_dir():
        raise ServiceRefused(
            "systemd does not run this machine (there is no /run/systemd/system); "
            f"have what does run `{command} serve`"
        )
    return systemd_system(command) if scope == "system" else systemd_user(command)


def systemd_user(command: Path) -> Target:
    """The user's own manager. Raises ServiceRefused when it cannot be reached."""
    if not (paths.runtime_dir() / "systemd").is_dir():
        raise ServiceRefused(
            f"the service manager of user {os.getuid()} does not run (there is no {paths.runtime_dir()}/systemd); log in "
            "as that user, not by su or sudo, or let it always run: loginctl enable-linger"
        )
    base = os.environ.get("XDG_CONFIG_HOME")
    folder = (Path(base) if base else paths.home_dir() / ".config") / "systemd" / "user"
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(paths.runtime_dir())}
    lingers = (LINGERING / pwd.getpwuid(os.getuid()).pw_name).exists()
    hint = "" if lingers else "it ends with your last session; `loginctl enable-linger` lets it run always"
    return systemd("user", folder, command, paths.state_dir(), environment, hint)


def systemd_system(command: Path) -> Target:
    """The machine's manager."""
    return systemd("system", Path("/etc/systemd/system"), command, Path("/var/lib/private/runhist"), os.environ, "")


def refuse_without_rights(scope: str, command: Path) -> None:
    """Raise ServiceRefused when this user may not change the scope's service."""
    if scope == "system" and os.geteuid() != 0:
        raise ServiceRefused(f"a service for all users needs root: sudo {command} service … --system")


def refuse_unfit(scope: str, command: Path) -> None:
    """Raise ServiceRefused when the service could not be started, or would serve another history than this environment."""
    if scope == "user":
        for variable in ("RUNHIST_STATE_DIR", "RUNHIST_CONFIG"):
            if os.environ.get(variable):
                raise ServiceRefused(
                    f"{variable} is set here, and the service would not have it: unset it, or run `runhistd serve` yourself"
                )
        return
    for path in (command, Path(sys.prefix), Path(sys.base_prefix), Path(files.__file__)):
        place = path.resolve()
        for hidden in HIDDEN_FROM_SYSTEM:
            if place.is_relative_to(hidden):
                raise ServiceRefused(
                    f"{place} is under {hidden}, which the service is not let to see; install runhistd elsewhere: "
                    "python3 -m venv /opt/runhist && /opt/runhist/bin/pip install …"
                )
        for folder in place.parents:
            if folder.exists() and not folder.stat().st_mode & stat.S_IXOTH:
                raise ServiceRefused(f"{folder} is closed to other users, and the service runs as one: chmod o+x {folder}")


def systemd(
    scope: str, folder: Path, command: Path, serves: Path, environment: Mapping[str, str], hint: str
) -> Target:
    """The target of one of systemd's managers."""
    control = ("systemctl", "--user") if scope == "user" else ("systemctl",)
    both = (files.SOCKET_UNIT, files.SERVICE_UNIT)
    return Target(
        name=f"systemd ({scope})",
        files={folder / name: text for name, text in files.systemd_units(scope, command).items()},
        comment=("# ", ""),
        serves=serves,
        reload=(*control, "daemon-reload"),
        is_enabled=(*control, "is-enabled", "--quiet", files.SOCKET_UNIT),
        enable=(*control, "enable", "--quiet", files.SOCKET_UNIT),
        disable=(*control, "disable", "--quiet", *both),
        is_active=(*control, "is-active", "--quiet", files.SOCKET_UNIT),
        start=(*control, "start", files.SOCKET_UNIT),
        restart=(*control, "try-restart", files.SERVICE_UNIT),
        stop=(*control, "stop", *both),
        where_from=(*control, "show", "--property=FragmentPath", "--value", files.SERVICE_UNIT),
        fails=(
            (*control, "show", "--property=SubState", "--value", files.SERVICE_UNIT),
            ("journalctl", f"--{scope}", f"--unit={files.SERVICE_UNIT}"),
        ),
        hint=hint,
        environment=environment,
    )


def launchd(command: Path, home: Path, uid: int, environment: Mapping[str, str] = os.environ) -> Target:
    """The agent of one user. Raises ServiceRefused when the socket's path is too long."""
    state = home / "Library" / "Application Support" / "runhist"
    try:
        paths.check_socket_path(state / paths.SOCKET_NAME)
    except ValueError as error:
        raise ServiceRefused(str(error)) from error
    path = home / "Library" / "LaunchAgents" / files.PLIST
    job = f"gui/{uid}/{path.stem}"
    return Target(
        name="launchd",
        files={path: files.launchd_plist(command, home).decode("utf-8")},
        comment=("<!-- ", " -->"),
        serves=state,
        reload=None,
        is_enabled=None,  # what lies in LaunchAgents starts with the session
        enable=None,
        disable=None,
        is_active=("launchctl", "print", job),
        start=("launchctl", "bootstrap", f"gui/{uid}", path),
        restart=("launchctl", "kickstart", "-k", job),
        stop=("launchctl", "bootout", job),
        where_from=None,
        fails=None,
        listens=[state / paths.SOCKET_NAME],
        environment=environment,
    )


def ask(target: Target, command: Command) -> subprocess.CompletedProcess[str]:
    """What a command of the manager says; it is not expected to change anything."""
    return subprocess.run(command, env=dict(target.environment), capture_output=True, text=True)
