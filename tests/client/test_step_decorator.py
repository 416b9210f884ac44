"""`@runhist.step`: functions, coroutines and generators as steps of what is the current run when they are called."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

import runhist

if TYPE_CHECKING:
    from tests.client.conftest import SmallHistory


@pytest.fixture
def run(small: SmallHistory) -> Iterator[runhist.Run]:
    """The current run of the test."""
    made = runhist.connect(deadline=30).begin_run(run_id="r")
    with made.use():
        yield made


def told(run: runhist.Run, small: SmallHistory) -> list[tuple[str, str | None]]:
    """What was recorded, and of which step."""
    run.flush()
    return [(stored.event["type"], stored.event.get("step_id")) for stored in small.stored]


def begun(small: SmallHistory) -> dict[str, str | None]:
    """The steps that were begun, with their parents."""
    started = [stored.event for stored in small.stored if stored.event["type"] == "step.started"]
    return {event["step_id"]: event["data"].get("parent_step_id") for event in started}


def test_each_call_of_a_function_is_a_step(run: runhist.Run, small: SmallHistory) -> None:
    @runhist.step("add")
    def add(a: int, *, b: int) -> int:
        """Adds."""
        return a + b

    assert (add(1, b=2), add(3, b=4), add.__name__, add.__doc__) == (3, 7, "add", "Adds.")
    started, ended = "step.started", "step.completed"
    assert told(run, small) == [(started, "add"), (ended, "add"), (started, "add#2"), (ended, "add#2")]


def test_an_exception_fails_the_step_and_goes_on(run: runhist.Run, small: SmallHistory) -> None:
    @runhist.step("divide")
    def divide() -> float:
        return 1 / 0

    with pytest.raises(ZeroDivisionError):
        divide()
    assert told(run, small) == [("step.started", "divide"), ("step.failed", "divide")]
    assert "division by zero" in small.stored[-1].event["data"]["error"]


def test_steps_within_steps_have_them_as_parents(run: runhist.Run, small: SmallHistory) -> None:
    class Engine:
        @runhist.step("outer")
        def outer(self) -> None:
            self.inner()
            with runhist.current_run().step("third"):
                pass

        @runhist.step("inner")
        def inner(self) -> None:
            runhist.current_run().note("here")

    Engine().outer()
    run.flush()
    assert begun(small) == {"outer": None, "inner": "outer", "third": "outer"}


def test_a_coroutines_step_ends_when_it_does(run: runhist.Run, small: SmallHistory) -> None:
    @runhist.step("work")
    async def work(name: str) -> str:
        with runhist.current_run().step(f"{name}-part"):
            await asyncio.sleep(0)
        return name

    async def main() -> tuple[str, str]:
        return await asyncio.gather(work("a"), work("b"))

    assert inspect.iscoroutinefunction(work)
    assert list(asyncio.run(main())) == ["a", "b"]
    assert [type for type, _ in told(run, small)] == ["step.started"] * 4 + ["step.completed"] * 4
    assert begun(small) == {"work": None, "a-part": "work", "work#2": None, "b-part": "work#2"}


def test_a_cancelled_coroutine_fails_its_step(run: runhist.Run, small: SmallHistory) -> None:
    @runhist.step("wait")
    async def wait() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    run.flush()
    assert small.stored[-1].event["data"]["error"].startswith("cancelled by CancelledError")


def test_a_generators_step_goes_from_its_first_item_to_its_end(run: runhist.Run, small: SmallHistory) -> None:
    @runhist.step("produce")
    def produce() -> Generator[int, str, str]:
        with runhist.current_run().step("within"):
            heard = yield 1
        return heard + (yield 2)

    assert inspect.isgeneratorfunction(produce)
    generator = produce()
    assert told(run, small) == []
    assert next(generator) == 1
    with run.step("beside"):
        assert generator.send("a") == 2
    with pytest.raises(StopIteration) as stop:
        generator.send("b")
    assert stop.value.value == "ab"
    assert told(run, small)[-1] == ("step.completed", "produce")
    assert begun(small)["produce"] is None and begun(small)["within"] == "produce"


def test_what_a_generators_consumer_records_is_not_within_its_step(run: runhist.Run, small: SmallHistory) -> None:
    @runhist.step("produce")
    def produce() -> Iterator[int]:
        yield 1
        with runhist.current_run().step("within"):
            yield 2

    for item in produce():
        with runhist.current_run().step(f"consume-{item}"):
            pass
    run.flush()
    assert begun(small) == {"produce": None, "consume-1": None, "within": "produce", "consume-2": "within"}


def test_a_generator_hears_exceptions_and_its_closing(run: runhist.Run, small: SmallHistory) -> None:
    heard: list[str] = []

    @runhist.step("listen")
    def listen() -> Iterator[int]:
        try:
            yield 1
        except ValueError as error:
            heard.append(str(error))
        try:
            yield 2
        finally:
            heard.append("closed")

    generator: Any = listen()
    next(generator)
    assert generator.throw(ValueError("no")) == 2
    generator.close()
    assert heard == ["no", "closed"]
    run.flush()
    assert small.stored[-1].event["data"]["error"].startswith("cancelled by GeneratorExit")


def test_an_asynchronous_generator_is_a_step_too(run: runhist.Run, small: SmallHistory) -> None:
    heard: list[str] = []

    @runhist.step("produce")
    async def produce() -> AsyncGenerator[int, str]:
        try:
            heard.append(await asyncio.sleep(0, "began"))
            heard.append((yield 1))
            try:
                yield 2
            except ValueError as error:
                heard.append(str(error))
            yield 3
        finally:
            heard.append("closed")

    async def main() -> None:
        generator = produce()
        assert await generator.__anext__() == 1
        with run.step("beside"):
            assert await generator.asend("a") == 2
        assert await generator.athrow(ValueError("no")) == 3
        await generator.aclose()
        assert [item async for item in finite()] == [7]

    @runhist.step("finite")
    async def finite() -> AsyncIterator[int]:
        yield 7

    assert inspect.isasyncgenfunction(produce)
    asyncio.run(main())
    assert heard == ["began", "a", "no", "closed"]
    run.flush()
    assert begun(small) == {"produce": None, "beside": None, "finite": None}
    assert small.stored[-1].event["type"] == "step.completed"


def test_without_a_current_run_the_function_is_just_called(small: SmallHistory) -> None:
    @runhist.step("add")
    def add(a: int, b: int) -> int:
        return a + b

    assert add(1, 2) == 3 and small.calls == []


def test_a_step_needs_its_name() -> None:
    def function() -> None: ...

    with pytest.raises(TypeError, match=r"@runhist\.step\('fetch'\)"):
        runhist.step(function)  # type: ignore[arg-type]
