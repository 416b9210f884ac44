"""The measurement of where commits run runs."""

from __future__ import annotations

import pytest

from tests.bench import placement


@pytest.mark.long
@pytest.mark.parametrize("place", placement.PLACES)
def test_each_place_commits(place: str) -> None:
    rate, worst_ms = placement.measure(place, 1, None, 0.2)
    assert rate > 0 and worst_ms > 0
