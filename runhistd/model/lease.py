"""Leases: who may append to a run, and the requests that begin, claim, release and bury one.

A lease is granted by BeginRun or ClaimRun and has an epoch, a number that only grows over the whole history: whoever
sends under an older one is refused. It is held by processes as the kernel names them; one that appends under it joins
the holders, and the lease is orphaned when the last of them is dead. A pause, an end and a release end it. Being
orphaned does not: until somebody claims the run, the holders may turn out to be alive (see `decide`).

What is here is no part of what a run's events amount to: it is about the right to write them.
"""

from __future__ import annotations

from uuid import UUID

from msgspec import Raw, Struct

from .decide import Append, StoredKey, decide
from .errors import LeaseHeld, RunClosed, StaleTeamEpoch, StatusChanged
from .events import TERMINAL, Accepted, Event
from .holder import Holder
from .run import Head, highest_totals

OWNED = "owned"
NONE = "none"  # many processes write, every event by its key; nobody's death is judged
ENDED = "ended"


class Lease(Struct):
    """A run's newest lease. `key` is its lease_key, `owner_pid` the process that it was granted to."""

    key: bytes
    owner_pid: int | None
    state: str = OWNED
    holders: set[Holder] = set()

    def end(self) -> None:
        """Nobody holds it any more."""
        if self.state == OWNED:
            self.state = ENDED
        self.holders = set()


class Begin(Struct, frozen=True):
    """A request to begin a run. `spec` is the RunSpec as JSON, stored as the first event's data."""

    uid: int
    namespace: str
    run_id: str
    lease_key: UUID
    holder: Holder | None
    spec: bytes
    time_us: int | None
    lease: str = OWNED


class Claim(Struct, frozen=True):
    """A request to go on with a run: compare-and-set, and the first events in the same transaction.

    A leading gate.answered among `events` is stored before the run is resumed.
    """

    uid: int
    namespace: str
    run_id: str
    lease_key: UUID
    holder: Holder | None
    expect_status: tuple[str, ...] | None = None
    expect_seq: int | None = None
    takeover: bool = False
    writer: UUID | None = None
    first_n: int | None = None
    events: list[Event] = []


class Release(Struct, frozen=True):
    """A request to let go of a run that is not at its end."""

    uid: int
    namespace: str
    run_id: str
    epoch: int


class Death(Struct, frozen=True):
    """The verdict that a holder is dead; `evidence` is the data of the run.incomplete that it may lead to."""

    uid: int
    namespace: str
    run_id: str
    holder: Holder
    evidence: bytes


class Fence(Struct, frozen=True):
    """In a restored history: whoever held the run holds it no more, because what was recorded since is not known here.

    `lease_key` is a new one that nobody has; `evidence` is the data of the run.incomplete.
    """

    uid: int
    namespace: str
    run_id: str
    lease_key: UUID
    evidence: bytes


class Claimed(Struct, frozen=True):
    """What a claim stores: answers before, and events behind, the run.resumed that the daemon makes."""

    answers: list[Accepted]
    events: list[Accepted]


def check_team(head: Head, team_epoch: int) -> None:
    """Refuse a member of a team execution that a newer one has replaced. `team_epoch` is the highest seen."""
    if head.team_run_id is not None and (head.team_epoch or 0) < team_epoch:
        raise StaleTeamEpoch(team_epoch)


def decide_claim(
    head: Head, lease: Lease, claim: Claim, epoch: int, last_n: int, stored: dict[str, StoredKey], team_epoch: int
) -> Claimed:
    """Whether the claim is granted under `epoch`, and with which events. Raises a Refusal.

    `last_n`, `stored`: see `decide`.
    """
    if head.status in TERMINAL:
        raise RunClosed(head.status)
    if claim.expect_status is not None and head.status not in claim.expect_status:
        raise StatusChanged(head.status, head.last_seq)
    if claim.expect_seq is not None and head.last_seq != claim.expect_seq:
        raise StatusChanged(head.status, head.last_seq)
    if head.status in ("pending", "running") and not claim.takeover:
        raise LeaseHeld(lease.owner_pid, head.epoch)
    check_team(head, team_epoch)
    kinds = [event.kind or event.type for event in claim.events]
    leading = next((i for i, kind in enumerate(kinds) if kind != "gate.answered"), len(kinds))
    answers = decide(head, _part(claim, 0, leading, None), last_n, stored)
    totals = highest_totals(head.totals, (answer.event.usage for answer in answers))
    resumed = Head(status="running", epoch=epoch, last_seq=head.last_seq + len(answers) + 1, totals=totals)
    counted = last_n
    if leading and claim.first_n is not None:  # or a gap before the first event would go unseen
        counted = max(last_n, claim.first_n + leading - 1)
    return Claimed(answers, decide(resumed, _part(claim, leading, len(claim.events), epoch), counted, stored))


def _part(claim: Claim, start: int, end: int, epoch: int | None) -> Append:
    first_n = None if claim.first_n is None else claim.first_n + start
    return Append(claim.uid, claim.namespace, claim.run_id, epoch, claim.writer, first_n, claim.events[start:end])


def resumed_event(data: bytes) -> Event:
    """The event that the daemon records when a run goes on under a lease."""
    return Event(type="run.resumed", data=Raw(data))


def incomplete_event(data: bytes) -> Event:
    """The event that the daemon records when a run lost its owner."""
    return Event(type="run.incomplete", data=Raw(data))
