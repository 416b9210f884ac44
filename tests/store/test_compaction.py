"""Dropping output and notes of closed runs."""

from __future__ import annotations

from collections.abc import Iterator

import apsw
import pytest

from runhistd.model.artifacts import DataBlob, KeepBlob
from runhistd.model.events import Usage
from runhistd.model.removal import Compact, Delete, Pin
from runhistd.model.retention import MAX_AGE_DAYS, MAX_BYTES, MAX_RUNS, Policy
from runhistd.model.views import EventFilter, Gap
from runhistd.store import event_reader, garbage, prune, run_reader
from runhistd.store.database import open_reader
from runhistd.store.prune import Compacted
from tests.store.histories import UID, History, event, keyed
from tests.store.test_prune import clear_all, rows_left

MANY = 10**9


@pytest.fixture
def connection(history: History) -> Iterator[apsw.Connection]:
    opened = open_reader(history.database)
    yield opened
    opened.close()


def chatty(history: History, outputs: int = 3) -> int:
    """A closed run; returns when it was closed. Seqs: 1 start, 2 step, 3… output, then note, usage, keyed note, end."""
    epoch = history.begin("r")
    lines = [event("output", {"text": "x" * 50}) for _ in range(outputs)]
    used = event("output", usage=Usage(input_tokens=3))
    history.append("r", epoch, 1, event("step.started", step_id="s"), *lines, event("note"), used)
    history.apply(keyed("r", epoch, event("note", key="k")))
    history.append("r", epoch, outputs + 4, event("run.completed"))
    return history.now_us


def compact(history: History, kind: str, closed_us: int) -> int:
    """How many transactions it took."""
    for i in range(1000):
        (outcome,) = history.apply(Compact(UID, "default", "r", kind, closed_us))
        assert isinstance(outcome, Compacted)
        if not outcome.more:
            return i + 1
    raise AssertionError("it never ends")


def kinds(connection: apsw.Connection) -> list[tuple[int, str]]:
    found = connection.execute("SELECT seq, kind FROM events ORDER BY seq").fetchall()
    return [(seq, kind) for seq, kind in found]  # type: ignore[misc]


def test_what_has_no_effect_goes_and_the_rest_stays(history: History, connection: apsw.Connection) -> None:
    closed_us = chatty(history)
    before = run_reader.get_run(connection, UID, "default", "r")
    compact(history, "output", closed_us)
    compact(history, "note", closed_us)
    assert kinds(connection) == [
        *((1, "run.started"), (2, "step.started")),
        *((7, "output"), (8, "note"), (9, "run.completed")),
    ], "an event with usage counts, and one with a key must go on telling a repeat"
    assert run_reader.get_run(connection, UID, "default", "r") == before
    assert history.differences() == []


def test_data_that_is_content_counts_with_what_is_dropped_and_is_used_no_more(
    history: History, connection: apsw.Connection
) -> None:
    epoch = history.begin("r")
    for i, size in enumerate((5_000_000, 3_000_000)):
        history.apply(KeepBlob(UID, bytes([i]) * 32, size))
    first, second = (DataBlob((bytes([i]) * 32).hex(), size) for i, size in enumerate((5_000_000, 3_000_000)))
    outputs = [event("output", data_blob=blob) for blob in (first, second)]
    history.append("r", epoch, 1, *outputs, event("checkpoint", data_blob=second), event("run.completed"))
    closed_us = history.now_us
    assert history.differences() != [], "there are no files"
    policy = Policy({MAX_RUNS: None, MAX_AGE_DAYS: None, MAX_BYTES: None}, 7, (), {"output": 1})
    (decision,) = garbage.find(connection, policy, closed_us + 2 * 86_400_000_000, trust_clock=True)
    assert 8_000_000 < decision.bytes < 8_001_000
    compact(history, "output", closed_us)
    used = connection.execute("SELECT sha256 FROM blob_uses").fetchall()
    assert used == [(bytes.fromhex(second.sha256),)]
    assert {found.what for found in history.differences()} <= {f"content {one.sha256[:12]}" for one in (first, second)}


def test_a_repeat_of_what_was_dropped_stores_nothing(history: History, connection: apsw.Connection) -> None:
    closed_us = chatty(history)
    compact(history, "output", closed_us)
    again = history.append("r", 1, 2, event("output", {"text": "x" * 50}))
    assert (again.stored, again.duplicates) == (0, 1)


def test_large_runs_are_done_in_small_transactions(history: History, connection: apsw.Connection) -> None:
    closed_us = chatty(history, outputs=2 * prune.PIECE_ROWS + 1)
    history.apply(Compact(UID, "default", "r", "output", closed_us))
    assert history.differences() == []
    history.reopen(clean=False)
    assert compact(history, "output", closed_us) == 2
    assert history.differences() == []


def test_readers_and_followers_hear_of_the_gap(history: History, connection: apsw.Connection) -> None:
    closed_us = chatty(history)
    compact(history, "output", closed_us)
    gap = Gap("default", "r", 3, 5, "events.output")
    options = {"types": None, "from_checkpoint": False, "limit": 2}

    def page(after_seq: int, kinds: frozenset[str] | None = None) -> tuple[list[int], list[Gap]]:
        events, _, gaps = event_reader.get_events(
            connection, UID, "default", "r", after_seq=after_seq, kinds=kinds, **options  # type: ignore[arg-type]
        )
        return [one.seq for one in events], gaps

    assert page(0) == ([1, 2], [])
    assert page(2) == ([6, 7], [gap])
    assert page(7) == ([8, 9], [])
    assert page(2, frozenset({"note"})) == ([6, 8], [])

    def follow(position: int, **wanted: str | frozenset[str]) -> list[Gap]:
        return event_reader.events_after(
            connection, UID, EventFilter(**wanted), position, limit=100, limit_bytes=MANY  # type: ignore[arg-type]
        ).gaps

    assert follow(0) == follow(4) == follow(0, run_id="r", namespace="default") == [gap]
    assert follow(5) == follow(0, kinds=frozenset({"note"})) == []


def test_only_a_closed_run_that_is_as_it_was_read_and_not_pinned_loses_events(
    history: History, connection: apsw.Connection
) -> None:
    closed_us = chatty(history)
    everything = kinds(connection)
    compact(history, "output", closed_us - 1)
    history.apply(Pin(UID, "default", "r", True))
    compact(history, "output", closed_us)
    assert kinds(connection) == everything


def test_verify_tells_a_lost_event_from_a_dropped_one(history: History, connection: apsw.Connection) -> None:
    closed_us = chatty(history)
    compact(history, "output", closed_us)
    writer = apsw.Connection(str(history.database))
    writer.execute("DELETE FROM events WHERE seq = 6")
    assert [difference.what for difference in history.differences()] == ["event 7", f"runs and bytes of user {UID}"]
    writer.execute("UPDATE compactions SET to_seq = 6")
    assert next(difference.what for difference in history.differences()) == "dropped events"
    writer.close()


def test_a_deleted_run_takes_its_compactions_along(history: History, connection: apsw.Connection) -> None:
    closed_us = chatty(history)
    compact(history, "output", closed_us)
    history.apply(Delete(UID, "default", "r"))
    clear_all(history)
    assert rows_left(connection) == {}
    assert history.differences() == []
