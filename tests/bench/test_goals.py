"""The goals: what was reached is what the README states, and a fall below it is found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench import goals
from tests.bench.measure import Measured
from tests.bench.writing import Rounds

ROUND = Measured(100.0, 1, 2, 3, 10.0, 20.0, 5.0, None, None, None, None, None)


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    ours = Rounds("disk", "one", "runhistd", [ROUND._replace(events_s=rate) for rate in (10.0, 200.0, 30.0)])
    redis = Rounds("disk", "one", "redis", [ROUND._replace(events_s=rate) for rate in (10.0, 100.0, 300.0)])
    assert goals.of_writers([ours, redis]) == {"disk/one/redis": 1.0}


def test_the_worst_latency_is_compared_with_that_of_direct_sqlite() -> None:
    ours = Rounds("disk", "one", "runhistd", [ROUND._replace(worst_us=10)])
    sqlite = Rounds("disk", "one", "sqlite", [ROUND._replace(worst_us=300)])
    assert goals.of_writers([ours, sqlite])["disk/one/worst"] == 30.0


def test_a_fall_below_what_is_stated_is_found_and_missing_a_goal_is_none() -> None:
    reached = {"disk/one/redis": 0.5, "disk/lone/redis": 0.5, "command/list": 3.0}
    assert goals.fallen({"disk/one/redis": 0.36, "disk/lone/redis": 0.34, "command/list": 4.0}, reached) == [
        "a lone writer, against Redis: 0.34×, and the README states 0.50×"
    ]
    (line,) = goals.fallen({"command/list": 4.4}, reached)
    assert line.endswith("4.40×, and the README states 3.00×")


def test_of_two_measurements_the_better_counts() -> None:
    one, other = (
        {"disk/one/redis": 0.5, "command/list": 3.0, "idle/memory": 50.0},
        {"disk/one/redis": 0.7, "command/list": 4.0},
    )
    assert goals.better(one, other) == {"disk/one/redis": 0.7, "command/list": 3.0}


def test_a_goal_may_be_a_least_and_a_most() -> None:
    by_name = {goal.name: goal for goal in goals.GOALS}
    assert len(by_name) == len(goals.GOALS)
    assert by_name["disk/one/redis"].is_met(0.8) and not by_name["disk/one/redis"].is_met(0.79)
    assert by_name["idle/memory"].is_met(60) and not by_name["idle/memory"].is_met(61)


def test_the_readme_states_what_was_reached() -> None:
    assert set(goals.stated()) <= {goal.name for goal in goals.GOALS}
    readme = Path(__file__).parent.parent.parent / "README.md"
    assert goals.markdown(goals.stated()) in readme.read_text()


def test_what_was_measured_becomes_what_is_stated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(goals, "REACHED", tmp_path / "reached.json")
    measured = [{"grow/ratio": 0.98765, "disk/one/jsonl": 1.0}, {"start/ready": 0.5}]
    files = [tmp_path / str(i) for i in range(len(measured))]
    for path, figures in zip(files, measured, strict=True):
        path.write_text(json.dumps({"figures": figures}))
    goals.state(files)
    assert goals.stated() == {"grow/ratio": 0.988, "start/ready": 0.5}
