"""What is only shown, from tasks: in its place, and without a wait."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from runhist import aio

if TYPE_CHECKING:
    from tests.client.conftest import SmallHistory

    Go = Callable[[Callable[[], Awaitable[None]]], None]


def test_tokens_are_shown_within_their_step(small: SmallHistory, go: Go) -> None:
    async def main() -> None:
        async with aio.connect(deadline=30) as history, history.begin_run(run_id="r") as run:
            for number in range(3):
                with run.step("answer") as step:
                    step.delta(f"{number}a")
                    await run.flush()
                    step.delta(f"{number}b")
                run.publish("token", {"text": f"{number}"})
            assert run.faults == 0

    go(main)
    expected = [w for n in range(3) for w in ("step.started", f"{n}a", f"{n}b", "step.completed", f"{n}")]
    assert small.seen == [*expected, "run.completed"]
