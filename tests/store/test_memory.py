"""What the log keeps in memory of its runs is bounded, and what was forgotten of them comes back when it is needed."""

from __future__ import annotations

import pytest

from runhistd.model.errors import StaleEpoch
from runhistd.store import heads
from tests.store.histories import History, append, event

RUNS = [f"r{i}" for i in range(20)]


def test_steps_in_memory_are_bounded_and_come_back_when_they_are_needed(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "MAX_PARTS", 50)
    steps = [f"s{i}" for i in range(10)]
    epochs = {run_id: history.begin(run_id) for run_id in RUNS}
    for run_id in RUNS:
        history.append(run_id, epochs[run_id], 1, *(event("step.started", step_id=step) for step in steps))
        assert history.log.heads.parts <= 50
    for run_id in RUNS:
        assert isinstance(history.refused(append(run_id, 10_000, 11, event())), StaleEpoch)
        assert history.log.heads.parts <= 50
    for run_id in RUNS:
        history.append(run_id, epochs[run_id], 11, event("step.completed", step_id="s3"), event("run.completed"))
        assert history.log.heads.parts <= 50
    assert history.differences() == []
