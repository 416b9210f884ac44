"""What JSON allows and a history must not keep: numbers beyond a double, nesting without end, U+0000, half surrogate pairs.

Whoever reads a stored event later may be any program in any language. Python refuses a number of thousands of digits,
JavaScript takes one beyond a double for Infinity, C ends a text at U+0000: one such event would break every reader and
follower that comes across it, so it is refused where it comes in.

The text was decoded as raw JSON before, which has checked its grammar, half surrogate pairs included. Here it is only
searched, by steps that run in C: nothing here may cost a hostile sender's neighbours more than the decoding itself.
By `find` and not by `in`, which takes several times as long: it asks first, by an exception, whether bytes are a number.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any

import msgspec

from runhistd.model.errors import InvalidParameter

MAX_DEPTH = 64
COUNTED_BYTES = 1024 * 1024  # parameters above this are counted before they are decoded, which takes ten times their bytes
# Strings and what lies between them that neither counts for depth nor is a number.
_STRINGS = re.compile(rb'(?:"(?:[^"\\]++|\\.)*+"[^"\[\]{}0-9]*+)++', re.DOTALL)
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
# Digits taken for zeros, a number is within a double's range unless it has 200 digits in a row or an exponent of three.
# Translating and looking for plain bytes takes a tenth of the time of a regular expression that says the same.
_AS_ZEROS = bytes.maketrans(b"123456789E", b"000000000e")
_PLUS = b"+"  # is left out, so that one search is enough
_LARGE_EXPONENT = b"0e000"
_MANY_DIGITS = b"0" * 200
_LONG_NUMBER = re.compile(rb"(?<![0-9.])[0-9.]{200}[0-9.]*+(?:[eE][+-]?[0-9]+)?")
_AS_LISTS = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_decode = msgspec.json.Decoder().decode


def is_sound(text: bytes) -> bool:
    """Whether every number in the JSON text is within a double's range, and nothing is nested deeper than MAX_DEPTH."""
    return is_shallow(text) and (has_plain_numbers(text) or _are_in_range(text))


def is_shallow(text: bytes) -> bool:
    """Whether nothing in the JSON text is nested deeper than MAX_DEPTH."""
    return text.count(b"{") + text.count(b"[") <= MAX_DEPTH or not _is_deep(_STRINGS.sub(b" ", text))


def has_plain_numbers(text: bytes) -> bool:
    """Whether a glance at the text, strings and all, shows that every number in it is within a double's range."""
    zeros = text.translate(_AS_ZEROS, _PLUS)
    return zeros.find(_LARGE_EXPONENT) < 0 and zeros.find(_MANY_DIGITS) < 0


def _are_in_range(text: bytes) -> bool:
    zeros = text.translate(_AS_ZEROS, _PLUS)
    if zeros.find(_MANY_DIGITS) >= 0:
        long_numbers = _LONG_NUMBER.finditer(_STRINGS.sub(b" ", text))
        if not all(math.isfinite(float(number[0])) for number in long_numbers):
            return False
    return zeros.find(_LARGE_EXPONENT) < 0 or _decodes(text)


def _decodes(text: bytes) -> bool:
    """Whether msgspec can decode it, which refuses floats beyond a double, and takes integers that are."""
    try:
        _decode(text)
    except msgspec.ValidationError:
        return False
    return True


def _is_deep(bare: bytes) -> bool:
    """By taking away the innermost brackets, level by level."""
    brackets = bare.translate(_AS_LISTS, _NOT_BRACKETS)
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"")
        if not brackets:
            return False
    return True


def holds_nul(text: bytes) -> bool:
    r"""Whether a string of the JSON text holds U+0000, which it can only do as \u0000."""
    return text.find(b"\\u0000") >= 0 and _NUL.search(text) is not None


def check_nul(text: bytes, where: str = "") -> None:
    """Refuse a JSON text that holds U+0000; `where` is its own place in the call. Raises InvalidParameter."""
    if holds_nul(text):
        raise InvalidParameter(place(where + path_of_fault(text)))


def place(path: str) -> str:
    """A path as it stands in an error; without one the parameters as a whole are meant."""
    return path.removeprefix(".") or "parameters"


def path_of_fault(text: bytes) -> str:
    """The path of the first string that holds U+0000 or half a surrogate pair, as `.member[3].member`; "" for none.

    A member whose own name is at fault is named by what holds it.
    """
    try:
        return _path_in(json.loads(text)) or ""
    except (ValueError, RecursionError):
        return ""


def _path_in(value: Any) -> str | None:
    if isinstance(value, str):
        return None if _is_text(value) else ""
    parts: Iterable[tuple[str, Any]] = ()
    if isinstance(value, dict):
        if not all(map(_is_text, value)):
            return ""
        parts = ((f".{name}", part) for name, part in value.items())
    elif isinstance(value, list):
        parts = ((f"[{i}]", part) for i, part in enumerate(value))
    for name, part in parts:
        path = _path_in(part)
        if path is not None:
            return name + path
    return None


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value
