"""The commands `backup` and `restore`: a copy of the history of this user, and how it becomes the history again."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runhist import paths

from .terminal import SYSTEM, Progress, complain, count, difference_as_text, printable, size_text, tell

if TYPE_CHECKING:
    from runhistd.daemon.instance import Instance
    from runhistd.store.backup import Backup
    from runhistd.store.restore import Restored

SHOWN_RUNS = 10  # by name; more are counted

BACKUP = """\
Copies the history of one moment into DIR, which must be new or empty: history.db, and blobs/ with the content
that runs gave. The daemon goes on recording meanwhile, or need not run at all. At the end the copy is opened and
read through, as `runhistd verify` does; until then there is no history.db in DIR.

The copy is given up when the write-ahead log passes limits.wal_bytes meanwhile. `runhistd restore DIR` brings it back.

exit status: 0 copied and verified, 1 not copied, or what was copied differs from its events."""

RESTORE = """\
Puts the history that `runhistd backup` copied into DIR in the place of this user's. The daemon must be stopped.
A history that is there already is not touched, unless --move-aside lets it be moved, whole, into a directory
beside it; what is moved can be brought back by `runhistd restore` too. The spool is left as it is.

What was recorded after the copy is not in it, so the restored history is a new one: runs that were going on are
incomplete (`restored`), whoever held one is refused and has to claim it (`runhist resume`), followers are told
that their cursor is of another history, and what was spooled for the one before is put aside by the daemon.

exit status: 0 restored, 1 not restored, or what was restored differs from its events."""


def add_commands(commands: Any) -> None:
    """Add what is here to the commands of `runhistd`."""
    summary = "copy the history, also while it is recorded"
    command = commands.add_parser("backup", help=summary, description=f"{summary}.".capitalize(), ending=BACKUP)
    command.add_argument("directory", metavar="DIR", type=Path)
    command.add_argument("--system", action="store_true", help=SYSTEM)
    command.add_argument("--json", action="store_true", help="print one object")
    command.set_defaults(run=run_backup)

    summary = "bring a copy of the history back"
    command = commands.add_parser("restore", help=summary, description=f"{summary}.".capitalize(), ending=RESTORE)
    command.add_argument("directory", metavar="DIR", type=Path)
    command.add_argument("--move-aside", action="store_true", help="move a history that is there out of the way first")
    command.add_argument("--system", action="store_true", help=SYSTEM)
    command.add_argument("--json", action="store_true", help="print one object")
    command.set_defaults(run=run_restore)


def run_backup(chosen: argparse.Namespace) -> int:
    """Copy, verify, and say what the copy holds."""
    from runhistd import config
    from runhistd.store.backup import BackupFault, back_up

    database = paths.state_dir(system=chosen.system) / paths.DATABASE_NAME
    if not database.exists():
        return complain(f"there is no history at {database}; `runhistd serve` makes one", 1)
    try:
        settings = config.load(paths.config_file(system=chosen.system))
    except config.ConfigFaults as faults:
        return complain(str(faults), 2)
    os.umask(0o077)
    progress = Progress("copying", in_bytes=True)
    started_s = time.monotonic()
    try:
        made = back_up(database, chosen.directory.absolute(), wal_bytes=settings.wal_bytes, progress=progress.show)
    except BackupFault as fault:
        progress.clear()
        return complain(str(fault), 1)
    progress.clear()
    tell(backup_as_json(made) if chosen.json else backup_as_text(made, chosen.directory, time.monotonic() - started_s))
    return 1 if made.verdict.differences else 0


def backup_as_text(made: Backup, directory: Path, took_s: float) -> str:
    """What a person reads."""
    verdict = made.verdict
    held = f"{count(verdict.runs, 'run')}, {count(verdict.events, 'event')}, {count(made.blobs, 'blob')}"
    lines = [f"copied {held} to {directory}: {size_text(made.bytes)} in {took_s:.1f} s"]
    if verdict.differences:
        lines.append(f"the copy has {count(len(verdict.differences), 'difference')}, as the history itself:")
        lines += map(difference_as_text, verdict.differences)
    else:
        lines.append("verified: the copy opens, and agrees with its events")
    return "\n".join(lines) + "\n"


def backup_as_json(made: Backup) -> str:
    """One object."""
    verdict = made.verdict
    held = {"runs": verdict.runs, "events": verdict.events, "blobs": made.blobs, "bytes": made.bytes}
    of = {"instance_id": made.instance_id, "position": made.position}
    return json.dumps({**of, **held, "differences": len(verdict.differences)}) + "\n"


def run_restore(chosen: argparse.Namespace) -> int:
    """Hold the state directory, and let the copy take its place."""
    return hold_state(chosen, Progress("copying", in_bytes=True), restore_held)


def hold_state(
    chosen: argparse.Namespace, progress: Progress, work: Callable[[Instance, argparse.Namespace, Progress], int]
) -> int:
    """Do work on a history that no daemon serves meanwhile; returns the exit status."""
    from runhistd.daemon.instance import Instance, InstanceFault
    from runhistd.store.backup import BackupFault

    try:
        with Instance.take(paths.state_dir(system=chosen.system), wait_s=0, as_root=True) as instance:
            return work(instance, chosen, progress)
    except (InstanceFault, BackupFault) as fault:
        progress.clear()
        return complain(str(fault), 1)


def make_room(instance: Instance, why: str) -> list[str]:
    """Let another history take the place: returns to where the one that is there was moved, if there is one."""
    from runhistd.store.restore import STAGE_NAME, history_files, move_aside

    moved = []
    if history_files(instance.state_dir):
        aside = move_aside(instance.state_dir, why)
        instance.give_to_owner(aside)
        moved.append(str(aside))
    instance.give_to_owner(instance.state_dir / STAGE_NAME)
    instance.forget_storage_failures()
    return moved


def restore_held(instance: Instance, chosen: argparse.Namespace, progress: Progress) -> int:
    """Restore into a directory that is held. Raises BackupFault."""
    from runhistd.store.restore import history_files, restore

    state_dir = instance.state_dir
    moved: list[str] = []
    found = history_files(state_dir)
    if found and not chosen.move_aside:
        system = "--system " if chosen.system else ""
        again = f"runhistd restore {system}--move-aside {shlex.quote(str(chosen.directory))}"
        there = f"there is a history in {state_dir} ({found[0].name}), which was not touched"
        return complain(f"{there}; `{again}` moves it aside", 1)

    def before() -> None:
        moved.extend(make_room(instance, "before-restore"))

    made = restore(chosen.directory.absolute(), state_dir, time.time_ns() // 1000, before=before, progress=progress.show)
    progress.clear()
    tell(restored_as_json(made, moved) if chosen.json else restored_as_text(made, state_dir, moved))
    return 1 if made.verdict.differences else 0


def restored_as_text(made: Restored, state_dir: Path, moved: list[str]) -> str:
    """What a person reads."""
    verdict = made.verdict
    lines = [f"moved the history that was there to {one}" for one in moved]
    lines.append(f"restored {count(verdict.runs, 'run')}, {count(verdict.events, 'event')} into {state_dir}")
    lines.append(f"its instance is {made.instance_id}; cursors and spool files of the one before are refused")
    if made.fenced:
        names = ", ".join(printable(run_id) for _, run_id in made.fenced[:SHOWN_RUNS])
        more = f" and {len(made.fenced) - SHOWN_RUNS:,} more" if len(made.fenced) > SHOWN_RUNS else ""
        went_on = count(len(made.fenced), "run")
        lines.append(f"incomplete now, because it was going on: {went_on}: {names}{more}")
        lines.append("  `runhist resume RUN -- CMD` goes on with one; `runhist list --status incomplete` lists them")
    if verdict.differences:
        lines.append(f"{count(len(verdict.differences), 'difference')}:")
        lines += map(difference_as_text, verdict.differences)
    else:
        lines.append("verified: the history agrees with its events; start the daemon")
    return "\n".join(lines) + "\n"


def restored_as_json(made: Restored, moved: list[str]) -> str:
    """One object."""
    verdict = made.verdict
    held = {"runs": verdict.runs, "events": verdict.events, "differences": len(verdict.differences)}
    fenced = [{"namespace": namespace, "run_id": run_id} for namespace, run_id in made.fenced]
    moved_to = moved[0] if moved else None
    return json.dumps({"instance_id": made.instance_id, **held, "incomplete": fenced, "moved_to": moved_to}) + "\n"
