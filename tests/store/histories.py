"""A history in a temporary directory, and requests in a few words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from msgspec import Raw

from runhistd.model.decide import Append
from runhistd.model.errors import Refusal
from runhistd.model.events import Event
from runhistd.model.holder import Holder
from runhistd.model.lease import Begin, Claim, Death
from runhistd.store.leases import Begun
from runhistd.store.log import Appended, EventLog, Outcome, Request
from runhistd.store.verify import Difference, verify

UID = 1000
WRITER = UUID(int=7)
OWNER = Holder(42, "start:1", "boot")


def event(type: str = "note", data: dict[str, Any] | None = None, **members: Any) -> Event:
    return Event(type=type, data=Raw(json.dumps(data or {}).encode()), **members)


def begin(
    run_id: str = "r", *, lease_key: UUID | None = None, namespace: str = "default", uid: int = UID, **spec: Any
) -> Begin:
    spec_json = json.dumps({"run_id": run_id, **spec}).encode()
    return Begin(uid, namespace, run_id, lease_key or uuid4(), OWNER, spec_json, None)


def append(
    run_id: str,
    epoch: int | None,
    first_n: int,
    *events: Event,
    writer: UUID = WRITER,
    uid: int = UID,
    holder: Holder | None = None,
) -> Append:
    return Append(uid, "default", run_id, epoch, writer, first_n, list(events), holder)


def keyed(run_id: str, epoch: int | None, *events: Event) -> Append:
    return Append(UID, "default", run_id, epoch, None, None, list(events))


def claim(run_id: str, holder: Holder | None = None, *, lease_key: UUID | None = None, **members: Any) -> Claim:
    return Claim(UID, "default", run_id, lease_key or uuid4(), holder or Holder(43, "start:2", "boot"), **members)


def death(run_id: str, holder: Holder = OWNER, **evidence: Any) -> Death:
    return Death(UID, "default", run_id, holder, json.dumps({"reason": "orphaned", **evidence}).encode())


class History:
    """An open log, closed or abandoned and opened again at will; `now_us` grows by one with each call."""

    def __init__(self, database: Path) -> None:
        self.database = database
        self.log = EventLog.open(database)
        self.now_us = 1_000_000

    def apply(self, *requests: Request) -> list[Outcome]:
        self.now_us += 1
        return self.log.apply(requests, self.now_us).outcomes

    def begin(self, run_id: str = "r", **spec: Any) -> int:
        (outcome,) = self.apply(begin(run_id, **spec))
        assert isinstance(outcome, Begun), outcome
        return outcome.epoch

    def append(self, run_id: str, epoch: int | None, first_n: int, *events: Event, writer: UUID = WRITER) -> Appended:
        (outcome,) = self.apply(append(run_id, epoch, first_n, *events, writer=writer))
        assert isinstance(outcome, Appended), outcome
        return outcome

    def refused(self, request: Request) -> Refusal:
        (outcome,) = self.apply(request)
        assert isinstance(outcome, Refusal), outcome
        return outcome

    def reopen(self, *, clean: bool) -> None:
        if clean:
            self.log.close()
        else:
            self.log.abandon()
        self.log = EventLog.open(self.database)

    def differences(self) -> list[Difference]:
        return verify(self.database, lambda checked, of: None).differences
