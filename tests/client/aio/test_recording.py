"""Recording from tasks: no recording call waits, and a block that is cancelled is still stored."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest

from runhist import Conflict, Receipt, RunExists, StaleEpoch, Unencodable, Unreachable, aio
from runhist.connection import Connection
from runhist.protocol.machine import Reply
from runhist.spool import SpoolFull
from tests.client.conftest import Hang, Refuse, Vanish

if TYPE_CHECKING:
    from tests.client.conftest import SmallHistory

    Go = Callable[[Callable[[], Awaitable[None]]], None]

LONG = 30.0


def words(small: SmallHistory, run: aio.Run) -> list[str]:
    return [stored.event["type"] for stored in small.stored if stored.run_id == run.run_id]


def on(method: str, raising: Exception, times: int = 10**9) -> Callable[[str, dict[str, Any]], None]:
    """For `SmallHistory.before`: the first `times` calls of the method end so."""
    left = [times]

    def before(called: str, parameters: dict[str, Any]) -> None:
        if called == method and left[0] > 0:
            left[0] -= 1
            raise raising

    return before


async def wait_for(small: SmallHistory, condition: Callable[[], object]) -> None:
    await anyio.to_thread.run_sync(small.wait, condition)


def test_neither_connecting_nor_entering_the_block_touches_a_socket(small: SmallHistory, go: Go) -> None:
    async def main() -> None:
        async with aio.connect() as history:
            modes = [history.mode]
        assert [*modes, history.mode] == ["recording", "off"]

    go(main)
    assert small.connections == 0


def test_a_block_records_a_run_with_its_steps(small: SmallHistory, go: Go) -> None:
    async def main() -> None:
        async with aio.connect(namespace="n", deadline=LONG) as history:
            async with history.begin_run(run_id="r", workflow="w", metadata={"m": 1}) as run:
                with run.step("outer") as outer:
                    outer.output("a line")
                    with run.step("inner"):
                        await anyio.lowlevel.checkpoint()
                    outer.usage(input_tokens=3)
                run.note("done")
                run.append("node:completed", {"answer": 42})
            assert (run.run_id, run.namespace, run.epoch, run.faults) == ("r", "n", 1, 0)

    go(main)
    assert small.types() == [
        *("step.started", "output", "step.started", "step.completed", "usage", "step.completed", "note"),
        *("node:completed", "run.completed"),
    ]
    assert small.stored[2].event["data"] == {"name": "inner", "parent_step_id": "outer"}
    spec = next(parameters["run"] for method, parameters in small.calls if method == "BeginRun")
    assert (spec["run_id"], spec["workflow"], spec["metadata"]) == ("r", "w", {"m": 1})


def test_an_event_leaves_at_the_next_await_without_a_flush(small: SmallHistory, go: Go) -> None:
    async def main() -> None:
        async with aio.connect(deadline=LONG) as history:
            run = await history.begin_run()
            run.append("first")
            await wait_for(small, lambda: small.types() == ["first"])
            run.append("second")
            run.append("third")
            await wait_for(small, lambda: small.types() == ["first", "second", "third"])

    go(main)
    appends = [parameters["events"] for method, parameters in small.calls if method == "Append"]
    assert [len(events) for events in appends] == [1, 2]


def test_recording_calls_do_not_wait_for_receipts(small: SmallHistory, go: Go) -> None:
    async def main() -> None:
        async with aio.connect(deadline=LONG) as history:
            run = await history.begin_run()
            small.before = on("Append", Hang())
            for _ in range(100):
                run.append("x")
            receipt = await run.flush(deadline=0.01)
            assert receipt.durable == "off" and receipt.stored == 0
            assert run.faults == 0  # nothing is lost yet
            small.before = lambda method, parameters: None
            small.close()
            small.open()
            assert (await run.flush()).stored == 100

    go(main)


def test_a_receipt_tells_what_became_of_the_events_since_the_last_one(small: SmallHistory, go: Go) -> None:
    async def main() -> None:
        async with aio.connect(deadline=LONG) as history:
            run = await history.begin_run()
            assert await run.flush() == Receipt("committed", 0, 0, 1, 1, 0)
            for _ in range(3):
                run.append("x")
            assert await run.flush() == Receipt("committed", 3, 0, 4, 4, 0)
            run.append("y", {"bad": float("nan")})
            assert await run.flush() == Receipt("off", 0, 0, 4, 4, 1)

    go(main)


@pytest.mark.parametrize("after", [False, True], ids=["before it is stored", "after it is stored"])
def test_a_connection_lost_at_any_call_loses_and_doubles_nothing(small: SmallHistory, go: Go, after: bool) -> None:
    calls = 0

    def before(method: str, parameters: dict[str, Any]) -> None:
        nonlocal calls
        calls += 1
        if method in ("BeginRun", "Append") and calls % 3 == 0:
            raise Vanish(after)

    small.before = before

    async def main() -> None:
        async with aio.connect(deadline=LONG) as history:
            run = await history.begin_run()
            for i in range(60):
                run.append(f"event {i}")
                if i % 10 == 0:
                    await run.flush()
            assert (await run.flush()).durable == "committed"
            assert words(small, run) == [f"event {i}" for i in range(60)]
            assert run.faults == 0

    go(main)
    assert small.connections > 3


def test_an_event_that_is_larger_than_the_sockets_buffer_is_sent(small: SmallHistory, go: Go) -> None:
    async def main() -> None:
        async with aio.connect(deadline=LONG) as history:
            run = await history.begin_run()
            for _ in range(3):
                run.append("large", {"text": "x" * 900_000})
            assert (await run.flush()).stored == 3

    go(main)


def test_many_tasks_share_the_connection(small: SmallHistory, go: Go) -> None:
    runs: list[aio.Run] = []

    async def main() -> None:
        async with aio.connect(deadline=LONG) as history, anyio.create_task_group() as tasks:

            async def engine() -> None:
                async with history.begin_run() as run:
                    runs.append(run)
                    for i in range(20):
                        run.append(f"event {i}")
                        await anyio.lowlevel.checkpoint()

            for _ in range(20):
                tasks.start_soon(engine)

    go(main)
    assert len(runs) == 20 and small.connections == 1
    for run in runs:
        assert words(small, run) == [*(f"event {i}" for i in range(20)), "run.completed"]


def test_worker_threads_may_record_while_the_loop_waits(small: SmallHistory, go: Go) -> None:
    async def main() -> None:
        async with aio.connect(deadline=LONG) as history:
            run = await history.begin_run()

            def work() -> None:
                run.append("from a thread")
                small.wait(lambda: small.types() == ["from a thread"])

            await anyio.to_thread.run_sync(work)

    go(main)


def test_past_the_window_events_go_to_the_spool_and_are_stored_once_in_their_order(small: SmallHistory, go: Go) -> None:
    async def main() -> None:
        async with aio.connect(deadline=LONG, window=10) as history:
            run = await history.begin_run()
            other = await history.begin_run()
            small.before = on("Append", Hang())
            expected = [f"event {i}" for i in range(100)]
            for i in range(50):
                run.append(f"event {i}")
                if i % 7 == 0:
                    other.append("x")
                    await anyio.lowlevel.checkpoint()
            small.before = on("Append", Vanish(after=True), times=3)
            small.close()
            small.open()
            for i in range(50, 100):
                run.append(f"event {i}")
            receipt = await run.flush()
            assert receipt.durable == "committed" and receipt.stored + receipt.duplicates >= 100
            assert (await other.flush()).durable == "committed"
            assert words(small, run) == expected and words(small, other) == ["x"] * 8
            assert (run.faults, other.faults) == (0, 0)

    go(main)
    assert list((small.path.parent / "state" / "spool").iterdir()) == []


def test_where_the_spool_takes_nothing_more_an_event_past_the_window_is_a_fault(small: SmallHistory, go: Go) -> None:
    async def main() -> None:
        async with aio.connect(deadline=LONG, window=10, spool_bytes=2000, errors="raise") as history:
            run = await history.begin_run()
            small.before = on("Append", Hang())
            with pytest.raises(SpoolFull):
                for _ in range(100):
                    run.append("x")
            assert run.faults == 1
            history.deadline = 0.1  # of the last flush, which is in vain

    go(main)


def test_without_a_spool_an_event_past_the_window_is_a_fault_and_the_end_still_passes(small: SmallHistory, go: Go) -> None:
    async def main() -> None:
        async with aio.connect(deadline=LONG, window=10, require=True) as history:
            async with history.begin_run() as run:
                for _ in range(12):
                    run.append("x")
                assert run.faults == 2
                await run.flush()
                run.append("y")
            assert run.faults == 2
            assert words(small, run) == [*["x"] * 10, "y", "run.completed"]

    go(main)


def test_an_exception_leaves_the_blocks_as_it_is_and_fails_the_run(small: SmallHistory, go: Go) -> None:
    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            async with aio.connect(deadline=LONG) as history, history.begin_run():
                raise ZeroDivisionError("no")

    go(main)
    assert small.types() == ["run.failed"]
    assert small.stored[0].event["data"]["error"] == "ZeroDivisionError: no"


def test_a_cancelled_block_is_stored_as_cancelled(small: SmallHistory, go: Go) -> None:
    async def main() -> None:
        with anyio.CancelScope() as scope:
            async with aio.connect(deadline=LONG) as history, history.begin_run() as run:
                run.append("before")
                scope.cancel()
                await anyio.sleep_forever()
        assert scope.cancelled_caught

    go(main)
    assert small.types() == ["before", "run.cancelled"]


def test_a_cancelled_block_is_stored_when_it_is_left_though_its_history_goes_on(small: SmallHistory, go: Go) -> None:
    async def main() -> None:
        async with aio.connect(deadline=LONG) as history:
            with anyio.CancelScope() as scope:
                async with history.begin_run() as run:
                    scope.cancel()
                    await anyio.sleep_forever()
            assert small.types() == ["run.cancelled"] and run.faults == 0

    go(main)


def test_a_task_that_asyncio_cancels_twice_is_stored_as_cancelled(small: SmallHistory) -> None:
    async def engine(run: aio.Run) -> None:
        async with run:
            run.append("before")
            await asyncio.sleep(LONG)

    async def main() -> None:
        async with aio.connect(deadline=LONG) as history:
            run = await history.begin_run()
            task = asyncio.create_task(engine(run))
            await wait_for(small, lambda: small.types() == ["before"])
            loop = asyncio.get_running_loop()

            async def cancel() -> None:
                task.cancel()

            def before(method: str, parameters: dict[str, Any]) -> None:
                asyncio.run_coroutine_threadsafe(cancel(), loop).result(LONG)

            small.before = before
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert small.types() == ["before", "run.cancelled"] and run.faults == 0

    asyncio.run(main())


def test_an_interrupt_in_the_middle_of_the_historys_task_reaches_the_program_and_loses_nothing(
    small: SmallHistory, go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive = Connection.receive
    interrupts = [KeyboardInterrupt()]

    def interrupted(connection: Connection, limit: int | None = None) -> list[Reply]:
        if "before" in small.types() and interrupts:
            raise interrupts.pop()
        return receive(connection, limit)

    monkeypatch.setattr(Connection, "receive", interrupted)

    async def main() -> None:
        with pytest.raises(KeyboardInterrupt):
            async with aio.connect(deadline=LONG) as history, history.begin_run() as run:
                run.append("before")
                await anyio.sleep(LONG)

    go(main)
    assert small.types() == ["before", "run.cancelled"]


def test_another_exception_is_not_lost_in_a_cancelled_scope(small: SmallHistory, go: Go) -> None:
    async def main() -> None:
        with anyio.CancelScope() as scope, pytest.raises(ZeroDivisionError):
            async with aio.connect(deadline=LONG) as history, history.begin_run():
                scope.cancel()
                raise ZeroDivisionError

    go(main)
    assert small.types() == ["run.failed"]


def test_a_block_that_is_left_at_once_or_entered_when_cancelled_ends(small: SmallHistory, go: Go) -> None:
    async def main() -> None:
        async with aio.connect():
            pass
        with anyio.CancelScope() as scope:
            scope.cancel()
            async with aio.connect() as history:
                await history.begin_run()
        assert scope.cancelled_caught

    go(main)


def test_a_cancelled_block_waits_no_longer_than_the_deadline_and_counts_what_it_left(small: SmallHistory, go: Go) -> None:
    async def main() -> None:
        with anyio.fail_after(LONG):
            with anyio.CancelScope() as scope:
                async with aio.connect(deadline=0.05) as history, history.begin_run() as run:
                    await run.flush(LONG)
                    small.before = on("Append", Hang())
                    scope.cancel()
                    await anyio.sleep_forever()
            assert run.faults == 1

    go(main)


def test_leaving_the_history_stores_what_runs_without_a_block_recorded(small: SmallHistory, go: Go) -> None:
    async def main() -> None:
        async with aio.connect(deadline=LONG) as history:
            run = await history.begin_run()
            run.append("last")
        assert small.types() == ["last"]
        run.append("too late")
        assert run.faults == 1 and small.types() == ["last"]
        assert (await run.flush()).durable == "off"

    go(main)


def test_where_somebody_cancels_the_historys_task_nobody_waits_for_it_and_the_faults_are_counted(
    small: SmallHistory,
) -> None:
    async def main() -> None:
        async with aio.connect(deadline=LONG * 100) as history:
            run = await history.begin_run()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await asyncio.sleep(0)
            run.append("x")
            assert (await run.flush()).durable == "off"
            assert run.faults == 1 and history.mode == "off"

    asyncio.run(main())


def test_what_a_history_leaves_unstored_is_counted(small: SmallHistory, go: Go) -> None:
    async def main() -> None:
        async with aio.connect(deadline=0.05) as history:
            run = await history.begin_run()
            await run.flush(LONG)
            small.before = on("Append", Hang())
            run.append("a")
            run.append("b")
        assert run.faults == 2

    go(main)


def test_runs_are_begun_in_the_block_only(small: SmallHistory, go: Go) -> None:
    async def main() -> None:
        history = aio.connect()
        with pytest.raises(RuntimeError, match="async with"):
            await history.begin_run()
        async with history:
            pass
        with pytest.raises(RuntimeError, match="async with"):
            await history.begin_run()
        with pytest.raises(RuntimeError, match="again"):
            await history.__aenter__()

    go(main)
    assert small.connections == 0


def test_a_begin_that_is_cancelled_while_the_daemon_is_away_does_not_begin_later(small: SmallHistory, go: Go) -> None:
    small.close()

    async def main() -> None:
        async with aio.connect(deadline=LONG, require=True) as history:
            with anyio.move_on_after(0.05) as scope:
                await history.begin_run(run_id="given up")
            assert scope.cancelled_caught
            small.open()
            await history.begin_run(run_id="begun")

    go(main)
    assert [parameters["run"]["run_id"] for method, parameters in small.calls if method == "BeginRun"] == ["begun"]


def test_a_begin_that_is_cancelled_while_the_daemon_carries_it_out_leaves_a_cancelled_run(
    small: SmallHistory, go: Go
) -> None:
    asked, given_up = threading.Event(), threading.Event()

    def before(method: str, parameters: dict[str, Any]) -> None:
        if method == "BeginRun":
            asked.set()
            assert given_up.wait(LONG)

    small.before = before

    async def main() -> None:
        async with aio.connect(deadline=LONG) as history:
            async with anyio.create_task_group() as tasks:

                async def begin() -> None:
                    await history.begin_run()

                tasks.start_soon(begin)
                await anyio.to_thread.run_sync(asked.wait)
                tasks.cancel_scope.cancel()
            given_up.set()

    go(main)
    assert small.types() == ["run.cancelled"]


def test_refusals_are_counted_and_raised_where_the_blocking_client_raises_them(small: SmallHistory, go: Go) -> None:
    async def main() -> None:
        async with aio.connect(deadline=LONG) as history:
            run = await history.begin_run()
            small.before = on("Append", Refuse("Conflict", seq=1), times=1)
            run.append("x")
            with pytest.raises(Conflict):
                await run.flush()
            assert run.faults == 1
            small.before = on("Append", Refuse("StaleEpoch", epoch=9, last_n=0))
            with pytest.raises(StaleEpoch):
                async with run:
                    run.append("y")
        async with aio.connect(deadline=LONG, errors="raise") as history:
            run = await history.begin_run()
            with pytest.raises(Unencodable):
                run.append("x", {"bad": float("nan")})
        async with aio.connect(deadline=LONG, require=True) as history:
            with pytest.raises(RunExists):
                await history.begin_run(run_id=run.run_id)

    go(main)


def test_while_the_daemon_is_away_events_are_spooled_and_stored_when_it_is_back(small: SmallHistory, go: Go) -> None:
    async def main() -> None:
        async with aio.connect(deadline=LONG) as history:
            small.close()
            run = await history.begin_run()
            assert history.mode == "spooling"
            run.append("away")
            assert (await run.flush()).durable == "spooled"
            assert run.faults == 0 and run.epoch is None
            small.open()
            run.append("back")
            assert (await run.flush()).durable == "committed"
            assert words(small, run) == ["away", "back"]

    go(main)


def test_a_daemon_that_answers_nothing_is_spooled_around(
    small: SmallHistory, go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runhist.pump.SILENCE_S", 0.05)
    small.before = on("Describe", Hang())

    async def main() -> None:
        async with aio.connect(deadline=LONG) as history:
            run = await history.begin_run()
            run.append("unheard")
            assert (await run.flush()).durable == "spooled"

    go(main)


def test_a_slow_disk_holds_up_neither_the_loop_nor_a_flush_past_its_deadline(
    small: SmallHistory, go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync
    syncing, released = threading.Event(), threading.Event()

    def slow(descriptor: int) -> None:
        syncing.set()
        assert released.wait(LONG)
        fsync(descriptor)

    async def main() -> None:
        async with aio.connect(deadline=LONG) as history, anyio.create_task_group() as tasks:
            small.close()
            run = await history.begin_run()
            run.append("away")
            monkeypatch.setattr("runhist.spool.os.fsync", slow)
            assert (await run.flush(deadline=0.05)).durable == "off"
            assert syncing.is_set()

            async def release() -> None:
                released.set()

            tasks.start_soon(release)
            assert (await run.flush()).durable == "spooled"

    go(main)


def test_what_is_spooled_at_the_end_of_the_history_is_left_to_the_daemon(small: SmallHistory, go: Go) -> None:
    small.close()

    async def main() -> None:
        async with aio.connect(deadline=LONG) as history:
            run = await history.begin_run()
            run.append("away")
        assert run.faults == 0

    go(main)
    spool = small.path.parent / "state" / "spool"
    assert [path.suffix for path in spool.iterdir()] == [".spool"]


def test_with_require_a_run_that_cannot_begin_raises(small: SmallHistory, go: Go) -> None:
    small.close()

    async def main() -> None:
        async with aio.connect(deadline=0.05, require=True) as history:
            with pytest.raises(Unreachable):
                await history.begin_run()

    go(main)


def test_where_recording_is_off_every_call_does_nothing(
    small: SmallHistory, go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNHIST", "off")

    async def main() -> None:
        async with aio.connect() as history:
            assert history.mode == "off"
            async with history.begin_run(run_id="r") as run:
                run.output("x")
            assert await run.flush() == Receipt("off")

    go(main)
    assert small.connections == 0
