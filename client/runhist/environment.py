"""The environment variables by which a run is handed on to the processes that work for it, and what a process finds there.

RUNHIST_RUN and RUNHIST_NAMESPACE name the run, RUNHIST_LEASE is the number of its lease, and whoever has that adds to the
run; of a run that was begun in the spool it is the key that the lease will be granted for. It is set and empty where the
run has not begun yet, so that the lease of a run further out is not taken for its own.
RUNHIST_SOCKET is where the daemon answered. TRACEPARENT is the trace that the run belongs to, as the W3C's Trace Context
defines the header of that name (https://www.w3.org/TR/trace-context/#traceparent-header); one that it would not have is
ignored, as it asks for.

One rule for all that begin a run: the namespace is the one that is named, else RUNHIST_NAMESPACE; the parent is the run
that is named, else the current one, if it is of the same namespace, since a parent's name counts in its child's. (Only
`runhist begin` looks twice: the shell that it works for still has the variables of a run that it began before.)
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Dict, Mapping, NamedTuple, Optional, Union

RUN = "RUNHIST_RUN"
NAMESPACE = "RUNHIST_NAMESPACE"
LEASE = "RUNHIST_LEASE"
SOCKET = "RUNHIST_SOCKET"
TRACEPARENT = "TRACEPARENT"

MAX_LEASE_DIGITS = 18  # what the wire's integers hold in any case

_IDS = r"-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
# Not compiled here: every command would pay for what few of them need.
_TRACEPARENT = rf"00{_IDS}|(?!00|ff)[0-9a-f]{{2}}{_IDS}(?:-[!-~]{{0,200}})?"
_KEY = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"


class BadLease(ValueError):
    """RUNHIST_LEASE is neither a number nor a key."""


class RunName(NamedTuple):
    """What names a run; no namespace is the default one."""

    namespace: Optional[str]
    run_id: str


def own_namespace(variables: Mapping[str, str] = os.environ) -> Optional[str]:
    """The namespace in which this process was asked to work."""
    return variables.get(NAMESPACE) or None


def own_run(variables: Mapping[str, str] = os.environ) -> Optional[RunName]:
    """The run that this process works for."""
    run_id = variables.get(RUN)
    return RunName(own_namespace(variables), run_id) if run_id else None


def own_lease() -> Union[int, str, None]:
    """The lease under which this process may add to `own_run`, its epoch or its lease_key. Raises BadLease."""
    lease = os.environ.get(LEASE)
    if not lease:
        return None
    if re.fullmatch(_KEY, lease):
        return lease
    if not lease.isdecimal() or len(lease) > MAX_LEASE_DIGITS:
        raise BadLease(f"{LEASE} is {lease[:50]!r}, which is no lease")
    return int(lease)


def own_traceparent(variables: Mapping[str, str] = os.environ) -> Optional[str]:
    """The trace that this process works for."""
    return well_formed(variables.get(TRACEPARENT))


def well_formed(traceparent: Optional[str]) -> Optional[str]:
    """The traceparent, or None for one that the specification would not have. Versions to come may add to its end."""
    return traceparent if traceparent is not None and re.fullmatch(_TRACEPARENT, traceparent) else None


def parent_of(namespace: Optional[str], current: Optional[RunName]) -> Optional[str]:
    """The run_id of the parent of a run that is begun in this namespace where `current` is the current run."""
    if current is None or (current.namespace or "default") != (namespace or "default"):
        return None
    return current.run_id


def lend(run: RunName, lease: Union[int, str, None], socket: Optional[Path], traceparent: Optional[str]) -> Dict[str, str]:
    """The variables that hand a run on, to be put over those that there are. What is not known stays as it is there."""
    variables = {RUN: run.run_id, NAMESPACE: run.namespace or "default", LEASE: "" if lease is None else str(lease)}
    if socket is not None:
        variables[SOCKET] = str(socket.absolute())
    if traceparent is not None:
        variables[TRACEPARENT] = traceparent
    return variables
