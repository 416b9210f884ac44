"""The other measurements: each measures what it says, in small."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.bench import commanding, following, forgetting, goals, growing, idling, parts, reading, starting
from tests.bench.filling import Filling
from tests.bench.measure import Place

HERE = Place(Path(tempfile.gettempdir()), None)


def test_followers_get_what_is_written_at_its_rate() -> None:
    found = following.run(HERE, 0.5)
    assert 0 < found["p50"] <= found["p99"] <= found["worst"]
    assert found["events_s"] >= following.EVENTS_S * 0.5  # on a machine that does much else


def test_a_large_history_is_read() -> None:
    found = reading.run(HERE, Filling(600, 3, large_events=1000))
    assert (found["runs"], found["events"]) == (601, 600 * 3 + 1 + 1000)
    assert found["list"] > 0 and found["show"] > 0


def test_a_start_adopts_the_orphans() -> None:
    found = starting.run(HERE, Filling(10, 3, orphans=7), 1)
    assert found["adopted"] == 7 and found["ready"] > 0


def test_an_idle_daemon_is_looked_at() -> None:
    found = idling.run(HERE, 0.5, settle_s=0.0)
    assert found["memory"] > 10 and found["wakeups"] >= 0


def test_the_command_takes_more_than_nothing() -> None:
    found = commanding.run(HERE)
    assert found["list"] > 1


@pytest.mark.long
def test_retention_removes_while_events_are_appended() -> None:
    found = forgetting.run(HERE, 40, 3, 0.5)
    assert found["removed"] == 40 and found["calm_ms"] > 0 and found["busy_ms"] > 0 and found["took_s"] > 0


@pytest.mark.long
def test_writers_write_into_a_small_and_a_grown_history() -> None:
    found = growing.run(HERE, 2.0, 1, 1000, 2000)
    assert found["small_events_s"] > 0 and found["large_events_s"] > 0


@pytest.mark.long
def test_many_writers_are_compared_with_one_another() -> None:
    found = parts.many(HERE, 0.5)
    assert 0 <= found["fairness"] <= 1 and found["memory"] > 10


def test_goals_name_figures_that_are_measured() -> None:
    named = {goal.name.split("/")[0] for goal in goals.GOALS}
    assert named - {"disk", "slow"} == set(parts.PARTS)
