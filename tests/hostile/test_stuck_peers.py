"""Peers that send and never read, begin and never end, or come in thousands: neighbours go on, and memory is bounded."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest

import runhist
from runhist.protocol import INTERFACE
from tests.conftest import Daemon
from tests.hostile.peers import Neighbour, Peer, frame, memory_bytes

MIB = 1024 * 1024
QUEUE_BYTES = 16 * MIB
FRAME_BYTES = 4 * MIB
ROOM_BYTES = 100 * MIB  # what the budgets, one large frame while it is decoded, and Python's own ways with memory may take
LIMITS = f"[limits]\nqueue_bytes = {QUEUE_BYTES}\nframe_bytes = {FRAME_BYTES}\nconnections = 400\n"


@pytest.fixture(scope="module")
def served(make_served: Callable[[str], Daemon]) -> Daemon:
    return make_served(LIMITS)


@pytest.fixture
def bounded(served: Daemon, neighbour: Neighbour) -> Iterator[None]:
    """The daemon takes no more memory for what the test does than the budgets allow."""
    before = memory_bytes(served.pid)
    yield
    neighbour.go_on()
    grown = memory_bytes(served.pid) - before
    assert grown < ROOM_BYTES, f"{grown / MIB:.0f} MiB"


@pytest.fixture
def peers(
    served: Daemon, neighbour: Neighbour, wait_until: Callable[..., None]
) -> Iterator[Callable[[int], list[Peer]]]:
    """Makes so many connections; behind the test their places are free again."""
    with contextlib.ExitStack() as stack:
        yield lambda count: [stack.enter_context(Peer(served.socket)) for _ in range(count)]
    wait_until(lambda: neighbour.connections() == 1, "all of them are gone")


def begin(peer: Peer) -> dict[str, object]:
    """A run of its own: what names it and its lease."""
    run_id = str(uuid4())
    reply = peer.ask(frame("BeginRun", {"run": {"run_id": run_id}, "lease_key": str(uuid4())}))
    assert reply is not None
    return {"run_id": run_id, "epoch": reply["parameters"]["epoch"], "writer": str(uuid4())}


def test_a_hundred_thousand_calls_without_reading_a_reply_wait_for_their_sender(
    peers: Callable[[int], list[Peer]], bounded: None, neighbour: Neighbour
) -> None:
    (peer,) = peers(1)
    call = frame("Describe", {})
    sent = 0
    while (more := peer.flood(call * 1000, sent)) > sent:
        sent = more
        assert sent < 100_000 * len(call)
        neighbour.go_on()
    for _ in range(sent // len(call)):
        assert "instance_id" in (peer.reply() or {})["parameters"]
    assert "instance_id" in (peer.ask(call[sent % len(call) :]) or {})["parameters"]


def test_large_replies_that_nobody_takes_do_not_pile_up(
    peers: Callable[[int], list[Peer]], bounded: None, neighbour: Neighbour
) -> None:
    deaf = peers(60)
    named = begin(deaf[0])
    events = [{"type": "note", "data": {"text": "x" * 500_000}}] * 2
    receipt = deaf[0].ask(frame("Append", {**named, "first_n": 1, "events": events}))
    assert receipt is not None and receipt["parameters"]["stored"] == 2
    for peer in deaf:
        peer.flood(frame("GetEvents", {"run_id": named["run_id"]}) * 500)
        neighbour.go_on()
    still_there = deaf[-1]
    assert len((still_there.reply() or {})["parameters"]["events"]) == 3


def test_followers_that_never_read_do_not_pile_up(
    peers: Callable[[int], list[Peer]], bounded: None, neighbour: Neighbour
) -> None:
    writer, *deaf = peers(100)
    for peer in deaf:
        peer.send(frame("Follow", {"cursor": {"position": 0}}, more=True))
    named = begin(writer)
    text = "x" * 900_000
    for n in range(1, 30):
        call = frame("Append", {**named, "first_n": n, "events": [{"type": "note", "data": {"text": text}}]})
        assert (writer.ask(call) or {})["parameters"]["stored"] == 1
        neighbour.go_on()


def test_unfinished_frames_share_a_budget_and_the_longest_stuck_are_let_go(
    served: Daemon, peers: Callable[[int], list[Peer]], bounded: None, neighbour: Neighbour
) -> None:
    silent = peers(100)
    for peer in silent:
        peer.send(b'{"method":"' + b"x" * 800_000)
    neighbour.go_on()
    (late,) = peers(1)
    text = frame("PutBlob", {"upload": str(uuid4()), "offset": 0, "base64": "A" * 1_000_000})
    half = len(text) // 2
    late.send(text[:half])
    neighbour.go_on()
    assert "parameters" in (late.ask(text[half:]) or {})
    assert silent[0].reply() is None
    assert "let a peer go" in served.log_text()


@pytest.mark.long
def test_large_frames_come_one_at_a_time_within_a_deadline(
    peers: Callable[[int], list[Peer]], bounded: None, neighbour: Neighbour
) -> None:
    first, second, third = peers(3)
    large = frame("PutBlob", {"upload": str(uuid4()), "offset": 0, "base64": "A" * 3_000_000})
    first.send(large[:2_000_000])
    second.socket.settimeout(0.5)
    with pytest.raises(TimeoutError):
        second.socket.sendall(large)
    neighbour.go_on()
    assert "instance_id" in (third.ask(frame("Describe", {})) or {})["parameters"]
    assert first.reply() is None  # the deadline has passed
    neighbour.go_on()


def test_a_thousand_connections_leave_the_others_theirs(
    served: Daemon, peers: Callable[[int], list[Peer]], bounded: None, neighbour: Neighbour
) -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 1200:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    answers = []
    for peer in peers(1000):
        with contextlib.suppress(BrokenPipeError):  # it was answered and closed already
            peer.send(frame("Describe", {}))
        answers.append(peer.reply())
    busy = [answer for answer in answers if answer is not None and "error" in answer]
    assert len(busy) >= 600
    assert all(answer["error"] == f"{INTERFACE}.Busy" and answer["parameters"]["retry_after_us"] > 0 for answer in busy)
    assert len(answers) - len(busy) >= 300
    neighbour.go_on()


def test_a_run_that_finds_no_room_is_recorded_when_there_is_some_again(
    served: Daemon, peers: Callable[[int], list[Peer]], neighbour: Neighbour, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNHIST_SOCKET", str(served.socket))
    monkeypatch.setenv("RUNHIST_STATE_DIR", str(served.state_dir))
    monkeypatch.delenv("RUNHIST", raising=False)
    crowd = peers(399)
    assert (crowd[-1].ask(frame("Describe", {})) or {})["parameters"]
    with Peer(served.socket) as late:
        assert (late.reply() or {})["error"] == f"{INTERFACE}.Busy"
    history = runhist.connect(deadline=0.1)
    run = history.begin_run(run_id=str(uuid4()))
    run.append("note")
    for peer in crowd:
        peer.socket.close()
    with pytest.raises(runhist.Busy):  # why nothing was stored at first
        run.flush(30)
    assert run.flush().durable == "committed"
    history.close()


def test_a_stream_closed_in_the_middle_ends_and_what_stands_behind_an_endless_one_is_bounded(
    served: Daemon, peers: Callable[[int], list[Peer]], bounded: None, neighbour: Neighbour, wait_until: Callable[..., None]
) -> None:
    def status() -> dict[str, int]:
        with Peer(served.socket) as asking:
            found = asking.ask(frame("GetStatus", {}))
        assert found is not None
        return {name: found["parameters"][name] for name in ("connections", "followers")}

    closing = peers(30)
    named = begin(closing[0])
    for peer in closing[:10]:
        peer.send(frame("GetEvents", {"run_id": named["run_id"]}, more=True))
        peer.socket.close()
    for peer in closing[10:20]:
        assert peer.ask(frame("Follow", {"tail": 1}, more=True)) is not None
        peer.socket.close()
    for peer in closing[20:]:
        assert peer.ask(frame("Follow", {"tail": 1}, more=True)) is not None
        with contextlib.suppress(OSError):
            peer.send(frame("Describe", {}) * 100_000)
        peer.socket.close()
    wait_until(lambda: status() == {"connections": 2, "followers": 0}, "all of them are gone")
