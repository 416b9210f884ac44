"""Data in pieces: the same JSON as in one piece, and the same faults."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from runhist import large
from runhist.encoding import MAX_DEPTH, Unencodable, encode
from runhist.protocol.errors import TooLarge
from runhistd.model import events as daemon_events
from runhistd.model import large as daemon_large

BLOB = {"sha256": "ab", "size": 3}
texts = some.text(some.characters(codec="utf-8", exclude_characters="\0"))
numbers = some.integers(-(2**53), 2**53) | some.floats(allow_nan=False, allow_infinity=False)
values = some.recursive(
    some.none() | some.booleans() | numbers | texts,
    lambda inner: some.lists(inner) | some.dictionaries(texts, inner) | some.tuples(inner, inner),
    max_leaves=20,
)


@pytest.fixture(scope="module", autouse=True)
def pieces_of_three_characters() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large, "PIECE_CHARS", 3)
        yield


@given(values)
def test_pieces_are_what_one_piece_would_be(value: Any) -> None:
    assert b"".join(large.pieces(value)) == encode(value)


@given(values, some.integers(0, 100))
def test_what_is_longer_surely_is(value: Any, limit: int) -> None:
    if large.is_longer(value, limit):
        assert len(encode(value)) > limit


def test_what_is_much_longer_is_known_to_be() -> None:
    for value in ("x" * 1001, ["x" * 600, {"y": "x" * 600}], {"x" * 1001: 1}, [0] * 1001, dict.fromkeys(range(1001))):
        assert large.is_longer(value, 1000)


@given(some.lists(some.binary(max_size=200_000), max_size=8))
def test_chunks_are_the_same_bytes(parts: list[bytes]) -> None:
    found = list(large.chunks(parts))
    assert b"".join(found) == b"".join(parts)
    assert all(len(chunk) >= large.CHUNK_BYTES for chunk in found[:-1])


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({"a": ["yyyyyy", float("nan")]}, "data.a[1]"),
        ({"a": {"b": "yyyyyy\0"}}, "data.a.b"),
        ({"a": {"b": "yyyyyy\ud800"}}, "data.a.b"),
        ({"a": ["yyyyyy", {1, 2}]}, "data.a[1]"),
        ({"a": ["yyyyyy", {(1, 2): 3}]}, "data.a[1]"),
    ],
)
def test_a_fault_in_a_piece_is_named(value: Any, field: str) -> None:
    with pytest.raises(Unencodable) as fault:
        b"".join(large.pieces(value))
    assert fault.value.field == field


def test_what_is_nested_too_deep_is_refused_in_pieces_too() -> None:
    value: Any = "yyyyyy"
    for _ in range(MAX_DEPTH):
        value = [value]
    with pytest.raises(Unencodable, match="nested deeper"):
        b"".join(large.pieces(value))


def given_away(event: dict[str, Any], limit: int = 100) -> tuple[bytes, list[Any]]:
    """The event as it is sent, and what was given to the daemon."""
    kept: list[Any] = []

    def give(data: Any) -> dict[str, Any]:
        kept.append(data)
        return BLOB

    return large.encode_event(event, limit, give), kept


def test_only_data_above_the_limit_is_given_away() -> None:
    event = {"type": "note", "data": {"text": "x" * 89}}
    assert given_away(event) == (encode(event), [])
    longer = {"type": "note", "data": {"text": "x" * 90}}
    assert given_away(longer) == (encode({"type": "note", "data": {}, "data_blob": BLOB}), [longer["data"]])
    umlauts = {"type": "note", "data": {"text": "ä" * 50}}
    assert given_away(umlauts)[1] == [umlauts["data"]]


def test_what_the_kind_gives_a_meaning_to_travels_with_the_event() -> None:
    event = {"type": "judged", "kind": "step.failed", "data": {"error": "e", "log": "x" * 200}}
    encoded, kept = given_away(event)
    assert encoded == encode({**event, "data": {"error": "e"}, "data_blob": BLOB})
    assert kept == [event["data"]]


@pytest.mark.parametrize(
    "event",
    [
        {"type": "run.completed", "data": {"output": {"text": "x" * 200}}},
        {"type": "gate.answered", "data": {"gate_seq": 2, "answer": "x" * 200}},
        {"type": "x" * 100_000, "data": {}},
    ],
)
def test_what_must_travel_with_the_event_and_is_too_large_is_refused(event: dict[str, Any]) -> None:
    with pytest.raises(TooLarge):
        given_away(event)


def test_nothing_is_given_for_an_event_that_is_none() -> None:
    with pytest.raises(Unencodable, match="step_id"):
        given_away({"type": "note", "step_id": float("nan"), "data": {"text": "x" * 200}})


def test_both_sides_know_the_same_members_and_kinds() -> None:
    for kind in daemon_events.KINDS - daemon_events.DAEMON_KINDS - daemon_large.STAYS_WHOLE:
        assert large.MEANINGFUL.get(kind, frozenset()) == daemon_events.meaningful_members(kind)
    assert large.STAYS_WHOLE == daemon_large.STAYS_WHOLE
