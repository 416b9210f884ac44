"""One connection: calls in, replies out, strictly in order.

While a connection waits for calls it rests with the intake, which has it read its socket, decode every call that came and
queue the writes with the committer, so that a writer costs no task switch for each call. After the commit, the committer
settles the slots and what is ready of each connection leaves in one send. Everything else is done by the connection's own
task: large data is put into a file before it is queued; a read waits until everything before it is answered, so that it
sees the appends before it; a call with `more` has the connection for itself until it ends.

What a peer can make us hold is bounded: nobody reads from it while the committer's queue is full, or while it does not
take its replies; one frame above LARGE_FRAME_BYTES is received at a time, within a deadline. What all of them together
make us hold is bounded by a budget (see `budget`).

A process may die with calls in its socket that nobody has read yet. `heard_out` waits until they are: until the end of
the stream, or, where a forked child keeps the socket open, until all that was in it when the process died was taken.
"""

from __future__ import annotations

import array
import errno
import fcntl
import logging
import os
import termios
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING
from uuid import uuid4

import msgspec
import trio

from runhist.protocol import INTERFACE, FrameTooLong, ServerConnection
from runhistd.model.errors import InternalError, InvalidParameter, Refusal, TooLarge

from .envelope import Envelope, MalformedCall, decode_envelope
from .peer import Peer
from .reply import Reply

if TYPE_CHECKING:
    from .service import Service

logger = logging.getLogger("runhistd.server")

READ_BYTES = 64 * 1024
MAX_UNSENT_BYTES = 256 * 1024
LARGE_FRAME_BYTES = 1024 * 1024
LARGE_FRAME_S = 10.0  # of waiting for its bytes
PUBLISH = f"{INTERFACE}.Publish"  # alone may go unanswered: what nobody sees need not be sent again

encode = msgspec.json.Encoder().encode


class Connection:
    """A peer's socket, its open calls, and what is not sent yet."""

    def __init__(self, stream: trio.SocketStream, peer: Peer, service: Service, max_frame_bytes: int) -> None:
        self.stream = stream
        self.peer = peer
        self.machine = ServerConnection(decode_envelope, encode, max_frame_bytes)
        self.descriptor = stream.socket.fileno()  # ours until `serve` has ended
        self.stream_ended: trio.Event | None = None  # there is one while a stream goes on
        self._service = service
        self._replies: deque[Reply] = deque()
        self._unsent = bytearray()
        self._progress = trio.lowlevel.ParkingLot()  # for something that is sent or settled
        self._blocked = trio.Event()  # the socket is full: the writing task is needed
        self._broken = False
        self._serving = trio.CancelScope()
        self._peer_died = False
        self._ended = False
        self._is_over = False  # nothing more is read
        self._next: Envelope | None = None  # a call that came while we rested, for our own task
        self._waits_for_bytes = False
        self._has_more = False  # probably: the last read was as large as it may be
        self._received_bytes = 0
        self._is_taking = False  # what was received is not all carried out or queued yet
        self._heard = trio.lowlevel.ParkingLot()  # for something that is received, or waited for
        self._noted_bytes = 0

    async def serve(self) -> None:
        """Answer until the peer closes, breaks the protocol, is let go, or we are cancelled."""
        try:
            with self._serving:
                await self._serve()
        finally:
            self._broken = True
            self._unsent.clear()
            self._note_held()

    async def _serve(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write_rest)
            try:
                await self._read_calls()
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                self._broken = True
            finally:
                self._ended = True
                self._heard.unpark_all()
            await self.answered()
            await self.sent(0)
            nursery.cancel_scope.cancel()

    def add_reply(self) -> Reply:
        """The place for the reply of a call that was just read."""
        reply = Reply(self)
        self._replies.append(reply)
        return reply

    async def answered(self) -> None:
        """Return when every call so far has its reply on the way."""
        self.flush()
        while self._replies and not self._broken:
            await self._progress.park()

    async def sent(self, at_most_bytes: int) -> None:
        """Return when no more than that is unsent."""
        self.flush()
        while len(self._unsent) > at_most_bytes and not (self._broken or self._peer_died):
            await self._progress.park()

    @property
    def is_broken(self) -> bool:
        """Whether nothing can be sent to the peer any more."""
        return self._broken

    def let_go(self) -> None:
        """Give up the peer, because others need the room that it takes."""
        fields = {"pid": self.peer.pid, "bytes": self._held_bytes}
        logger.warning("let a peer go that does not go on", extra={"fields": fields})
        self._broken = True
        self._serving.cancel()

    @property
    def _held_bytes(self) -> int:
        return self.machine.framing.buffered_bytes + len(self._unsent)

    def _note_held(self) -> None:
        held_bytes = 0 if self._broken else self._held_bytes
        if held_bytes or self._noted_bytes:
            self._service.budget.note(self, held_bytes)
            self._noted_bytes = held_bytes

    def peer_died(self) -> None:
        """Wait no more for it to take its replies, or what it had sent would stay unread behind them."""
        self._peer_died = True
        self._progress.unpark_all()

    async def heard_out(self) -> None:
        """Return when all that is in the socket now was taken: the writes are with the committer.

        What stands behind a stream is not waited for, because it is not taken before that ends.
        """
        behind = self._received_bytes + self._unread_bytes()
        while not (self._ended or self.stream_ended is not None) and (self._received_bytes <= behind or self._is_taking):
            if self._waits_for_bytes and self._unread_bytes() == 0:
                return
            await self._heard.park()

    def _unread_bytes(self) -> int:
        count = array.array("i", [0])
        if not self._ended:
            fcntl.ioctl(self.descriptor, termios.FIONREAD, count)
        return count[0]

    async def send_now(self, frame: bytes) -> None:
        """Send a reply of a stream, and return when the peer can take another."""
        if self._broken:
            raise trio.BrokenResourceError
        self._unsent += frame
        await self.sent(MAX_UNSENT_BYTES)

    def flush(self) -> None:
        """Send the replies that are ready, all in one call of the kernel, without waiting."""
        while self._replies and (frame := self._replies[0].frame) is not None:
            self._replies.popleft()
            self._unsent += frame
        if self._unsent and not self._broken:
            self._send()
        if self._broken:
            self._unsent.clear()
        if self._progress:
            self._progress.unpark_all()

    def _send(self) -> None:
        try:
            sent = os.write(self.descriptor, self._unsent)
            del self._unsent[:sent]
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.EBADF):
                logger.warning("cannot send", exc_info=error)
            self._broken = True
        if self._peer_died and len(self._unsent) > MAX_UNSENT_BYTES:
            self._broken = True  # whoever inherited the socket does not read either
        if self._unsent and not self._broken:
            self._blocked.set()
        self._note_held()

    async def _write_rest(self) -> None:
        while True:
            await self._blocked.wait()
            self._blocked = trio.Event()
            while self._unsent and not self._broken:
                try:
                    await trio.lowlevel.wait_writable(self.descriptor)
                except (OSError, trio.ClosedResourceError):
                    self._broken = True
                self.flush()

    async def _read_calls(self) -> None:
        while not self._is_over:
            await self._wait_room()
            await self._rest()
            if self.machine.framing.buffered_bytes > LARGE_FRAME_BYTES:
                await self._receive_large()
            await self._take_calls()
            self._note_held()

    async def _rest(self) -> None:
        """Wait for calls, and have `take_in` called when some have come, until it asks for this task."""
        self._waits_for_bytes = True
        self._note_heard()
        await self._service.intake.rest(self)
        self._waits_for_bytes = False

    def take_in(self) -> bool:
        """Read once, and queue the writes that came; False when something is to be done that may wait."""
        if len(self._unsent) > MAX_UNSENT_BYTES or not self._service.committer.has_room(self.peer.uid):
            return False
        try:
            received = os.read(self.descriptor, READ_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            received = b""
        self._is_taking = True
        self._received_bytes += len(received)
        self._is_over = not received
        self.peer.look()
        self.machine.receive_data(received)
        while self._next is None and (call := self._next_call()) is not None:
            if not self._queue(call):
                self._next = call
        if self._is_over or self._next is not None or self.machine.framing.buffered_bytes > LARGE_FRAME_BYTES:
            return False
        self._is_taking = False
        self._note_heard()
        self._note_held()
        self.flush()  # what was refused at once
        return True

    async def _wait_room(self) -> None:
        """Return when there is room for what a read may bring."""
        await self.sent(MAX_UNSENT_BYTES)
        await self._service.committer.wait_room(self.peer.uid)

    async def _receive_some(self) -> bytes:
        """The next bytes. Not by the stream, which has them for a moment when neither the socket nor we do."""
        if self._has_more:
            await trio.lowlevel.checkpoint()  # or a peer that always has more would let nobody else run
        else:
            await self._wait_for_bytes()
        while True:
            try:
                received = os.read(self.descriptor, READ_BYTES)
            except BlockingIOError:
                await self._wait_for_bytes()
            else:
                self._has_more = len(received) == READ_BYTES
                self._received_bytes += len(received)
                self._note_heard()
                return received

    async def _wait_for_bytes(self) -> None:
        self._waits_for_bytes = True
        self._note_heard()
        await trio.lowlevel.wait_readable(self.descriptor)
        self._waits_for_bytes = False

    def _note_heard(self) -> None:
        if self._peer_died:
            self._heard.unpark_all()

    async def _receive_large(self) -> None:
        """Receive the rest of a large frame."""
        self._note_held()
        # One of each user waits with the others', so that nobody has more turns than anybody else.
        async with self._service.large_frame_of[self.peer.uid], self._service.large_frame:
            remaining_s = LARGE_FRAME_S
            while not self.machine.framing.is_ready:
                await self._wait_room()
                began_s, received = trio.current_time(), b""
                with trio.move_on_after(remaining_s):
                    received = await self._receive_some()
                if not received:
                    self._is_over = True
                    return
                remaining_s -= trio.current_time() - began_s
                self.machine.receive_data(received)
                self._note_held()

    async def _take_calls(self) -> None:
        """Carry out what has come."""
        self._is_taking = True
        self.peer.look()
        call, self._next = self._next, None
        while call is not None or (call := self._next_call()) is not None:
            if not self._queue(call):
                await self._carry_out(call)
            call = None
        self._is_taking = False
        self._note_heard()
        self.flush()

    def _next_call(self) -> Envelope | None:
        """The next call that is one; those that are refused as they stand have their replies."""
        while not self._is_over:
            try:
                call: Envelope | None = self.machine.next_call()
                return call
            except InvalidParameter as refusal:
                self.add_reply().refuse(refusal)
            except MalformedCall as fault:
                self.add_reply().fail("InvalidParameter", parameter=fault.parameter)
                self._is_over = True
            except FrameTooLong as fault:
                self.add_reply().refuse(TooLarge("call", fault.limit_bytes))
                self._is_over = True
        return None

    def _queue(self, call: Envelope) -> bool:
        """Queue a write, or refuse it; False when the call is to be carried out otherwise."""
        if call.upgrade or (call.oneway and call.method != PUBLISH):
            self._is_over = True  # a write must not go unanswered, and there is nothing to upgrade to
            return True
        reply = Reply(self)
        try:
            if not self._service.submit(self.peer, call, reply):
                return False
        except Exception as error:  # noqa: BLE001 - the fault is answered, to the one call that causes it
            self._refuse(reply, call, error)
        if not call.oneway:
            self._replies.append(reply)
        return True

    async def _carry_out(self, call: Envelope) -> None:
        """Answer a call that is no write, after all before it; or queue a write with large data."""
        if not self._service.is_write(call):
            await self.answered()
        reply = Reply(self) if call.oneway else self.add_reply()
        try:
            await self._service.answer(self, call, reply)
        except Exception as error:  # noqa: BLE001 - the fault is answered, to the one call that causes it
            self._refuse(reply, call, error)
        if not self._service.is_write(call):
            await self.sent(MAX_UNSENT_BYTES)

    def _refuse(self, reply: Reply, call: Envelope, error: Exception) -> None:
        """Answer with the refusal, or with a fault of ours."""
        if not isinstance(error, Refusal):
            request_id = str(uuid4())
            fields = {"request_id": request_id, "method": call.method, "peer_pid": self.peer.pid}
            logger.error("a call failed", exc_info=error, extra={"fields": fields})
            error = InternalError(request_id)
        reply.refuse(error)

    async def stream_until_closed(self, stream: Callable[[], Awaitable[None]], *, endless: bool = False) -> None:
        """Run a stream; the peer's close cancels it at once, and then ends the connection.

        What stands behind an endless one is never read, and much of it ends the connection too: a close behind that would
        not be seen.
        """
        self._replies.clear()  # its replies go out by themselves
        self.stream_ended = trio.Event()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._notice_close, nursery.cancel_scope, endless)
                await stream()
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            self._broken = True
        finally:
            self.stream_ended.set()
            self.stream_ended = None
        self._is_over = self._broken

    async def _notice_close(self, scope: trio.CancelScope, endless: bool) -> None:
        while endless or self.machine.framing.buffered_bytes < LARGE_FRAME_BYTES:
            try:
                received = await self._receive_some()
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                received = b""
            self.machine.receive_data(received)
            if not received or self.machine.framing.buffered_bytes > 2 * LARGE_FRAME_BYTES:
                self._broken = True
                scope.cancel()
                return
            self._note_held()


async def turn_away(stream: trio.SocketStream, refusal: Refusal) -> None:
    """Answer a peer that cannot be served once, and close."""
    async with stream:
        with trio.move_on_after(1):
            error = {"error": f"{INTERFACE}.{type(refusal).__name__}", "parameters": refusal.parameters}
            await stream.send_all(encode(error) + b"\0")
