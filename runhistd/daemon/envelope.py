"""From a frame to a call: its method, and its parameters as the bytes that came."""

from __future__ import annotations

import msgspec
from msgspec import Raw, Struct

from runhistd.model.errors import InvalidParameter
from runhistd.model.events import EMPTY, fault_path

from . import json_text


class MalformedCall(Exception):
    """The frame is no varlink call; the peer gets `parameter` as its fault, and the connection is closed."""

    def __init__(self, parameter: str) -> None:
        super().__init__(parameter)
        self.parameter = parameter


class Envelope(Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """A varlink call."""

    method: str
    parameters: Raw = EMPTY
    more: bool = False
    oneway: bool = False
    upgrade: bool = False

    @property
    def size(self) -> int:
        """About the bytes of the frame."""
        return len(memoryview(self.parameters))


_decode_envelope = msgspec.json.Decoder(Envelope).decode


def decode_envelope(frame: bytes) -> Envelope:
    """The call in a frame. Raises MalformedCall; InvalidParameter where only a text in its parameters is no text."""
    try:
        if not frame.isascii():  # msgspec does not look at the bytes of what it keeps raw
            str(frame, "utf-8")
        return _decode_envelope(frame)
    except msgspec.ValidationError as error:
        raise MalformedCall(fault_path(error).removeprefix(".") or "call") from error
    except (ValueError, RecursionError) as error:
        call, _, path = json_text.path_of_fault(frame).partition(".parameters")
        if path and not call:
            raise InvalidParameter(json_text.place(path)) from error
        raise MalformedCall("call") from error
