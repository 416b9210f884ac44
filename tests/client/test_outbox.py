"""Numbering, resending and refusals, without a socket."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runhist.encoding import encode
from runhist.faults import Faults, Journal
from runhist.outbox import MAX_BATCH_BYTES, MAX_BATCH_EVENTS, Departure, Entry, Outbox
from runhist.protocol.errors import (
    Conflict,
    InvalidParameter,
    NoSuchRun,
    NotAllowed,
    Refusal,
    RunDeleted,
    SequenceGap,
    StaleEpoch,
    TooLarge,
)


def outbox(*events: str, raising: bool = False) -> Outbox:
    made = Outbox(Faults(Journal(), raising), "default", "r", None, epoch=7)
    for event in events:
        made.add(entry(event))
    return made


def entry(type: str) -> Entry:
    return Entry(type, encode({"type": type}))


def sent(departure: Departure | None) -> tuple[int, list[str]]:
    assert departure is not None
    parameters = json.loads(departure.parameters)
    assert parameters["epoch"] == 7
    return parameters["first_n"], [event["type"] for event in parameters["events"]]


def receipt(stored: int, **members: Any) -> dict[str, Any]:
    return {"stored": stored, "duplicates": 0, "position": 9, "last_seq": 9, **members}


def test_what_waits_goes_as_one_call_and_a_lone_event_alone() -> None:
    box = outbox("a")
    assert sent(box.depart()) == (1, ["a"])
    for event in ("b", "c", "d"):
        box.add(entry(event))
    assert sent(box.depart()) == (2, ["b", "c", "d"])
    assert box.depart() is None


def test_a_call_holds_a_bounded_number_of_events_and_bytes() -> None:
    box = outbox(*["a"] * (MAX_BATCH_EVENTS + 1))
    assert [len(sent(box.depart())[1]) for _ in range(2)] == [MAX_BATCH_EVENTS, 1]
    box = outbox("a" * (MAX_BATCH_BYTES // 2), "b" * (MAX_BATCH_BYTES // 2), "c" * (2 * MAX_BATCH_BYTES), "d")
    assert [len(sent(box.depart())[1]) for _ in range(4)] == [1, 1, 1, 1]


def test_a_receipt_settles_what_it_acknowledges() -> None:
    box = outbox("a", "b")
    departure = box.depart()
    assert departure is not None and not box.settled and box.held_events == 2 and box.held_bytes > 0
    box.arrive(departure.flight, receipt(2))
    assert box.settled and box.held_bytes == 0
    assert (box.stored, box.last_seq, box.position) == (2, 9, 9)


def test_after_a_lost_connection_everything_unacknowledged_goes_again_under_the_same_n() -> None:
    box = outbox("a")
    first = box.depart()
    assert first is not None
    box.add(entry("b"))
    box.depart()
    box.arrive(first.flight, receipt(1))
    box.add(entry("c"))
    box.rewind()
    assert sent(box.depart()) == (2, ["b", "c"])


def test_a_late_receipt_of_a_lost_connection_counts_for_nothing() -> None:
    box = outbox("a")
    departure = box.depart()
    assert departure is not None
    box.rewind()
    box.arrive(departure.flight, receipt(1))
    assert not box.settled
    assert sent(box.depart()) == (1, ["a"])


def test_the_guilty_event_of_a_refused_batch_is_found_and_its_n_goes_on() -> None:
    box = outbox("a", "guilty", "c")
    batch = box.depart()
    box.add(entry("d"))
    behind = box.depart()
    assert batch is not None and behind is not None
    box.refuse(batch.flight, NotAllowed(parameter="events[1].kind", reason="no"))
    box.refuse(behind.flight, SequenceGap(expected=1, last_n=0))
    alone = box.depart()
    assert alone is not None and sent(alone) == (1, ["a"])
    assert box.depart() is None  # one at a time
    box.arrive(alone.flight, receipt(1))
    guilty = box.depart()
    assert guilty is not None and sent(guilty) == (2, ["guilty"])
    box.refuse(guilty.flight, NotAllowed(parameter="events[0].kind", reason="no"))
    assert box.faults.count == 1
    third = box.depart()
    assert third is not None and sent(third) == (2, ["c"])
    box.arrive(third.flight, receipt(1))
    assert sent(box.depart()) == (3, ["d"])


def test_a_stale_epoch_counts_what_it_says_is_stored_and_gives_the_rest_up() -> None:
    box = outbox("a", "b", "c")
    departure = box.depart()
    assert departure is not None
    box.refuse(departure.flight, StaleEpoch(epoch=8, last_n=2))
    assert box.settled and box.stored == 2
    assert box.faults.count == 1
    assert isinstance(box.faults.take_pending(), StaleEpoch)  # raised even where faults are only logged
    box.add(entry("d"))
    assert box.depart() is None


@pytest.mark.parametrize(
    "refusal",
    [
        NoSuchRun(namespace="default", run_id="r"),
        RunDeleted(namespace="default", run_id="r", rule="deleted", deleted_us=1),
    ],
)
def test_a_refusal_of_the_run_gives_everything_up_at_once(refusal: Refusal) -> None:
    box = outbox("a", "b", "c")
    departure = box.depart()
    assert departure is not None
    box.refuse(departure.flight, refusal)
    assert box.settled and box.faults.count == 3 and box.faults.take_pending() is None


def test_a_refused_begin_gives_everything_up() -> None:
    box = Outbox(Faults(Journal(), False), None, "r", b'{"run":{}}')
    box.add(entry("a"))
    begin = box.depart()
    assert begin is not None and (begin.method, begin.parameters) == ("BeginRun", b'{"run":{}}')
    assert box.depart() is None  # events wait for the epoch
    box.refuse(begin.flight, InvalidParameter(parameter="run.run_id"))
    assert box.settled and box.faults.count == 2


def test_a_begin_is_repeated_word_for_word_after_a_lost_connection() -> None:
    box = Outbox(Faults(Journal(), False), None, "r", b'{"run":{}}')
    first = box.depart()
    box.rewind()
    second = box.depart()
    assert first is not None and second is not None and first.parameters == second.parameters
    box.arrive(first.flight, {"namespace": "default", "run_id": "r", "epoch": 1, "position": 1})
    assert box.epoch is None
    box.arrive(second.flight, {"namespace": "default", "run_id": "r", "epoch": 7, "position": 1})
    assert box.settled and box.held_bytes == 0 and box.last_seq == 1


def test_an_event_larger_than_a_frame_is_given_up_without_being_sent() -> None:
    box = outbox("a" * 10_000, "b")
    assert sent(box.depart(frame_bytes=10_000)) == (1, ["b"])
    assert isinstance(box.faults.take_refused(), TooLarge) and box.faults.count == 1


def test_an_event_that_may_be_stored_keeps_its_n_although_the_limit_shrank() -> None:
    box = outbox("a" * 10_000, "b")
    box.depart()
    box.rewind()
    assert sent(box.depart(frame_bytes=10_000))[0] == 1


def test_a_gap_that_says_more_is_stored_settles_that() -> None:
    box = outbox("a", "b")
    departure = box.depart()
    assert departure is not None
    box.refuse(departure.flight, SequenceGap(expected=2, last_n=1))
    assert box.stored == 1
    assert sent(box.depart()) == (2, ["b"])


def test_a_history_that_lost_acknowledged_events_is_a_fault_and_gets_a_new_writer() -> None:
    box = outbox("a", "b")
    first = box.depart()
    assert first is not None
    box.arrive(first.flight, receipt(2))
    box.add(entry("c"))
    second = box.depart()
    assert second is not None
    box.refuse(second.flight, SequenceGap(expected=2, last_n=1))
    third = box.depart()
    assert third is not None and sent(third) == (1, ["c"])
    assert json.loads(third.parameters)["writer"] != json.loads(first.parameters)["writer"]
    assert box.faults.count == 1  # b


def test_an_n_refused_for_no_reason_does_not_go_round_for_ever() -> None:
    box = outbox("a")
    departure = box.depart()
    assert departure is not None
    box.refuse(departure.flight, SequenceGap(expected=1, last_n=0))
    assert box.settled and box.faults.count == 1


def test_an_interrupt_between_flying_and_waiting_doubles_nothing() -> None:
    box = outbox("a")
    box._flying.append(box._waiting[0])  # where KeyboardInterrupt may hit _next_batch
    box.rewind()
    assert sent(box.depart()) == (1, ["a"])
    assert box.depart() is None


class Daemon:
    """What a daemon does with a writer's events: exactly once, gap-free, some words refused."""

    def __init__(self) -> None:
        self.stored: list[str] = []
        self.last_n: dict[str, int] = {}

    def append(self, parameters: bytes) -> dict[str, Any] | Refusal:
        call = json.loads(parameters)
        last_n, first_n = self.last_n.get(call["writer"], 0), call["first_n"]
        new = [event["type"] for event in call["events"]][max(0, last_n - first_n + 1) :]
        if any(word.startswith("guilty") for word in new):
            return Conflict(seq=1)
        if new and first_n > last_n + 1:
            return SequenceGap(expected=last_n + 1, last_n=last_n)
        self.stored += new
        self.last_n[call["writer"]] = max(last_n, first_n + len(call["events"]) - 1)
        return receipt(len(new), duplicates=len(call["events"]) - len(new))


@given(st.lists(st.sampled_from(["add", "add", "guilty", "depart", "carry out", "reply", "lose"]), max_size=60))
def test_whatever_is_lost_or_refused_every_sound_event_is_stored_once_and_in_order(steps: list[str]) -> None:
    daemon, box = Daemon(), outbox()
    events: list[str] = []
    on_the_way: list[Departure] = []
    replies: list[tuple[Departure, dict[str, Any] | Refusal]] = []

    def carry_out() -> None:
        if on_the_way:
            departure = on_the_way.pop(0)
            replies.append((departure, daemon.append(departure.parameters)))

    def reply() -> None:
        if replies:
            departure, answer = replies.pop(0)
            if isinstance(answer, Refusal):
                box.refuse(departure.flight, answer)
            else:
                box.arrive(departure.flight, answer)

    def depart() -> None:
        departure = box.depart()
        if departure is not None:
            on_the_way.append(departure)

    for step in steps:
        if step in ("add", "guilty"):
            events.append(f"{step} {len(events)}")
            box.add(entry(events[-1]))
        elif step == "depart":
            depart()
        elif step == "carry out":
            carry_out()
        elif step == "reply":
            reply()
        else:
            on_the_way.clear()
            replies.clear()
            box.rewind()
    while not box.settled:
        depart()
        carry_out()
        reply()
    assert daemon.stored == [event for event in events if event.startswith("add")]
    assert box.faults.count == sum(event.startswith("guilty") for event in events)
    assert box.held_bytes == 0
