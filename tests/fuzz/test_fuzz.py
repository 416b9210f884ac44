"""The fuzz, for a few thousand frames, and that it finds what there is to find."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from runhistd.daemon import json_text
from tests.conftest import Daemon
from tests.fuzz import live, portions
from tests.fuzz.grammar import Grammar
from tests.fuzz.portions import run_portion


def test_nothing_is_found_in_some_thousand_frames_and_every_outcome_is_among_theirs() -> None:
    results = [run_portion(1, portion) for portion in range(3)]
    assert not any(result.finding for result in results), results
    seen = results[0].seen + results[1].seen + results[2].seen
    assert sum(result.frames for result in results) == 3 * portions.PORTION
    assert {"taken", "InvalidParameter", "MalformedCall", "unknown", "reply", "error", "broken"} <= set(seen)
    assert run_portion(1, 2).seen == results[2].seen, "the seed does not tell it all"


def test_what_is_wrong_is_found_with_the_portion_that_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(text: bytes) -> bool:
        return True

    monkeypatch.setattr(json_text, "is_sound", careless)
    found = next(result for result in (run_portion(1, portion) for portion in range(30)) if result.finding)
    assert "check_event" in found.finding
    assert run_portion(1, found.portion) == found


def test_nothing_is_found_on_a_socket(new_daemon: Callable[[], Daemon]) -> None:
    seen = live.fuzz(new_daemon().start(), Grammar(random.Random(1)), 600)
    assert seen["InvalidParameter"] > 50 and seen["closed"] > 20, seen
