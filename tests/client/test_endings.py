"""What an exception that leaves a block means."""

from __future__ import annotations

import asyncio
import concurrent.futures

import pytest
import trio

from runhist.endings import failure_members, outcome_of


def trio_cancelled() -> BaseException:
    caught: list[BaseException] = []

    async def main() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled as error:
                caught.append(error)
                raise

    trio.run(main)
    return caught[0]


class Odd(BaseException):
    """Neither an Exception nor one of the interpreter's."""


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "completed"),
        (SystemExit(), "completed"),
        (SystemExit(0), "completed"),
        (SystemExit(3), "failed"),
        (SystemExit("usage: …"), "failed"),
        (ValueError(), "failed"),
        (Odd(), "failed"),
        (concurrent.futures.TimeoutError(), "failed"),
        (KeyboardInterrupt(), "cancelled"),
        (GeneratorExit(), "cancelled"),
        (asyncio.CancelledError(), "cancelled"),
        (BaseExceptionGroup("", [KeyboardInterrupt(), asyncio.CancelledError()]), "cancelled"),
        (BaseExceptionGroup("", [KeyboardInterrupt(), BaseExceptionGroup("", [ValueError()])]), "failed"),
        (ExceptionGroup("", [ValueError()]), "failed"),
        (BaseExceptionGroup("", [SystemExit(0)]), "completed"),
    ],
    ids=repr,
)
def test_the_outcome_of_a_block(error: BaseException | None, outcome: str) -> None:
    assert outcome_of(error) == outcome


def test_a_cancelled_trio_task_cancels() -> None:
    assert outcome_of(trio_cancelled()) == "cancelled"


@pytest.mark.parametrize(
    ("code", "exit_code", "error"),
    [(3, 3, "exit 3"), ("bad usage\nat all", 1, "bad usage at all"), (True, True, "exit True")],
)
def test_a_failing_exit_tells_its_status(code: int | str, exit_code: int, error: str) -> None:
    members = failure_members(SystemExit(code))
    assert (members["exit_code"], members["error"], members["error_type"]) == (exit_code, error, "SystemExit")


def test_a_given_exit_code_is_kept() -> None:
    assert failure_members("test failed", 2) == {"error": "test failed", "exit_code": 2}
