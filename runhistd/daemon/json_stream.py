"""The same rules as in `json_text`, and JSON's grammar, for an object that is too long to be held: it comes in parts.

A pushdown automaton over tokens that a regular expression cuts. What is nearly flat (strings, plain numbers, and lists and
objects of them) is passed over by one match, because a step of Python for each would take a hundred times as long. Of a
part only an unfinished token is kept, and a token other than a string has a bounded length.

The grammar is that of RFC 8259.
"""

from __future__ import annotations

import codecs
import functools
import math
import re
from collections.abc import Iterable
from typing import Final

from .json_text import MAX_DEPTH

_SPACE: Final = rb"[ \t\r\n]*+"
_ESCAPES: Final = (
    rb'\\(?:["\\/bfnrt]|u(?:(?!0000|[dD][89a-fA-F])[0-9a-fA-F]{4}|[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}))'
)
_TEXT: Final = rb'(?:[^"\\\x00-\x1f]++|' + _ESCAPES + rb")*+"
# Numbers that are surely within a double's range: below 10 to the 299th.
_PLAIN: Final = rb"(?:-?(?:0|[1-9][0-9]{0,199})(?:\.[0-9]{1,199})?(?:[eE][+-]?[0-9]{1,2})?+|true|false|null)"
_SHORT: Final = rb'(?:"' + _TEXT + rb'"|' + _PLAIN + rb")"
_NUMBER: Final = re.compile(rb"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?")
_WORD: Final = re.compile(rb"[-+.0-9A-Za-z]++")
_LITERAL: Final = re.compile(rb"true|false|null")
_SPACES: Final = re.compile(_SPACE)
_REST_OF_TEXT: Final = re.compile(_TEXT)


def _nested(value: bytes) -> bytes:
    """The values that have no others in them but these."""
    item = _SPACE + value + _SPACE
    member = _SPACE + rb'"' + _TEXT + rb'"' + _SPACE + rb":" + item
    items, members = (rb"(?:" + one + rb"(?:," + one + rb")*+|" + _SPACE + rb")" for one in (item, member))
    return rb"(?:" + _SHORT + rb"|\[" + items + rb"\]|\{" + members + rb"\})"


def _flat(value: bytes) -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
    """What passes over items, and over members, each with the comma behind it."""
    item = _SPACE + value + _SPACE + rb","
    member = _SPACE + rb'"' + _TEXT + rb'"' + _SPACE + rb":" + item
    return re.compile(rb"(?:" + item + rb")*+" + _SPACE), re.compile(rb"(?:" + member + rb")*+" + _SPACE)


_LEVELS: Final = 2  # of brackets that one match passes over; each makes the expression three times as long


@functools.cache
def _patterns(*, is_deep: bool) -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
    """What passes over items and over members; made when it is needed, which takes a tenth of a second."""
    return _flat(_SHORT if is_deep else _nested(_nested(_SHORT)))


_LONGEST_ESCAPE: Final = 12  # a surrogate pair
_LONGEST_NUMBER: Final = 1000  # a double's digits, and more than any program writes; a longer one is refused

_VALUE, _FIRST_ITEM, _KEY, _FIRST_KEY, _COLON, _NEXT, _END = range(7)


class Unsound(Exception):
    """It is not JSON, or not such as may be kept."""


def check(parts: Iterable[bytes]) -> None:
    """Return when the parts are one JSON object that may be kept. Raises Unsound, and what `parts` raises."""
    stream = JsonStream()
    for part in parts:
        stream.feed(part)
    stream.finish()


class JsonStream:
    """Takes an object part by part; `finish` says whether it was whole."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._rest = b""
        self._stack = bytearray()
        self._expected = _VALUE
        self._is_in_text = False
        self._is_key = False

    def feed(self, part: bytes) -> None:
        """The next part. Raises Unsound as soon as it is known."""
        self._check_utf8(part, final=False)
        self._rest = self._take(self._rest + part, final=False)

    def finish(self) -> None:
        """There is no more. Raises Unsound where something is missing."""
        self._check_utf8(b"", final=True)
        if self._take(self._rest, final=True) or self._is_in_text or self._expected != _END:
            raise Unsound

    def _check_utf8(self, part: bytes, *, final: bool) -> None:
        try:
            self._decode(part, final)
        except UnicodeDecodeError as error:
            raise Unsound from error

    def _take(self, text: bytes, *, final: bool) -> bytes:
        """Go through the text; returns the unfinished token at its end."""
        at = 0
        while True:
            if self._is_in_text:
                at = self._pass_text(text, at)
            else:
                at = self._pass_flat(text, at)
            if at == len(text):
                return b""
            behind = self._pass_text_end(text, at) if self._is_in_text else self._pass_token(text, at, final=final)
            if behind is None:
                return text[at:]
            at = behind

    def _pass_flat(self, text: bytes, at: int) -> int:
        inside = self._stack[-1:]
        items, members = _patterns(is_deep=len(self._stack) + _LEVELS > MAX_DEPTH)
        pattern = _SPACES
        if inside == b"[" and self._expected in (_VALUE, _FIRST_ITEM):
            pattern = items
        elif inside == b"{" and self._expected in (_KEY, _FIRST_KEY):
            pattern = members
        found = pattern.match(text, at)
        assert found is not None
        if pattern is not _SPACES and b"," in found[0]:  # behind a comma nothing may be closed
            self._expected = _VALUE if inside == b"[" else _KEY
        return found.end()

    def _pass_text(self, text: bytes, at: int) -> int:
        found = _REST_OF_TEXT.match(text, at)
        assert found is not None
        return found.end()

    def _pass_text_end(self, text: bytes, at: int) -> int | None:
        if text[at : at + 1] == b'"':
            self._is_in_text = False
            self._expected = _COLON if self._is_key else self._behind_value()
            return at + 1
        if text[at : at + 1] == b"\\" and len(text) - at < _LONGEST_ESCAPE:
            return None
        raise Unsound

    def _pass_token(self, text: bytes, at: int, *, final: bool) -> int | None:
        """Take one token; None where it may go on behind the text."""
        token, expected = text[at : at + 1], self._expected
        if not self._stack and expected == _VALUE and token != b"{":
            raise Unsound  # only an object is data
        if token in b"]}" and self._closes(token):
            self._stack.pop()
            self._expected = self._behind_value()
        elif token == b"," and expected == _NEXT:
            self._expected = _VALUE if self._stack[-1:] == b"[" else _KEY
        elif token == b":" and expected == _COLON:
            self._expected = _VALUE
        elif token == b'"' and expected not in (_COLON, _NEXT, _END):
            self._is_in_text, self._is_key = True, expected in (_KEY, _FIRST_KEY)
        elif expected not in (_VALUE, _FIRST_ITEM):
            raise Unsound
        elif token in b"[{":
            self._open(token)
        else:
            return self._pass_scalar(text, at, final=final)
        return at + 1

    def _closes(self, token: bytes) -> bool:
        opener, first = (b"[", _FIRST_ITEM) if token == b"]" else (b"{", _FIRST_KEY)
        return self._stack[-1:] == opener and self._expected in (_NEXT, first)

    def _open(self, token: bytes) -> None:
        self._stack += token
        if len(self._stack) > MAX_DEPTH:
            raise Unsound
        self._expected = _FIRST_ITEM if token == b"[" else _FIRST_KEY

    def _pass_scalar(self, text: bytes, at: int, *, final: bool) -> int | None:
        word = _WORD.match(text, at)
        if word is None or len(word[0]) > _LONGEST_NUMBER:
            raise Unsound
        if word.end() == len(text) and not final:
            return None
        if _LITERAL.fullmatch(word[0]) is None:
            if _NUMBER.fullmatch(word[0]) is None or not math.isfinite(float(word[0])):
                raise Unsound
        self._expected = self._behind_value()
        return word.end()

    def _behind_value(self) -> int:
        return _NEXT if self._stack else _END
