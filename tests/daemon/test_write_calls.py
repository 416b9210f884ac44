"""What a peer may write: bytes in, requests or the path of the fault out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import Raw

from runhistd.daemon.json_text import MAX_DEPTH
from runhistd.daemon.write_calls import decode_append, decode_begin, decode_claim
from runhistd.model.errors import InvalidParameter, TooLarge

KEY = "00000000-0000-4000-8000-000000000001"
EVENT_BYTES = 1024 * 1024


def append(data: str, **members: Any) -> Any:
    """An Append whose one event has exactly that text as its data."""
    rest = {"run_id": "r", "epoch": 1, "writer": KEY, "first_n": 1, **members}
    text = json.dumps(rest)[:-1] + ',"events":[{"type":"x","data":' + data + "}]}"
    return decode_append(Raw(text.encode()), 1000, None, EVENT_BYTES)


def fault(decode: Any, *arguments: Any) -> Any:
    with pytest.raises(InvalidParameter) as caught:
        decode(*arguments)
    return caught.value.parameters["parameter"]


def nested(depth: int) -> str:
    return '{"a":' + "[" * (depth - 1) + "]" * (depth - 1) + "}"


@pytest.mark.parametrize(
    "data",
    [
        '{"a":"\\ud800"}',
        '{"a":"\\udc00"}',
        '{"a":"\\ud800\\ud800\\udc00"}',
        '{"a":"\\ud800x\\udc00"}',
        '{"\\u0000":1}',
        '{"a":"\\\\\\u0000"}',
        '{"a":1e999}',
        '{"a":-1e999}',
        '{"a":[1E+400]}',
        nested(MAX_DEPTH + 1),
        "[1]",
        "7",
        '"text"',
        "true",
    ],
)
def test_data_that_a_history_must_not_keep_is_refused_by_its_path(data: str) -> None:
    assert fault(append, data) in ("events[0].data", "events[0].data.a")


@pytest.mark.parametrize(
    "data",
    [
        '{"a":"\\ud83d\\ude00"}',
        '{"a":"\\\\u0000"}',
        '{"a":"\\\\\\\\u0000 \\\\ud800"}',
        '{"a":1e300, "b":-0.0, "n":123456789012345678901234567890}',
        nested(MAX_DEPTH),
        '{ "a" : "kept  as it came" }',
        "{}",
    ],
)
def test_data_is_kept_byte_for_byte(data: str) -> None:
    (event,) = append(data).events
    assert bytes(event.data) == data.encode()


@pytest.mark.parametrize(
    ("members", "path"),
    [
        ({"epoch": 2**63}, "epoch"),
        ({"epoch": 1.0}, "epoch"),
        ({"epoch": -1}, "epoch"),
        ({"epoch": True}, "epoch"),
        ({"lease_key": KEY}, "lease_key"),  # beside an epoch
        ({"first_n": 0}, "first_n"),
        ({"writer": "me"}, "writer"),
        ({"run_id": ""}, "run_id"),
        ({"run_id": "a\x1b[2J"}, "run_id"),
        ({"run_id": "x" * 256}, "run_id"),
        ({"namespace": 7}, "namespace"),
        ({"seq": 1}, "seq"),
    ],
)
def test_a_wrong_member_of_append_is_named(members: dict[str, Any], path: str) -> None:
    assert fault(lambda: append("{}", **members)) == path


@pytest.mark.parametrize(
    ("event", "path"),
    [
        ({"type": "x", "seq": 1}, "events[1].seq"),
        ({"type": ""}, "events[1].type"),
        ({"type": "x" * 256}, "events[1].type"),
        ({}, "events[1].type"),
        ({"type": "x", "attempt": 0}, "events[1].attempt"),
        ({"type": "x", "time_us": 1.5}, "events[1].time_us"),
        ({"type": "x", "usage": {"input_tokens": "7"}}, "events[1].usage.input_tokens"),
        ({"type": "x", "usage": {"input_tokens": 10**15 + 1}}, "events[1].usage.input_tokens"),
        ({"type": "x", "usage": {"tokens": 7}}, "events[1].usage.tokens"),
    ],
)
def test_a_wrong_member_of_an_event_is_named_with_its_place(event: dict[str, Any], path: str) -> None:
    call = {"run_id": "r", "epoch": 1, "writer": KEY, "first_n": 1, "events": [{"type": "x"}, event]}
    assert fault(decode_append, Raw(json.dumps(call).encode()), 1000, None, EVENT_BYTES) == path


def test_data_above_the_limit_is_too_large_and_says_which() -> None:
    with pytest.raises(TooLarge) as caught:
        append('{"a":"' + "x" * EVENT_BYTES + '"}')
    assert caught.value.parameters == {"parameter": "events[0].data", "limit": EVENT_BYTES}


@pytest.mark.parametrize(
    ("run", "path"),
    [
        ({}, "run.run_id"),
        ({"run_id": "r", "owner": 1}, "run.owner"),
        ({"run_id": "r", "metadata": []}, "run.metadata"),
        ({"run_id": "r", "metadata": {"a": "\ud800"}}, "run.metadata.a"),
        ({"run_id": "r", "metadata": {"\ud800": 1}}, "run.metadata"),
        ({"run_id": "r", "team_epoch": 1}, "run.team_run_id"),
        ({"run_id": "r", "namespace": "a\nb"}, "run.namespace"),
    ],
)
def test_a_wrong_member_of_a_run_is_named(run: dict[str, Any], path: str) -> None:
    assert fault(decode_begin, Raw(json.dumps({"run": run, "lease_key": KEY}).encode()), EVENT_BYTES) == path


@pytest.mark.parametrize(
    ("members", "path"),
    [
        ({"expect_status": ["gone"]}, "expect_status[0]"),
        ({"takeover": "false"}, "takeover"),
        ({"events": [{"type": 1}]}, "events[0].type"),
        ({"lease_key": "k"}, "lease_key"),
    ],
)
def test_a_wrong_member_of_a_claim_is_named(members: dict[str, Any], path: str) -> None:
    call = {"run_id": "r", "lease_key": KEY, **members}
    assert fault(decode_claim, Raw(json.dumps(call).encode()), EVENT_BYTES) == path
