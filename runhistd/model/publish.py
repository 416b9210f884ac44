"""What is only shown: events that followers see as they come, and that nobody keeps.

Meant for what is too much to store and soon told again, such as the single tokens of an answer. So they may only be of
the kinds that change nothing, carry no usage (it would be counted by nobody) and no key (there is nothing to repeat).
They are sent under the run's lease as what is stored is, or whoever was fenced out could still be seen at work.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Raw, Struct

from .errors import InvalidParameter, NotAllowed, RunClosed, StaleEpoch
from .events import TERMINAL, Event, kind_of
from .lease import ENDED, NONE, Lease
from .run import Head

PUBLISHED_KINDS = frozenset({"output", "note"})


class Publish(Struct, frozen=True):
    """A request to show events to those who follow the run now."""

    uid: int
    namespace: str
    run_id: str
    epoch: int | None
    events: list[Event]


class Published(Struct, frozen=True, omit_defaults=True, gc=False):
    """An event that was shown and not stored, as followers get it; `data` is byte for byte what was sent."""

    namespace: str
    run_id: str
    epoch: int
    type: str
    kind: str
    received_us: int
    data: Raw
    step_id: str | None = None
    attempt: int | None = None
    time_us: int | None = None


def check_published(events: Sequence[Event]) -> None:
    """Refuse events that would mean something if they were stored. Raises InvalidParameter, NotAllowed."""
    if not events:
        raise InvalidParameter("events")
    for i, event in enumerate(events):
        kind = kind_of(event, i)
        if kind not in PUBLISHED_KINDS:
            raise NotAllowed(f"events[{i}].kind", f"{kind} has an effect, so it must be stored; use Append")
        if event.usage is not None:
            raise NotAllowed(f"events[{i}].usage", "what is not stored is not counted; use Append")
        if event.key is not None:
            raise NotAllowed(f"events[{i}].key", "what is not stored cannot be told from its repeat")


def decide_publish(head: Head, lease: Lease, request: Publish, now_us: int) -> list[Published]:
    """What followers of the run get. Raises StaleEpoch, NotAllowed, RunClosed.

    An incomplete run may be shown at work until it is claimed; that alone does not reopen it.
    """
    if request.epoch is None and lease.state != NONE:
        raise NotAllowed("epoch", "a process owns this run; send the epoch of its lease")
    if request.epoch not in (None, head.epoch):
        raise StaleEpoch(head.epoch, lease.owner_pid, 0)
    if head.status in TERMINAL:
        raise RunClosed(head.status)
    if head.status not in ("running", "incomplete") or lease.state == ENDED:
        raise NotAllowed("run_id", f"the run is {head.status}; it must be claimed before it goes on")
    return [_published(head, request, event, i, now_us) for i, event in enumerate(request.events)]


def _published(head: Head, request: Publish, event: Event, i: int, now_us: int) -> Published:
    return Published(
        namespace=request.namespace,
        run_id=request.run_id,
        epoch=head.epoch,
        type=event.type,
        kind=kind_of(event, i),
        received_us=now_us,
        data=event.data.copy(),  # a view would keep the whole frame in memory
        step_id=event.step_id,
        attempt=event.attempt,
        time_us=event.time_us,
    )
