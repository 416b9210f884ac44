"""The intake reads the connections that rest, commits what they brought together, and wakes who has more to do."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from runhistd.daemon.commit import MAX_BATCH, Bounds, Committer
from runhistd.daemon.instance import Instance
from runhistd.daemon.intake import Intake
from runhistd.daemon.space import Space
from runhistd.store.leases import Begun
from runhistd.store.log import EventLog
from tests.daemon.test_commit import Asked
from tests.store.histories import begin


class Line:
    """A connection on which each byte begins a run, but for a line's end, which is for its own task."""

    def __init__(self, committer: Committer) -> None:
        self.far, self._near = socket.socketpair()
        self._near.setblocking(False)
        self.descriptor = self._near.fileno()
        self.asked: list[Asked] = []
        self.on_take_in: Callable[[], None] = lambda: None
        self._committer = committer

    def take_in(self) -> bool:
        self.on_take_in()
        for byte in os.read(self.descriptor, MAX_BATCH):
            if byte == ord("\n"):
                return False
            self.asked.append(Asked())
            self._committer.submit(begin(f"{self.descriptor}-{len(self.asked)}"), self.asked[-1], 1)
        return True

    def close(self) -> None:
        self.far.close()
        self._near.close()


@pytest.fixture
def committer(tmp_path: Path) -> Iterator[Committer]:
    with Instance.take(tmp_path / "state") as instance:
        log = EventLog.open(instance.database)
        yield Committer(log, instance, Space(instance.state_dir), Bounds(1 << 30, 1 << 30, 1 << 30), lambda batch: None)
        log.close()


@pytest.fixture
def intake(committer: Committer) -> Iterator[Intake]:
    made = Intake(committer)
    yield made
    made.close()


@pytest.fixture
def lines(committer: Committer) -> Iterator[list[Line]]:
    made = [Line(committer) for _ in range(3)]
    yield made
    for line in made:
        line.close()


async def test_what_came_on_all_connections_is_one_commit(
    intake: Intake, committer: Committer, lines: list[Line]
) -> None:
    await take_in_of_all(intake, lines, 2)
    assert committer.commits == 1
    assert all(isinstance(asked.outcome, Begun) for line in lines for asked in line.asked)


async def test_who_has_more_to_do_is_woken_and_the_others_rest_on(intake: Intake, lines: list[Line]) -> None:
    first, second, _ = lines
    async with trio.open_nursery() as nursery:
        nursery.start_soon(intake.run)
        nursery.start_soon(intake.rest, second)
        first.far.send(b".\n")
        await intake.rest(first)
        assert len(first.asked) == 1  # what came before it is queued
        second.far.send(b".")
        await line_answered(second, 1)
        first.far.send(b".")  # nobody reads it: it does not rest
        second.far.send(b".")
        await line_answered(second, 2)
        assert len(first.asked) == 1
        nursery.cancel_scope.cancel()


async def test_who_is_cancelled_while_it_rests_is_read_no_more(intake: Intake, lines: list[Line]) -> None:
    first, second, _ = lines
    async with trio.open_nursery() as nursery:
        nursery.start_soon(intake.run)
        nursery.start_soon(intake.rest, second)
        with trio.move_on_after(0):
            await intake.rest(first)
        first.far.send(b".")
        second.far.send(b".")
        await line_answered(second, 1)
        assert not first.asked
        nursery.cancel_scope.cancel()


async def test_who_is_let_go_while_the_others_are_read_is_read_no_more(intake: Intake, lines: list[Line]) -> None:
    first, second, third = lines
    scopes = {id(line): trio.CancelScope() for line in (first, second)}

    async def rest(line: Line) -> None:
        with scopes[id(line)]:
            await intake.rest(line)

    first.on_take_in, second.on_take_in = scopes[id(second)].cancel, scopes[id(first)].cancel
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rest, first)
        nursery.start_soon(rest, second)
        nursery.start_soon(intake.rest, third)
        await trio.testing.wait_all_tasks_blocked()
        for line in lines:
            line.far.send(b".")
        nursery.start_soon(intake.run)
        await line_answered(third, 1)
        nursery.cancel_scope.cancel()
    assert len(first.asked) + len(second.asked) == 1


async def test_a_fault_of_the_intake_ends_the_rest_of_all_as_any_other_does(
    intake: Intake, lines: list[Line]
) -> None:
    first, second, _ = lines

    def fail() -> None:
        raise ValueError("the fault")

    first.on_take_in = fail
    with pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(intake.rest, first)
            nursery.start_soon(intake.rest, second)
            first.far.send(b".")
            nursery.start_soon(intake.run)
    assert [str(fault) for fault in caught.value.exceptions] == ["the fault"]


async def test_a_turn_ends_where_a_batch_is_full(
    intake: Intake, committer: Committer, lines: list[Line]
) -> None:
    await take_in_of_all(intake, lines, MAX_BATCH)
    assert committer.commits == len(lines)


async def take_in_of_all(intake: Intake, lines: list[Line], requests: int) -> None:
    """Have so many requests of each line there before the intake runs, and return when they have their outcomes."""
    async with trio.open_nursery() as nursery:
        for line in lines:
            nursery.start_soon(intake.rest, line)
        await trio.testing.wait_all_tasks_blocked()
        for line in lines:
            line.far.send(b"." * requests)
        nursery.start_soon(intake.run)
        for line in lines:
            await line_answered(line, requests)
        nursery.cancel_scope.cancel()


async def line_answered(line: Line, requests: int) -> None:
    """Return when so many of its requests have their outcomes."""
    with trio.fail_after(60):
        while len(line.asked) < requests:
            await trio.lowlevel.checkpoint()
        for asked in line.asked:
            await asked.settled.wait()
