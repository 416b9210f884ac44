"""Both ends of a varlink connection as state machines: bytes in, calls or replies out.

A message is a JSON object ended by one NUL byte. Replies come in the order of their calls. A call with `more` may get
many replies, all but the last marked `continues`; a `oneway` call gets none. Nothing here reads, writes, waits or looks
at a clock; whoever owns the socket passes bytes in and sends what comes out.
"""

from __future__ import annotations

import json
from collections import deque
from typing import Any, Callable, Deque, NamedTuple, Optional

MAX_FRAME_BYTES = 16 * 1024 * 1024

Decode = Callable[[bytes], Any]
Encode = Callable[[Any], bytes]


class ProtocolError(Exception):
    """The peer broke the protocol; nothing that follows on this connection can be trusted, so close it."""


class FrameTooLong(ProtocolError):
    """A frame passed the limit before its end was seen."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"a frame is longer than {limit_bytes} bytes")
        self.limit_bytes = limit_bytes


class Call(NamedTuple):
    """One call. `parameters` is what the machine's `decode` made of the member: an object, or its bytes."""

    method: str
    parameters: Any
    more: bool = False
    oneway: bool = False


class Reply(NamedTuple):
    """One reply. `error` is the full name of a typed error; `continues` tells that more replies to the call follow."""

    parameters: Any
    error: Optional[str] = None
    continues: bool = False


def encode_json(message: Any) -> bytes:
    """Compact UTF-8 JSON by the standard library; ValueError for NaN and infinities."""
    return json.dumps(message, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8")


class Framing:
    """Cuts a stream of bytes at NUL. Holds at most one unfinished frame and what one read brought."""

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self.max_frame_bytes = max_frame_bytes
        self._buffer = bytearray()
        self._start = 0  # of the next frame
        self._scanned = 0  # no NUL between _start and here

    @property
    def buffered_bytes(self) -> int:
        """How many bytes were received and not yet given out as a message."""
        return len(self._buffer) - self._start

    @property
    def is_ready(self) -> bool:
        """Whether `next_message` has something to say: a whole frame, or that one is too long."""
        return self._buffer.find(0, self._scanned) >= 0 or self.buffered_bytes > self.max_frame_bytes

    def receive_data(self, data: bytes) -> None:
        """Take what a read from the socket returned."""
        if self._start:
            del self._buffer[: self._start]
            self._scanned -= self._start
            self._start = 0
        self._buffer += data

    def next_message(self) -> Optional[bytes]:
        """The next whole frame without its NUL, or None until more bytes came. Raises FrameTooLong."""
        end = self._buffer.find(0, self._scanned)
        length = (len(self._buffer) if end < 0 else end) - self._start
        if length > self.max_frame_bytes:
            raise FrameTooLong(self.max_frame_bytes)
        if end < 0:
            self._scanned = len(self._buffer)
            return None
        frame = bytes(self._buffer[self._start : end])
        self._start = self._scanned = end + 1
        return frame

    def send(self, message: bytes) -> bytes:
        """The frame for an encoded message."""
        return message + b"\0"


class ServerConnection:
    """The answering end. `decode` turns a frame into a Call-shaped object and may raise its own errors."""

    def __init__(
        self, decode: Callable[[bytes], Any], encode: Encode = encode_json, max_frame_bytes: int = MAX_FRAME_BYTES
    ) -> None:
        self.framing = Framing(max_frame_bytes)
        self._decode = decode
        self._encode = encode

    def receive_data(self, data: bytes) -> None:
        """Take what a read from the socket returned."""
        self.framing.receive_data(data)

    def next_call(self) -> Any:
        """The next call as `decode` returned it, or None until more bytes came. Raises FrameTooLong."""
        frame = self.framing.next_message()
        return None if frame is None else self._decode(frame)

    def send_reply(self, parameters: Any, *, continues: bool = False) -> bytes:
        """The bytes that answer the oldest open call. `continues` is only for calls with `more`."""
        message = {"parameters": parameters}
        if continues:
            message["continues"] = True
        return self.framing.send(self._encode(message))

    def send_error(self, name: str, parameters: Any) -> bytes:
        """The bytes that end the oldest open call with the typed error of that full name."""
        return self.framing.send(self._encode({"error": name, "parameters": parameters}))


class ClientConnection:
    """The calling end: remembers which calls are open, so that a reply that fits none is found out."""

    def __init__(
        self, decode: Decode = json.loads, encode: Encode = encode_json, max_frame_bytes: int = MAX_FRAME_BYTES
    ) -> None:
        self.framing = Framing(max_frame_bytes)
        self._decode = decode
        self._encode = encode
        self._open: Deque[Call] = deque()

    def send_call(self, method: str, parameters: Any, *, more: bool = False, oneway: bool = False) -> bytes:
        """The bytes of a call. ProtocolError while a `more` call is open: it owns the connection until it ends."""
        if self._open and self._open[-1].more:
            raise ProtocolError(f"{self._open[-1].method} is still streaming on this connection")
        message: dict[str, Any] = {"method": method, "parameters": parameters}
        if more:
            message["more"] = True
        if oneway:
            message["oneway"] = True
        else:
            self._open.append(Call(method, parameters, more))
        return self.framing.send(self._encode(message))

    def receive_data(self, data: bytes) -> None:
        """Take what a read from the socket returned."""
        self.framing.receive_data(data)

    def next_reply(self) -> Optional[Reply]:
        """The next reply to the oldest open call, or None until more bytes came. Raises ProtocolError."""
        frame = self.framing.next_message()
        if frame is None:
            return None
        try:
            message = self._decode(frame)
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"the reply is not JSON: {error}") from error
        if not isinstance(message, dict) or not isinstance(message.get("parameters", {}), dict):
            raise ProtocolError("the reply is not a varlink message")
        if not isinstance(message.get("error"), (str, type(None))) or type(message.get("continues", False)) is not bool:
            raise ProtocolError("the reply is not a varlink message")
        if not self._open:
            raise ProtocolError("a reply came that no call waits for")
        continues = message.get("continues", False)
        if continues and not self._open[0].more:
            raise ProtocolError(f"{self._open[0].method} was answered as a stream that nobody asked for")
        if not continues:
            self._open.popleft()
        return Reply(message.get("parameters", {}), message.get("error"), continues)
