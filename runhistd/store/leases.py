"""Beginning, claiming, releasing and burying: the requests that change who holds a run, inside the log's transaction.

A lease_key makes a begin or a claim safe to repeat: under the key that the run's newest lease was granted for, the same
epoch is given again and nothing is stored, also after a restart and whatever became of the run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Raw, Struct

from ..model.errors import NotAllowed, RunClosed, RunExists, StaleEpoch, StaleTeamEpoch
from ..model.events import TERMINAL, Accepted, Event, RunSpec, payload_of
from ..model.holder import Holder
from ..model.lease import OWNED, Begin, Claim, Death, Fence, Lease, Release, decide_claim, incomplete_event, resumed_event
from ..model.quota import EVENT_BYTES, bytes_of
from .heads import CachedRun, encode

if TYPE_CHECKING:
    from .log import EventLog


class Begun(Struct, frozen=True):
    """A run was begun, now or by the same lease_key before."""

    namespace: str
    run_id: str
    epoch: int
    position: int


class Claimed(Struct, frozen=True):
    """A run was claimed, now or by the same lease_key before. `last_seq` is the run's newest event."""

    namespace: str
    run_id: str
    epoch: int
    last_seq: int
    position: int


class Released(Struct, frozen=True):
    """The lease is given back."""


class Buried(Struct, frozen=True):
    """The dead process holds the run no more; `adopted` when that left the run without an owner."""

    adopted: bool


def begin(log: EventLog, request: Begin, now_us: int) -> Begun:
    """Make a run and grant its first epoch. Raises RunExists, StaleTeamEpoch."""
    name = (request.uid, request.namespace, request.run_id)
    run = log.heads.find(name)
    if run is not None:
        if run.lease.key != request.lease_key.bytes:
            raise RunExists(request.namespace, request.run_id)
        return Begun(request.namespace, request.run_id, run.head.epoch, log.pending_position)
    log.check_not_deleted(name, request.lease_key.bytes)
    log.tally.check_run(request.uid, EVENT_BYTES + len(request.spec))
    start = Event(type="run.started", time_us=request.time_us, data=Raw(request.spec))
    spec = payload_of(start.type, request.spec, "run")
    assert isinstance(spec, RunSpec)
    _check_new_team(log, request.uid, spec)
    owner_pid = pid_of(request.holder) if request.lease == OWNED else None
    run = log.add_run(name, Lease(request.lease_key.bytes, owner_pid, request.lease))
    log.store_all(run, [Accepted(start, start.type, spec, None)], None, now_us)
    log.join(run, request.holder)
    return Begun(request.namespace, request.run_id, run.head.epoch, log.pending_position)


def pid_of(holder: Holder | None) -> int | None:
    """The pid to tell people; None of a process that has none in the daemon's pid namespace."""
    return holder.pid or None if holder is not None else None


def _check_new_team(log: EventLog, uid: int, spec: RunSpec) -> None:
    if spec.team_run_id is None:
        return
    highest, team_epoch = log.heads.team_epoch(uid, spec.team_run_id), spec.team_epoch or 0
    if team_epoch < highest:
        raise StaleTeamEpoch(highest)
    if team_epoch > highest:
        log.heads.raise_team_epoch(uid, spec.team_run_id, team_epoch)


def claim(log: EventLog, request: Claim, now_us: int) -> Claimed:
    """Grant a new epoch of a run that nobody holds, or that is taken over, and store the first events under it."""
    run = log.find(request.uid, request.namespace, request.run_id)
    head, lease = run.head, run.lease
    if lease.key == request.lease_key.bytes:
        return Claimed(request.namespace, request.run_id, head.epoch, head.last_seq, log.pending_position)
    last_n = log.last_n(run, request.writer)
    stored = log.stored_keys(run, request.events)
    team_epoch = log.heads.team_epoch(request.uid, head.team_run_id)
    granted = decide_claim(head, lease, request, log.pending_epoch + 1, last_n, stored, team_epoch)
    log.tally.check_bytes(request.uid, EVENT_BYTES + bytes_of(granted.answers) + bytes_of(granted.events))
    log.check_blobs(request.uid, granted.events)
    log.store_all(run, granted.answers, request.writer, now_us)
    data = resumed_data(run, request.holder, _answer(log, run))
    _grant(log, run, request)
    log.store_own(run, resumed_event(data), now_us)
    log.store_all(run, granted.events, request.writer, now_us)
    log.join(run, request.holder)
    log.count(run, request.writer, request.first_n, len(request.events), last_n)
    return Claimed(request.namespace, request.run_id, head.epoch, head.last_seq, log.pending_position)


def _grant(log: EventLog, run: CachedRun, request: Claim) -> None:
    run.lease = Lease(request.lease_key.bytes, pid_of(request.holder))
    run.head.epoch = log.next_epoch()
    log.heads.touch_lease(run)


def resumed_data(run: CachedRun, by: Holder | None, answer: dict[str, Any] | None = None) -> bytes:
    """The data of a run.resumed: by whom, from which epoch and status, whether taken over, and the gate's answer."""
    status = run.head.status
    gate = {} if answer is None else {"gate_seq": run.head.gate_seq, "answer": answer.get("answer")}
    return encode(
        {
            "pid": pid_of(by),
            "from_epoch": run.head.epoch,
            "from_status": status,
            "takeover": status in ("pending", "running"),
            **gate,
        }
    )


def _answer(log: EventLog, run: CachedRun) -> dict[str, Any] | None:
    """The data of the open gate's answer, if there is one."""
    seq = run.head.gate_answer_seq
    if seq is None or run.head.status != "paused":
        return None
    found = log.data_of(run, seq)
    answer: dict[str, Any] = msgspec.json.decode(found)
    return answer


def release(log: EventLog, request: Release, now_us: int) -> Released:
    """Let go of a run before its end: it becomes incomplete, and nobody is taken for its owner any more."""
    run = log.find(request.uid, request.namespace, request.run_id)
    head = run.head
    if request.epoch != head.epoch:
        raise StaleEpoch(head.epoch, run.lease.owner_pid, 0)
    if head.status in TERMINAL:
        raise RunClosed(head.status)
    if run.lease.state != OWNED:
        if run.lease.state == "ended":
            return Released()
        raise NotAllowed("epoch", "the run has no lease that could be released")
    if head.status in ("pending", "running"):
        _store_incomplete(log, run, encode({"reason": "released", "pid": run.lease.owner_pid}), now_us)
    run.lease.end()
    log.heads.touch_lease(run)
    return Released()


def bury(log: EventLog, request: Death, now_us: int) -> Buried:
    """Take a dead process from the holders; the run becomes incomplete when it was the last one and has not ended."""
    run = log.heads.find((request.uid, request.namespace, request.run_id))
    if run is None or request.holder not in run.lease.holders:
        return Buried(False)
    run.lease.holders.discard(request.holder)
    log.heads.touch_lease(run)
    if run.lease.holders or run.head.status not in ("pending", "running"):
        return Buried(False)
    _store_incomplete(log, run, request.evidence, now_us)
    return Buried(True)


def fence(log: EventLog, request: Fence, now_us: int) -> Buried:
    """Take the run from whoever holds it, under a new epoch and a new lease_key, so that nothing of theirs is taken."""
    run = log.find(request.uid, request.namespace, request.run_id)
    run.lease.key = request.lease_key.bytes
    run.lease.end()
    run.head.epoch = log.next_epoch()
    log.heads.touch_lease(run)
    _store_incomplete(log, run, request.evidence, now_us)
    return Buried(True)


def _store_incomplete(log: EventLog, run: CachedRun, evidence: bytes, now_us: int) -> None:
    log.store_own(run, incomplete_event(evidence), now_us)
    run.evidence = evidence.decode()
