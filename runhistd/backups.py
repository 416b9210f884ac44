"""The command `backup`: a copy of the history of this user, beside a running daemon or without one."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runhist import paths

from .terminal import Progress, complain, count, difference_as_text, size_text, tell

if TYPE_CHECKING:
    from runhistd.store.backup import Backup

BACKUP = """\
Copies the history of one moment into DIR, which must be new or empty: history.db, and blobs/ with the content
that runs gave. The daemon goes on recording meanwhile, or need not run at all. At the end the copy is opened and
read through, as `runhistd verify` does; until then there is no history.db in DIR.

The copy is given up when the write-ahead log passes limits.wal_bytes meanwhile. `runhistd restore DIR` brings it back.

exit status: 0 copied and verified, 1 not copied, or what was copied differs from its events."""


def add_commands(commands: Any) -> None:
    """Add what is here to the commands of `runhistd`."""
    summary = "copy the history, also while it is recorded"
    command = commands.add_parser("backup", help=summary, description=f"{summary}.".capitalize(), ending=BACKUP)
    command.add_argument("directory", metavar="DIR", type=Path)
    command.add_argument("--json", action="store_true", help="print one object")
    command.set_defaults(run=run_backup)


def run_backup(chosen: argparse.Namespace) -> int:
    """Copy, verify, and say what the copy holds."""
    from runhistd import config
    from runhistd.store.backup import BackupFault, back_up

    database = paths.state_dir() / paths.DATABASE_NAME
    if not database.exists():
        return complain(f"there is no history at {database}; `runhistd serve` makes one", 1)
    try:
        settings = config.load(paths.config_file())
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
