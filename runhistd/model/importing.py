"""Taking runs in that another history has recorded, event by event as they were.

An engine's events are decided on; those of an import were, where they come from, and they come with what that history gave
them: seq, the time of receipt, and the events that only a daemon makes. What belongs to a history itself does not come:
positions, epochs, leases and owners are given anew. An imported run has no lease (`none`): nobody owns it here, and an
import that was interrupted, or a later export of the same run, goes on behind its last event.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

from msgspec import Meta, Struct

from .errors import InvalidParameter, NotAllowed
from .events import TERMINAL_STATUS, Accepted, Count, Event, Positive, RunSpec, kind_of, payload_of

Seq = Annotated[int, Meta(ge=1, le=2**53)]  # so that there is room for what comes behind, also where seqs are missing
_AFTER_THE_END = frozenset({"note", "artifact"})


class ImportedEvent(Event, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """An event with what the history that recorded it has given it."""

    seq: Seq
    received_us: Count
    writer: UUID | None = None
    n: Positive | None = None


class Import(Struct, frozen=True):
    """A request to have events of one run as they were recorded elsewhere. `import_key` is the same for the same run."""

    uid: int
    namespace: str
    run_id: str
    import_key: UUID
    events: list[ImportedEvent]


def accept_imported(request: Import, events: Sequence[ImportedEvent], last_seq: int, ended: bool) -> list[Accepted]:
    """What the events behind `last_seq` mean; `ended`: the run has a terminal event already. Raises a Refusal."""
    accepted = []
    before = len(request.events) - len(events)
    for i, event in enumerate(events):
        path = f"events[{before + i}]"
        if event.seq <= last_seq:
            raise InvalidParameter(f"{path}.seq")
        if (event.writer is None) != (event.n is None):
            raise InvalidParameter(f"{path}.n")
        kind = kind_of(event, before + i)
        payload = payload_of(kind, event.data, f"{path}.data")
        if (event.seq == 1) != (kind == "run.started") or (last_seq == 0 and event.seq > 1):
            raise InvalidParameter(f"{path}.seq")
        if isinstance(payload, RunSpec) and (payload.run_id, payload.namespace or "default") != (
            request.run_id,
            request.namespace,
        ):
            raise InvalidParameter(f"{path}.data.run_id")
        if ended and kind not in _AFTER_THE_END:
            raise NotAllowed(f"{path}.kind", "the run has ended before; afterwards there are only notes and artifacts")
        ended = ended or kind in TERMINAL_STATUS
        last_seq = event.seq
        accepted.append(Accepted(event, kind, payload, event.n))
    return accepted


def is_same(event: ImportedEvent, stored: ImportedEvent) -> bool:
    """Whether an event that comes again is the one that is stored, down to the bytes of its data."""
    members = (member for member in event.__struct_fields__ if member not in ("data", "kind"))
    return (
        bytes(event.data) == bytes(stored.data)
        and kind_of(event, 0) == stored.kind
        and all(getattr(event, member) == getattr(stored, member) for member in members)
    )
