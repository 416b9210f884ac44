"""Which run a shell command writes to, and under which lease."""

from __future__ import annotations

import os
import time
from typing import Any, Dict, Mapping, NamedTuple, Optional

from ..connection import Connection, Unreachable
from ..protocol.errors import ShuttingDown
from .main import USAGE, Complaint
from .names import find

RETRY_S = 5.0
PAUSE_S = 0.05


class Target(NamedTuple):
    """The run that takes the events, and the lease to append under, if there is one."""

    namespace: Optional[str]
    run_id: str
    epoch: Optional[int]


def recording_is_off() -> bool:
    """Whether RUNHIST=off asks to record nothing."""
    return os.environ.get("RUNHIST", "").strip().lower() == "off"


def own_run() -> Optional[Target]:
    """The run that RUNHIST_RUN, RUNHIST_NAMESPACE and RUNHIST_LEASE name. Raises Complaint for a lease that is no number."""
    run_id = os.environ.get("RUNHIST_RUN")
    if not run_id:
        return None
    lease = os.environ.get("RUNHIST_LEASE")
    if lease and not lease.isdecimal():
        raise Complaint(f"RUNHIST_LEASE is {lease!r}, which is no lease", USAGE)
    return Target(os.environ.get("RUNHIST_NAMESPACE") or None, run_id, int(lease) if lease else None)


def target(name: Optional[str], namespace: Optional[str]) -> Target:
    """The run of that name, or the one that the environment names; nothing is written to a run that was not named.

    A run that this shell does not own is written to under its present lease, because its user asked for it by name.
    Raises Complaint, and Unreachable.
    """
    own = own_run()
    if own is not None and name in (None, own.run_id) and namespace in (None, own.namespace):
        return own
    if name is None:
        raise Complaint("which run? RUNHIST_RUN is not set; name one, or begin one: runhist begin --owner-pid $$", USAGE)
    with Connection.open() as connection:
        run = find(connection, name, namespace)
    return Target(run["namespace"], run["run_id"], run["epoch"])


def call_again_if_lost(method: str, parameters: Mapping[str, Any]) -> Dict[str, Any]:
    """Call a method that is safe to repeat, again when the daemon is restarted meanwhile. Raises Refusal, Unreachable."""
    deadline = time.monotonic() + RETRY_S
    lost = False
    while True:
        try:
            with Connection.open() as connection:
                return connection.call(method, parameters)
        except (Unreachable, ShuttingDown) as trouble:
            lost = lost or isinstance(trouble, ShuttingDown) or trouble.reason == "lost"
            if not lost or time.monotonic() >= deadline:
                raise
            time.sleep(PAUSE_S)
