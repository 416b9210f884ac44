"""Asking the daemon from tasks: calls whose replies are awaited, each on a connection of its own.

As in `runhist.connection`, what goes wrong on the way is an Unreachable and ends the connection, and what the daemon refuses
is a Refusal. A call that is cancelled closes its connection, because its reply would be taken for another's; a stream
that is cancelled while it waits for a reply goes on with the next one.
"""

from __future__ import annotations

import time
from typing import Any, Dict, Mapping

import anyio
import anyio.lowlevel

from ..connection import AGAIN_PAUSE_S, BACKLOG_PAUSE_S, DEFAULT_TIMEOUT_S, Connection, Parameters, Unreachable
from ..paths import SocketChoice
from ..protocol.errors import ShuttingDown


class Asking:
    """One connection to the daemon, made by `open`; for one task at a time. Leave its block to close it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @classmethod
    async def open(cls, choice: SocketChoice, seconds: float = DEFAULT_TIMEOUT_S) -> Asking:
        """Connect; `seconds` only matter while the daemon's backlog is full. Raises Unreachable."""
        end = time.monotonic() + seconds
        while True:
            try:
                return cls(Connection.open(choice, timeout=0))
            except Unreachable as error:
                if error.reason != "timeout" or time.monotonic() >= end:
                    raise
            await anyio.sleep(BACKLOG_PAUSE_S)

    async def __aenter__(self) -> Asking:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Whether it was closed, by us or after a fault."""
        return self._connection.closed

    def close(self) -> None:
        """Close it, also under a task that waits for a reply: that task gets an Unreachable. May be repeated."""
        if not self._connection.closed:
            anyio.notify_closing(self._connection.fileno())
            self._connection.close()

    async def call(self, method: str, parameters: Parameters, seconds: float = DEFAULT_TIMEOUT_S) -> Dict[str, Any]:
        """Call a method and return the reply's parameters. Raises the typed Refusal, or Unreachable."""
        self._connection.send(method, parameters)
        try:
            with anyio.fail_after(seconds):
                return await self.reply()
        except TimeoutError as error:
            self.close()
            raise self._connection.unreachable("timeout") from error
        except anyio.get_cancelled_exc_class():
            self.close()
            raise

    def stream(self, method: str, parameters: Mapping[str, Any]) -> None:
        """Call a method with `more`; `reply` then gives one reply after the other."""
        self._connection.send(method, parameters, more=True)

    async def reply(self) -> Dict[str, Any]:
        """The parameters of the next reply, waited for without an end. Raises as `call` does."""
        connection = self._connection
        await anyio.lowlevel.checkpoint()  # a stream that always has something must not keep others waiting
        while True:
            connection.push()
            replies = connection.receive(1)
            if replies:
                break
            # While a part of the call is unsent there is nothing to hear yet, but that the peer is gone, which both tell.
            wait = anyio.wait_writable if connection.unsent_bytes else anyio.wait_readable
            try:
                await wait(connection.fileno())
            except anyio.ClosedResourceError as error:
                raise connection.unreachable("lost") from error
        if replies[0].error is not None:
            raise connection.refusal(replies[0])
        parameters: Dict[str, Any] = replies[0].parameters
        return parameters


async def call_again_if_lost(
    method: str, parameters: Parameters, choice: SocketChoice, seconds: float = DEFAULT_TIMEOUT_S
) -> Dict[str, Any]:
    """Call a method that is safe to repeat, again when the daemon is restarted meanwhile. Raises Refusal, Unreachable."""
    end = time.monotonic() + seconds
    lost = False
    while True:
        try:
            async with await Asking.open(choice, seconds) as asking:
                return await asking.call(method, parameters, seconds)
        except (Unreachable, ShuttingDown) as trouble:
            lost = lost or isinstance(trouble, ShuttingDown) or trouble.reason == "lost"
            if not lost or time.monotonic() >= end:
                raise
        await anyio.sleep(AGAIN_PAUSE_S)
