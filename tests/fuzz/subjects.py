"""What is fuzzed: the two ends of the protocol, and what the daemon makes of the frames that they cut out.

A subject takes bytes and must hold what it promises whatever they are; an AssertionError, or any exception that is no
refusal and no breach of the protocol, is a finding.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from msgspec import Raw

from runhist.protocol import INTERFACE, ClientConnection, ProtocolError, ServerConnection
from runhistd.daemon import control_calls, write_calls
from runhistd.daemon.envelope import Envelope, MalformedCall, decode_envelope
from runhistd.daemon.methods import METHODS
from runhistd.model.errors import Refusal
from runhistd.model.events import MAX_COUNT, Event, kind_of, payload_of
from tests.hostile.test_json_text import depth_of

FRAME_BYTES = 64 * 1024
EVENT_BYTES = 16 * 1024
UID = 1000

WRITES: dict[str, Callable[[Raw], Any]] = {
    f"{INTERFACE}.Append": lambda parameters: write_calls.decode_append(parameters, UID, None, EVENT_BYTES).events,
    f"{INTERFACE}.Publish": lambda parameters: write_calls.decode_publish(parameters, UID, EVENT_BYTES).events,
    f"{INTERFACE}.ClaimRun": lambda parameters: write_calls.decode_claim(parameters, EVENT_BYTES)[1].events,
    f"{INTERFACE}.ImportEvents": lambda parameters: write_calls.decode_import(parameters, UID, EVENT_BYTES).events,
    f"{INTERFACE}.ReleaseRun": lambda parameters: write_calls.decode_release(parameters, UID) and [],
    f"{INTERFACE}.BeginRun": lambda parameters: write_calls.decode_begin(parameters, EVENT_BYTES) and [],
}


class Serving:
    """The daemon's end: cuts frames, decodes calls, and looks at what it took as a reader would. `seen` counts outcomes."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def take(self, chunks: Iterable[bytes]) -> list[str]:
        """What becomes of a connection's bytes, one outcome a frame, in order; a breach of the protocol ends it."""
        machine = ServerConnection(decode_envelope, max_frame_bytes=FRAME_BYTES)
        outcomes: list[str] = []
        for chunk in chunks:
            machine.receive_data(chunk)
            while True:
                ready = machine.framing.is_ready
                try:
                    call = machine.next_call()
                except (MalformedCall, ProtocolError) as fault:
                    assert ready
                    return self._noted([*outcomes, type(fault).__name__])
                except Refusal as refusal:
                    outcomes.append(self._refused(refusal))
                    continue
                if call is None:
                    assert not ready and machine.framing.buffered_bytes <= FRAME_BYTES
                    break
                outcomes.append(self._carried_out(call))
        return self._noted(outcomes)

    def _carried_out(self, call: Envelope) -> str:
        try:
            if call.method in WRITES:
                for i, event in enumerate(WRITES[call.method](call.parameters) or ()):
                    check_event(event)
                    payload_of(kind_of(event, i), event.data, f"events[{i}].data")
            elif call.method in METHODS:
                control_calls.structure(call.parameters, METHODS[call.method][0])
            else:
                return "unknown"
        except Refusal as refusal:
            return self._refused(refusal)
        return "taken"

    def _refused(self, refusal: Refusal) -> str:
        assert all(value is None or isinstance(value, str | int) for value in refusal.parameters.values())
        json.loads(msgspec.json.encode(refusal.parameters))
        return type(refusal).__name__

    def _noted(self, outcomes: list[str]) -> list[str]:
        self.seen.update(outcomes)
        return outcomes


def check_event(event: Event) -> None:
    """An event that was taken can be read by anybody."""
    text = bytes(event.data)
    value = json.loads(text, parse_float=_finite, parse_int=_finite)
    assert isinstance(value, dict) and depth_of(value) <= 64
    _check_texts(value)
    assert event.attempt is None or 1 <= event.attempt <= MAX_COUNT
    assert event.time_us is None or 0 <= event.time_us <= MAX_COUNT


def _finite(digits: str) -> float:
    assert math.isfinite(float(digits)), digits
    return 0.0


def _check_texts(value: Any) -> None:
    if isinstance(value, dict):
        for name, part in value.items():
            _check_texts(name)
            _check_texts(part)
    elif isinstance(value, list):
        for part in value:
            _check_texts(part)
    elif isinstance(value, str):
        value.encode()
        assert "\0" not in value


class Calling:
    """The client's end: what a daemon that went mad may answer is a reply or a breach of the protocol."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def take(self, chunks: Iterable[bytes]) -> list[str]:
        """As Serving.take."""
        machine = ClientConnection(max_frame_bytes=FRAME_BYTES)
        for _ in range(3):
            machine.send_call("a.b", {})
        machine.send_call("a.c", {}, more=True)
        outcomes: list[str] = []
        for chunk in chunks:
            machine.receive_data(chunk)
            try:
                while (reply := machine.next_reply()) is not None:
                    assert isinstance(reply.parameters, dict) and isinstance(reply.continues, bool)
                    assert reply.error is None or isinstance(reply.error, str)
                    outcomes.append("reply" if reply.error is None else "error")
            except ProtocolError:
                return self._noted([*outcomes, "broken"])
        return self._noted(outcomes)

    def _noted(self, outcomes: list[str]) -> list[str]:
        self.seen.update(outcomes)
        return outcomes
