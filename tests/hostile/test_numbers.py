"""Numbers that some reader of a stored event could not read are refused where they come in, by their place."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from runhist.connection import Connection
from runhist.paths import SocketChoice
from runhist.protocol import INTERFACE
from tests.conftest import Daemon
from tests.hostile.peers import Neighbour, Peer, frame

BEYOND_A_DOUBLE = {
    "1e999": "1e999",
    "-1e999": "-1e999",
    "1E+400": "1E+400",
    "1e309": "1e309",
    "a hair above the largest double": "1.7976931348623159e308",
    "400 digits": "1" + "0" * 400,
    "-400 digits": "-1" + "0" * 400,
    "5,000 digits, which Python refuses to read": "1" + "0" * 5000,
    "many digits and a small exponent": "9" * 300 + "e50",
    "400 digits and a fraction": "1" * 400 + ".5",
    "a huge exponent with zeros before it": "1e0000000000000000000000999",
    "many small digits and a huge exponent": "0." + "0" * 400 + "1e900",
}
WITHIN = {
    "-0": "-0",
    "-0.0": "-0.0",
    "1e-999": "1e-999",
    "0e999": "0e999",
    "2**63": str(2**63),
    "2**64": str(2**64),
    "308 digits": "9" * 308,
    "the largest double": "1.7976931348623157e308",
    "400 digits of a fraction": "0." + "1" * 400,
    "a long number that its exponent makes small": "1" * 400 + "e-300",
    "in a string": '"1e999 ' + "1" * 5000 + '"',
}
OF_THE_WIRE = ["9223372036854775808", "-1", "1.0", "1e3", "-0.0", "1e999", "true", '"1"', "1" + "0" * 400, "1" + "0" * 5000]


class Run:
    """A run with one writer, over a raw connection."""

    def __init__(self, peer: Peer) -> None:
        self.peer, self.run_id, self.writer = peer, f"numbers-{uuid4()}", str(uuid4())
        begun = peer.ask(frame("BeginRun", {"run": {"run_id": self.run_id}, "lease_key": str(uuid4())}))
        assert begun is not None
        self.epoch = begun["parameters"]["epoch"]
        self.stored = 0

    def append(self, events: str, **members: str) -> bytes:
        """An Append of exactly these events, as JSON text; members replace those that are right."""
        texts = {
            "run_id": json.dumps(self.run_id),
            "epoch": str(self.epoch),
            "writer": json.dumps(self.writer),
            "first_n": str(self.stored + 1),
            "events": events,
            **members,
        }
        parameters = ",".join(f'"{name}":{text}' for name, text in texts.items())
        return f'{{"method":"{INTERFACE}.Append","parameters":{{{parameters}}}}}'.encode() + b"\0"

    def ask(self, events: str) -> Any:
        reply = self.peer.ask(self.append(events))
        assert reply is not None
        self.stored += reply["parameters"].get("stored", 0)
        return reply


@pytest.fixture
def run(peer: Peer) -> Run:
    return Run(peer)


@pytest.fixture
def reader(served: Daemon) -> Iterator[Connection]:
    with Connection.open(SocketChoice((served.socket,), "the test's own", True)) as opened:
        yield opened


def test_a_number_beyond_a_double_is_refused_by_its_place(run: Run) -> None:
    for why, number in BEYOND_A_DOUBLE.items():
        for data in (f'{{"a":{number}}}', f'{{"a":[{{"b":[1,{number}]}}]}}', f'{{"\\"":"\\\\","a":{number}}}'):
            path = run.peer.fault(run.append(f'[{{"type":"note"}},{{"type":"note","data":{data}}}]'))
            assert path == "events[1].data", why
        spec = f'{{"run_id":"r","metadata":{{"a":{number}}}}}'
        call = frame("BeginRun", {"run": "SPEC", "lease_key": str(uuid4())}).replace(b'"SPEC"', spec.encode())
        path = run.peer.fault(call)
        assert path == "run" or path.startswith("run.metadata"), why


def test_any_other_number_is_kept_and_read_back(run: Run, reader: Connection) -> None:
    events = ",".join(f'{{"type":"note","data":{{"a":{number}}}}}' for number in WITHIN.values())
    assert run.ask(f"[{events}]")["parameters"]["stored"] == len(WITHIN)
    found = reader.call("GetEvents", {"run_id": run.run_id, "after_seq": 1})["events"]
    assert [event["data"] for event in found] == [{"a": json.loads(number)} for number in WITHIN.values()]


@pytest.mark.parametrize("number", OF_THE_WIRE)
def test_an_integer_is_one_of_64_bits_without_a_sign(run: Run, number: str) -> None:
    for member in ("epoch", "first_n"):
        assert run.peer.fault(run.append('[{"type":"note"}]', **{member: number})) == member
    for member in ("time_us", "attempt", "usage.input_tokens", "usage.cost_microcents"):
        name, _, inner = member.partition(".")
        value = f'{{"{inner}":{number}}}' if inner else number
        assert run.peer.fault(run.append(f'[{{"type":"note","{name}":{value}}}]')) == f"events[0].{member}"


def test_an_artifact_gives_only_integers_that_the_wire_takes(run: Run) -> None:
    for number in (str(2**63), str(-(2**63)), str(2**64), "1.5", "1" + "0" * 300):
        for member in ("size", "mtime_us"):
            events = f'[{{"type":"artifact","data":{{"name":"a","{member}":{number}}}}}]'
            assert run.peer.fault(run.append(events)) == f"events[0].data.{member}"


def test_the_highest_attempt_leaves_room_for_the_next_one(run: Run) -> None:
    named = f'"step_id":"s","attempt":{10**9}'
    begun = f'[{{"type":"step.started",{named}}},{{"type":"step.failed",{named}}},{{"type":"step.started","step_id":"s"}}]'
    assert run.ask(begun)["parameters"]["stored"] == 3
    higher = f'[{{"type":"step.started","step_id":"s","attempt":{10**9 + 1}}}]'
    assert run.peer.fault(run.append(higher)) == "events[0].attempt"


def test_sums_of_usage_that_cannot_be_counted_are_refused_and_those_before_stand(run: Run, reader: Connection) -> None:
    most = ",".join(['{"type":"usage","step_id":"s","usage":{"input_tokens":1000000000000000}}'] * 4000)
    for _ in range(2):
        assert run.ask(f"[{most}]")["parameters"]["stored"] == 4000
    refused = run.ask(f"[{most}]")
    assert refused["error"] == f"{INTERFACE}.NotAllowed"
    assert refused["parameters"]["parameter"] == "events[1223].usage"
    found = reader.call("GetUsage", {"run_id": run.run_id})
    assert found["total"]["input_tokens"] == 8000 * 10**15 == found["rows"][0]["usage"]["input_tokens"]
    assert run.ask('[{"type":"usage","usage":{"input_tokens":1}}]')["parameters"]["stored"] == 1


def test_an_owner_is_named_by_a_number_that_a_process_can_have(peer: Peer) -> None:
    for pid in (0, -1, 2**31, 2**63 - 1):
        call = {"run": {"run_id": "owned"}, "lease_key": str(uuid4()), "owner_pid": pid, "caller_pid": os.getpid()}
        assert peer.fault(frame("BeginRun", call)) == "owner_pid"


def test_a_page_that_was_never_given_out_is_named(run: Run) -> None:
    named = {"run_id": run.run_id}
    for page in ('["",9223372036854775808,"",""]', '["",1e999,"",""]', '["s",-2,"",""]', '["",1]', "x", ""):
        assert run.peer.fault(frame("GetUsage", {**named, "page": page})) == "page"
    for page in ("9" * 19, "-1", "1.0", "1e3", "²", "", " 1", "0x1"):
        for method in ("GetSteps", "GetArtifacts"):
            assert run.peer.fault(frame(method, {**named, "page": page})) == "page"
        for method in ("ListRuns", "ListInterrupted"):
            assert run.peer.fault(frame(method, {"page": page})) == "page"


def test_the_largest_integers_that_the_wire_takes_are_answered(run: Run, neighbour: Neighbour) -> None:
    most = 2**63 - 1
    assert run.ask(f'[{{"type":"note","time_us":{most}}}]')["parameters"]["stored"] == 1
    named = {"run_id": run.run_id}
    for method, parameters in (
        ("ListRuns", {"limit": most, "since_us": most}),
        ("GetEvents", {**named, "after_seq": most, "limit": most}),
        ("GetSteps", {**named, "limit": most}),
        ("ReleaseRun", {**named, "epoch": most}),
        ("ClaimRun", {**named, "lease_key": str(uuid4()), "expect_seq": most, "takeover": True}),
        ("PutBlob", {"upload": str(uuid4()), "offset": most, "base64": ""}),
    ):
        reply = run.peer.ask(frame(method, parameters))
        assert reply is not None and "InternalError" not in reply.get("error", ""), (method, reply)
    for parameters in ({"tail": most}, {"tail": most, **named, "namespace": "default"}, {"heartbeat_us": most}):
        with Peer(run.peer.path) as follower:
            assert "error" not in (follower.ask(frame("Follow", parameters, more=True)) or {"error": "closed"})
    neighbour.go_on()
