"""What is no call ends its connection with a typed error, and what is one is answered however it comes."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import pytest

from runhist.protocol import INTERFACE, SERVICE
from tests.conftest import Daemon
from tests.hostile.peers import Neighbour, Peer, frame

DESCRIBE = frame("Describe", {})
MALFORMED = [
    b"",
    b" ",
    b"{",
    b"}",
    b"[]",
    b"null",
    b'"text"',
    b"7",
    b"[" * 100_000,
    b'{"method":' * 50_000,
    b'{"method":"a.b","parameters":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b"\xff\xfe",
    b'{"method":"a.b\xc3"}',
    b'{"method":"\xed\xa0\x80.b"}',
    b'{"method":"a.b","parameters":{"a":"\x80"}}',
    b'{"method":"a.b","parameters":{"a":"\x01"}}',
    b'{"method":"a.b","parameters":{"a":"\\x"}}',
    b'{"method":"a.b","parameters":{"a":NaN}}',
    b'{"method":"a.b","parameters":{"a":Infinity}}',
    b'{"method":"a.b","parameters":{"a":-Infinity}}',
    b'{"method":"a.b","parameters":{"a":01}}',
    b'{"method":"a.b","parameters":{"a":+1}}',
    b'{"method":"a.b","parameters":{"a":1.}}',
    b'{"method":"a.b","parameters":{"a":0x1}}',
    b'{"method":"a.b","parameters":{"a":1,}}',
    b"{'method':'a.b'}",
    b'{"method":"a.b"} {"method":"a.b"}',
    b'\xef\xbb\xbf{"method":"a.b"}',
    b'{"method":7}',
    b'{"method":null}',
    b'{"parameters":{}}',
    b'{"method":"a.b","surprise":1}',
    b'{"method":"a.b","size":1}',
    b'{"method":"a.b","more":1}',
    b'{"method":"a.b","oneway":"true"}',
    b'{"method":"a.b","upgrade":0}',
    b'{"reply":"a.b","parameters":{}}',
    b'{"error":"a.b","parameters":{}}',
    b'{"method":"' + b"a" * 1_000_000,
]


def test_what_is_no_call_is_answered_and_ends_its_connection(served: Daemon, neighbour: Neighbour) -> None:
    for text in MALFORMED:
        with Peer(served.socket) as peer:
            peer.send(DESCRIBE + text + b"\0" + DESCRIBE)
            first, second = peer.reply(), peer.reply()
            assert first is not None and "instance_id" in first["parameters"]
            assert second is not None and second["error"] == f"{SERVICE}.InvalidParameter", text[:100]
            assert peer.reply() is None, text[:100]


def test_a_call_that_wants_no_answer_is_not_carried_out_and_ends_its_connection(
    served: Daemon, neighbour: Neighbour
) -> None:
    for method in ("Append", "BeginRun", "DeleteRun", "Follow", "GetStatus", "nobody.knows.This"):
        for member in ("oneway", "upgrade"):
            with Peer(served.socket) as peer:
                peer.send(frame(method, {}, **{member: True}) + DESCRIBE)
                assert peer.reply() is None


def test_what_nobody_serves_is_told_and_the_connection_goes_on(peer: Peer) -> None:
    for method, error, parameters in (
        ("Nothing", "MethodNotFound", {"method": "Nothing"}),
        (f"{SERVICE}.Nothing", "MethodNotFound", {"method": "Nothing"}),
        ("org.example.Get", "InterfaceNotFound", {"interface": "org.example"}),
        ("nodots", "MethodNotFound", {"method": "nodots"}),
        (f"{INTERFACE.upper()}.Describe", "InterfaceNotFound", {"interface": INTERFACE.upper()}),
        ("\0.\0", "InterfaceNotFound", {"interface": "\0"}),
        ("💥." + "x" * 10_000, "InterfaceNotFound", {"interface": "💥"}),
    ):
        assert peer.ask(frame(method, {})) == {"error": f"{SERVICE}.{error}", "parameters": parameters}
    assert peer.ask(b'{"method":""}\0') == {"error": f"{SERVICE}.InterfaceNotFound", "parameters": {"interface": ""}}
    assert peer.ask(frame("Follow", {})) == {"error": f"{SERVICE}.ExpectedMore", "parameters": {}}
    assert peer.ask(DESCRIBE) is not None


def test_more_for_a_method_that_has_one_reply_gets_that_one(peer: Peer) -> None:
    peer.send(frame("ListRuns", {"limit": 1}, more=True) + DESCRIBE)
    listed, described = peer.reply(), peer.reply()
    assert listed is not None and "runs" in listed["parameters"] and "continues" not in listed
    assert described is not None and "instance_id" in described["parameters"]


def test_a_call_may_come_one_byte_at_a_time(peer: Peer) -> None:
    for byte in DESCRIBE:
        peer.send(bytes([byte]))
    assert "instance_id" in (peer.reply() or {})["parameters"]
    with_escapes = DESCRIBE.replace(b"method", b"\\u006dethod").replace(b"{", b" {\r\n\t ")
    assert "instance_id" in (peer.ask(with_escapes) or {})["parameters"]


def test_half_a_frame_and_silence_or_an_end_cost_nobody_anything(served: Daemon, neighbour: Neighbour) -> None:
    silent = [Peer(served.socket) for _ in range(20)]
    for i, peer in enumerate(silent):
        peer.send(DESCRIBE[: 3 * i])
    neighbour.go_on()
    for i, peer in enumerate(silent[1:], 1):
        peer.send(DESCRIBE[3 * i :])
        assert "instance_id" in (peer.reply() or {})["parameters"]
    for peer in silent:
        peer.send(DESCRIBE[:5])
        peer.socket.close()


def test_a_frame_that_is_too_long_is_told_its_limit_and_ends_its_connection(served: Daemon, neighbour: Neighbour) -> None:
    with Peer(served.socket) as peer:
        limits = (peer.ask(DESCRIBE) or {})["parameters"]["limits"]
        with pytest.raises(OSError):  # it closes while we still send
            for _ in range(3):
                peer.send(b"x" * limits["frame_bytes"])
        reply = peer.reply()
        too_large = {"error": f"{INTERFACE}.TooLarge", "parameters": {"parameter": "call", "limit": limits["frame_bytes"]}}
        assert reply == too_large
        assert peer.reply() is None


def test_more_events_in_a_call_than_are_taken_are_refused_before_they_are_decoded(peer: Peer) -> None:
    limit = (peer.ask(DESCRIBE) or {})["parameters"]["limits"]["events"]
    too_large = {"error": f"{INTERFACE}.TooLarge", "parameters": {"parameter": "events", "limit": limit}}
    named = {"run_id": "r", "epoch": 1, "writer": str(uuid4()), "first_n": 1, "lease_key": str(uuid4())}
    for count in (limit + 1, 200_000):
        for method, names in (("Append", ("run_id", "epoch", "writer", "first_n")), ("ClaimRun", ("run_id", "lease_key"))):
            call: dict[str, Any] = {name: named[name] for name in names}
            assert peer.ask(frame(method, {**call, "events": [{"type": "x"}] * count})) == too_large
    many = frame("Append", {"run_id": str(uuid4()), "epoch": 1, "events": [{"type": "x", "key": "k"}] * limit})
    assert (peer.ask(many) or {})["error"] == f"{INTERFACE}.NoSuchRun"


def test_a_control_call_is_large_only_by_its_content(peer: Peer) -> None:
    many = ["x"] * 1001
    assert peer.fault(frame("GetEvents", {"run_id": "r", "types": many})) == "types"
    assert peer.fault(frame("GetEvents", {"run_id": "r", "types": many * 1000})) == "types"
    assert peer.fault(frame("PutBlob", {"upload": "u", "offset": 0, "base64": "", "surprise": [[]] * 500_000})) == "surprise"
    assert peer.fault(frame("GetRun", {"run_id": "x" * 2_000_000})) == "run_id"


NAMES = ["a/b", "/", "..", ".", "../../etc/passwd", "a b", " ", "👩‍👩‍👧", "é" * 127, "x" * 255, "-rf", "--", "@last"]


@pytest.mark.parametrize("run_id", [*NAMES, "%s%n", "'", '"', "\\", "*?"])
def test_any_text_without_control_characters_names_a_run(peer: Peer, run_id: str) -> None:
    name = {"namespace": f"{run_id}"[:100], "run_id": run_id}
    begun = peer.ask(frame("BeginRun", {"run": name, "lease_key": str(uuid4())}))
    assert begun is not None and begun["parameters"]["run_id"] == run_id
    found = peer.ask(frame("ListRuns", {"name": run_id}))
    assert found is not None and run_id in [run["run_id"] for run in found["parameters"]["runs"]]
    shown = peer.ask(frame("GetRun", name))
    assert shown is not None and shown["parameters"]["run"]["run_id"] == run_id
    assert (peer.ask(frame("DeleteRun", name)) or {})["error"] == f"{INTERFACE}.RunLive"


@pytest.mark.parametrize("run_id", ["", "x" * 256, "é" * 128, "a\nb", "\x7f", "\x9b2J", "\x1b[2J", "a\tb", "a\rb", "\0"])
def test_no_other_text_does(peer: Peer, run_id: str) -> None:
    assert peer.fault(frame("BeginRun", {"run": {"run_id": run_id}, "lease_key": str(uuid4())})) == "run.run_id"
    for method in ("GetRun", "GetSteps", "GetUsage", "GetEvents", "GetArtifacts", "PinRun", "UnpinRun", "DeleteRun"):
        assert peer.fault(frame(method, {"run_id": run_id})) == "run_id"


def test_a_reply_is_json_on_one_line_whatever_was_asked(peer: Peer) -> None:
    name = json.loads('"\\u2028\\u202e\\u200b"')
    reply = peer.ask(frame("GetRun", {"run_id": name}))
    assert reply == {"error": f"{INTERFACE}.NoSuchRun", "parameters": {"namespace": "default", "run_id": name}}
