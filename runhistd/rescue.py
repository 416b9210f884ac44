"""The command `recover`: a new history of what a damaged one still tells."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runhist import paths

from .backups import hold_state, make_room
from .terminal import SYSTEM, Progress, complain, count, difference_as_text, printable, tell

if TYPE_CHECKING:
    from runhistd.daemon.instance import Instance
    from runhistd.store.recover import Loss, Recovered

RECOVER = """\
Reads the damaged history page by page, builds a new one of every event that can still be read, and puts it in
the place of the damaged one, which is moved aside as it is. With DIR the history in that directory (a damaged
backup) is read instead. A daemon that reports the damage has given the directory up and serves the new history
by itself; any other one must be stopped.

Every run that lost events is named with what it lost, here and by a note at the run's end; readers and followers
are told of the gap. As after `runhistd restore` the history is a new one: runs that were going on are incomplete
(`recovered`), and old cursors, leases and spool files are refused. A sound history is left alone.

exit status: 0 recovered, or nothing was damaged; 1 not recovered."""

SHOWN_RANGES = 8


def add_commands(commands: Any) -> None:
    """Add what is here to the commands of `runhistd`."""
    summary = "save what can be read of a damaged history"
    command = commands.add_parser("recover", help=summary, description=f"{summary}.".capitalize(), ending=RECOVER)
    command.add_argument("directory", metavar="DIR", type=Path, nargs="?")
    command.add_argument("--system", action="store_true", help=SYSTEM)
    command.add_argument("--json", action="store_true", help="print one object a run that lost events, then the totals")
    command.set_defaults(run=run_recover)


def run_recover(chosen: argparse.Namespace) -> int:
    """Hold the state directory, and put a new history into it."""
    return hold_state(chosen, Progress("reading pages"), recover_held)


def recover_held(instance: Instance, chosen: argparse.Namespace, progress: Progress) -> int:
    """Recover into a directory that is held. Raises BackupFault."""
    from runhistd.store.recover import is_sound, recover

    state_dir = instance.state_dir
    moved: list[str] = []
    source = state_dir if chosen.directory is None else chosen.directory.absolute()
    database = source / paths.DATABASE_NAME
    if not database.exists():
        return complain(f"there is no {database}", 1)
    if is_sound(database):
        if source == state_dir:
            instance.forget_storage_failures()
        what = "start the daemon (again)" if source == state_dir else f"`runhistd restore {source}` brings it back"
        tell(json.dumps({"sound": True}) + "\n" if chosen.json else f"{database} is sound, and was left as it is; {what}\n")
        return 0

    def before() -> None:
        moved.extend(make_room(instance, "damaged"))

    made = recover(source, state_dir, time.time_ns() // 1000, before=before, progress=progress.show)
    progress.clear()
    tell(recovered_as_json(made, moved) if chosen.json else recovered_as_text(made, state_dir, moved))
    return 0


def recovered_as_text(made: Recovered, state_dir: Path, moved: list[str]) -> str:
    """What a person reads. Names are shown as literals, so that recorded text cannot drive the terminal."""
    verdict = made.verdict
    lines = [f"read {count(made.pages, 'page')}; {count(made.unusable, 'page or row', 'pages or rows')} could not be used"]
    lines.append(f"saved {count(verdict.runs, 'run')} into {state_dir}")
    lines += [f"  lost of run {loss.run_id!r} of {loss.namespace!r}: {lost_as_text(loss)}" for loss in made.losses]
    if not made.losses:
        lines.append("  no event of these runs is missing")
    lines += [f"moved the damaged files, unchanged, to {one}" for one in moved]
    if made.incomplete:
        names = ", ".join(printable(run_id) for _, run_id in made.incomplete)
        lines.append(f"incomplete now, because it was going on: {count(len(made.incomplete), 'run')}: {names}")
    lines += map(difference_as_text, verdict.differences)
    lines.append("start the daemon, unless it runs: then it serves the new history already")
    return "\n".join(lines) + "\n"


def lost_as_text(loss: Loss) -> str:
    """How many events, and which."""
    ranges = [f"{first}–{last}" if last > first else str(first) for first, last in loss.ranges]
    more = f" and {len(ranges) - SHOWN_RANGES} more ranges" if len(ranges) > SHOWN_RANGES else ""
    return f"{count(loss.events, 'event')}, seq {', '.join(ranges[:SHOWN_RANGES])}{more}"


def recovered_as_json(made: Recovered, moved: list[str]) -> str:
    """One object a run that lost events, then the totals."""
    import attrs

    totals = {
        "instance_id": made.instance_id,
        "runs": made.verdict.runs,
        "lost_events": sum(loss.events for loss in made.losses),
        "unusable": made.unusable,
        "incomplete": [{"namespace": namespace, "run_id": run_id} for namespace, run_id in made.incomplete],
        "differences": len(made.verdict.differences),
        "moved_to": moved[0] if moved else None,
    }
    return "".join(json.dumps(line) + "\n" for line in (*map(attrs.asdict, made.losses), totals))
