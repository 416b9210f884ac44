"""The run of the context is one of the async client's too: steps, log records and new runs of tasks and their threads."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import anyio.to_thread

import runhist
from runhist import aio

if TYPE_CHECKING:
    from tests.client.conftest import SmallHistory

Go = Callable[[Callable[[], Awaitable[None]]], None]


@runhist.step("work")
async def work(logger: logging.Logger) -> None:
    await anyio.lowlevel.checkpoint()
    logger.warning("from a task")
    await anyio.to_thread.run_sync(logger.warning, "from its thread")


def test_tasks_and_their_threads_record_into_the_run_of_the_context(small: SmallHistory, go: Go) -> None:
    logger = logging.Logger("alone")
    logger.addHandler(runhist.LogHandler())

    async def main() -> None:
        async with aio.connect(deadline=30) as history:
            async with history.begin_run(run_id="top"), anyio.create_task_group() as tasks:
                tasks.start_soon(work, logger)
                async with history.begin_run(run_id="child"):
                    logger.warning("from the child")
            assert runhist.current_run().run_id == ""
            logger.warning("from nobody")

    go(main)
    told = {
        (stored.run_id, stored.event.get("step_id"), stored.event.get("data", {}).get("text")) for stored in small.stored
    }
    assert told >= {("top", "work", "from a task"), ("top", "work", "from its thread"), ("child", None, "from the child")}
    assert "from nobody" not in {text for _, _, text in told}
    (child,) = [p["run"] for method, p in small.calls if method == "BeginRun" and p["run"]["run_id"] == "child"]
    assert child["parent_run_id"] == "top"


def test_use_makes_a_run_current_in_a_task(small: SmallHistory, go: Go) -> None:
    async def main() -> None:
        async with aio.connect(deadline=30) as history:
            run = await history.begin_run()
            with run.use():
                assert runhist.current_run() is run and run.environ()["RUNHIST_LEASE"] == "1"
            assert runhist.current_run() is not run

    go(main)
