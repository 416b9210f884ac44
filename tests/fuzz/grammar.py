"""Frames as a hostile peer may send them: calls of the interface, sound and with a fault, and what chance makes of them."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any
from uuid import UUID

from tests.hostile.peers import frame
from tests.hostile.wrong import METHODS, encoded, sound_call, wrong_calls

RUN_ID = "x"
"""What every sample names."""
TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[-+.0-9eE]+|[a-z]+|[][{}:,]|\s+|.', re.DOTALL)
VALUES = [
    *(b"0", b"-0", b"1", b"-1", b"1.0", b"1e3", b"1e999", b"-1e999", b"9223372036854775807", b"9223372036854775808"),
    *(b"1" * 400, b"1" * 5000, b"0." + b"0" * 400 + b"1", b"null", b"true", b"false", b"[]", b"{}", b"[[]]", b'{"a":1}'),
    *(b'[{"a":[1,2,{"b":null}]}]', b"[" * 70 + b"]" * 70, b'{"a":' * 70 + b"1" + b"}" * 70, b"[" * 3000 + b"]" * 3000),
    *(b'""', b'"x"', b'"\\u0000"', b'"\\ud800"', b'"\\ud83d\\ude00"', b'"\\udc00\\ud800"', b'"\\\\u0000"', b'"a/../b"'),
    *(b'"' + b"y" * 300 + b'"', b'"\xe2\x80\xae"', b'"running"', b'"default"', b'"00000000-0000-0000-0000-000000000003"'),
    *(b'"note"', b'"run.completed"', b'"run.paused"', b'"run.updated"', b'"run.incomplete"', b'"gate.answered"', b'"usage"'),
    *(b'"step.started"', b'"step.failed"', b'"artifact"', b'"checkpoint"', b'"2"', b'{"title":"t","state":{"a":null}}'),
]
BROKEN = [
    *(b"01", b"+1", b".5", b"1.", b"-", b"NaN", b"Infinity", b"-Infinity", b"nul", b"True", b"[" * 5000, b'"\xff"'),
    *(b'"\xc3"', b'"\xed\xa0\x80"', b'"\x01"', b'"\n"', b'"\\x"', b'"\\"', b"'x'", b"", b'{"a":}', b"[1,]"),
]
NAMES = [b'"surprise"', b'"size"', b'"more"', b'"oneway"', b'"upgrade"', b'"parameters"', b'"\\u0065vents"', b'"data"']
BYTES = [b"\0", b"{", b"}", b"[", b"]", b'"', b"\\", b",", b":", b" ", b"\xff", b"\x80", b"0", b"e", b"\n", b"-", b"u"]


class Grammar:
    """Makes frames without their NUL; the same chance makes the same frames."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self._sound, self._wrong = seeds()
        self._texts = self._sound * (1 + len(self._wrong) // len(self._sound)) + self._wrong  # as many of both
        self._tokens = [TOKEN.findall(text) for text in self._texts]
        self._makers: list[Callable[[], bytes]] = [*[self._as_it_is] * 3, *[self._other_tokens] * 12]
        self._makers += [self._other_bytes, self._other_bytes, self._spliced, self._noise]

    def frame(self) -> bytes:
        """The next one."""
        return self.chance.choice(self._makers)().replace(b"\0", b" ")

    def _as_it_is(self) -> bytes:
        return self.chance.choice(self._texts)

    def _other_tokens(self) -> bytes:
        tokens = list(self.chance.choice(self._tokens))
        for _ in range(self.chance.choice((1, 1, 1, 2, 3))):
            at = self._place(tokens)
            kind = self.chance.random()
            if kind < 0.6:
                tokens[at] = self.chance.choice(VALUES)
            elif kind < 0.65:
                tokens[at] = self.chance.choice(BROKEN)
            elif kind < 0.7:
                tokens[at] = self.chance.choice(NAMES)
            elif kind < 0.8:
                tokens[at] = tokens[self.chance.randrange(len(tokens))]
            elif kind < 0.9:
                tokens[at] = b""
            else:
                tokens[at] += b"," + self.chance.choice(NAMES) + b":" + self.chance.choice(VALUES)
        return b"".join(tokens)

    def _place(self, tokens: list[bytes]) -> int:
        """Where a token is changed: mostly a value, or little but malformed frames would come."""
        while True:
            at = self.chance.randrange(len(tokens))
            is_value = tokens[at].strip() not in b"{}[]:," and tokens[min(at + 1, len(tokens) - 1)] != b":"
            if is_value or self.chance.random() < 0.03:
                return at

    def _other_bytes(self) -> bytes:
        text = bytearray(self.chance.choice(self._texts))
        for _ in range(self.chance.choice((1, 1, 2, 5, 20))):
            at = self.chance.randrange(len(text) + 1)
            text[at : at + self.chance.choice((0, 1, 1, 4))] = self.chance.choice(BYTES)
        return bytes(text)

    def _spliced(self) -> bytes:
        one, other = self.chance.choice(self._texts), self.chance.choice(self._texts)
        return one[: self.chance.randrange(len(one))] + other[self.chance.randrange(len(other)) :]

    def _noise(self) -> bytes:
        return self.chance.randbytes(self.chance.randrange(40))


def seeds() -> tuple[list[bytes], list[bytes]]:
    """Every method's sound calls, and its calls with a fault."""
    sound, wrong = [], []
    for method in METHODS:
        full = sound_call(method)
        calls = [full, *({name: part for name, part in full.items() if name != left_out} for left_out in full)]
        if "events" in full:
            plain = {"type": "note", "data": full["events"][0]["data"]}
            calls += [{**call, "events": [plain, plain]} for call in calls]
        texts = [frame(method, call)[:-1] for call in calls]
        sound += [*texts, texts[0][:-1] + b',"more":true}', texts[0][:-1] + b',"oneway":true}']
        wrong += [encoded(frame(method, call.parameters))[:-1] for call in wrong_calls(method)]
    return sound, [text for text in wrong if len(text) < 20_000]


def begin(run_id: str = RUN_ID) -> dict[str, Any]:
    """What makes the run that the samples name."""
    return {"run": {"run_id": run_id}, "lease_key": str(UUID(int=9)), "lease": "none"}
