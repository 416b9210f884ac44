"""Which run a shell command writes to, and under which lease."""

from __future__ import annotations

import os
from typing import NamedTuple, Optional

from .. import environment
from ..connection import Connection
from .main import USAGE, Complaint
from .names import find

NO_RUN = "which run? RUNHIST_RUN is not set; name one, or begin one: runhist begin --owner-pid $$"


class Target(NamedTuple):
    """The run that takes the events, and the lease to append under, if there is one. `is_own`: the environment named it."""

    namespace: Optional[str]
    run_id: str
    epoch: Optional[int]
    lease_key: Optional[str] = None
    is_own: bool = False


def recording_is_off() -> bool:
    """Whether RUNHIST=off asks to record nothing."""
    return os.environ.get("RUNHIST", "").strip().lower() == "off"


def own_run() -> Optional[Target]:
    """The run that RUNHIST_RUN, RUNHIST_NAMESPACE and RUNHIST_LEASE name. Raises Complaint for a lease that is none."""
    run = environment.own_run()
    if run is None:
        return None
    try:
        lease = environment.own_lease()
    except environment.BadLease as error:
        raise Complaint(str(error), USAGE) from None
    epoch, key = (None, lease) if isinstance(lease, str) else (lease, None)
    return Target(run.namespace, run.run_id, epoch, key, is_own=True)


def own_target(name: Optional[str], namespace: Optional[str]) -> Optional[Target]:
    """The run that the environment names, where that is the one that is meant."""
    own = own_run()
    is_meant = own is not None and name in (None, own.run_id) and namespace in (None, own.namespace)
    return own if is_meant else None


def target(name: Optional[str], namespace: Optional[str]) -> Target:
    """The run of that name, or the one that the environment names; nothing is written to a run that was not named.

    A run that this shell does not own is written to under its present lease, because its user asked for it by name.
    Raises Complaint, and Unreachable.
    """
    own = own_target(name, namespace)
    if own is not None:
        return own
    if name is None:
        raise Complaint(NO_RUN, USAGE)
    with Connection.open() as connection:
        run = find(connection, name, namespace)
    return Target(run["namespace"], run["run_id"], run["epoch"])
