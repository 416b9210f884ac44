"""Where calls come in: one task that reads the sockets of all connections and commits what they brought.

    for every socket that has something: read, decode, queue the writes;  then commit them together and answer

A task for each connection would cost a switch for every call, and the committer's one more: more than all the rest that the
daemon does for a small event, beside the disk. So a connection that has nothing to do but to wait for calls rests here. Its
socket is in one selector with the others', and what comes is taken by plain function calls, as far as that needs no waiting.
What does (a read, large data, room in a queue) wakes the connection's own task, which goes on from there and comes to rest
again. Measured without a store, with 8 clients that each wait for their answer: 24 µs of processor a call instead of 45.
"""

from __future__ import annotations

import selectors
from typing import Protocol

import trio

from .commit import MAX_BATCH, Committer


class Resting(Protocol):
    """A connection that waits for calls."""

    @property
    def descriptor(self) -> int:
        """Its socket's."""

    def take_in(self) -> bool:
        """Read once, and queue the writes that came; False when its own task must go on. Must not block."""


class Intake:
    """The sockets of the connections that rest."""

    def __init__(self, committer: Committer) -> None:
        self._committer = committer
        self._selector = selectors.DefaultSelector()
        self._tasks: dict[int, trio.lowlevel.Task] = {}
        """Of those that rest, by their descriptors."""

    async def run(self) -> None:
        """Take in and commit until cancelled. Raises what the committer raises."""
        while True:
            await trio.lowlevel.wait_readable(self._selector)
            self._committer.commit_after(self._take_in)

    def _take_in(self) -> None:
        """Read each socket that has something once; the next turn goes on where the committer has enough already."""
        for key, _ in self._selector.select(0):
            task = self._tasks.get(key.fd)  # none where it was let go while the others were read
            if task is not None and not key.data.take_in():
                self._forget(key.fd)
                trio.lowlevel.reschedule(task)
            if self._committer.waiting >= MAX_BATCH:
                return

    async def rest(self, connection: Resting) -> None:
        """Return when the connection's own task has something to do."""
        descriptor = connection.descriptor
        self._selector.register(descriptor, selectors.EVENT_READ, connection)
        self._tasks[descriptor] = trio.lowlevel.current_task()

        def leave(_: object) -> trio.lowlevel.Abort:
            self._forget(descriptor)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(leave)

    def close(self) -> None:
        """Give the selector back, when nobody rests any more."""
        self._selector.close()

    def _forget(self, descriptor: int) -> None:
        self._selector.unregister(descriptor)
        del self._tasks[descriptor]
