"""Handing events over without waiting, whatever happens to the connection and the daemon."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

import runhist
from runhist import (
    Conflict,
    Refusal,
    RunExists,
    StaleEpoch,
    StorageFull,
    Unencodable,
    Unreachable,
)

from .conftest import Hang, Refuse, Vanish

if TYPE_CHECKING:
    from .conftest import SmallHistory

LONG = 30.0


@pytest.fixture
def history(small: SmallHistory) -> Iterator[runhist.History]:
    made = runhist.connect(deadline=LONG)
    yield made
    made.close()


def words(small: SmallHistory, run: runhist.Run) -> list[str]:
    return [stored.event["type"] for stored in small.stored if stored.run_id == run.run_id]


def on(method: str, raising: Exception, times: int = 10**9) -> Callable[[str, dict[str, Any]], None]:
    """For `SmallHistory.before`: the first `times` calls of the method end so."""
    left = [times]

    def before(called: str, parameters: dict[str, Any]) -> None:
        if called == method and left[0] > 0:
            left[0] -= 1
            raise raising

    return before


def refusing(word: str) -> Callable[[str, dict[str, Any]], None]:
    def before(method: str, parameters: dict[str, Any]) -> None:
        if method == "Append" and any(event["type"] == word for event in parameters["events"]):
            raise Refuse("Conflict", seq=1)

    return before


def test_connecting_touches_no_socket(small: SmallHistory) -> None:
    assert runhist.connect().mode == "recording"
    small.close()
    assert runhist.connect().mode == "recording"
    assert small.connections == 0


def test_an_event_is_sent_at_once_without_a_flush(small: SmallHistory, history: runhist.History) -> None:
    run = history.begin_run()
    run.append("first")
    small.wait(lambda: small.types() == ["first"])
    run.append("second", {"a": 1})
    small.wait(lambda: small.types() == ["first", "second"])
    assert small.stored[1].event["data"] == {"a": 1}
    assert [stored.n for stored in small.stored] == [1, 2]


def test_appending_does_not_wait_for_receipts(small: SmallHistory, history: runhist.History) -> None:
    run = history.begin_run()
    small.before = on("Append", Hang())
    for _ in range(100):
        run.append("x")  # each would take the whole deadline
    receipt = run.flush(deadline=0.01)
    assert receipt.durable == "off" and receipt.stored == 0
    assert run.faults == 0  # nothing is lost yet


def test_a_receipt_tells_what_became_of_the_events_since_the_last_one(small: SmallHistory, history: runhist.History) -> None:
    run = history.begin_run()
    assert run.flush() == runhist.Receipt("committed", 0, 0, 1, 1, 0)
    for _ in range(3):
        run.append("x")
    assert run.flush() == runhist.Receipt("committed", 3, 0, 4, 4, 0)
    run.append("y", {"bad": float("nan")})
    assert run.flush() == runhist.Receipt("off", 0, 0, 4, 4, 1)
    run.append("z")
    assert run.flush() == runhist.Receipt("committed", 1, 0, 5, 5, 0)


@pytest.mark.parametrize("after", [False, True], ids=["before it is stored", "after it is stored"])
def test_a_connection_lost_at_any_call_loses_and_doubles_nothing(
    small: SmallHistory, history: runhist.History, after: bool
) -> None:
    calls = 0

    def before(method: str, parameters: dict[str, Any]) -> None:
        nonlocal calls
        calls += 1
        if method in ("BeginRun", "Append") and calls % 3 == 0:
            raise Vanish(after)

    small.before = before
    run = history.begin_run()
    for i in range(60):
        run.append(f"event {i}")
        if i % 10 == 0:
            run.flush()
    assert run.flush().durable == "committed"
    assert words(small, run) == [f"event {i}" for i in range(60)]
    assert run.faults == 0
    assert small.connections > 3


def test_a_lost_reply_of_begin_is_repeated_under_the_same_lease_key(small: SmallHistory, history: runhist.History) -> None:
    small.before = on("BeginRun", Vanish(after=True), times=2)
    run = history.begin_run(run_id="r")
    assert run.epoch == 1
    begins = [parameters for method, parameters in small.calls if method == "BeginRun"]
    assert len(begins) == 3 and begins[0] == begins[1] == begins[2]


def test_while_the_daemon_is_away_events_are_spooled_and_stored_when_it_is_back(
    small: SmallHistory, caplog: pytest.LogCaptureFixture
) -> None:
    small.close()
    history = runhist.connect(deadline=0.05)
    run = history.begin_run(run_id="r")
    assert run.epoch is None and run.faults == 0 and history.mode == "spooling"
    run.append("a")
    assert run.flush().durable == "spooled"
    small.open()
    run.append("b")
    assert run.flush(LONG) == runhist.Receipt("committed", 2, 0, 3, 3, 0)
    assert words(small, run) == ["a", "b"]
    assert run.epoch == 1
    assert [record.name for record in caplog.records] == ["runhist"]
    assert "goes to the spool" in caplog.text and "runhistd is not running" in caplog.text
    history.close()


def test_a_daemon_that_ends_between_two_calls_is_found_again(small: SmallHistory, history: runhist.History) -> None:
    run = history.begin_run()
    run.append("a")
    small.close()
    run.append("b")
    run.append("c")
    small.open()
    assert run.flush().durable == "committed"
    assert words(small, run) == ["a", "b", "c"]


def test_an_engine_is_held_up_once_while_the_daemon_is_away(small: SmallHistory) -> None:
    small.close()
    history = runhist.connect(deadline=0.05)
    history.begin_run()
    history.deadline = LONG
    began = time.monotonic()
    with history.begin_run() as run:
        run.append("x")
    assert time.monotonic() - began < LONG / 2
    assert run.faults == 0 and run.flush().durable == "spooled"
    history.close()


def test_with_require_a_run_that_cannot_begin_raises(small: SmallHistory, monkeypatch: pytest.MonkeyPatch) -> None:
    small.close()
    with pytest.raises(Unreachable) as caught:
        runhist.connect(require=True, deadline=0.01).begin_run()
    assert caught.value.reason == "refused"
    monkeypatch.setenv("RUNHIST", "on")
    history = runhist.connect(deadline=0.01)
    assert history.begin_run().flush().durable == "spooled" and history.mode == "spooling"


def test_a_begin_that_raised_does_not_begin_later(small: SmallHistory) -> None:
    small.close()
    history = runhist.connect(require=True, deadline=0.01)
    with pytest.raises(Unreachable):
        history.begin_run(run_id="given up")
    small.open()
    history.deadline = LONG
    history.begin_run(run_id="other")
    assert list(small.epochs) == ["other"]
    history.close()


def test_another_program_at_the_socket_is_a_fault_that_says_so(
    small: SmallHistory, caplog: pytest.LogCaptureFixture
) -> None:
    small.before = on("Describe", Refuse("org.varlink.service.InterfaceNotFound", interface="dev.runhist.History"))
    history = runhist.connect(deadline=0.05)
    with history.begin_run() as run:
        run.append("x")
    assert run.faults > 0 and "another program" in caplog.text
    with pytest.raises(Unreachable) as caught:
        runhist.connect(require=True, deadline=0.05).begin_run()
    assert caught.value.reason == "not_a_history"
    history.close()


def test_a_reply_that_lacks_a_member_breaks_nothing(small: SmallHistory) -> None:
    small._BeginRun = lambda run, lease_key: {}  # type: ignore[method-assign]
    history = runhist.connect(deadline=0.05)
    run = history.begin_run()
    assert run.epoch is None and run.faults == 1
    history.close()


# refusals


def test_a_refused_event_is_counted_and_raised_by_flush_and_its_neighbours_are_stored(
    small: SmallHistory, history: runhist.History, caplog: pytest.LogCaptureFixture
) -> None:
    run = history.begin_run()
    small.before = refusing("bad")
    for word in ("a", "bad", "b", "bad", "c"):
        run.append(word)
    with pytest.raises(Conflict):
        run.flush()
    assert words(small, run) == ["a", "b", "c"]
    assert run.faults == 2
    assert len(caplog.records) == 1 and "'bad'" in caplog.text
    assert run.flush().durable == "committed"  # what was raised once is not raised again


def test_leaving_the_block_raises_no_refusal_unless_asked_to(small: SmallHistory, history: runhist.History) -> None:
    small.before = refusing("bad")
    with history.begin_run() as run:
        run.append("bad")
    assert run.faults == 1 and words(small, run) == ["run.completed"]
    with pytest.raises(Conflict):
        with runhist.connect(errors="raise", deadline=LONG).begin_run() as run:
            run.append("bad")
    assert run.faults == 1


def test_errors_raise_raises_at_the_next_call(small: SmallHistory) -> None:
    history = runhist.connect(errors="raise", deadline=LONG)
    run = history.begin_run()
    small.before = refusing("bad")
    run.append("bad")
    with pytest.raises(Conflict):
        while True:
            run.append("good")
    run.append("good")  # raised once
    with pytest.raises(Unencodable, match=r"data\.a"):
        run.append("x", {"a": {1, 2}})
    history.close()


def test_errors_raise_raises_what_begin_meets(small: SmallHistory) -> None:
    history = runhist.connect(errors="raise", deadline=0.05)
    history.begin_run(run_id="r")
    with pytest.raises(RunExists):
        history.begin_run(run_id="r")
    small.close()
    assert history.begin_run().flush().durable == "spooled"
    history.close()


def test_a_refused_begin_breaks_no_engine_but_every_flush(small: SmallHistory, history: runhist.History) -> None:
    history.begin_run(run_id="r")
    with history.begin_run(run_id="r") as run:
        run.append("x")
        for _ in range(2):
            with pytest.raises(RunExists):
                run.flush()
    assert run.faults == 3 and small.stored == []
    with pytest.raises(RunExists):
        runhist.connect(require=True, deadline=LONG).begin_run(run_id="r")


def test_a_stale_epoch_raises_at_every_call(small: SmallHistory, history: runhist.History) -> None:
    run = history.begin_run()
    small.before = on("Append", Refuse("StaleEpoch", epoch=9, last_n=0))
    run.append("a")
    with pytest.raises(StaleEpoch):
        run.flush()
    for attempt in (lambda: run.append("b"), lambda: run.note("c"), run.flush, run.complete):
        with pytest.raises(StaleEpoch):
            attempt()
    with pytest.raises(StaleEpoch):
        with run:
            pass


def test_an_exception_that_leaves_the_block_wins(small: SmallHistory, history: runhist.History) -> None:
    small.before = on("Append", Refuse("StaleEpoch", epoch=9, last_n=0))
    with pytest.raises(ZeroDivisionError):
        with history.begin_run() as run:
            with run.step("s"):
                raise ZeroDivisionError
    assert run.faults > 0


def test_a_full_disk_passes_and_until_then_flush_raises_it(small: SmallHistory, history: runhist.History) -> None:
    run = history.begin_run()
    small.before = on("Append", Refuse("StorageFull"))
    run.append("a")
    with pytest.raises(StorageFull):
        run.flush(deadline=0.05)
    small.before = on("Append", Refuse("ShuttingDown"), times=1)
    run.append("b")
    assert run.flush().durable == "committed"
    assert words(small, run) == ["a", "b"] and run.faults == 0


@pytest.mark.parametrize("metadata", [{"a": float("nan")}, {"a": b"x"}])
def test_a_run_begins_without_what_is_not_json(
    small: SmallHistory, history: runhist.History, metadata: Any, caplog: pytest.LogCaptureFixture
) -> None:
    run = history.begin_run(run_id="r", workflow="w", metadata=metadata, definition=[1, 2])
    spec = next(parameters["run"] for method, parameters in small.calls if method == "BeginRun")
    assert (spec["workflow"], spec["definition"]) == ("w", {"value": [1, 2]}) and "metadata" not in spec
    assert run.faults == 1 and "metadata.a" in caplog.text


def test_a_run_id_that_is_no_text_cannot_be_recorded(
    small: SmallHistory, history: runhist.History, caplog: pytest.LogCaptureFixture
) -> None:
    run = history.begin_run(run_id="r\udc80")
    run.append("x")
    assert run.faults == 2 and small.calls == []
    assert "r\ufffd" in caplog.text and caplog.text.encode("utf-8")  # any handler can write it
    with pytest.raises(Refusal, match=r"run\.run_id"):
        run.flush()


# the window


def test_a_full_window_waits_up_to_the_deadline_and_then_counts_what_is_lost(small: SmallHistory) -> None:
    history = runhist.connect(window=3, deadline=0.05)
    run = history.begin_run()
    small.before = on("Append", Hang())
    for word in ("a", "b", "c", "lost", "lost"):
        run.append(word)
    assert run.faults == 2
    assert run.flush(deadline=0.01).durable == "off"
    small.before = lambda method, parameters: None
    history.close()  # which makes it send again
    receipt = run.flush(LONG)
    assert (receipt.durable, receipt.stored) == ("committed", 3)
    assert words(small, run) == ["a", "b", "c"]
    run.append("d")
    assert run.flush().durable == "committed" and run.faults == 2
    history.close()


def test_a_full_window_holds_up_once_and_takes_the_end_of_the_run(small: SmallHistory) -> None:
    history = runhist.connect(window=1, deadline=0.02)
    run = history.begin_run()
    small.before = on("Append", Hang())
    run.append("a")
    run.append("lost")
    history.deadline = LONG
    began = time.monotonic()
    for _ in range(100):
        run.append("lost")
    run.complete()
    assert time.monotonic() - began < LONG / 2
    small.before = lambda method, parameters: None
    history.close()
    run.flush()
    assert words(small, run) == ["a", "run.completed"] and run.faults == 101
    history.close()


def test_a_full_window_goes_on_as_soon_as_there_is_room(small: SmallHistory) -> None:
    history = runhist.connect(window=2, deadline=LONG)
    run = history.begin_run()
    for i in range(50):
        run.append(f"event {i}")
    assert run.flush().stored == 50 and run.faults == 0
    history.close()


def test_the_window_is_bounded_in_bytes_too(small: SmallHistory) -> None:
    history = runhist.connect(deadline=0.05)
    run = history.begin_run()
    small.before = on("Append", Hang())
    for _ in range(20):
        run.append("x", {"text": "y" * 1_000_000})
    assert run.faults == 20 - 16
    history.close()


def test_events_are_coalesced_while_the_socket_is_full(small: SmallHistory, history: runhist.History) -> None:
    run = history.begin_run()
    hold = threading.Event()

    def before(method: str, parameters: dict[str, Any]) -> None:
        hold.wait(LONG)

    small.before = before
    for i in range(2000):
        run.append("x", {"i": i, "text": "y" * 1000})
    hold.set()
    assert run.flush().stored == 2000
    sizes = [len(parameters["events"]) for method, parameters in small.calls if method == "Append"]
    assert sizes[0] == 1 and max(sizes) == 100 and len(sizes) < 1500
    assert [stored.event["data"]["i"] for stored in small.stored] == list(range(2000))


# threads, signals, logging


def test_threads_share_a_history_and_a_run(small: SmallHistory, history: runhist.History) -> None:
    runs = [history.begin_run() for _ in range(2)]

    def work(name: int) -> None:
        for i in range(100):
            runs[i % 2].append(f"{name}", {"i": i})
            if i % 25 == 0:
                runs[i % 2].flush()

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    for parity, run in enumerate(runs):
        assert run.flush().durable == "committed"
        for name in range(4):
            mine = [s.event["data"]["i"] for s in small.stored if s.run_id == run.run_id and s.event["type"] == f"{name}"]
            assert mine == list(range(parity, 100, 2))
    assert small.connections == 1


def test_a_thread_that_waits_holds_no_other_up(small: SmallHistory, history: runhist.History) -> None:
    slow, quick = history.begin_run(), history.begin_run()
    small.before = on("Append", Hang(), times=1)
    slow.append("never answered")
    waiting = threading.Thread(target=lambda: slow.flush(deadline=LONG))
    waiting.start()
    for _ in range(100):
        quick.append("x")  # each would take as long as the other's flush
    assert waiting.is_alive()
    small.close()
    small.open()
    waiting.join(LONG)
    assert quick.flush().stored == 100 and words(small, slow) == ["never answered"]


def test_threads_that_wait_at_the_same_time_miss_no_receipt(small: SmallHistory, history: runhist.History) -> None:
    def work() -> None:
        run = history.begin_run()
        for _ in range(200):
            run.append("x")
            run.flush()

    threads = [threading.Thread(target=work) for _ in range(3)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert time.monotonic() - began < LONG / 2  # whoever misses one sleeps to its deadline


def test_an_interrupt_while_waiting_cancels_the_run_and_the_end_is_stored(
    small: SmallHistory, history: runhist.History
) -> None:
    def before(method: str, parameters: dict[str, Any]) -> None:
        if method == "Append" and parameters["events"][0]["type"] == "x":
            small.before = lambda method, parameters: None
            os.kill(os.getpid(), signal.SIGINT)

    small.before = before
    with pytest.raises(KeyboardInterrupt):
        with history.begin_run() as run:
            run.append("x")
            run.flush()
    assert words(small, run) == ["x", "run.cancelled"] and run.faults == 0
    assert small.stored[1].event["data"] == {"reason": "KeyboardInterrupt"}


INTERRUPTED = """
import json, os, signal, sys, runhist
armed = False
def interrupt(*_):
    global armed
    if armed:
        armed = False
        raise KeyboardInterrupt
run = runhist.connect(deadline=30).begin_run()
handed_over, interrupts, i = [], 0, 0
signal.signal(signal.SIGALRM, interrupt)
signal.setitimer(signal.ITIMER_REAL, 0.003, 0.0031)
while interrupts < 100:
    i += 1
    try:
        armed = True
        run.append("x", {"i": i})
        armed = False
        handed_over.append(i)
    except KeyboardInterrupt:
        interrupts += 1
armed = False
signal.setitimer(signal.ITIMER_REAL, 0)
json.dump([handed_over, run.flush().durable, run.faults], sys.stdout)
"""


def test_interrupts_at_any_moment_lose_and_double_nothing(small: SmallHistory) -> None:
    """Whatever an interrupt leaves half done is thrown away with the connection and sent again."""
    told = subprocess.run([sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, timeout=LONG, check=True)
    handed_over, durable, faults = json.loads(told.stdout)
    assert (durable, faults) == ("committed", 0)
    stored = [event.event["data"]["i"] for event in small.stored]
    assert stored == sorted(set(stored))
    assert set(handed_over) <= set(stored)
    assert small.connections > 1


SIGNALLED = """
import json, signal, sys, runhist
handled = 0
def handle(*_):
    global handled
    handled += 1
    run.append("from the handler", {"i": handled - 1})
run = runhist.connect(deadline=30).begin_run()
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0011)
i = 0
while handled < 200:
    run.append("x", {"i": i})
    i += 1
signal.setitimer(signal.ITIMER_REAL, 0)
json.dump([i, handled, run.flush().durable], sys.stdout)
"""


def test_a_signal_handler_may_record_at_any_moment(small: SmallHistory) -> None:
    told = subprocess.run([sys.executable, "-c", SIGNALLED], stdout=subprocess.PIPE, timeout=LONG, check=True)
    recorded, handled, durable = json.loads(told.stdout)
    assert durable == "committed"
    stored = [(s.event["type"], s.event["data"]["i"]) for s in small.stored]
    assert [i for type, i in stored if type == "x"] == list(range(recorded))
    assert len(stored) == len(set(stored)) == recorded + handled
    assert small.connections == 1


def test_a_log_handler_may_record_the_faults_it_is_told(small: SmallHistory, history: runhist.History) -> None:
    run = history.begin_run()

    class Recorder(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            run.note(record.getMessage())

    recorder = Recorder()
    logging.getLogger("runhist").addHandler(recorder)
    try:
        run.append("x", {"a": float("inf")})
    finally:
        logging.getLogger("runhist").removeHandler(recorder)
    run.flush()
    assert words(small, run) == ["note"]
    assert "data.a" in small.stored[0].event["data"]["text"]


def test_each_kind_of_fault_is_logged_once_for_all_runs(
    small: SmallHistory, history: runhist.History, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        run = history.begin_run()
        run.append("x", {"a": float("nan")})
        run.append("x", {"a": float("nan")})
        assert run.faults == 2
    assert len(caplog.records) == 1


# fork


def in_child(work: Callable[[], bool]) -> None:
    """Fork, and require that `work` returns True in the child."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forking beside threads, as this does
        child = os.fork()
    if child == 0:
        status = 3
        try:
            status = 0 if work() else 1
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_forked_child_records_nothing_and_disturbs_nothing(small: SmallHistory, history: runhist.History) -> None:
    run = history.begin_run()
    small.before = on("Append", Hang())
    run.append("unacknowledged in the parent")

    def work() -> bool:
        with run:
            with run.step("s") as step:
                step.output("x")
            off = run.flush()
        with history.begin_run() as other:
            other.append("x")
        return history.mode == "off" and off.durable == "off" and run.faults == 4 and other.flush().durable == "off"

    in_child(work)
    small.before = lambda method, parameters: None
    run.append("behind it")
    history.close()
    assert run.flush().durable == "committed"
    assert words(small, run) == ["unacknowledged in the parent", "behind it"]


def test_a_forked_child_may_connect_anew(small: SmallHistory, history: runhist.History) -> None:
    run = history.begin_run()

    def work() -> bool:
        with runhist.connect(deadline=LONG).begin_run(run_id="the child's") as own:
            own.append("x")
            return own.flush().durable == "committed"

    in_child(work)
    run.append("y")
    assert run.flush().durable == "committed"
    assert small.types() == ["x", "run.completed", "y"]


def test_a_fork_leaves_no_descriptor_of_the_parent_in_the_child(small: SmallHistory, history: runhist.History) -> None:
    history.begin_run()
    assert history._link is not None and history._link._connection is not None
    descriptor = history._link._connection.fileno()
    os.fstat(descriptor)

    def is_closed() -> bool:
        with pytest.raises(OSError):
            os.fstat(descriptor)
        return True

    in_child(is_closed)
