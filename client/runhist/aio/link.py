"""How tasks wait for the pump: one task of the history's own does all that touches the socket.

Theory of operation. A recording call adds its event to the run's outbox and nudges the task. So it never waits, whatever
the daemon does, and what is recorded between two awaits goes out as one batch. Nobody else pumps, so the socket is never
closed while somebody waits for it. Begin and flush sleep until the task has pumped again, and look.

The task is shielded: a cancelled block can still be flushed, because the task lives until `stop`. Recording calls may
come from other threads, worker threads of an async engine for instance; these nudge by way of the loop.

Some event loops raise Ctrl-C in whatever code runs just then, the pump's too. The task outlives that, because what is
cancelled by it is still to be flushed.

A sync of the spool may take a disk's time, so it is done in a worker thread, and nothing else of the loop waits for it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from select import POLLOUT
from typing import Any, Callable, List, Optional

import anyio
import anyio.abc
import anyio.lowlevel
import anyio.to_thread

from ..link import IMPATIENT_S
from ..outbox import Outbox
from ..paths import SocketChoice
from ..protocol.errors import RunhistError
from ..pump import Pump
from ..spool import Spool, SpoolFault


class HistoryLeft(RunhistError):
    """Nothing is recorded through this async history any more: its block was left, or its task was cancelled."""


class TaskLink(Pump):
    """See the module. `run` is the task; before `begin` nothing may wait or be handed over."""

    def __init__(self, choice: SocketChoice, window: int, window_bytes: int, spool: Optional[Spool] = None) -> None:
        super().__init__(choice, window, window_bytes, spool)
        self.is_left = False
        self.interrupt: Optional[KeyboardInterrupt] = None  # raised where the task was, and meant for the program
        self._overflow_fault: Optional[SpoolFault] = None
        self._nudged = False
        self._thread: int  # of the loop; this and the following are set by `begin`
        self._call_soon: Callable[[Callable[[], object]], object]
        self._life: anyio.CancelScope
        self._sleeping: anyio.CancelScope
        self._pumped: anyio.Event  # replaced after each pump

    def begin(self) -> None:
        """Be of this event loop."""
        self._thread = threading.get_ident()
        self._call_soon = _call_soon(anyio.lowlevel.current_token().native_token)
        self._pumped = anyio.Event()
        self._sleeping = anyio.CancelScope()
        self._life = anyio.CancelScope(shield=True)

    async def run(self, program: anyio.CancelScope) -> None:
        """Pump whenever there is something to do, until `stop`. An interrupt that comes in between cancels the program."""
        try:
            with self._life:
                while True:
                    try:
                        with self.lock:
                            self._nudged = False
                            self.pump()
                    except KeyboardInterrupt as interrupt:
                        self.interrupt = interrupt
                        program.cancel()
                    pumped, self._pumped = self._pumped, anyio.Event()
                    pumped.set()
                    await self._sleep()
        finally:
            self.is_left = True  # also where somebody cancels whatever task there is: nobody waits for it in vain
            self._pumped.set()

    def stop(self) -> List[Outbox]:
        """End the task, and close the connection. Returns what still holds events that are nowhere else."""
        with self.lock:
            self.is_left = True
            for outbox in list(self._outboxes):
                if self._is_to_sync(outbox):
                    with contextlib.suppress(OSError):
                        outbox.seal()  # whether or not there was time for the disk to confirm it
            unsettled = [outbox for outbox in self._outboxes if outbox.held_events]
            self._outboxes.clear()
            self.close()
        self._life.cancel()
        return unsettled

    def take(self, outbox: Outbox) -> None:
        """There is something new in `outbox`; the task sends it."""
        self._outboxes[outbox] = None
        self._nudge()

    def make_room(self, size: int) -> bool:
        """Whether an event of `size` bytes may be handed over. What does not fit into the window goes to the spool.

        That writes, and waits for no sync: a full window took a tenth of a second on a busy machine.
        """
        with self.lock:
            self._overflow_fault = None
            if not self.has_room(size):
                try:
                    self.overflow()
                except SpoolFault as fault:
                    self._overflow_fault = fault
            return self.has_room(size)

    def why_not(self) -> RunhistError:
        """Why what was handed over is not stored yet, or was not taken."""
        return self._overflow_fault or super().why_not()

    async def wait(
        self, done: Callable[[], bool], seconds: float, *, patient: bool = False, shield: bool = False
    ) -> bool:
        """Sleep until `done()`, at most `seconds`; less after a wait that ran out, unless `patient`. False: not done.

        With `shield` a cancellation is raised when the wait is over. (asyncio's own knows no shields, and is kept back.)
        """
        with self.lock:
            if self._gave_up and not patient:
                seconds = min(seconds, IMPATIENT_S)
                self._retry_at = 0.0
            if self.away and patient:
                self._retry_at = 0.0  # or what is in the spool would be an answer before anybody was asked
            self._nudge()
        kept_back: Optional[BaseException] = None
        is_done = False
        with anyio.move_on_after(seconds, shield=shield) as scope:
            while not is_done and not self.is_left and not self.forked:
                try:
                    await self._pumped.wait()
                except anyio.get_cancelled_exc_class() as cancelled:
                    if not shield or scope.cancel_called:
                        raise
                    kept_back = cancelled
                with self.lock:
                    is_done = done()
        with self.lock:
            is_done = is_done or (done() and not self.is_left and not self.forked)
            self._gave_up = self._gave_up or not (is_done or patient)
        if kept_back is not None:
            raise kept_back
        return is_done

    async def wait_kept(
        self, outbox: Outbox, done: Callable[[], bool], seconds: float, *, patient: bool = False, shield: bool = False
    ) -> None:
        """Sleep until `done()`, or what the outbox holds is on the disk, or cannot be brought there."""
        end = time.monotonic() + seconds

        def decided() -> bool:
            return done() or self.spool_fault is not None or self._is_to_sync(outbox) or outbox.is_left

        await self.wait(decided, seconds, patient=patient, shield=shield)
        await self._bring_to_disk(outbox, end, shield)

    async def settle_all(self, seconds: float) -> None:
        """As `wait_kept`, shielded, for whatever is not stored yet."""
        end = time.monotonic() + seconds

        def decided() -> bool:
            return self.spool_fault is not None or all(
                outbox.settled or outbox.is_left or self._is_to_sync(outbox) for outbox in self._outboxes
            )

        if self._outboxes:
            await self.wait(decided, seconds, shield=True)
        for outbox in list(self._outboxes):
            await self._bring_to_disk(outbox, end, shield=True)

    async def _bring_to_disk(self, outbox: Outbox, end: float, shield: bool) -> None:
        if self._is_to_sync(outbox) and not outbox.is_synced:
            with anyio.move_on_after(max(0.0, end - time.monotonic()), shield=shield):
                await anyio.to_thread.run_sync(super()._sync, outbox, abandon_on_cancel=True)

    def _is_to_sync(self, outbox: Outbox) -> bool:
        return self.away and outbox.is_saved and not outbox.is_left

    def _sync(self, outbox: Outbox) -> bool:
        return outbox.is_synced  # `wait_kept` has done what there was time for

    def _nudge(self) -> None:
        """Wake the task. With the lock held, in whatever thread."""
        if self._nudged:
            return
        self._nudged = True
        if threading.get_ident() == self._thread:
            self._wake_task()
        elif not self.is_left:
            self._call_soon(self._wake_task)

    def _wake_task(self) -> None:
        self._sleeping.cancel()

    async def _sleep(self) -> None:
        """Until the socket is ready, something else is due or somebody nudges."""
        descriptor, events, seconds = self.interest()
        with anyio.move_on_after(seconds) as self._sleeping:
            if self._nudged:
                return
            if descriptor is None:
                await anyio.sleep_forever()
            elif not events & POLLOUT:
                await anyio.wait_readable(descriptor)
            else:
                async with anyio.create_task_group() as either:
                    either.start_soon(_wait_writable, descriptor, either.cancel_scope)
                    await anyio.wait_readable(descriptor)
                    either.cancel_scope.cancel()


def _call_soon(loop: Any) -> Callable[[Callable[[], object]], object]:
    """How another thread has something called in the loop, without a wait; anyio itself offers that with one only."""
    call: Callable[[Callable[[], object]], object] = getattr(loop, "call_soon_threadsafe", None) or loop.run_sync_soon
    return call


async def _wait_writable(descriptor: int, waiting: anyio.CancelScope) -> None:
    await anyio.wait_writable(descriptor)
    waiting.cancel()
