"""What a run only shows: in its place among what is recorded, never waited for, and never a fault for want of room."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import runhist
from runhist import Event, Published
from runhist.encoding import encode
from runhist.faults import Faults, Journal
from runhist.outbox import Departure, Entry, Outbox
from runhist.protocol.errors import Conflict
from runhist.shown import MAX_WAITING_BYTES
from tests.client.conftest import Hang, Vanish

if TYPE_CHECKING:
    from tests.client.conftest import SmallHistory
    from tests.conftest import Daemon

LONG = 60.0


def outbox(*sequence: str) -> Outbox:
    """One that took these in this order: events, and with a leading dot what is only shown."""
    made = Outbox(Faults(Journal(), False), "default", "r", None, epoch=7)
    take(made, *sequence)
    return made


def take(box: Outbox, *sequence: str) -> None:
    for word in sequence:
        if word.startswith("."):
            box.show(encode({"type": word}))
        else:
            box.add(Entry(word, encode({"type": word})))


def departures(box: Outbox) -> list[list[str]]:
    """The types of each call that can be sent now, as the pump sends them; the replies are never heard."""
    calls: list[list[str]] = []
    while True:
        shown = box.depart_shown()
        departure = None if shown else box.depart()
        parameters = shown or (departure and departure.parameters)
        if parameters is None:
            return calls
        calls.append([event["type"] for event in json.loads(parameters)["events"]])


def test_it_is_sent_between_the_events_that_it_was_shown_between() -> None:
    box = outbox("a", "b", ".1", ".2", "c", "d", ".3")
    assert departures(box) == [["a", "b"], [".1", ".2"], ["c", "d"], [".3"]]
    take(box, ".4", "e")
    assert departures(box) == [[".4"], ["e"]]


class Wire:
    """An outbox and a daemon with a connection between them, on which nothing is read but when a test says so."""

    def __init__(self) -> None:
        self.box = outbox()
        self.taken: list[str] = []  # by the outbox
        self.seen: list[str] = []  # by the daemon: stored, or shown
        self.calls: list[tuple[list[str], Departure | None]] = []
        self.replies: list[tuple[Departure, dict[str, Any]]] = []
        self.last_n = 0

    def take(self, prefix: str) -> None:
        self.taken.append(f"{prefix}{len(self.taken)}")
        take(self.box, self.taken[-1])

    def send(self) -> None:
        shown = self.box.depart_shown()
        departure = None if shown else self.box.depart()
        if parameters := shown or (departure and departure.parameters):
            self.calls.append(([event["type"] for event in json.loads(parameters)["events"]], departure))

    def carry_out(self) -> None:
        if not self.calls:
            return
        types, departure = self.calls.pop(0)
        if departure is None:
            self.seen += types
            return
        fresh = types[self.last_n - departure.flight.first_n + 1 :]
        self.seen += fresh
        self.last_n = departure.flight.last_n
        duplicates = len(types) - len(fresh)
        reply = {"stored": len(fresh), "duplicates": duplicates, "position": 1, "last_seq": 1}
        self.replies.append((departure, reply))

    def hear(self) -> None:
        if self.replies:
            departure, reply = self.replies.pop(0)
            self.box.arrive(departure.flight, reply)

    def lose(self) -> None:
        self.calls.clear()
        self.replies.clear()
        self.box.rewind()


@settings(max_examples=600)
@given(st.lists(st.sampled_from(["e", ".", "send", "send", "carry_out", "carry_out", "hear", "lose"]), max_size=200))
def test_whatever_is_lost_what_is_shown_keeps_its_place_and_every_event_is_stored_once(steps: list[str]) -> None:
    wire = Wire()
    for step in steps:
        wire.take(step) if step in ("e", ".") else getattr(wire, step)()
    while wire.calls or wire.box.shown or not wire.box.settled:
        wire.send()
        wire.carry_out()
        wire.hear()
    assert [word for word in wire.seen if word[0] == "e"] == [word for word in wire.taken if word[0] == "e"]
    assert wire.seen == sorted(wire.seen, key=wire.taken.index)
    if "lose" not in steps:
        assert wire.seen == wire.taken


def test_behind_an_event_that_is_given_up_nothing_is_shown() -> None:
    box = outbox("a")
    take(box, "x" * 2000, ".1", "b")
    departure = box.depart(5000)
    assert departure is not None and (departure.flight.first_n, departure.flight.last_n) == (1, 2)
    take(box, ".2")
    assert departures(box) == [[".2"]]


def test_a_lost_connection_drops_it_and_sends_the_events_again() -> None:
    box = outbox("a", ".1", "b", ".2")
    assert departures(box) == [["a"], [".1"], ["b"], [".2"]]
    take(box, ".3")
    box.rewind()
    assert departures(box) == [["a", "b"]]


def test_a_refusal_drops_what_was_shown_behind_the_event() -> None:
    box = outbox("a", ".1")
    departure = box.depart()
    assert departure is not None
    box.refuse(departure.flight, Conflict(seq=1))
    assert not box.shown


def test_what_would_be_too_much_is_dropped() -> None:
    box = outbox("a")
    for _ in range(100):
        box.show(b"x" * 10_000)
    assert len(box.shown._behind[0][1]) == MAX_WAITING_BYTES // 10_000
    box.depart()
    assert len(box.shown.take(10**6)) == MAX_WAITING_BYTES // 10_000


def test_what_is_larger_than_a_frame_is_dropped() -> None:
    box = outbox()
    take(box, ".1")
    box.show(b"x" * 10_000)
    take(box, ".2")
    assert [box.shown.take(5000), box.shown.take(5000), box.shown.take(5000)] == [[b'{"type":".1"}'], [b'{"type":".2"}'], []]


def test_a_block_shows_its_tokens_within_their_step(small: SmallHistory) -> None:
    history = runhist.connect(deadline=LONG)
    with history.begin_run(run_id="r") as run:
        for number in range(3):
            with run.step("answer") as step:
                for token in "abc":
                    step.delta(f"{number}{token}")
            run.delta(f"{number}")
    expected = [
        word
        for number in range(3)
        for word in ("step.started", f"{number}a", f"{number}b", f"{number}c", "step.completed", f"{number}")
    ]
    assert small.seen == [*expected, "run.completed"] and small.connections == 1
    shown = next(parameters for method, parameters in small.calls if method == "Publish")
    (event,) = shown["events"]
    assert event.pop("time_us") > 0
    assert event == {"type": "delta", "kind": "output", "data": {"text": "0a"}, "step_id": "answer", "attempt": 1}
    history.close()


def test_a_daemon_that_does_not_know_it_is_not_sent_it(small: SmallHistory) -> None:
    small.features = []
    history = runhist.connect(deadline=LONG)
    with history.begin_run(run_id="r") as run:
        run.delta("a")
    assert small.types() == ["run.completed"] and run.faults == 0
    assert "Publish" not in [method for method, _ in small.calls]
    history.close()


def test_a_daemon_that_takes_nothing_makes_it_neither_wait_nor_fail(small: SmallHistory) -> None:
    history = runhist.connect(deadline=LONG, errors="raise")
    run = history.begin_run(run_id="r")

    def hang(method: str, parameters: dict[str, Any]) -> None:
        raise Hang

    small.before = hang
    for _ in range(2000):
        run.delta("x" * 10_000)  # far more than sockets hold
    assert run.faults == 0
    assert run._outbox is not None and run._outbox.held_events == 0
    history.close()


def test_it_is_dropped_while_the_daemon_is_away_and_shown_again_afterwards(
    small: SmallHistory, wait_until: Callable[..., None]
) -> None:
    history = runhist.connect(deadline=LONG, errors="raise")
    run = history.begin_run(run_id="r")
    run.delta("before")
    run.flush()
    small.wait(lambda: small.seen == ["before"])
    small.close()
    for _ in range(100):
        run.delta("meanwhile")
    small.open()

    def back() -> bool:
        run.delta("again")
        return "again" in small.seen

    wait_until(back, "it is shown")
    assert "meanwhile" not in small.seen and run.faults == 0
    history.close()


def test_a_connection_that_is_lost_meanwhile_is_no_fault(small: SmallHistory) -> None:
    history = runhist.connect(deadline=LONG, errors="raise")

    def vanish(method: str, parameters: dict[str, Any]) -> None:
        if method == "Publish" and len(small.calls) < 10:
            raise Vanish

    small.before = vanish
    with history.begin_run(run_id="r") as run:
        for _ in range(5):
            run.delta("a")
            run.note("n")
    assert small.types() == [*["note"] * 5, "run.completed"] and run.faults == 0
    history.close()


def test_what_can_never_be_shown_is_a_fault(small: SmallHistory) -> None:
    history = runhist.connect(deadline=LONG)
    with history.begin_run(run_id="r") as run:
        run.publish("token", {"x": float("nan")})
        run.publish("token", {"x": "x" * 200_000})
        run.delta("half a \ud800 pair")
    assert run.faults == 2
    assert small.seen[:1] == ["half a \ufffd pair"]
    history.close()


def test_in_a_child_or_where_recording_is_off_it_does_nothing(small: SmallHistory, monkeypatch: pytest.MonkeyPatch) -> None:
    history = runhist.connect(deadline=LONG)
    run = history.begin_run(run_id="r")
    child = os.fork()
    if child == 0:
        run.delta("child")
        os._exit(run.faults)
    assert os.waitpid(child, 0)[1] == 0
    monkeypatch.setenv("RUNHIST", "off")
    with runhist.connect().begin_run() as off, off.step("s") as step:
        step.delta("off")
        step.publish("token", {"text": "off"})
    run.complete()
    run.flush()
    assert small.seen == ["run.completed"]
    history.close()


@pytest.fixture
def history(daemon: Daemon, lead_to: Callable[[Daemon], Daemon]) -> Iterator[runhist.History]:
    """Of a real daemon."""
    lead_to(daemon).start()
    made = runhist.connect(deadline=LONG)
    yield made
    made.close()


def test_who_asks_for_it_sees_it_beside_the_events(history: runhist.History) -> None:
    with history.follow(published=True) as live, history.follow() as plain:
        with history.begin_run(run_id="r") as run:
            with run.step("answer") as step:
                step.delta("Hel")
                step.delta("lo")
                step.publish("thought", {"x": [1, "é"]})
        seen: list[str | dict[str, Any]] = []
        for item in live:
            if isinstance(item, Published):
                assert (item.namespace, item.run_id, item.epoch) == ("default", "r", 1)
                assert (item.step_id, item.attempt) == ("answer", 1)
                seen.append(item.data)
            elif isinstance(item, Event):
                seen.append(item.kind)
            if seen[-1] == "run.completed":
                break
        tokens = [{"text": "Hel"}, {"text": "lo"}, {"x": [1, "é"]}]
        assert seen == ["run.started", "step.started", *tokens, "step.completed", "run.completed"]
        assert live.dropped == 0
        assert live.cursor is not None and live.cursor.position == 4
        assert [next(plain).run_id for _ in range(4)] == ["r"] * 4
        assert plain.cursor == live.cursor
