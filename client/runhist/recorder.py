"""What a history needs in order to record, whichever client it is of: where to, how insistently, and what is logged.

Nothing here waits: how a run's begin is waited for is what the blocking client (`client`) and the async one (`aio`) add.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any, Dict, Literal, Mapping, NamedTuple, Optional, Tuple

from . import ambient, environment
from .encoding import Unencodable, as_object, encode, present
from .faults import Faults, Journal
from .ids import new_uuid
from .outbox import Outbox
from .paths import SocketChoice, choose_sockets
from .protocol.errors import InvalidParameter, RunhistError
from .pump import Pump
from .spool import Spool

DEADLINE_S = 5.0
WINDOW_EVENTS = 10_000
WINDOW_BYTES = 16 * 1024 * 1024

Errors = Literal["log", "raise"]
Mode = Literal["recording", "spooling", "off"]


class Setting(NamedTuple):
    """What `connect` found: where to record (None: it is off), where to spool, and whether recording is insisted on."""

    choice: Optional[SocketChoice]
    spool: Optional[Spool]
    require: bool
    journal: Journal


def find_setting(errors: Errors, require: bool, spool_bytes: int) -> Setting:
    """Look at the environment and at what is installed. Raises ValueError for what `errors` may not be."""
    if errors not in ("log", "raise"):
        raise ValueError(f'errors must be "log" or "raise", not {errors!r}')
    journal = Journal()
    wish = os.environ.get("RUNHIST", "").strip().lower()
    choice, off = _choose(wish, require)
    if wish not in ("", "on", "off"):
        journal.add("setting", f"RUNHIST is {wish!r} and is taken for unset; it may be on or off")
    if off is not None:
        journal.add("off", f"recording is off: {off}", logging.INFO)
    journal.write()
    spool = None if choice is None or require else Spool(choice, spool_bytes)
    return Setting(choice, spool, require or wish == "on", journal)


def _choose(wish: str, require: bool) -> Tuple[Optional[SocketChoice], Optional[str]]:
    """Which sockets to use, or why none."""
    if wish == "off":
        return None, "RUNHIST=off"
    try:
        choice = choose_sockets()
    except (OSError, RuntimeError) as error:  # no home, or one that may not be looked into
        return None, f"it cannot be found out where the history is: {error}"
    if choice.installed or require or wish == "on":
        return choice, None
    return None, f"no runhistd was ever started for this user (nothing at {choice.sockets[0]}); RUNHIST=on insists"


def _origin(namespace: Optional[str], parent_run_id: Optional[str], traceparent: Optional[str]) -> Dict[str, Optional[str]]:
    """Whose child a run is, and of which trace; see `environment`."""
    variables = ambient.variables()
    if parent_run_id is None:
        parent_run_id = environment.parent_of(namespace, environment.own_run(variables))
    traceparent = environment.own_traceparent(variables) if traceparent is None else environment.well_formed(traceparent)
    return {"parent_run_id": parent_run_id, "traceparent": traceparent}


class Recorder:
    """The part of a history that begins runs."""

    def __init__(
        self, link: Optional[Pump], setting: Setting, namespace: Optional[str], raising: bool, deadline: float, window: int
    ) -> None:
        self.namespace = namespace
        self.deadline = deadline
        self.window = window
        self._link = link
        self._journal = setting.journal
        self._raising = raising
        self._require = setting.require

    @property
    def mode(self) -> Mode:
        """ "recording", "spooling" (the daemon is away, and events go to the disk) or "off" (also in a child after fork)."""
        if self._link is None or self._link.forked:
            return "off"
        return "spooling" if self._link.spools else "recording"

    def _namespace_of_one(self, namespace: Optional[str]) -> Optional[str]:
        """In which namespace one run is meant, where that one is named."""
        if namespace is not None:
            return namespace
        return environment.own_namespace() if self.namespace is None else self.namespace

    def _prepare(
        self,
        faults: Faults,
        namespace: Optional[str],
        run_id: str,
        members: Mapping[str, Any],
        objects: Mapping[str, Any],
    ) -> Outbox:
        """An outbox with its BeginRun; a member that is not JSON is left out as a fault."""
        namespace = self._namespace_of_one(namespace)
        origin = _origin(namespace, members.get("parent_run_id"), members.get("traceparent"))
        spec = present(
            namespace=namespace,
            time_us=time.time_ns() // 1000,
            **{**members, **origin},
            **{name: as_object(value) for name, value in objects.items() if value is not None},
        )
        for name, value in list(spec.items()):
            try:
                encode({name: value})
            except Unencodable as error:
                del spec[name]
                faults.add("not_json", error, f"run {run_id!r} begins without its {name}: {error}")
        try:
            begin = encode({"run": {**spec, "run_id": run_id}, "lease_key": new_uuid()})
        except Unencodable:
            outbox = Outbox(faults, namespace, run_id, b"")
            outbox.give_up(InvalidParameter(parameter="run.run_id"))
            return outbox
        return Outbox(faults, namespace, run_id, begin, traceparent=origin["traceparent"])

    def _note_spooling(self, link: Pump) -> None:
        """A run has begun in the spool."""
        if link.spools:
            self._journal.add("spooling", f"recording goes to the spool for now: {link.trouble}")

    def _begin_late(self, link: Pump, outbox: Outbox, room: bool) -> None:
        """A run did not begin in time. Without `room` in the window it never will. Raises where that is wanted."""
        why = self._why_not()
        if self._require or self._raising:
            raise why
        with link.lock:
            if room:
                text = f"run {outbox.run_id} has not begun, its events wait in memory: {why}"
                outbox.faults.add(type(why).__name__, why, text)
            else:
                outbox.give_up(why)

    def _why_not(self) -> RunhistError:
        assert self._link is not None
        return self._link.why_not()

    def _new_faults(self) -> Faults:
        return Faults(self._journal, self._raising)
