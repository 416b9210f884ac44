"""Seeded: whatever becomes of the connection, and however full the window is, what is recorded is stored once, in order."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest

from runhist import aio
from tests.client.conftest import Vanish

if TYPE_CHECKING:
    from tests.client.conftest import SmallHistory

    Go = Callable[[Callable[[], Awaitable[None]]], None]

LONG = 60.0


class Weather:
    """Losses of the connection, by chance, and a daemon that comes and goes."""

    def __init__(self, small: SmallHistory, chance: random.Random) -> None:
        self.small = small
        self.chance = chance
        self.is_fair = False
        self.is_away = False
        small.before = self.before

    def before(self, method: str, parameters: dict[str, Any]) -> None:
        if not self.is_fair and self.chance.random() < 0.1:
            raise Vanish(after=self.chance.random() < 0.5)

    def change(self) -> None:
        (self.small.open if self.is_away else self.small.close)()
        self.is_away = not self.is_away

    def clear(self) -> None:
        self.is_fair = True
        if self.is_away:
            self.change()


async def record(run: aio.Run, chance: random.Random, weather: Weather) -> list[str]:
    recorded = []
    for i in range(300):
        recorded.append(f"event {i}")
        run.append(recorded[-1], {"text": "x" * chance.choice((0, 10, 5000))})
        if chance.random() < 0.2:
            await anyio.lowlevel.checkpoint()
        if chance.random() < 0.03:
            await run.flush(deadline=chance.choice((0.0, 0.01, LONG)))
        if chance.random() < 0.01:
            weather.change()
    return recorded


@pytest.mark.parametrize("seed", range(6))
def test_everything_is_stored_once_and_in_order(small: SmallHistory, go: Go, seed: int) -> None:
    chance = random.Random(seed)
    weather = Weather(small, chance)
    window = chance.choice((5, 50, 500))

    async def main() -> None:
        async with aio.connect(deadline=LONG, window=window) as history:
            runs = [await history.begin_run() for _ in range(3)]
            recorded: dict[str, list[str]] = {}
            async with anyio.create_task_group() as tasks:

                async def engine(run: aio.Run) -> None:
                    recorded[run.run_id] = await record(run, chance, weather)

                for run in runs:
                    tasks.start_soon(engine, run)
            weather.clear()
            for run in runs:
                receipt = await run.flush()
                assert (receipt.durable, run.faults) == ("committed", 0)
                words = [stored.event["type"] for stored in small.stored if stored.run_id == run.run_id]
                assert words == recorded[run.run_id]

    go(main)
    assert list((small.path.parent / "state" / "spool").glob("*.*")) == []
