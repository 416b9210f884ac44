"""Which events may be recorded: every refusal is found here, before the first event is folded.

The checks come in the order that makes sending again safe: what is stored already is success under any epoch, then the
epoch, then the status, then gaps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from uuid import UUID

from msgspec import Struct

from .errors import Conflict, InvalidParameter, NotAllowed, RunClosed, SequenceGap, StaleEpoch
from .events import (
    DAEMON_KINDS,
    MAX_COUNT,
    MEANINGFUL,
    TERMINAL,
    TERMINAL_STATUS,
    Accepted,
    Answered,
    Event,
    Usage,
    kind_of,
    payload_of,
)
from .holder import Holder
from .large import STAYS_WHOLE
from .run import Head, highest_totals

MAX_OPEN_STEPS = 10_000  # of a run; they are all in memory while it is recorded, because its end ends them
_NEEDS_STEP = frozenset({"step.started", "step.retrying", "step.completed", "step.failed", "step.skipped"})
_WITHOUT_LEASE = frozenset({"note", "artifact", "gate.answered"})


class Content(Struct, frozen=True):
    """What makes two events of one key the same event. The time is left out: a repeat may be stamped anew.

    Of the data it is the SHA-256, which is the same wherever the data lies.
    """

    type: str
    kind: str
    step_id: str | None
    attempt: int | None
    usage: Usage | None
    data_sha256: bytes


class StoredKey(Struct, frozen=True):
    """What is stored under a key."""

    seq: int
    content: Content


class Append(Struct, frozen=True, gc=False):
    """A request to store events. `writer` and `first_n` come together; without them every event needs a key.

    `holder` is the process that sends; None when nobody is known to be alive behind it, as for what a dead process left.
    `lease_key` stands for the epoch that was granted for it, where a spool's writer never learned it.
    """

    uid: int
    namespace: str
    run_id: str
    epoch: int | None
    writer: UUID | None
    first_n: int | None
    events: list[Event]
    holder: Holder | None = None
    lease_key: UUID | None = None

    @property
    def reopens(self) -> bool:
        """Whether these events prove that an owner who was taken for dead is alive."""
        return self.holder is not None


def content_of(event: Event, kind: str) -> Content:
    """The content of an event as it was sent."""
    blob = event.data_blob
    sha256 = hashlib.sha256(event.data).digest() if blob is None else bytes.fromhex(blob.sha256)
    return Content(event.type, kind, event.step_id, event.attempt, event.usage, sha256)


def decide(
    head: Head,
    request: Append,
    last_n: int,
    stored: Mapping[str, StoredKey],
    lease: str = "owned",
    owner_pid: int | None = None,
) -> list[Accepted]:
    """The events of the request that are new, in order; those stored already are left out.

    `last_n` is what is stored of the writer; `stored` holds the keys of this request that the run already has; `lease` is
    the state of the run's lease and `owner_pid` whom it was granted to. Raises a Refusal, and then nothing of the request
    may be stored. An incomplete run is reopened before the events are stored if the request `reopens` it.
    """
    if (request.writer is None) != (request.first_n is None):
        raise InvalidParameter("first_n" if request.first_n is None else "writer")
    fresh = _new_events(head, request, last_n, stored)
    if not fresh:
        return fresh
    if lease == "none":
        _check_keys(head, request, last_n, owner_pid)
    elif request.epoch != head.epoch:
        _check_epoch(head, request, last_n, fresh, owner_pid)
    _check_status(head, fresh, lease, request.reopens)
    _check_open_steps(head, fresh)
    if request.first_n is not None and request.first_n > last_n + 1:
        raise SequenceGap(last_n + 1, last_n)
    return fresh


def _new_events(head: Head, request: Append, last_n: int, stored: Mapping[str, StoredKey]) -> list[Accepted]:
    fresh: list[Accepted] = []
    seen: dict[str, Content] = {}
    totals = head.totals
    for i, event in enumerate(request.events):
        n = None if request.first_n is None else request.first_n + i
        if n is not None and n <= last_n:
            continue
        kind = kind_of(event, i)
        if kind in DAEMON_KINDS:
            raise NotAllowed(f"events[{i}].kind", f"only the daemon records {kind}")
        if event.data_blob is not None and kind in STAYS_WHOLE:
            raise NotAllowed(f"events[{i}].data_blob", f"the data of {kind} is sent with it")
        if event.key is not None:
            content = content_of(event, kind)
            known = stored.get(event.key)
            if known is not None and known.content != content:
                raise Conflict(known.seq)
            if seen.get(event.key, content) != content:
                raise InvalidParameter(f"events[{i}].key")
            if known is not None or event.key in seen:
                continue
            seen[event.key] = content
        elif n is None:
            raise InvalidParameter(f"events[{i}].key")
        if kind in _NEEDS_STEP and event.step_id is None:
            raise InvalidParameter(f"events[{i}].step_id")
        if event.usage is not None:
            totals = highest_totals(totals, [event.usage])
            if max(totals) > MAX_COUNT:
                raise NotAllowed(f"events[{i}].usage", "the run's sums would pass what can be counted")
        payload = payload_of(kind, event.data, f"events[{i}].data") if kind in MEANINGFUL else None
        fresh.append(Accepted(event, kind, payload, n))
    return fresh


def _check_keys(head: Head, request: Append, last_n: int, owner_pid: int | None) -> None:
    """Many processes write a run without a lease, so that only keys can tell a repeat."""
    if request.epoch not in (None, head.epoch):
        raise StaleEpoch(head.epoch, owner_pid, last_n)
    for i, event in enumerate(request.events):
        if event.key is None:
            raise InvalidParameter(f"events[{i}].key")


def _check_epoch(head: Head, request: Append, last_n: int, fresh: list[Accepted], owner_pid: int | None) -> None:
    """A sender of another epoch than the run's is stale; one of none may only add what anybody may."""
    if request.epoch is not None:
        raise StaleEpoch(head.epoch, owner_pid, last_n)
    for new in fresh:
        if new.kind not in _WITHOUT_LEASE or (new.kind != "gate.answered" and head.status not in TERMINAL):
            raise NotAllowed("epoch", "a process owns this run; send the epoch of its lease")


def _check_status(head: Head, fresh: list[Accepted], lease: str, reopens: bool) -> None:
    """Walk the status machine over the new events without folding them."""
    status = head.status
    if status == "incomplete" and lease != "ended" and reopens:
        status = "running"
    gate_answer_seq = head.gate_answer_seq
    for i, new in enumerate(fresh):
        if status in TERMINAL:
            if new.kind not in ("note", "artifact") or new.event.key is None:
                raise RunClosed(status)
        elif new.kind == "gate.answered":
            gate_answer_seq = _check_answer(head, status, gate_answer_seq, i, new)
        elif status == "running" or (status == "incomplete" and lease != "ended"):
            status = "paused" if new.kind == "run.paused" else TERMINAL_STATUS.get(new.kind, status)
        else:
            raise NotAllowed(f"events[{i}].kind", f"the run is {status}; it must be claimed before it goes on")


def _check_open_steps(head: Head, fresh: list[Accepted]) -> None:
    if len(head.steps) + len(fresh) <= MAX_OPEN_STEPS:
        return
    started = sum(new.kind == "step.started" for new in fresh)
    if started and len(head.steps) + started > MAX_OPEN_STEPS:
        open_steps = sum(step.status == "running" for attempts in head.steps.values() for step in attempts.values())
        if open_steps + started > MAX_OPEN_STEPS:
            raise NotAllowed("events", f"more than {MAX_OPEN_STEPS:,} steps would be open; end some first")


def _check_answer(head: Head, status: str, answered: int | None, i: int, new: Accepted) -> int:
    if status != "paused":
        raise NotAllowed(f"events[{i}].kind", f"the run is {status}; no gate is open")
    if answered is not None:
        raise Conflict(answered)
    if not isinstance(new.payload, Answered) or new.payload.gate_seq != head.gate_seq:
        raise NotAllowed(f"events[{i}].data.gate_seq", f"the open gate has gate_seq {head.gate_seq}")
    return head.last_seq + i + 1


