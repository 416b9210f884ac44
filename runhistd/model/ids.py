"""Names of runs: what is taken, and the short form that people type."""

from __future__ import annotations

import unicodedata

from .errors import InvalidParameter

MAX_NAME_BYTES = 255
SHORT_ID_BYTES = 12  # an id up to this long is its own short form
MIN_ENDING = 6  # characters of a shortened id: long enough to stay unique for a while


def check_name(parameter: str, value: str) -> str:
    """`value` if it is 1 to 255 bytes of UTF-8 without control characters; otherwise InvalidParameter."""
    if value.isascii() and value.isprintable() and 1 <= len(value) <= MAX_NAME_BYTES:
        return value
    if not value.isascii() or not value.isprintable():
        if any(unicodedata.category(char) in ("Cc", "Cs") for char in value):
            raise InvalidParameter(parameter)
    if not 1 <= len(value.encode()) <= MAX_NAME_BYTES:
        raise InvalidParameter(parameter)
    return value


def shortest_ending(run_id: str, neighbours: list[str]) -> str:
    """The shortest ending of `run_id`, at least MIN_ENDING characters, that none of `neighbours` shares.

    Sorted by their reversed text, an id shares its longest ending with one of its two neighbours, so those two suffice.
    """
    if len(run_id.encode()) <= SHORT_ID_BYTES:
        return run_id
    shared = max((_shared_ending(run_id, other) for other in neighbours), default=0)
    length = max(shared + 1, MIN_ENDING)
    while length < len(run_id) and run_id[-length] == "-":  # or a command would take it for an option
        length += 1
    return run_id[-length:]


def _shared_ending(one: str, other: str) -> int:
    length = 0
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if a != b:
            break
        length += 1
    return length
