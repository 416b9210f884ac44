"""Histories that are large already, made by the store itself: nobody would wait for ten million events through a socket."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from msgspec import Raw

from runhistd.daemon.commit import TRUNCATE_BYTES
from runhistd.model.decide import Append
from runhistd.model.events import Event
from runhistd.model.holder import Holder
from runhistd.model.lease import Begin
from runhistd.store.leases import Begun
from runhistd.store.log import Appended, EventLog, Request

from .contestants import event

DATABASE = "history.db"
BATCH = 500
WRITER = UUID(int=1)
USER = os.geteuid()
DEAD = Holder(2**22 - 1, "start:1", "a boot before this one")


class Filling(NamedTuple):
    """Completed runs of so many events each, run.started and run.completed included; runs whose owner is dead; and one
    live run named `large`."""

    runs: int
    run_events: int = 2
    orphans: int = 0
    large_events: int = 0
    agent_id: str = "filler"


def fill(directory: Path, filling: Filling) -> None:
    """Make the database in that directory, or add to it."""
    log = EventLog.open(directory / DATABASE)
    for first in range(0, filling.runs, BATCH):
        names = [f"done-{log.position}-{i}" for i in range(first, min(first + BATCH, filling.runs))]
        _record(log, names, filling.run_events - 2, filling.agent_id, None, ends=True)
    orphans = [f"orphan-{i}" for i in range(filling.orphans)]
    _record(log, orphans, 1, "orphans", DEAD, ends=False)
    if filling.large_events:
        _record(log, ["large"], 0, "large", None, ends=False)
        for n in range(1, filling.large_events, BATCH):
            _apply(log, [Append(USER, "default", "large", log.pending_epoch, WRITER, n, _events(BATCH))])
    log.close()


def _events(count: int, ends: bool = False) -> list[Event]:
    noted = []
    for i in range(count):
        new = event(i)
        noted.append(Event(type="tool:result", time_us=1, data=Raw(json.dumps(new["data"]).encode())))
    return [*noted, Event(type="run.completed")] if ends else noted


def _record(log: EventLog, names: list[str], events: int, agent_id: str, holder: Holder | None, *, ends: bool) -> None:
    specs = [json.dumps({"run_id": name, "agent_id": agent_id}).encode() for name in names]
    begins = [Begin(USER, "default", name, WRITER, holder, spec, 1) for name, spec in zip(names, specs, strict=True)]
    epoch = log.pending_epoch  # each begin takes the next one
    _apply(log, begins)
    told = _events(events, ends)
    if told:
        appends = [Append(USER, "default", name, epoch + i, WRITER, 1, told) for i, name in enumerate(names, 1)]
        _apply(log, appends)


def _apply(log: EventLog, requests: Sequence[Request]) -> None:
    for outcome in log.apply(requests, time.time_ns() // 1000).outcomes if requests else []:
        assert isinstance(outcome, Begun | Appended), outcome
    if log.wal_bytes >= TRUNCATE_BYTES:
        log.checkpoint(truncate=True)
