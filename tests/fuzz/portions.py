"""Portions of frames, each drawn from the seed and its number alone, fed to both ends of the protocol."""

from __future__ import annotations

import random
import traceback
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from tests.fuzz.grammar import Grammar
from tests.fuzz.subjects import Calling, Serving

PORTION = 2000
TOGETHER = (1, 1, 2, 5)  # frames of one connection
REPLIES = [
    *(b'{"parameters":{}}', b'{"parameters":{"a":1}}', b'{"error":"a.b","parameters":{}}', b"{}", b'{"error":7}'),
    *(b'{"parameters":{},"continues":true}', b'{"continues":1}', b'{"parameters":[]}', b'{"error":null}'),
]


class Result(NamedTuple):
    """What a portion came to. `finding` is empty, or what went wrong and where."""

    portion: int
    frames: int
    seen: Counter[str]
    finding: str


def cut(chance: random.Random, text: bytes) -> Iterator[bytes]:
    """The text in chunks of any size."""
    at = 0
    while at < len(text):
        size = chance.choice((1, 2, 7, 100, 4096, 100_000))
        yield text[at : at + size]
        at += size


@cache
def grammar() -> Grammar:
    """This process's own: its tables take a while to make."""
    return Grammar(random.Random(0))


def run_portion(seed: int, portion: int, frames: int = PORTION) -> Result:
    """Feed that many frames to both ends."""
    chance = random.Random(f"{seed} {portion}")
    serving, calling = Serving(), Calling()
    grammar().chance = chance
    made = 0
    text = b""
    try:
        while made < frames:
            count = min(chance.choice(TOGETHER), frames - made)
            made += count
            text = b"".join(grammar().frame() + b"\0" for _ in range(count))
            whole = serving.take([text])
            if chance.random() < 0.3:
                assert serving.take(cut(chance, text)) == whole, "chunks came to something else"
            replies = b"".join(chance.choice(REPLIES) + b"\0" for _ in range(chance.randrange(4))) + text
            assert calling.take([replies]) == calling.take(cut(chance, replies)), "chunks came to something else"
    except Exception:  # noqa: BLE001 - whatever it is, it is what was looked for
        return Result(portion, made, serving.seen, f"{traceback.format_exc()}\n{text!r}")
    return Result(portion, made, serving.seen + calling.seen, "")
