"""What is only shown has its place in a batch, and leaves nothing in the store."""

from __future__ import annotations

import apsw
from msgspec import Raw

from runhistd.model.events import Event
from runhistd.model.publish import Publish
from runhistd.store.live import Live, Shown
from runhistd.store.log import Batch, Request
from runhistd.store.rows import POSITION
from tests.store.histories import UID, History, append, begin, event


def publish(run_id: str, epoch: int | None, *texts: str) -> Publish:
    events = [Event(type="token", data=Raw(b'{"text":"%b"}' % text.encode())) for text in texts]
    return Publish(UID, "default", run_id, epoch, events)


def apply(history: History, *batch: Request) -> Batch:
    return history.log.apply(batch, now_us=2_000_000)


def places(shown: list[Live]) -> list[tuple[int, str]]:
    return [(live.position, bytes(live.published.data).decode()) for live in shown]


def test_its_place_is_behind_the_event_before_it_also_in_one_batch(history: History) -> None:
    epoch = history.begin("r")
    done = apply(history, publish("r", epoch, "a"), append("r", epoch, 1, event()), publish("r", epoch, "b", "c"))
    assert [row[POSITION] for committed in done.events for row in committed.rows] == [2]
    assert places(done.shown) == [(1, '{"text":"a"}'), (2, '{"text":"b"}'), (2, '{"text":"c"}')]


def test_alone_it_makes_no_transaction(history: History) -> None:
    epoch = history.begin("r")
    statements: list[str] = []

    def note(cursor: apsw.Cursor, sql: str, bindings: object) -> bool:
        statements.append(sql)
        return True

    history.log._connection.exec_trace = note
    done = apply(history, publish("r", epoch, "a"), publish("nobody", 1, "a"))
    assert isinstance(done.outcomes[0], Shown)
    assert places(done.shown) == [(1, '{"text":"a"}')]
    assert statements and not [sql for sql in statements if not sql.lstrip().upper().startswith("SELECT")]


def test_what_stands_in_a_batch_that_failed_is_not_shown(history: History) -> None:
    epoch = history.begin("r")
    connection = history.log._connection
    connection.pragma("max_page_count", int(connection.pragma("page_count")))
    large = event("output", {"text": "x" * 100_000})
    assert apply(history, append("r", epoch, 1, large), publish("r", epoch, "a")).shown == []
    connection.pragma("max_page_count", 1_000_000)
    assert places(apply(history, publish("r", epoch, "b")).shown) == [(1, '{"text":"b"}')]


def test_with_only_refusals_beside_it_it_is_shown_all_the_same(history: History) -> None:
    epoch = history.begin("r")
    done = apply(history, begin("r"), publish("r", epoch, "a"))
    assert places(done.shown) == [(1, '{"text":"a"}')]
