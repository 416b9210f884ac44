"""Settings that change while the daemon serves.

A change of the file (or SIGHUP) only says "look again". Looking reads the whole file: one that is valid becomes the
service's configuration in one step, without touching a connection; an invalid one changes nothing, and its faults stay in
`GetStatus` until the file is mended. What is decided when a connection begins keeps its value for those that are open,
and the log says so.

Where the file's directory does not exist yet, the nearest one above it is watched.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import attrs

from runhistd import config
from runhistd.config import Config
from runhistd.model.views import ConfigFault, ConfigStatus

from . import log

logger = logging.getLogger("runhistd.reload")

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


def different_keys(old: Config, new: Config) -> list[str]:
    """The dotted keys whose values differ."""
    names = [field.name for field in attrs.fields(Config) if getattr(old, field.name) != getattr(new, field.name)]
    return [config.dotted(name) for name in names]


def directories_of(path: Path) -> set[Path]:
    """What to watch for a file: its directory, also the one that a link leads to, or the nearest ones above that exist."""
    found = set()
    for place in (path.absolute(), path.resolve()):
        directory = place.parent
        while not directory.is_dir():
            directory = directory.parent
        found.add(directory)
    return found
