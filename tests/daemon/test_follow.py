"""The newest events in memory: found by position, of whom and what is wanted, and left to the database at gaps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from msgspec import Raw

from runhistd.daemon.follow import PAGE_EVENTS, TAIL_BYTES, Tail
from runhistd.model.importing import Import, ImportedEvent
from runhistd.model.views import EventFilter
from runhistd.store.log import Batch, Request
from tests.store.histories import UID, History, append, begin, claim, event

EVERYTHING = EventFilter()


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    opened = History(tmp_path / "history.db")
    yield opened
    opened.log.close()


def committed(history: History, tail: Tail, *requests: Request) -> Batch:
    batch = history.log.apply(requests, 5)
    tail.extend(batch.events)
    return batch


def found(tail: Tail, position: int, wanted: EventFilter = EVERYTHING, uid: int = UID) -> list[tuple[int, str]]:
    page = tail.after(position, uid, wanted)
    assert page is not None
    return [(at, json.loads(item)["event"]["type"]) for at, item in page.items]


def imported(seq: int, type: str) -> ImportedEvent:
    data = b'{"run_id":"i"}' if type == "run.started" else b"{}"
    return ImportedEvent(type=type, seq=seq, received_us=1, data=Raw(data))


def test_events_are_found_behind_any_position_also_inside_a_request(history: History) -> None:
    tail = Tail(0)
    committed(history, tail, begin("r"), append("r", 1, 1, event("a"), event("b"), event("c")))
    assert found(tail, 0) == [(1, "run.started"), (2, "a"), (3, "b"), (4, "c")]
    assert found(tail, 2) == [(3, "b"), (4, "c")]
    assert found(tail, 4) == []


def test_only_what_is_wanted_of_ones_own_is_given(history: History) -> None:
    tail = Tail(0)
    requests = (begin("r", agent_id="me"), begin("s"), append("r", 1, 1, event("a"), event("checkpoint")))
    committed(history, tail, *requests, append("s", 2, 1, event("a")))
    assert found(tail, 0, EventFilter(agent_id="me", kinds=frozenset({"note"}))) == [(3, "a")]
    assert found(tail, 0, EventFilter(types=frozenset({"a"}))) == [(3, "a"), (5, "a")]
    assert found(tail, 0, uid=UID + 1) == []


def test_a_page_ends_before_the_first_event_that_it_has_no_room_for(history: History) -> None:
    tail = Tail(0)
    committed(history, tail, begin("r"), append("r", 1, 1, *(event("a") for _ in range(PAGE_EVENTS + 5))))
    page = tail.after(0, UID, EVERYTHING)
    assert page is not None
    assert (len(page.items), page.looked_at) == (PAGE_EVENTS, PAGE_EVENTS)
    assert len(found(tail, page.looked_at)) == 6


def test_a_claim_without_events_of_its_own_is_followed(history: History) -> None:
    tail = Tail(0)
    committed(history, tail, begin("r"), append("r", 1, 1, event("run.paused")), claim("r"))
    assert found(tail, 2) == [(3, "run.resumed")]


def test_memory_is_bounded_and_what_is_gone_from_it_is_read_elsewhere(history: History) -> None:
    tail = Tail(0)
    large = event("a", {"text": "x" * (TAIL_BYTES // 4)})
    committed(history, tail, begin("r"))
    for n in range(1, 11):
        committed(history, tail, append("r", 1, n, large))
    assert tail.after(1, UID, EVERYTHING) is None
    assert [at for position in (9, 10) for at, _ in found(tail, position)] == [10, 11]  # each as large as a page


def test_events_behind_a_position_without_an_event_are_found_and_followers_are_sent_where_the_gap_is_told(
    history: History,
) -> None:
    tail = Tail(0)
    key = UUID(int=9)
    events = [imported(1, "run.started"), imported(5, "a")]
    assert committed(history, tail, Import(UID, "default", "i", key, events)).gaps
    assert not committed(history, tail, begin("r"), append("r", 2, 1, event("b"))).gaps
    assert found(tail, 1) == [(3, "a"), (4, "run.started"), (5, "b")]
    assert found(tail, 3) == [(4, "run.started"), (5, "b")]
    tail.forget()
    assert tail.after(3, UID, EVERYTHING) is None
