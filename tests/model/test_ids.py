from __future__ import annotations

import pytest

from runhistd.model.errors import InvalidParameter
from runhistd.model.ids import check_name, shortest_ending


@pytest.mark.parametrize("name", ["a", "x/../y", "team alpha", "é", "🙂", "a" * 255, "ü" * 127, "..", "a\u200bb"])
def test_an_engines_own_id_is_taken_as_it_is(name: str) -> None:
    assert check_name("run_id", name) == name


@pytest.mark.parametrize("name", ["", "a" * 256, "ü" * 128, "a\nb", "\x1b[2J", "\x7f", "\x85", "\ud800"])
def test_an_id_that_is_empty_too_long_or_has_control_characters_is_refused(name: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        check_name("run.run_id", name)
    assert caught.value.parameters == {"parameter": "run.run_id"}


def test_a_short_id_is_its_own_short_form() -> None:
    assert shortest_ending("nightly-42", ["x-42"]) == "nightly-42"


def test_a_long_id_is_cut_to_the_shortest_ending_that_no_neighbour_shares() -> None:
    assert shortest_ending("0123456789abcdef", []) == "abcdef"
    assert shortest_ending("0123456789abcdef", ["xxxxxxx789abcdef", "f"]) == "6789abcdef"


def test_a_short_form_never_looks_like_an_option() -> None:
    assert shortest_ending("night-0003-gamma", []) == "3-gamma"


def test_an_id_that_is_an_ending_of_another_is_shown_whole() -> None:
    assert shortest_ending("0123456789abcdef", ["x0123456789abcdef"]) == "0123456789abcdef"
