"""What retention would take now; `prune` removes it."""

from __future__ import annotations

import apsw
import msgspec

from ..model.retention import CLOSED, Candidate, Decision, Policy, decide, decide_events
from . import sql
from .database import snapshot

_encode = msgspec.json.Encoder().encode


def find(connection: apsw.Connection, policy: Policy, now_us: int, *, trust_clock: bool) -> list[Decision]:
    """The decisions, all of one commit. Without a limit nothing is looked at."""
    if policy.is_off:
        return []

    def size_of(run: Candidate) -> int:
        return int(connection.execute(sql.SIZE_OF_RUN, (run.run,)).get or 0)

    def size_of_kind(run: Candidate, kind: str) -> int:
        return int(connection.execute(sql.DROPPABLE_BYTES, {"run": run.run, "kind": kind}).get or 0)

    with snapshot(connection):
        used_bytes = int(connection.execute(sql.USED_BYTES).get)
        rows = connection.execute(sql.CANDIDATES, (_encode(CLOSED).decode(),))
        candidates = [Candidate(*(*columns, bool(pinned))) for *columns, pinned in rows]
        runs = decide(candidates, policy, now_us, used_bytes=used_bytes, size_of=size_of, trust_clock=trust_clock)
        gone = {decision.run.run for decision in runs}
        left = [run for run in candidates if run.run not in gone]
        done = set(connection.execute(sql.COMPACTIONS_DONE))
        return runs + decide_events(left, policy, now_us, done=done, size_of=size_of_kind, trust_clock=trust_clock)
