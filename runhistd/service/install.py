"""Installing the service, and undoing exactly that.

The first line of each installed file says who made it, with a hash of the rest; so a file that is somebody else's, or was
changed by hand, is known and left alone. The directories that had to be made are remembered there too, and go again when
they are empty. Everything is asked for before anything is changed, and what is already as it should be is not done again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import frozen

from runhistd.daemon.instance import LOCK_NAME, holder_in

from .target import FAILING, Command, ServiceRefused, Target, ask

MADE_BY = "Made by `runhistd service install`, undone by `runhistd service uninstall`; change it with drop-ins. "


class ServiceFailed(Exception):
    """A step failed, and those before it stay done; the same command goes on from there. The text says which."""


@frozen
class Marked:
    """An installed file of ours: its content without the first line, and the directories that were made for it."""

    text: str
    directories: list[str]
    as_made: bool  # nobody has changed it since


class Steps:
    """Does one thing after the other and tells of it; with `dry_run` only tells."""

    def __init__(self, target: Target, tell: Callable[[str], None], *, dry_run: bool) -> None:
        self._target = target
        self._tell = tell
        self._dry_run = dry_run
        self.done = 0

    def run(self, command: Command) -> None:
        """Have the manager do something. Raises ServiceFailed."""
        line = shlex.join(map(str, command))
        self._count(f"run      {line}")
        if not self._dry_run:
            try:
                ended = ask(self._target, command)
            except OSError as error:
                raise ServiceFailed(f"`{line}` cannot be run: {error.strerror}") from error
            if ended.returncode:
                raise ServiceFailed(f"`{line}` failed with {ended.returncode}: {(ended.stderr or ended.stdout).strip()}")

    def check(self, look: Callable[[], None]) -> None:
        """Look whether what was done had its effect."""
        if not self._dry_run:
            look()

    def make_directory(self, path: Path) -> None:
        """Make one directory, for its owner alone."""
        self._count(f"make     {path}")
        if not self._dry_run:
            path.mkdir(mode=0o700)

    def write(self, path: Path, text: str) -> None:
        """Put a file in place, whole or not at all."""
        self._count(f"write    {path}")
        if not self._dry_run:
            fresh = path.with_name(f".{path.name}.new")
            fresh.write_text(text, "utf-8")
            fresh.chmod(0o644)
            fresh.replace(path)

    def remove(self, path: Path) -> None:
        """Remove a file."""
        self._count(f"remove   {path}")
        if not self._dry_run:
            path.unlink()

    def remove_directory(self, path: Path) -> None:
        """Remove a directory, if it is empty now."""
        with contextlib.suppress(OSError):
            if not self._dry_run:
                path.rmdir()
            self._count(f"remove   {path}")

    def _count(self, line: str) -> None:
        self.done += 1
        self._tell(f"would {line}" if self._dry_run else line)


def install(target: Target, steps: Steps, *, enable: bool, now: bool) -> None:
    """Bring the service to the state that is wanted. Raises ServiceRefused before, ServiceFailed amid."""
    found = {path: marked_at(target, path) for path in target.files}
    refuse_owned_by_others(target)
    active = bool(ask(target, target.is_active).returncode == 0)
    if now and not active:
        refuse_served(target)
    changed = [path for path, text in target.files.items() if (there := found[path]) is None or there.text != text]
    remembered = next((one.directories for one in found.values() if one), [])
    wanted = [parent for path in (*target.files, *target.listens) for parent in reversed(path.parents)]
    missing = [parent for parent in dict.fromkeys(wanted) if not parent.exists()]
    remembered = list(dict.fromkeys((*remembered, *map(str, missing))))
    for parent in missing:
        steps.make_directory(parent)
    for path in changed:
        steps.write(path, mark(target, target.files[path], remembered))
    if changed and target.reload:
        steps.run(target.reload)
        steps.check(lambda: refuse_unknown(target))
    if enable and target.is_enabled and target.enable and ask(target, target.is_enabled).returncode:
        steps.run(target.enable)
    if active and changed:
        steps.run(target.restart)
    if now and not active:
        steps.run(target.start)


def uninstall(target: Target, steps: Steps) -> None:
    """Undo what `install` did. The history stays. Raises ServiceRefused before, ServiceFailed amid."""
    found = {path: marked for path in target.files if (marked := marked_at(target, path)) is not None}
    if not found:
        return
    if ask(target, target.is_active).returncode == 0:
        steps.run(target.stop)
    if target.is_enabled and target.disable and ask(target, target.is_enabled).returncode == 0:
        steps.run(target.disable)
    for path in found:
        steps.remove(path)
    if target.reload:
        steps.run(target.reload)
    directories = {name for marked in found.values() for name in marked.directories}
    for name in sorted(directories, key=len, reverse=True):
        steps.remove_directory(Path(name))


def state_of(target: Target) -> dict[str, Any]:
    """How the service stands; `files` tells of each installed file whether it is the one that would be installed now."""
    found: dict[str, str] = {}
    for path, text in target.files.items():
        marked = read(target, path)
        if isinstance(marked, str):
            found[str(path)] = "made by somebody else"
        elif marked is not None and not marked.as_made:
            found[str(path)] = "changed by hand"
        elif marked is not None:
            found[str(path)] = "current" if marked.text == text else "of another version or place"
    known = ask(target, target.where_from).stdout.strip() if target.where_from else ""
    return {
        "target": target.name,
        "installed": bool(found) or bool(known),
        "files": found,
        "unit": known or None,
        "enabled": ask(target, target.is_enabled).returncode == 0 if target.is_enabled else bool(found),
        "active": ask(target, target.is_active).returncode == 0,
        "failing": why_failing(target),
        "pid": holder_of(target.serves),
        "state_dir": str(target.serves),
    }


def why_failing(target: Target) -> str | None:
    """The command that shows why the daemon ends again and again; None when it does not, as far as the manager tells."""
    if target.fails is None or ask(target, target.fails[0]).stdout.strip() not in FAILING:
        return None
    return shlex.join(map(str, target.fails[1]))


def refuse_owned_by_others(target: Target) -> None:
    """Raise ServiceRefused when the manager has the service from a file that is not among ours."""
    if target.where_from is None:
        return
    known = ask(target, target.where_from).stdout.strip()
    if known and Path(known) not in target.files:
        raise ServiceRefused(
            f"{target.name} has the service from {known} already, which belongs to somebody else (a package?); use that "
            "one: systemctl enable --now runhistd.socket"
        )


def refuse_unknown(target: Target) -> None:
    """Raise ServiceFailed when the manager does not find what was put in place for it."""
    if target.where_from is not None and not ask(target, target.where_from).stdout.strip():
        folder = next(iter(target.files)).parent
        raise ServiceFailed(
            f"{target.name} does not look for units in {folder}; its environment and this one name different directories "
            "($XDG_CONFIG_HOME?): `runhistd service uninstall`, and again with the manager's"
        )


def refuse_served(target: Target) -> None:
    """Raise ServiceRefused when a daemon that no manager started serves the directory."""
    pid = holder_of(target.serves)
    if pid is not None:
        raise ServiceRefused(f"process {pid} serves {target.serves} already; stop it first: kill {pid}")


def holder_of(state_dir: Path) -> int | None:
    """The process that serves the directory; None when nobody does, or it cannot be told."""
    try:
        lock = os.open(state_dir / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return holder_in(lock)
    finally:
        os.close(lock)
    return None


def marked_at(target: Target, path: Path) -> Marked | None:
    """The installed file at the path; None when there is none. Raises ServiceRefused for one that is not as we made it."""
    found = read(target, path)
    if isinstance(found, str):
        raise ServiceRefused(f"{path} was made by somebody else; move it away first")
    if found is not None and not found.as_made:
        raise ServiceRefused(
            f"{path} was changed by hand since it was installed; move it away first (own settings belong in a drop-in: "
            f"systemctl edit {path.name})"
        )
    return found


def read(target: Target, path: Path) -> Marked | str | None:
    """The file at the path, as text when it has no mark of ours; None when there is none."""
    try:
        text = path.read_text("utf-8", "replace")
    except FileNotFoundError:
        return None
    lines = text.split("\n")
    begin, end = target.comment
    for number, line in enumerate(lines):
        if line.startswith(begin + MADE_BY) and line.endswith(end):
            rest = "\n".join(lines[:number] + lines[number + 1 :])
            try:
                noted = json.loads(line.removeprefix(begin + MADE_BY).removesuffix(end))
                return Marked(rest, noted["directories"], noted["sha256"] == digest(rest))
            except (ValueError, KeyError, TypeError):
                return Marked(rest, [], as_made=False)
    return text


def mark(target: Target, text: str, directories: list[str]) -> str:
    """The text with the line that says who made it: in front, or behind the lines that XML wants there."""
    noted = json.dumps({"sha256": digest(text), "directories": directories}).replace("--", "-\\u002d")  # XML's comments
    begin, end = target.comment
    lines = text.split("\n")
    place = next((number for number, line in enumerate(lines) if not line.startswith(("<?", "<!"))), 0)
    return "\n".join([*lines[:place], f"{begin}{MADE_BY}{noted}{end}", *lines[place:]])


def digest(text: str) -> str:
    """What a change is known by."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


