"""Whoever makes the daemon hold the most for the longest is let go first."""

from __future__ import annotations

from runhistd.daemon.budget import Budget


class Somebody:
    def __init__(self, name: str, gone: list[str]) -> None:
        self.name, self.gone = name, gone

    def let_go(self) -> None:
        self.gone.append(self.name)


def test_the_longest_stuck_of_those_who_hold_much_goes_and_the_budget_holds() -> None:
    gone: list[str] = []
    small, first, second, third = (Somebody(name, gone) for name in ("small", "first", "second", "third"))
    budget = Budget(100)
    budget.note(small, 1)
    budget.note(first, 45)
    budget.note(second, 45)
    budget.note(first, 46)  # it has moved on, so the second is stuck longer
    assert gone == [] and budget.held_bytes == 92
    budget.note(third, 40)
    assert gone == ["second"] and budget.held_bytes == 87
    budget.note(third, 70)
    assert gone == ["second", "first"] and budget.held_bytes == 71


def test_nobody_goes_for_what_one_alone_holds_and_nothing_is_held_for_those_who_are_done() -> None:
    gone: list[str] = []
    one, other = Somebody("one", gone), Somebody("other", gone)
    budget = Budget(10)
    budget.note(one, 1000)
    budget.note(one, 0)
    assert gone == [] and budget.held_bytes == 0
    budget.note(one, 9)
    budget.limit_bytes = 5
    budget.note(other, 1)
    assert gone == ["one"] and budget.held_bytes == 1
