"""The quick look into JSON text finds what a slow and plain one finds."""

from __future__ import annotations

import json
import math
import random
import sys
from typing import Any

from runhistd.daemon.json_text import MAX_DEPTH, holds_nul, is_sound, path_of_fault

INTEGERS = ["0", "1", "-9", *(sign + "9" * digits for sign in ("", "-") for digits in (5, 199, 200, 308, 309, 310))]
FRACTIONS = ["", "", "", ".0", ".5", "." + "1" * 199, "." + "1" * 400, "." + "0" * 300 + "1"]
EXPONENTS = ["", "", *(f"{e}{sign}{n}" for e in "eE" for sign in ("", "+", "-") for n in ("5", "300", "309", "0000307"))]
PARTS = ["a", '"', "\\", "1" * 200, "1e999", "[", "]", "{", "}", "\n", " ", "\0", "\\u0000", "😀", "é"]


def text_of(chance: random.Random) -> str:
    return "".join(chance.choices(PARTS, k=chance.randrange(5)))


def value_of(chance: random.Random, depth: int) -> str:
    """Some JSON value, as text."""
    kind = chance.random()
    if depth <= 0 or kind < 0.4:
        return chance.choice(INTEGERS) + chance.choice(FRACTIONS) + chance.choice(EXPONENTS)
    if kind < 0.6:
        return json.dumps(text_of(chance), ensure_ascii=chance.random() < 0.5)
    values = [value_of(chance, depth - 1) for _ in range(chance.randrange(4))]
    if kind < 0.8:
        return "[" + ",".join(values) + "]"
    return "{" + ",".join(f"{json.dumps(text_of(chance))}:{value}" for value in values) + "}"


def depth_of(value: Any) -> int:
    if isinstance(value, dict | list):
        parts = value.values() if isinstance(value, dict) else value
        return 1 + max(map(depth_of, parts), default=0)
    return 0


def is_sound_slowly(text: str) -> bool:
    large = []

    def number(digits: str) -> float:
        if not math.isfinite(float(digits)) or abs(float(digits)) > sys.float_info.max:
            large.append(digits)
        return 0.0

    value = json.loads(text, parse_int=number, parse_float=number)
    return not large and depth_of(value) <= MAX_DEPTH


def holds_nul_slowly(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(holds_nul_slowly, value))
    return isinstance(value, str) and "\0" in value


def test_the_quick_look_agrees_with_the_slow_one() -> None:
    chance = random.Random(3)
    sound = 0
    for _ in range(4000):
        text = '{"a":' + value_of(chance, 4) + "}"
        expected = is_sound_slowly(text)
        assert is_sound(text.encode()) == expected, text
        pairs = json.loads(text, object_pairs_hook=list)  # a dict would lose what stands behind a name that comes twice
        assert holds_nul(text.encode()) == holds_nul_slowly(pairs), text
        assert holds_nul(text.encode()) or not path_of_fault(text.encode()), text
        sound += expected
    assert 1000 < sound < 3900


def test_depth_is_counted_outside_of_strings() -> None:
    for deepest in range(MAX_DEPTH - 2, MAX_DEPTH + 3):
        for opener, closer in (("[", "]"), ('{"a":', "}"), ('["[",', "]"), ('["]",', "]"), ('{"}":', "}")):
            text = opener * deepest + "0" + closer * deepest
            assert is_sound(text.encode()) == (deepest <= MAX_DEPTH), text
        mixed = '[{"a":' * (deepest // 2) + "[" * (deepest % 2) + "0" + "]" * (deepest % 2) + "}]" * (deepest // 2)
        assert is_sound(mixed.encode()) == (deepest <= MAX_DEPTH), mixed
    assert is_sound(("[" + "[[]]," * 1000 + "0]").encode())
