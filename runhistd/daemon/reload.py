"""Settings that change while the daemon serves.

A change of the file (or SIGHUP) only says "look again". Looking reads the whole file: one that is valid becomes the
service's configuration in one step, without touching a connection; an invalid one changes nothing, and its faults stay in
`GetStatus` until the file is mended. What is decided when a connection begins keeps its value for those that are open,
and the log says so.

The directory is watched and not the file, because editors rename a new file over the old one; where the directory does
not exist yet, the nearest one above it is watched. One thread watches, and wakes once a second at most. What it may miss
(a directory made before it is watched, a file system that tells nothing) is found by looking every few seconds.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import attrs
import trio
import watchfiles

from runhistd import config
from runhistd.config import Config
from runhistd.model.views import ConfigFault, ConfigStatus

from . import log

logger = logging.getLogger("runhistd.reload")

STEP_MS = 1000  # between two looks of the watching thread: an idle daemon wakes that often
LOOK_AGAIN_MS = 5000
# What an open connection, or a grace that runs already, keeps.
LATER = {
    "limits.frame_bytes": "open connections keep theirs",
    "daemon.disconnect_grace_s": "a grace that has begun ends as it would have",
}


class Reload:
    """The settings in force, where they come from, and what is wrong with that file now.

    `applied` is called with the new settings whenever a valid change is taken over. `required`: the file was asked for by
    name, so that its absence is a fault.
    """

    def __init__(self, path: Path, current: Config, *, required: bool = False) -> None:
        self.path = path
        self.current = current
        self.faults: list[tuple[str, str]] = []
        self.applied: Callable[[Config], None] = lambda _: None
        self._required = required

    def status(self) -> ConfigStatus:
        """What GetStatus says of the settings."""
        return ConfigStatus(str(self.path), [ConfigFault(key, message) for key, message in self.faults])

    def look(self) -> None:
        """Read the file again; take it over if it is valid, else keep what is in force and say why."""
        try:
            found = config.load(self.path, required=self._required)
        except config.ConfigFaults as invalid:
            if invalid.faults != self.faults:
                self.faults = invalid.faults
                for key, message in self.faults:
                    fields = {"file": self.path, "key": key, "fault": message}
                    logger.error("the changed settings are not usable, the old ones stay", extra={"fields": fields})
            return
        if self.faults:
            logger.info("the settings are usable again", extra={"fields": {"file": self.path}})
        self.faults = []
        changed = different_keys(self.current, found)
        if not changed:
            return
        self.current = found
        log.configure(found.log_level)
        self.applied(found)
        for key in changed:
            fields = {"key": key, "value": config.value_of(found, key)}
            if key in LATER:
                fields["but"] = LATER[key]
            logger.info("a setting was changed", extra={"fields": fields})

    async def watch(self) -> None:
        """Look again whenever the file may have changed, until cancelled; then the thread ends within STEP_MS."""
        stop = threading.Event()
        token = trio.lowlevel.current_trio_token()
        thread = threading.Thread(target=watch_file, args=(self.path, stop, lambda: token.run_sync_soon(self.look)))
        thread.start()
        try:
            await trio.sleep_forever()
        finally:
            stop.set()  # nobody waits: the interpreter does at its end, when the directory has been given up


def different_keys(old: Config, new: Config) -> list[str]:
    """The dotted keys whose values differ."""
    names = [field.name for field in attrs.fields(Config) if getattr(old, field.name) != getattr(new, field.name)]
    return [config.dotted(name) for name in names]


def watch_file(path: Path, stop: threading.Event, changed: Callable[[], None]) -> None:
    """Call `changed` when the file may have changed, until `stop`. Runs in a thread of its own."""
    while not stop.is_set():
        watched = directories_of(path)
        try:
            for _ in watchfiles.watch(
                *watched,
                watch_filter=None,
                step=STEP_MS,
                debounce=STEP_MS,
                rust_timeout=LOOK_AGAIN_MS,
                yield_on_timeout=True,
                recursive=False,
                stop_event=stop,
                raise_interrupt=False,
            ):
                _tell(stop, changed)
                if directories_of(path) != watched:
                    break
        except OSError as error:  # one of them is gone again, or the system has no watches to give
            logger.warning("cannot watch the settings", extra={"fields": {"error": error}})
            stop.wait(LOOK_AGAIN_MS / 1000)
            _tell(stop, changed)


def _tell(stop: threading.Event, changed: Callable[[], None]) -> None:
    if not stop.is_set():
        try:
            changed()
        except trio.RunFinishedError:
            stop.set()


def directories_of(path: Path) -> list[Path]:
    """What to watch for a file: its directory, also the one that a link leads to, or the nearest ones above that exist."""
    found = set()
    for place in (path.absolute(), path.resolve()):
        directory = place.parent
        while not directory.is_dir():
            directory = directory.parent
        found.add(directory)
    return sorted(found)
