"""The contestants, one module each: how its server is started, if it has one, and what one client of it does.

All record the same events with as little as their protocol asks for: a client written for this purpose, the standard
library's json, one connection. None is given an index beyond its primary key, apart from runhistd, which has what it has.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol, cast

NAMES = ("runhistd", "library", "redis", "postgres", "sqlite", "jsonl", "ceiling", "inserts")
REQUEST_EVENTS = 100
TEXT = "The quick brown fox jumps over the lazy dog; line 12 of 40 was changed. " * 3


class Client(Protocol):
    """One connection that records. Each method returns how many events are on disk, and raises where any is not."""

    window: int
    """How many events are in flight at once, for those who can."""

    def one(self) -> int:
        """Record one event and wait for it."""

    def request(self) -> int:
        """Record REQUEST_EVENTS in one request, and wait."""

    def send(self, events: int) -> None:
        """Send so many events, each in a request of its own, and wait for none."""

    def receive(self) -> int:
        """Wait until some of what was sent is on disk."""


class Server(Protocol):
    """A running server."""

    pid: int
    """Of the process that all others of it descend from."""

    def stop(self) -> None:
        """End it and wait for the end."""


class Contestant(Protocol):
    """What each module here offers."""

    TITLE: str
    WORKLOADS: Collection[str]
    """Of `one`, `flight` and `request`."""
    WITHIN_ONE: bool
    """Whether a single process stands for all writers."""

    def missing(self) -> str | None:
        """Why it cannot take part here."""

    def start(self, directory: Path, env: Mapping[str, str]) -> Server | None:
        """Start its server, keeping everything in the directory, and return when it answers."""

    def connect(self, directory: Path, index: int) -> Client:
        """The client number `index` of what was started for that directory."""


def contestant(name: str) -> Contestant:
    """One of NAMES. Imported when it is asked for, so that a client is not made heavier by the others."""
    return cast(Contestant, importlib.import_module(f"{__name__}.{name}"))


def event(i: int) -> dict[str, object]:
    """An event such as an agent's tool makes: about 300 bytes as JSON."""
    data = {"call_id": f"call_{i:08d}", "tool": "edit_file", "ok": True, "took_ms": 12, "text": TEXT[: 150 + i % 16]}
    return {"type": "tool:result", "time_us": 1_760_000_000_000_000 + i, "data": data}


def event_text(i: int) -> str:
    """The event as JSON."""
    return json.dumps(event(i))
