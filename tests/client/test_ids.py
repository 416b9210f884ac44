"""Identifiers that the client makes."""

from __future__ import annotations

import time
import uuid

from runhist.ids import new_run_id, new_uuid


def test_a_run_id_is_a_uuid_of_version_7_that_tells_its_time() -> None:
    before = time.time_ns() // 1_000_000
    run_id = uuid.UUID(new_run_id())
    after = time.time_ns() // 1_000_000
    assert (run_id.version, run_id.variant) == (7, uuid.RFC_4122)
    assert before <= run_id.int >> 80 <= after


def test_ids_made_one_after_the_other_differ_and_sort_by_their_making() -> None:
    made = []
    for _ in range(50):
        made.append(new_run_id())
        here = time.time_ns()
        while time.time_ns() < here + 1000:  # the time in an id has steps of 244 ns
            pass
    assert made == sorted(made)
    assert len(set(made)) == 50


def test_other_ids_are_random_uuids() -> None:
    made = {new_uuid() for _ in range(100)}
    assert len(made) == 100
    assert {(uuid.UUID(text).version, uuid.UUID(text).variant) for text in made} == {(4, uuid.RFC_4122)}
