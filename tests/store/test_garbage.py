"""What a pass of retention looks at."""

from __future__ import annotations

import apsw
import pytest

from runhistd.model.retention import Policy
from runhistd.store import garbage
from runhistd.store.database import open_reader
from tests.store.histories import History, event

OFF: dict[str, int | None] = {"max_age_days": None, "max_runs_per_agent": None, "max_bytes": None}


def test_without_a_limit_nothing_is_looked_at(history: History) -> None:
    epoch = history.begin()
    history.append("r", epoch, 1, event("run.completed"))
    connection = open_reader(history.database)
    (found,) = garbage.find(connection, Policy({**OFF, "max_bytes": 0}, 7), history.now_us, trust_clock=True)
    assert found.run.run_id == "r" and found.run.pinned is False
    connection.close()
    assert garbage.find(connection, Policy(OFF, 7), history.now_us, trust_clock=True) == []
    with pytest.raises(apsw.ConnectionClosedError):
        garbage.find(connection, Policy({**OFF, "max_bytes": 0}, 7), history.now_us, trust_clock=True)
