"""What tests of the async client share: each is run by asyncio and by trio."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
import pytest

T = TypeVar("T")


@pytest.fixture(params=["asyncio", "trio"])
def go(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[T]]], T]:
    """`go(function)` runs an async function to its end in a new event loop."""

    def run(function: Callable[[], Awaitable[T]]) -> T:
        return anyio.run(function, backend=request.param)

    return run


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy with other tests is no daemon that answers nothing."""
    monkeypatch.setattr("runhist.pump.SILENCE_S", 60.0)
