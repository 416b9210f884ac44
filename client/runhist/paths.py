"""Where sockets, state and configuration are: the one place that knows, for the client and the daemon.

A user's own daemon keeps its state in `$RUNHIST_STATE_DIR`, else in `~/.local/state/runhist` of the home directory
that the password database names (macOS: `~/Library/Application Support/runhist`). `$XDG_STATE_HOME` is not honoured: a
service and a shell often disagree on it, and would then keep two histories. The socket is looked for in
`/run/user/UID/runhist` and in the state directory, because the first vanishes when the user logs out.
"""

from __future__ import annotations

import os
import pwd
import sys
from pathlib import Path
from typing import List, NamedTuple, Tuple

from . import environment

SOCKET_NAME = "dev.runhist.History"
DATABASE_NAME = "history.db"
SYSTEM_SOCKET = Path("/run/runhist") / SOCKET_NAME
SYSTEM_STATE_DIR = Path("/var/lib/runhist")
SYSTEM_CONFIG_FILE = Path("/etc/runhist/config.toml")
MAX_SOCKET_PATH_BYTES = 103 if sys.platform == "darwin" else 107  # sun_path without its NUL


class SocketChoice(NamedTuple):
    """Which sockets to try, in this order, and why these."""

    sockets: Tuple[Path, ...]
    why: str
    installed: bool  # a daemon was installed or asked for: the choice never goes by who happens to answer


def home_dir() -> Path:
    """The user's home by the password database, not by $HOME, which a service may not have."""
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return Path.home()


def state_dir(*, system: bool = False) -> Path:
    """The state directory of the user's own daemon, or of the `system`'s, whether it exists or not."""
    override = os.environ.get("RUNHIST_STATE_DIR")
    if override:
        return Path(override)
    if system:
        return SYSTEM_STATE_DIR
    if sys.platform == "darwin":
        return home_dir() / "Library" / "Application Support" / "runhist"
    return home_dir() / ".local" / "state" / "runhist"


def runtime_dir() -> Path:
    """`/run/user/UID`, which the login manager makes and removes."""
    return Path("/run/user") / str(os.getuid())


def config_file(*, system: bool = False) -> Path:
    """The configuration file: `$RUNHIST_CONFIG`, else `$XDG_CONFIG_HOME` or `~/.config`, then `runhist/config.toml`.

    The `system`'s daemon has `/etc/runhist/config.toml`.
    """
    override = os.environ.get("RUNHIST_CONFIG")
    if override:
        return Path(override)
    if system:
        return SYSTEM_CONFIG_FILE
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else home_dir() / ".config") / "runhist" / "config.toml"


def user_sockets() -> Tuple[Path, ...]:
    """Where the user's own daemon listens. With `$RUNHIST_STATE_DIR` set, only there: it is a history of its own."""
    in_state = state_dir() / SOCKET_NAME
    if os.environ.get("RUNHIST_STATE_DIR"):
        return (in_state,)
    runtime = runtime_dir()
    try:
        ours = runtime.stat().st_uid == os.getuid()
    except OSError:
        ours = False
    return (runtime / "runhist" / SOCKET_NAME, in_state) if ours else (in_state,)


def choose_sockets() -> SocketChoice:
    """The sockets that a client tries: `$RUNHIST_SOCKET`, else the user's daemon, else an installed system daemon."""
    override = os.environ.get(environment.SOCKET)
    if override:
        return SocketChoice((Path(override),), "RUNHIST_SOCKET is set", True)
    sockets = user_sockets()
    why = "per-user default; RUNHIST_SOCKET not set"
    if os.environ.get("RUNHIST_STATE_DIR"):
        why = "RUNHIST_STATE_DIR is set; RUNHIST_SOCKET not set"
    installed: List[Path] = [path for path in (*sockets, state_dir() / DATABASE_NAME) if path.exists()]
    if installed:
        return SocketChoice(sockets, why, True)
    if SYSTEM_SOCKET.exists() or os.path.lexists(SYSTEM_STATE_DIR):  # a link, to where only root may look
        return SocketChoice((SYSTEM_SOCKET,), "only the system daemon is installed; RUNHIST_SOCKET not set", True)
    return SocketChoice(sockets, why, False)


def check_socket_path(path: Path) -> None:
    """ValueError for a path that does not fit a socket address, saying what to do."""
    length = len(os.fsencode(path))
    if length > MAX_SOCKET_PATH_BYTES:
        raise ValueError(
            f"the socket path has {length} bytes and the system takes {MAX_SOCKET_PATH_BYTES}: {path}; "
            "set RUNHIST_SOCKET or RUNHIST_STATE_DIR to a shorter one"
        )
