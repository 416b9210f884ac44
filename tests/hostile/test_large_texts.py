"""What one run records at length breaks no list that it stands in, and costs the others no memory."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

from runhist.protocol import INTERFACE
from runhist.protocol.machine import MAX_FRAME_BYTES
from tests.conftest import Daemon
from tests.hostile.peers import Neighbour, Peer, frame, memory_bytes

MIB = 1024 * 1024
CONTROL = "\x01"  # six bytes as JSON


class Recorder:
    """A run with one writer."""

    def __init__(self, peer: Peer, **members: Any) -> None:
        self.peer, self.run_id, self.writer, self.n = peer, str(uuid4()), str(uuid4()), 1
        run = {"run_id": self.run_id, "namespace": "large", **members}
        begun = peer.ask(frame("BeginRun", {"run": run, "lease_key": str(uuid4())}))
        assert begun is not None and "error" not in begun, begun
        self.epoch = begun["parameters"]["epoch"]

    def append(self, *events: dict[str, Any]) -> dict[str, Any]:
        named = {"namespace": "large", "run_id": self.run_id, "epoch": self.epoch, "writer": self.writer}
        reply = self.peer.ask(frame("Append", {**named, "first_n": self.n, "events": events}))
        assert reply is not None
        self.n += reply["parameters"].get("stored", 0)
        return reply


def pages(peer: Peer, method: str, listed: str, **asked: Any) -> list[Any]:
    """All of a list, and no page longer than a client takes."""
    found: list[Any] = []
    page = None
    while True:
        reply = peer.ask(frame(method, {"namespace": "large", **asked, "page": page, "limit": 1000}))
        assert reply is not None and "error" not in reply, reply
        assert len(json.dumps(reply)) < MAX_FRAME_BYTES
        found += reply["parameters"][listed]
        page = reply["parameters"]["next_page"]
        if page is None:
            return found


def test_lists_of_runs_with_long_texts_come_in_pages_that_a_client_takes(peer: Peer) -> None:
    for _ in range(120):
        run = Recorder(peer, title=CONTROL * 30_000)
        step = {"type": "run.updated", "data": {"current_step": CONTROL * 5000}}
        run.append(step, {"type": "run.paused", "data": {"name": "g", "prompt": CONTROL * 30_000}})
    runs = pages(peer, "ListRuns", "runs")
    assert len({run["run_id"] for run in runs}) == len(runs) >= 120
    assert {len(run["title"]) for run in runs} == {len(run["gate"]["prompt"]) for run in runs} == {4000}
    assert len(pages(peer, "ListInterrupted", "runs")) == 120
    reply = peer.ask(frame("GetEvents", {"namespace": "large", "run_id": runs[0]["run_id"], "after_seq": 2}))
    assert reply is not None and reply["parameters"]["events"][0]["data"]["prompt"] == CONTROL * 30_000


def test_steps_and_artifacts_with_long_texts_come_in_pages_that_a_client_takes(peer: Peer) -> None:
    run = Recorder(peer)
    long = CONTROL * 4000
    for i in range(9):
        run.append(
            *({"type": "step.failed", "step_id": f"{i}.{j}", "data": {"error": long}} for j in range(50)),
            *({"type": "artifact", "data": {"name": f"{i}.{j}{long}", "path": long}} for j in range(50)),
        )
    assert len(pages(peer, "GetSteps", "steps", run_id=run.run_id)) == 450
    assert len(pages(peer, "GetArtifacts", "artifacts", run_id=run.run_id)) == 450


def test_a_begin_is_no_longer_than_an_event(peer: Peer) -> None:
    call = frame("BeginRun", {"run": {"run_id": "r", "metadata": {"a": "x" * MIB}}, "lease_key": str(uuid4())})
    assert peer.ask(call) == {"error": f"{INTERFACE}.TooLarge", "parameters": {"parameter": "run", "limit": MIB}}


def test_what_patches_amount_to_is_bounded_and_what_was_stored_of_them_stands(peer: Peer) -> None:
    run = Recorder(peer)
    for i in range(3):
        assert run.append({"type": "run.updated", "data": {"state": {f"{i}": "x" * 900_000}}})["parameters"]["stored"] == 1
    refused = run.append({"type": "note"}, {"type": "run.updated", "data": {"state": {"3": "x" * 900_000}}})
    assert refused["error"] == f"{INTERFACE}.TooLarge" and refused["parameters"]["parameter"] == "data.state"
    assert run.append({"type": "run.updated", "data": {"state": {"0": None, "1": 1}}})["parameters"]["stored"] == 1
    reply = peer.ask(frame("GetRun", {"namespace": "large", "run_id": run.run_id}))
    assert reply is not None and reply["parameters"]["detail"]["state"] == {"1": 1, "2": "x" * 900_000}


def test_documents_of_many_runs_are_not_kept_in_memory(served: Daemon, peer: Peer, neighbour: Neighbour) -> None:
    before = memory_bytes(served.pid)
    for _ in range(14):
        run = Recorder(peer)
        run.append({"type": "run.updated", "data": {"state": {"many": [[]] * 200_000}}})
    neighbour.go_on()
    assert memory_bytes(served.pid) - before < 100 * MIB


def test_steps_that_are_begun_and_never_ended_are_bounded(peer: Peer) -> None:
    run = Recorder(peer)
    begun = [{"type": "step.started", "step_id": f"{i}"} for i in range(10_000)]
    assert run.append(*begun)["parameters"]["stored"] == 10_000
    refused = run.append({"type": "step.started", "step_id": "one more"})
    assert refused["error"] == f"{INTERFACE}.NotAllowed" and refused["parameters"]["parameter"] == "events"
    assert run.append({"type": "step.completed", "step_id": "7"})["parameters"]["stored"] == 1
    assert run.append({"type": "step.started", "step_id": "one more"})["parameters"]["stored"] == 1
    assert run.append({"type": "run.completed"})["parameters"]["stored"] == 1
