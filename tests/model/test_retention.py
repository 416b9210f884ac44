"""Which runs go, and by which rule."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runhistd.model.retention import DAY_US, Candidate, ClockWatch, Decision, Override, Policy, decide, decide_events

NOW_US = 1_000 * DAY_US
OFF: dict[str, int | None] = {"max_age_days": None, "max_runs_per_agent": None, "max_bytes": None}


def policy(*overrides: Override, **limits: int | None) -> Policy:
    return Policy({**OFF, **limits}, 7, overrides)


def run(number: int, age_days: float = 1, status: str = "completed", **members: Any) -> Candidate:
    known = {"agent_id": "me", "workflow": "w", "namespace": "default", "uid": 1, "pinned": False, **members}
    return Candidate(run=number, run_id=f"r{number}", status=status, ended_us=NOW_US - int(age_days * DAY_US), **known)


def taken(candidates: list[Candidate], policy: Policy, used_bytes: int = 0, **options: Any) -> list[tuple[int, str]]:
    found = decide(candidates, policy, NOW_US, used_bytes=used_bytes, size_of=lambda run: 10, **options)
    return [(decision.run.run, decision.rule) for decision in found]


def test_with_every_limit_off_nothing_goes() -> None:
    assert taken([run(i, 900) for i in range(100)], policy(), used_bytes=10**12) == []


def test_a_policy_is_off_when_no_limit_of_any_kind_is_left() -> None:
    lifted = Override("default", None, None, {"max_age_days": None})
    assert policy().is_off and policy(lifted).is_off and Policy(OFF, 7, event_days={"output": None}).is_off
    assert not policy(max_bytes=0).is_off and not Policy(OFF, 7, event_days={"output": 1}).is_off
    assert not policy(Override("default", None, None, {"max_age_days": 1})).is_off


def test_a_run_goes_when_its_end_is_too_long_ago() -> None:
    assert taken([run(1, 31), run(2, 30), run(3, 29)], policy(max_age_days=30)) == [(1, "max_age_days")]


def test_of_an_agents_runs_the_newest_so_many_stay() -> None:
    runs = [run(i, age_days=10 - i) for i in range(5)]
    others = [run(9, 50, agent_id="other"), run(10, 50, namespace="other"), run(11, 50, uid=2)]
    assert taken([*others, *runs], policy(max_runs_per_agent=3)) == [
        (0, "max_runs_per_agent"),
        (1, "max_runs_per_agent"),
    ]


def test_runs_without_an_agent_count_by_namespace_and_workflow() -> None:
    runs = [run(i, 10 - i, agent_id=None, workflow=w) for i, w in enumerate(["a", "a", "b", "b", None, None])]
    assert [number for number, _ in taken(runs, policy(max_runs_per_agent=1))] == [0, 2, 4]


def test_the_oldest_go_until_the_rest_fits() -> None:
    runs = [run(i, 10 - i) for i in range(5)]
    assert taken(runs, policy(max_bytes=75), used_bytes=100) == [(0, "max_bytes"), (1, "max_bytes"), (2, "max_bytes")]
    assert taken(runs, policy(max_bytes=100), used_bytes=100) == []


def test_what_other_rules_take_counts_towards_the_bytes() -> None:
    runs = [run(1, 40), run(2, 5), run(3, 4)]
    assert taken(runs, policy(max_bytes=85, max_age_days=30), used_bytes=100) == [(1, "max_age_days"), (2, "max_bytes")]


@pytest.mark.parametrize("status", ["pending", "running", "paused"])
def test_live_and_paused_runs_neither_go_nor_count(status: str) -> None:
    strict = policy(max_age_days=1, max_runs_per_agent=1, max_bytes=1)
    assert taken([run(1, 900, status), run(2, 0.5)], strict, used_bytes=5) == [(2, "max_bytes")]
    assert taken([run(1, 900, status)], strict, used_bytes=500) == []


def test_pinned_runs_neither_go_nor_count() -> None:
    strict = policy(max_age_days=1, max_runs_per_agent=1)
    assert taken([run(1, 900, pinned=True), run(2, 0.1, pinned=True), run(3, 0.5)], strict) == []


def test_incomplete_runs_are_exempt_until_the_grace_is_over() -> None:
    runs = [run(1, 6.9, "incomplete"), run(2, 7.1, "incomplete")]
    assert taken(runs, policy(max_age_days=1)) == [(2, "max_age_days")]


def test_while_the_clock_is_not_trusted_nothing_goes_by_its_age() -> None:
    runs = [run(1, 900), run(2, 901, "incomplete")]
    assert taken(runs, policy(max_age_days=30), trust_clock=False) == []
    assert taken([*runs, run(3)], policy(max_runs_per_agent=1), trust_clock=False) == [(1, "max_runs_per_agent")]


def test_the_first_override_that_matches_and_names_the_limit_counts() -> None:
    exempt = Override("keep", None, None, {"max_age_days": None})
    nightly = Override(None, None, "nightly", {"max_age_days": 3})
    agent = Override(None, "me", None, {"max_runs_per_agent": 9, "max_age_days": 4})
    rules = policy(exempt, nightly, agent, max_age_days=30)
    runs = [
        *(run(1, 900, namespace="keep"), run(2, 3.5, workflow="nightly"), run(3, 3.5), run(4, 4.5)),
        *(run(5, 20, agent_id="other"), run(6, 31, agent_id="other")),
    ]
    assert sorted(number for number, _ in taken(runs, rules)) == [2, 4, 6]


def test_a_count_of_an_override_is_among_the_runs_that_it_is_about() -> None:
    nightly = Override(None, None, "nightly", {"max_runs_per_agent": 1})
    runs = [run(1, 5, workflow="nightly"), run(2, 4), run(3, 3, workflow="nightly"), run(4, 2)]
    assert taken(runs, policy(nightly, max_runs_per_agent=2)) == [(1, "max_runs_per_agent")]


candidates = st.builds(
    run,
    st.integers(0, 10**6),
    st.floats(0, 100),
    st.sampled_from(["running", "paused", "pending", "completed", "failed", "cancelled", "incomplete"]),
    agent_id=st.sampled_from([None, "a", "b"]),
    workflow=st.sampled_from([None, "v", "w"]),
    pinned=st.booleans(),
)
caps = st.none() | st.integers(1, 20)


@given(st.lists(candidates, max_size=30, unique_by=lambda run: run.run), caps, caps, caps, st.integers(0, 400))
def test_what_must_stay_stays_and_every_limit_holds_afterwards(
    runs: list[Candidate], days: int | None, most: int | None, max_bytes: int | None, used_bytes: int
) -> None:
    rules = policy(max_age_days=days, max_runs_per_agent=most, max_bytes=max_bytes)
    found: list[Decision] = decide(runs, rules, NOW_US, used_bytes=used_bytes, size_of=lambda run: 10)
    gone = {decision.run for decision in found}
    assert len(gone) == len(found)
    for one in gone:
        assert not one.pinned and one.status not in ("running", "paused", "pending")
    left = [one for one in runs if one not in gone]
    assert decide(left, rules, NOW_US, used_bytes=used_bytes - 10 * len(gone), size_of=lambda run: 10) == []


HOUR_S = 3600.0


def test_a_clock_that_runs_with_the_other_is_trusted() -> None:
    watch = ClockWatch(1_000_000.0, 50.0)
    assert all(watch.trusts(1_000_000.0 + s * 1.0001, 50.0 + s) for s in range(0, 1_000_000, 3600))


def test_a_jump_is_not_trusted_until_it_is_taken_back_or_a_day_has_passed() -> None:
    watch = ClockWatch(1_000_000.0, 0.0)
    assert not watch.trusts(9_000_000.0, 10.0)
    assert not watch.trusts(9_000_000.0 + HOUR_S, 10.0 + HOUR_S)
    assert watch.trusts(1_000_000.0 + 2 * HOUR_S, 2 * HOUR_S)
    assert not watch.trusts(9_000_000.0, 3 * HOUR_S)
    assert watch.trusts(9_000_000.0 + 24 * HOUR_S, 27 * HOUR_S)


def test_a_jump_backwards_is_one_too() -> None:
    assert not ClockWatch(1_000_000.0, 0.0).trusts(900_000.0, 10.0)


def dropped(candidates: list[Candidate], done: set[tuple[int, str]] | None = None, **options: Any) -> list[tuple[int, str]]:
    rules = Policy(OFF, 7, event_days={"output": 3, "note": None})
    found = decide_events(candidates, rules, NOW_US, done=done or set(), size_of=lambda run, kind: 10, **options)
    return [(decision.run.run, decision.rule) for decision in found]


def test_events_go_from_closed_runs_after_their_kinds_days() -> None:
    assert dropped([run(1, 2.9), run(2, 3.1), run(3, 9, "failed")]) == [(3, "events.output"), (2, "events.output")]


def test_events_stay_where_the_run_would_or_where_somebody_may_come_back() -> None:
    assert dropped([run(1, 9, "running"), run(2, 9, "paused"), run(3, 9, pinned=True), run(4, 99, "incomplete")]) == []
    assert dropped([run(1, 9)], trust_clock=False) == []
    assert dropped([run(1, 9)], done={(1, "output")}) == []
