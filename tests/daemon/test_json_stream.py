"""JSON in parts: the same is taken and refused as where it comes in one piece, wherever it is cut."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as some

from runhistd.daemon.json_stream import JsonStream, Unsound, check
from runhistd.daemon.json_text import MAX_DEPTH

texts = some.text(some.characters(codec="utf-8", exclude_characters="\0"))
numbers = some.integers(-(2**70), 2**70) | some.floats(allow_nan=False, allow_infinity=False)
values = some.recursive(
    some.none() | some.booleans() | numbers | texts,
    lambda inner: some.lists(inner) | some.dictionaries(texts, inner),
    max_leaves=20,
)
objects = some.dictionaries(texts, values)
cuts = some.lists(some.integers(0, 400), max_size=4)
layouts = some.sampled_from([{}, {"indent": 1}, {"ensure_ascii": False}, {"separators": (",", ":")}])


def is_taken(text: bytes, places: list[int]) -> bool:
    """Whether it is taken, cut at these places."""
    bounds = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    try:
        check(text[start:end] for start, end in pairwise(bounds))
    except Unsound:
        return False
    return True


def is_kept(text: bytes) -> bool:
    """What the rules say of it, by the standard library."""

    def refuse(constant: str) -> Any:
        raise ValueError(constant)

    def look(value: Any, depth: int) -> None:
        if isinstance(value, dict | list):
            if depth == MAX_DEPTH:
                raise ValueError
            for name in value if isinstance(value, dict) else ():
                look(name, depth + 1)
            for one in value.values() if isinstance(value, dict) else value:
                look(one, depth + 1)
        elif isinstance(value, str) and ("\0" in value or value.encode() is None):
            raise ValueError
        elif isinstance(value, int | float) and not math.isfinite(float(value)):
            raise ValueError

    try:
        value = json.loads(text.decode(), parse_constant=refuse)
        look(value, 0)
    except (ValueError, OverflowError):
        return False
    return isinstance(value, dict) and not text.startswith(b"\xef\xbb\xbf")


@given(objects, cuts, layouts)
def test_every_object_is_taken_wherever_it_is_cut(value: dict[str, Any], places: list[int], layout: dict[str, Any]) -> None:
    text = json.dumps(value, **layout).encode()
    assert is_taken(text, places) == is_kept(text)


@given(objects, cuts, some.integers(0, 300), some.binary(max_size=2), some.integers(0, 2))
@example({}, [], 1, b",", 0)
@example({"a": [1]}, [], 7, b",", 0)
@example({"a": [1]}, [3], 8, b"", 1)
def test_what_is_damaged_is_refused_as_where_it_is_in_one_piece(
    value: dict[str, Any], places: list[int], at: int, put: bytes, taken: int
) -> None:
    text = json.dumps(value).encode()
    text = text[:at] + put + text[at + taken :]
    assert is_taken(text, places) == is_kept(text)


TOKENS = ["{", "}", "[", "]", ",", ":", '"', '"a"', "1", "-", "0", "e5", ".5", "tr", "ue", " ", "\\\\"]


@given(some.lists(some.sampled_from(TOKENS)), cuts)
def test_tokens_in_any_order(tokens: list[str], places: list[int]) -> None:
    text = ("{" + "".join(tokens)).encode()
    assert is_taken(text, places) == is_kept(text)


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        (b'{"a":"\\u0000"}', False),
        (b'{"a":"\\\\u0000"}', True),
        (b'{"a":"\\ud83d\\ude00"}', True),
        (b'{"a":"\\ud83d"}', False),
        (b'{"a":"\\ude00"}', False),
        (b'{"a":1e999}', False),
        (b'{"a":-1E+400,"b":1}', False),
        (b'{"a":1e-999}', True),
        (b'{"a":NaN}', False),
        (b'{"a":01}', False),
        (b'{"a":' + b"1" * 400 + b"}", False),
        (b'{"a":0.' + b"1" * 2000 + b"}", False),
        (b'{"a":' + b"[" * 63 + b"]" * 63 + b"}", True),
        (b'{"a":' + b"[" * 64 + b"]" * 64 + b"}", False),
        (b"[]", False),
        (b"1", False),
        (b"", False),
        (b"{} {}", False),
        (b" {} \n", True),
        (b'{"a":"\xff"}', False),
        (b'{"a":"\xed\xa0\x80"}', False),
        (b'{"a":"\n"}', False),
    ],
)
def test_what_a_reader_could_not_take_is_refused_however_it_is_cut(text: bytes, taken: bool) -> None:
    for at in range(len(text) + 1):
        assert is_taken(text, [at]) is taken, at


def test_of_an_object_without_end_only_an_unfinished_token_is_kept() -> None:
    stream = JsonStream()
    stream.feed(b'{"a":"')
    for _ in range(1000):
        stream.feed(b"x" * 1000 + b"\\")
        stream.feed(b"n")
    stream.feed(b'","b":[')
    for _ in range(1000):
        stream.feed(b'1,{"c":')
        stream.feed(b"2}, ")
        assert len(stream._rest) < 1000
    stream.feed(b"3]}")
    stream.finish()
