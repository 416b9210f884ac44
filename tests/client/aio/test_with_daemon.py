"""The async client against a real daemon: reading, following, claiming, and a restart in the middle."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.to_thread
import pytest

import runhist
from runhist import (
    Conflict,
    Cursor,
    Event,
    Gap,
    LeaseHeld,
    NoSuchRun,
    PositionExpired,
    Published,
    RunClosed,
    StaleEpoch,
    Unreachable,
    aio,
)

if TYPE_CHECKING:
    from tests.conftest import Daemon

    Go = Callable[[Callable[[], Awaitable[None]]], None]

LONG = 60.0
T = TypeVar("T")


@pytest.fixture
def env(daemon: Daemon, lead_to: Callable[[Daemon], Daemon]) -> Daemon:
    """The daemon, running, and this process's environment pointing at it."""
    return lead_to(daemon).start()


async def gather(items: AsyncIterator[T]) -> list[T]:
    return [item async for item in items]


async def take(items: AsyncIterator[T], count: int) -> list[T]:
    return [await items.__anext__() for _ in range(count)]


def types(items: Iterable[Event | Gap]) -> list[str]:
    return [item.type for item in items if isinstance(item, Event)]


def restart(daemon: Daemon) -> None:
    daemon.kill()
    daemon.start()


def test_what_was_recorded_is_read_back(env: Daemon, go: Go) -> None:
    async def main() -> None:
        async with aio.connect(deadline=LONG) as history:
            async with history.begin_run(workflow="nightly", title="t") as run:
                with run.step("fetch") as step:
                    step.output("42 files")
                    step.usage(model="m", input_tokens=12, output_tokens=3)
                run.checkpoint({"at": 1})
                run.append("node:completed", {"answer": 42})
                stored = await gather(run.events())
            assert types(stored)[-2:] == ["checkpoint", "node:completed"]
            reader = history.run(run.run_id)
            record = await reader.get()
            assert (record.status, record.workflow, record.title) == ("completed", "nightly", "t")
            events = await gather(reader.events())
            assert [event.seq for event in events if isinstance(event, Event)] == [*range(1, 9)]
            behind = await gather(reader.events(from_checkpoint=True))
            assert types(behind) == ["checkpoint", "node:completed", "run.completed"]
            assert types(await gather(reader.events(after_seq=2, kinds=["output"]))) == ["output"]
            (found,) = await reader.steps()
            assert (found.step_id, found.status) == ("fetch", "completed")
            usage = await reader.usage()
            assert usage.total.input_tokens == 12 and usage.rows[0].model == "m"
            with pytest.raises(NoSuchRun):
                await history.run("no such run").get()

    go(main)


def test_large_data_comes_back_as_it_was_recorded_and_too_large_data_is_a_fault(env: Daemon, go: Go) -> None:
    payloads = [{"text": "\u00e9" * size} for size in (100_000, 500_000)]

    def data(items: Iterable[Any]) -> list[Any]:
        return [item.data for item in items if item.type == "turn"]

    def delete_r() -> None:
        with runhist.Connection.open() as connection:
            assert connection.call("DeleteRun", {"run_id": "r"})["deleted"]

    async def main() -> None:
        async with aio.connect(deadline=LONG) as history:
            async with history.begin_run(run_id="r") as run:
                for payload in payloads:
                    run.append("turn", payload)
                run.append("turn", {"text": "x" * 1024 * 1024})
                assert run.faults == 1
                assert data(await gather(run.events())) == payloads
            async with history.follow(cursor=0) as follower:
                assert data(await take(follower, 2)) == payloads[:1]
                await anyio.to_thread.run_sync(delete_r)
                (gap,) = await take(follower, 1)
                assert isinstance(gap, Gap) and (gap.run_id, gap.rule) == ("r", "deleted")

    go(main)


def test_lists_and_events_go_on_from_page_to_page(env: Daemon, go: Go) -> None:
    async def main() -> None:
        async with aio.connect(deadline=LONG) as history:
            for i in range(120):
                async with history.begin_run(run_id=f"r{i}") as run:
                    pass
            newest_first = [f"r{i}" for i in reversed(range(120))]
            assert [run.run_id async for run in history.list_runs()] == newest_first
            for limit in (0, 1, 100, 101, 1000):
                assert [run.run_id async for run in history.list_runs(limit=limit)] == newest_first[:limit]
            run = await history.begin_run()
            for i in range(250):
                run.append(f"event {i}")
            assert types(await gather(run.events(after_seq=1))) == [f"event {i}" for i in range(250)]

    go(main)


def test_a_restart_in_the_middle_loses_and_doubles_nothing(env: Daemon, go: Go) -> None:
    async def main() -> None:
        async with aio.connect(deadline=LONG) as history, history.begin_run() as run:
            for i in range(30):
                run.append(f"event {i}")
                if i in (10, 20):
                    await anyio.to_thread.run_sync(restart, env)
            assert (await run.flush()).durable == "committed"
            assert types(await gather(run.events(after_seq=1))) == [f"event {i}" for i in range(30)]
            assert run.faults == 0

    go(main)


def test_a_follower_outlives_a_restart_and_loses_nothing(env: Daemon, go: Go) -> None:
    async def main() -> None:
        async with aio.connect(deadline=LONG) as history:
            run = await history.begin_run()
            await run.flush()
            async with history.follow() as follower:
                run.append("one")
                assert types(await take(follower, 1)) == ["one"]
                await anyio.to_thread.run_sync(restart, env)
                run.append("two")
                assert types(await take(follower, 1)) == ["two"]
                cursor = follower.cursor
            with pytest.raises(StopAsyncIteration):
                await follower.__anext__()
            run.append("three")
            async with history.follow(cursor) as follower:
                assert types(await take(follower, 1)) == ["three"]
            async with history.follow(tail=2) as follower:
                assert types(await take(follower, 2)) == ["two", "three"]
            async with history.follow(Cursor("another history", 0)) as follower:
                with pytest.raises(PositionExpired):
                    await follower.__anext__()

    go(main)


def test_a_follower_that_is_cancelled_while_it_waits_goes_on_with_the_next_event(env: Daemon, go: Go) -> None:
    async def main() -> None:
        async with aio.connect(deadline=LONG) as history:
            run = await history.begin_run()
            await run.flush()
            async with history.follow() as follower:
                for i in range(3):
                    with anyio.move_on_after(0.02):
                        await follower.__anext__()
                    run.append(f"event {i}")
                    assert types(await take(follower, 1)) == [f"event {i}"]

    go(main)


def test_what_is_only_shown_comes_in_its_place_and_is_not_kept(env: Daemon, go: Go) -> None:
    async def main() -> None:
        async with aio.connect(deadline=LONG) as history:
            run = await history.begin_run()
            await run.flush()
            async with history.follow(published=True) as follower:
                with run.step("answer") as step:
                    step.delta("Hel")
                    step.delta("lo")
                    run.publish("progress", {"percent": 50})
                    step.output("Hello")
                items = await take(follower, 6)
                assert [item.type for item in items if not isinstance(item, Gap)] == [
                    *("step.started", "delta", "delta", "progress", "output", "step.completed"),
                ]
                assert [item.data for item in items if isinstance(item, Published)] == [
                    *({"text": "Hel"}, {"text": "lo"}, {"percent": 50}),
                ]
                assert follower.dropped == 0
            assert types(await gather(run.events(after_seq=1))) == ["step.started", "output", "step.completed"]

    go(main)


def test_closing_a_follower_ends_it_for_the_task_that_waits(env: Daemon, go: Go) -> None:
    async def main() -> None:
        async with aio.connect(deadline=LONG) as history, anyio.create_task_group() as tasks:
            follower = history.follow()
            ended = anyio.Event()

            async def wait() -> None:
                async for _ in follower:
                    pass
                ended.set()

            async with follower:
                tasks.start_soon(wait)
                await anyio.wait_all_tasks_blocked()
                assert not ended.is_set()
            await ended.wait()

    go(main)


def test_following_a_run_ends_with_it(env: Daemon, go: Go) -> None:
    async def main() -> None:
        async with aio.connect(deadline=LONG) as history, anyio.create_task_group() as tasks:
            run = await history.begin_run()
            run.append("x")
            seen: list[str] = []

            async def watch() -> None:
                seen.extend(types(await gather(history.run(run.run_id).events(follow=True, after_seq=1))))

            await run.flush()
            tasks.start_soon(watch)
            run.append("y")
            run.complete()
        assert seen == ["x", "y", "run.completed"]

    go(main)


def test_a_run_is_paused_answered_and_claimed(env: Daemon, go: Go) -> None:
    async def main() -> None:
        async with aio.connect(deadline=LONG) as history, anyio.create_task_group() as tasks:
            run = await history.begin_run(run_id="gated")
            run.checkpoint({"at": 3})
            run.append("behind")
            run.pause("approve", prompt="Go on?")
            answers: list[Any] = []

            async def wait() -> None:
                answers.append(await run.wait_gate())

            tasks.start_soon(wait)
            await run.flush()
            (waiting,) = await gather(history.interrupted())
            assert waiting.run.run_id == "gated" and not waiting.resumable
            await history.answer_gate("gated", {"yes": True})
            with pytest.raises(Conflict):
                await history.answer_gate("gated", {"yes": False})
            async with history.claim_run("gated", expect_status=["paused"]) as claimed:
                assert (await claimed.from_status(), await claimed.answer()) == ("paused", {"yes": True})
                assert await claimed.checkpoint_data() == {"at": 3}
                assert types(await gather(claimed.earlier_events())) == ["behind", "run.paused", "gate.answered"]
                with pytest.raises(LeaseHeld):
                    await history.claim_run("gated")
            with pytest.raises(RunClosed):
                await history.claim_run("gated")
        assert answers == [{"yes": True}]

    go(main)


def test_the_one_who_waits_at_a_gate_learns_that_another_went_on(env: Daemon, go: Go) -> None:
    async def main() -> None:
        async with aio.connect(deadline=LONG) as history:
            run = await history.begin_run(run_id="a")
            run.pause()
            await run.flush()
            claimed = await history.claim_run("a")
            with pytest.raises(StaleEpoch):
                await run.wait_gate()
            claimed.cancel()
            await claimed.flush()

    go(main)


def test_a_run_that_is_released_may_be_claimed(env: Daemon, go: Go) -> None:
    async def main() -> None:
        async with aio.connect(deadline=LONG) as history:
            run = await history.begin_run(run_id="r")
            await run.release()
            async with history.claim_run("r") as claimed:
                assert await claimed.from_status() == "incomplete"

    go(main)


def test_a_claim_that_is_cancelled_is_given_back(env: Daemon, go: Go) -> None:
    async def main() -> None:
        async with aio.connect(deadline=LONG) as history:
            run = await history.begin_run(run_id="r")
            await run.release()
            with anyio.CancelScope() as scope:
                scope.cancel()
                await history.claim_run("r")
            assert scope.cancelled_caught
        async with aio.connect(deadline=LONG) as history:
            assert (await history.run("r").get()).status == "incomplete"
            async with history.claim_run("r"):
                pass

    go(main)


def test_an_artifact_is_read_in_a_worker_thread_and_kept_by_the_daemon(env: Daemon, go: Go, tmp_path: Path) -> None:
    (tmp_path / "report.txt").write_text("what the run made")

    async def main() -> None:
        async with aio.connect(deadline=LONG) as history:
            async with history.begin_run() as run:
                await run.artifact(tmp_path / "report.txt", keep=True)
                await run.artifact(tmp_path / "absent")
            assert run.faults == 1
            (kept, absent) = [event async for event in run.events(kinds=["artifact"]) if isinstance(event, Event)]
            assert kept.data["name"] == "report.txt" and kept.data["blob"] and kept.data["size"] == 17
            assert absent.data["path"] == str(tmp_path / "absent")

    go(main)


def test_a_run_that_is_begun_in_the_block_of_another_is_its_child(env: Daemon, go: Go) -> None:
    async def main() -> None:
        async with aio.connect(deadline=LONG) as history:
            async with history.begin_run(run_id="parent") as parent:
                assert runhist.current_run() is parent
                async with history.begin_run(run_id="child") as child:
                    assert runhist.current_run() is child
                runhist.current_run().note("from somewhere below")
            assert [run.run_id async for run in history.list_runs(parent_run_id="parent")] == ["child"]
            assert types(await gather(parent.events(kinds=["note"]))) == ["note"]

    go(main)


def test_reading_says_when_there_is_no_daemon(env: Daemon, go: Go) -> None:
    env.stop()

    async def main() -> None:
        history = aio.connect(deadline=LONG)
        with pytest.raises(Unreachable):
            await history.run("r").get()
        with pytest.raises(Unreachable):
            await gather(history.list_runs())
        with pytest.raises(Unreachable):
            async with history.follow():
                pass
        with pytest.raises(Unreachable):
            await history.follow().__anext__()

    go(main)


def test_where_recording_is_off_there_is_nothing_to_read(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNHIST", "off")

    async def main() -> None:
        async with aio.connect() as history:
            assert await gather(history.list_runs()) == []
            assert await gather(history.interrupted()) == []
            assert await gather(history.follow()) == []
            assert await gather(history.run("r").events(follow=True)) == []
            assert await history.run("r").steps() == []
            with pytest.raises(NoSuchRun):
                await history.run("r").get()
            with pytest.raises(NoSuchRun):
                await history.claim_run("r")

    go(main)


@pytest.mark.parametrize("name", ["History", "Run", "ClaimedRun", "RunReader", "Follower"])
def test_the_async_client_has_the_names_and_parameters_of_the_blocking_one(name: str) -> None:
    def methods(cls: type) -> dict[str, list[str]]:
        found = inspect.getmembers(cls, lambda member: callable(member) or isinstance(member, property))
        public = [(name, member) for name, member in found if not name.startswith("_")]
        return {
            name: [] if isinstance(member, property) else [*map(str, inspect.signature(member).parameters.values())]
            for name, member in public
        }

    def comparable(cls: type) -> dict[str, list[str]]:
        # Closing and attaching are the block's and other processes' here; annotations are the same where they are not async.
        left_out = {"close", "attach", "from_status", "answer", "checkpoint_data"}
        return {
            name: [re.sub(r"'[^']*Union\[str, os\.PathLike\[str\]\]'|\"", "", text) for text in parameters]
            for name, parameters in methods(cls).items()
            if name not in left_out
        }

    assert comparable(getattr(aio, name)) == comparable(getattr(runhist, name))


KILLED_IN_A_BURST = """\
import os, signal, sys, anyio
from runhist import aio
async def main():
    async with aio.connect(window=1000) as history:
        run = await history.begin_run(run_id="burst")
        for i in range(3500):
            run.append(f"event {i}")
        os.kill(os.getpid(), signal.SIGKILL)
anyio.run(main, backend=sys.argv[1])
"""


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_what_a_killed_engine_had_past_its_window_is_stored_by_the_daemon(
    env: Daemon, loop: str, wait_until: Callable[..., None]
) -> None:
    subprocess.run([sys.executable, "-c", KILLED_IN_A_BURST, loop], env=env.env, timeout=LONG, check=False)
    run = runhist.connect().run("burst")
    wait_until(lambda: run.get().status == "incomplete", "its death is noticed")
    stored = [event.type for event in run.events(after_seq=1) if isinstance(event, Event)][:-1]
    assert len(stored) >= 3000 and stored == [f"event {i}" for i in range(len(stored))]
