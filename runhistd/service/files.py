"""The files of a service as they are shipped, and filled in for this machine.

They lie at the top of the repository, where packagers look for them, and in the wheel as `runhistd/units/`. As shipped
they are valid and name the places of a distribution's package; an installation puts its own in their place.
"""

from __future__ import annotations

import plistlib
import re
from pathlib import Path
from typing import Any

import runhistd

SHIPPED_COMMAND = "/usr/bin/runhistd"
SHIPPED_MAC_COMMAND, SHIPPED_MAC_HOME = "/usr/local/bin/runhistd", "/Users/me"
SOCKET_UNIT, SERVICE_UNIT = "runhistd.socket", "runhistd.service"
PLIST = "dev.runhist.plist"
_PLAIN = re.compile(r"[\w%+,./:=@~-]+")


def shipped_text(name: str) -> str:
    """The shipped file of that name, for instance `systemd/user/runhistd.socket`."""
    package = Path(runhistd.__file__).parent
    installed = package / "units"
    return ((installed if installed.is_dir() else package.parent) / name).read_text("utf-8")


def systemd_units(scope: str, command: Path) -> dict[str, str]:
    """The units of the scope ("system" or "user") by their names, with the command's path."""
    socket, service = (shipped_text(f"systemd/{scope}/{name}") for name in (SOCKET_UNIT, SERVICE_UNIT))
    assert f"\nExecStart={SHIPPED_COMMAND} " in service
    quoted = quote_in_unit(str(command))
    return {SOCKET_UNIT: socket, SERVICE_UNIT: service.replace(f"={SHIPPED_COMMAND} ", f"={quoted} ")}


def quote_in_unit(path: str) -> str:
    """A path as the first word of ExecStart= (systemd.service(5), "Command lines")."""
    escaped = path.replace("%", "%%").replace("\\", "\\\\").replace('"', '\\"')
    return escaped if _PLAIN.fullmatch(path) else f'"{escaped}"'


def launchd_plist(command: Path, home: Path) -> bytes:
    """The job of a user, with the command's path and those in their home."""
    job = plistlib.loads(shipped_text(f"launchd/{PLIST}").encode("utf-8"))

    def fill_in(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: fill_in(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [fill_in(inner) for inner in value]
        if value == SHIPPED_MAC_COMMAND:
            return str(command)
        if isinstance(value, str) and value.startswith(f"{SHIPPED_MAC_HOME}/"):
            return str(home / value.removeprefix(f"{SHIPPED_MAC_HOME}/"))
        return value

    return plistlib.dumps(fill_in(job), sort_keys=False)
