"""What an engine hands over, as JSON or as a fault that names its field."""

from __future__ import annotations

import base64
import datetime
import decimal
import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runhist.encoding import (
    MAX_DEPTH,
    Unencodable,
    describe_exception,
    encode,
    error_members,
    microcents,
    plain_text,
    text_members,
    usage_members,
)

ANY_TEXT = st.text(st.characters(exclude_categories=()))


class Unfit:
    """An object that breaks whatever looks at it."""

    def __index__(self) -> int:
        raise RuntimeError("no")

    def __repr__(self) -> str:
        raise RuntimeError("no")


def nested(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"a": [1, {"b": float("nan")}]}, "data.a[1].b"),
        ({"a": {1, 2}}, "data.a"),
        ({"a": b"x"}, "data.a"),
        ({"a": "x\udc80"}, "data.a"),
        ({"a": ["", "x\0y"]}, "data.a[1]"),
        ({"a": {("x",): 1}}, "data.a"),
        ({"x\0": 1}, "a key of data"),
        ({"a": object()}, "data.a"),
        ({"a": [10**308, -(10**309)]}, "data.a[1]"),
        ({"a": 10**5000}, "data.a"),
        ({"a": Unfit()}, "the event"),
        ({"a": nested(MAX_DEPTH)}, "data.a" + "[0]" * (MAX_DEPTH - 1)),
    ],
)
def test_what_is_not_json_is_refused_with_the_name_of_its_field(data: Any, field: str) -> None:
    with pytest.raises(Unencodable) as caught:
        encode({"data": data})
    assert caught.value.field == field
    assert field in str(caught.value)


def test_a_value_that_contains_itself_is_refused() -> None:
    data: dict[str, Any] = {}
    data["a"] = data
    with pytest.raises(Unencodable, match="nested deeper"):
        encode(data)


def test_many_small_lists_are_not_deep() -> None:
    assert json.loads(encode({"data": [[i] for i in range(200)]})) == {"data": [[i] for i in range(200)]}


def test_digits_in_a_text_are_not_a_number() -> None:
    assert json.loads(encode({"a": "1" * 400})) == {"a": "1" * 400}


def test_a_backslash_before_u0000_is_only_text() -> None:
    assert json.loads(encode({"a": "\\u0000"})) == {"a": "\\u0000"}


def test_dates_paths_uuids_and_decimals_become_text_and_number_keys_too() -> None:
    name = uuid.UUID(int=7)
    data = {
        "date": datetime.datetime(2024, 5, 6, 7, 8, tzinfo=datetime.UTC),
        "path": Path("/a/b"),
        "id": name,
        "cost": decimal.Decimal("0.10"),
        "keys": {2: "two", True: "yes"},
        "pair": (1, 2),
    }
    assert json.loads(encode(data)) == {
        "date": "2024-05-06T07:08:00+00:00",
        "path": "/a/b",
        "id": str(name),
        "cost": "0.10",
        "keys": {"2": "two", "true": "yes"},
        "pair": [1, 2],
    }


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        ("0.0045", 450_000),
        (decimal.Decimal("12.34567891"), 1_234_567_891),
        ("1e-8", 1),
        (3, 300_000_000),
        (0.1, 10_000_000),
        (0.1 + 0.2, 30_000_000),
        ("0.000000015", 2),
        ("0.000000025", 2),
    ],
)
def test_a_cost_becomes_exact_microcents(cost: Any, expected: int) -> None:
    assert microcents(cost) == expected


@pytest.mark.parametrize("cost", ["much", float("nan"), float("inf"), "Infinity", None, [1], "1e999999999"])
def test_what_is_no_amount_of_money_is_refused(cost: Any) -> None:
    with pytest.raises(Unencodable, match=r"usage\.cost_usd"):
        microcents(cost)


@pytest.mark.parametrize(
    ("usage", "field"),
    [
        ({"input_tokens": 1.5}, "usage.input_tokens"),
        ({"input_tokens": -1}, "usage.input_tokens"),
        ({"output_tokens": True}, "usage.output_tokens"),
        ({"model": 3}, "usage.model"),
        ({"cumulative": 1}, "usage.cumulative"),
        ({"tokens": 3}, "usage.tokens"),
        ([("input_tokens", 1)], "usage"),
    ],
)
def test_usage_that_does_not_fit_is_refused_with_the_name_of_its_field(usage: Any, field: str) -> None:
    with pytest.raises(Unencodable) as caught:
        usage_members(usage)
    assert caught.value.field == field


def test_usage_without_a_figure_leaves_it_out() -> None:
    assert usage_members({"model": "m", "input_tokens": 0, "output_tokens": None}) == {"model": "m", "input_tokens": 0}


@given(ANY_TEXT)
def test_any_text_can_be_made_recordable_and_good_text_is_kept(text: str) -> None:
    plain = plain_text(text)
    assert json.loads(encode({"text": plain})) == {"text": plain}
    assert plain_text(plain) == plain
    if "\0" not in text and not any("\ud800" <= char <= "\udfff" for char in text):
        assert plain == text


@given(st.binary())
def test_output_that_is_no_text_keeps_its_bytes(output: bytes) -> None:
    for handed_over in (output, output.decode("utf-8", "surrogateescape")):
        members = text_members(handed_over)
        encode(members)
        if "base64" in members:
            assert base64.b64decode(members["base64"]) == output
        else:
            assert members["text"].encode() == output


@given(ANY_TEXT)
def test_any_output_can_be_recorded(text: str) -> None:
    encode(text_members(text))


def test_an_error_is_one_line_with_type_and_traceback() -> None:
    try:
        raise KeyError("first\nsecond\0")
    except KeyError as error:
        members = error_members(error)
    assert members["error"] == r"KeyError: 'first\nsecond\x00'"
    assert members["error_type"] == "KeyError"
    assert members["traceback"].startswith("Traceback") and "test_encoding" in members["traceback"]
    assert error_members("a\nb") == {"error": "a b"}


def test_an_exception_that_cannot_tell_its_message_is_told_by_its_type() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError("mute")

    assert describe_exception(Mute()).endswith("Mute")
    assert describe_exception(ValueError()) == "ValueError"
    encode(error_members(Mute()))
