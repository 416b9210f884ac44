"""Verify finds what is not as the events say."""

from __future__ import annotations

import apsw
import pytest

from runhistd.model.events import Usage
from tests.store.histories import History, event


@pytest.fixture
def recorded(history: History) -> History:
    epoch = history.begin("r", metadata={"a": 1})
    history.append(
        "r", epoch, 1, event("step.started", step_id="s"), event("usage", step_id="s", usage=Usage(input_tokens=5))
    )
    history.append("r", epoch, 3, event("turn", key="k"), event("usage", usage=Usage(input_tokens=9, response_id="m")))
    history.append("r", epoch, 5, event("run.completed"))
    return history


def test_a_history_that_is_as_its_events_say_differs_nowhere(recorded: History) -> None:
    assert recorded.differences() == []


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("UPDATE runs SET status = 'running'", "run status"),
        ("UPDATE runs SET input_tokens = 6", "run totals"),
        ("UPDATE runs SET last_seq = 9", "run last_seq"),
        ("UPDATE steps SET status = 'completed'", "step s attempt 1"),
        ("DELETE FROM steps", "step s attempt 1"),
        ("UPDATE usage SET input_tokens = 4 WHERE step_id = 's'", "usage ('s', 1, '', '')"),
        ("UPDATE usage_marks SET input_tokens = 1", "usage mark 'm'"),
        ("UPDATE writers SET last_n = 1", "writer 00000000-0000-0000-0000-000000000007"),
        ("DELETE FROM keys", "key k"),
        ("UPDATE documents SET document = '{}'", "document metadata"),
        ("DELETE FROM events WHERE seq = 3", "event 4"),
        ("UPDATE events SET seq = 99 WHERE seq = 6", "event 99"),
        ("DELETE FROM runs", "events without a run"),
        ("UPDATE history SET low_water = 1000", "position counter"),
    ],
)
def test_a_row_that_was_changed_by_hand_is_named(recorded: History, statement: str, what: str) -> None:
    hand = apsw.Connection(str(recorded.database))
    hand.execute(statement)
    hand.close()
    assert what in [difference.what for difference in recorded.differences()]
