"""Every member of every method takes what the interface file says and nothing else, and is named when it is at fault."""

from __future__ import annotations

import pytest

from runhist.protocol import INTERFACE, SERVICE
from tests.hostile.peers import Peer, frame
from tests.hostile.wrong import METHODS, Wrong, encoded, wrong_calls

STREAMS = {"Follow", "GetBlob", "GetEvents"}


def misnamed(peer: Peer, method: str, calls: list[Wrong], more: bool) -> list[str]:
    """The calls, sent all at once, whose answer is not InvalidParameter with the path of the fault."""
    members = {"more": True} if more else {}
    peer.send(b"".join(encoded(frame(method, call.parameters, **members)) for call in calls))
    found = []
    for call in calls:
        reply = peer.reply()
        expected = {"error": f"{SERVICE}.InvalidParameter", "parameters": {"parameter": call.path}}
        if reply != expected:
            found.append(f"{method} {str(call.parameters)[:200]}\n    should name {call.path}: {str(reply)[:200]}")
    return found


@pytest.mark.parametrize("method", METHODS)
def test_what_does_not_fit_the_interface_is_named_by_its_path(peer: Peer, method: str) -> None:
    calls = list(wrong_calls(method))
    assert len(calls) >= 1
    faults = misnamed(peer, method, calls, method in STREAMS)
    assert not faults, f"{len(faults)} of {len(calls)}\n" + "\n".join(faults[:20])
    assert peer.ask(frame("Describe", {})) is not None


def test_the_generator_reaches_every_depth_of_the_interface() -> None:
    paths = {call.path for method in METHODS for call in wrong_calls(method)}
    assert {"run.metadata.a.b[1]", "events[2].usage.input_tokens", "cursor.position", "status[0]"} <= paths
    assert {"surprise", "run.surprise", "events[0].surprise", "events[2].usage.surprise", "cursor.surprise"} <= paths


@pytest.mark.parametrize("parameters", ["[]", "7", '"x"', "null", "true", "[{}]"])
def test_parameters_that_are_no_object_are_refused_as_such(peer: Peer, parameters: str) -> None:
    for method in METHODS:
        members = ',"more":true' if method in STREAMS else ""
        call = f'{{"method":"{INTERFACE}.{method}","parameters":{parameters}{members}}}'.encode() + b"\0"
        assert peer.fault(call) == "parameters"
