"""Whether the wall clock may be trusted with the age of runs, also when it was set while the daemon was away.

Within one boot the wall clock and the clock that counts from the boot go alike, so that their distance, written down at
each look, shows at the next start that one of them has jumped meanwhile. Over a reboot there is nothing to compare with:
the machine's own clock may have been set, and nobody can tell.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from attrs import frozen

from runhist.identity import boot_id
from runhistd.model.retention import ClockWatch

from .liveness import boot_time_s

logger = logging.getLogger("runhistd.clocks")

NAME = "clocks.json"  # in the state directory


@frozen
class Clocks:
    """The wall clock, the one that counts from the boot, sleep included, both in seconds; and which boot that is."""

    wall_s: Callable[[], float] = time.time
    boot_s: Callable[[], float] = boot_time_s
    boot_id: Callable[[], str] = boot_id


class RememberedClocks:
    """A watch over the clocks that goes on where the last daemon of this boot left it."""

    def __init__(self, clocks: Clocks, file: Path) -> None:
        self._clocks = clocks
        self._file = file
        self._watch = self._remembered() or ClockWatch(clocks.wall_s(), clocks.boot_s())

    def trusted(self) -> bool:
        """Look at the clocks, and remember what was seen."""
        trusts = self._watch.trusts(self._clocks.wall_s(), self._clocks.boot_s())
        self._remember()
        return trusts

    def _remembered(self) -> ClockWatch | None:
        try:
            members = json.loads(self._file.read_bytes())
            if members.pop("boot_id") != self._clocks.boot_id():
                return None
            return ClockWatch.restored(**members)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            logger.warning("what was known of the clocks cannot be read", extra={"fields": {"error": repr(error)}})
            return None

    def _remember(self) -> None:
        text = json.dumps({"boot_id": self._clocks.boot_id(), **self._watch.state()})
        fresh = self._file.with_suffix(".new")
        try:
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(text)
            fresh.replace(self._file)
        except OSError as error:
            logger.warning("the clocks cannot be noted", extra={"fields": {"error": repr(error)}})
