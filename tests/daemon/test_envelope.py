"""What is a call, and what none."""

from __future__ import annotations

import pytest

from runhistd.daemon.control_calls import Follow, structure
from runhistd.daemon.envelope import MalformedCall, decode_envelope
from runhistd.daemon.write_calls import decode_append
from runhistd.model.errors import InvalidParameter

EVENT_BYTES = 1024 * 1024


@pytest.mark.parametrize("text", ['{"a":NaN}', '{"a":Infinity}', '{"a":01}', '{"a":1,}', '{"a":"\n"}', "{'a':1}", '{"a"'])
def test_what_is_no_json_is_refused_without_a_reply_to_the_rest(text: str) -> None:
    with pytest.raises((MalformedCall, InvalidParameter)):
        call = decode_envelope(b'{"method":"dev.runhist.History.Append","parameters":' + text.encode() + b"}")
        decode_append(call.parameters, 1000, None, EVENT_BYTES)


def test_bytes_that_are_not_utf_8_are_no_call() -> None:
    with pytest.raises(MalformedCall):
        decode_envelope(b'{"method":"m","parameters":{"a":"\xff"}}')


def test_deep_nesting_in_front_of_the_call_is_the_peers_fault_alone() -> None:
    for frame in (b"[" * 100_000, b'{"method":"m","parameters":' + b"[" * 100_000 + b"]" * 100_000 + b"}"):
        with pytest.raises((MalformedCall, InvalidParameter)):
            structure(decode_envelope(frame).parameters, Follow)
