"""From what an engine hands over to the JSON of the wire, naming the field that does not fit.

Recorded as JSON are dicts, lists, tuples, strings, finite numbers, booleans and None. For convenience dates and times
become ISO 8601, paths, UUIDs and Decimals their text, and other libraries' integers integers; dict keys that are
numbers, booleans or None become text as in the json module. Refused with the field's name are NaN and infinities, sets,
bytes and other objects, integers beyond a double, other keys, text with lone surrogates or U+0000, and nesting deeper
than the daemon takes.
"""

from __future__ import annotations

import datetime
import json
import math
import operator
import os
import sys
from typing import TYPE_CHECKING, Any, Dict, Mapping, Union

from .protocol.errors import RunhistError

MAX_DEPTH = 60  # the daemon takes 64; the event around `data` needs some of them
MICROCENTS_PER_USD = 100_000_000
MAX_LINE_CHARS = 1000  # of an error's one line; the rest is in its traceback
MAX_TRACEBACK_CHARS = 64 * 1024

if TYPE_CHECKING:
    from decimal import Decimal

_LONG_NUMBER = b"0" * 309  # an integer that may be beyond a double, its digits taken for zeros
_DIGITS = bytes.maketrans(b"123456789", b"000000000")

Cost = Union[str, int, float, "Decimal"]
_COUNTS = frozenset(
    {
        *("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"),
        *("reasoning_output_tokens", "cost_microcents"),
    }
)
_WORDS = frozenset({"model", "provider", "response_id"})


class Unencodable(RunhistError, ValueError):
    """A value cannot be recorded as JSON. `field` names it, for instance `data.items[3]`; `reason` says why."""

    def __init__(self, field: str, reason: str) -> None:
        self.field = field
        self.reason = reason
        super().__init__(f"{field} {reason}")


def encode(value: Any, path: str = "", depth: int = 0) -> bytes:
    """Compact UTF-8 JSON. Raises Unencodable; `path` and `depth` are where in an event the value stands."""
    try:
        encoded = _ENCODER.encode(value).encode("utf-8")
    except Exception as error:
        _name_fault(value, path, depth)
        raise Unencodable(path[:200] or "the event", f"is not JSON: {error!r}") from error
    openers = encoded.count(b"{") + encoded.count(b"[")  # a cheap upper bound of the depth
    if openers > MAX_DEPTH - depth or b"\\u0000" in encoded or _LONG_NUMBER in encoded.translate(_DIGITS):
        _find_fault(value, path, depth)
    return encoded


def as_object(value: Any) -> Any:
    """The JSON object for `data`: a mapping as it is, None as the empty one, anything else as {"value": it}."""
    if value is None:
        return {}
    return dict(value) if isinstance(value, Mapping) else {"value": value}


def microcents(cost_usd: Cost) -> int:
    """Exact microcents of an amount in USD; what is finer is rounded to the nearest, halves to even.

    A float is taken as the decimal number that it prints as. Raises Unencodable for what is no finite amount.
    """
    import decimal

    try:
        amount = decimal.Decimal(str(cost_usd) if isinstance(cost_usd, float) else cost_usd)
        exact = amount * MICROCENTS_PER_USD
        return int(exact.to_integral_value(decimal.ROUND_HALF_EVEN))
    except (ValueError, TypeError, ArithmeticError) as error:
        raise Unencodable("usage.cost_usd", f"is no amount of money: {cost_usd!r}") from error


def usage_members(usage: Mapping[str, Any]) -> Dict[str, Any]:
    """The wire's Usage from an engine's figures, `cost_usd` included; None stands for unknown. Raises Unencodable."""
    members: Dict[str, Any] = {}
    if not isinstance(usage, Mapping):
        raise Unencodable("usage", f"is no mapping but {type(usage).__name__}")
    for name, value in usage.items():
        if value is None:
            continue
        if name == "cost_usd":
            members["cost_microcents"] = microcents(value)
        elif name in _COUNTS:
            members[name] = _count(name, value)
        elif name in _WORDS or name == "cumulative":
            if not isinstance(value, bool if name == "cumulative" else str):
                raise Unencodable(f"usage.{name}", f"has the wrong type: {value!r}")
            members[name] = value
        else:
            raise Unencodable(f"usage.{name}", "is not known")
    return members


def plain_text(text: str) -> str:
    """Text that can be recorded: lone surrogates and U+0000 become U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text.replace("\0", "\ufffd")


def text_members(text: Union[str, bytes]) -> Dict[str, Any]:
    """`text` of a line of output; what had to be replaced in it is also kept, as `base64` of the original bytes.

    Text with surrogate escapes (what Python makes of bytes that are not UTF-8) goes back to those bytes.
    """
    if isinstance(text, str):
        plain = plain_text(text)
        if plain == text:
            return {"text": text}
        original = text.encode("utf-8", "surrogateescape" if _has_escapes(text) else "surrogatepass")
    else:
        original = bytes(text)
        plain = original.decode("utf-8", "replace").replace("\0", "\ufffd")
        if plain.encode("utf-8") == original:
            return {"text": plain}
    import base64

    return {"text": plain, "base64": base64.b64encode(original).decode("ascii")}


def error_members(error: Union[str, BaseException]) -> Dict[str, Any]:
    """`error` in one line, for an exception also `error_type` and `traceback`."""
    if not isinstance(error, BaseException):
        return {"error": _one_line(str(error))}
    import traceback

    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return {
        "error": describe_exception(error),
        "error_type": type(error).__qualname__,
        "traceback": plain_text(trace[-MAX_TRACEBACK_CHARS:]),
    }


def describe_exception(error: BaseException) -> str:
    """Type and message in one line, whatever the exception's own __str__ does."""
    name = type(error).__qualname__
    try:
        message = _one_line(str(error))
    except Exception:  # noqa: BLE001 - an engine's exception may be broken; its failure must still be recorded
        message = ""
    return _one_line(f"{name}: {message}") if message else name


def _one_line(text: str) -> str:
    return plain_text(" ".join(text.split()))[:MAX_LINE_CHARS]


def _has_escapes(text: str) -> bool:
    return all("\udc80" <= char <= "\udcff" for char in text if "\ud800" <= char <= "\udfff")


def _count(name: str, value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise Unencodable(f"usage.{name}", f"is not a whole number: {value!r}") from None
    if number < 0 or isinstance(value, bool):
        raise Unencodable(f"usage.{name}", f"is not a count: {value!r}")
    return number


def _convert(value: Any) -> Any:
    """What the json module cannot encode by itself."""
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "__index__"):
        return operator.index(value)
    if isinstance(value, Mapping):
        return dict(value)
    import decimal
    import uuid

    if isinstance(value, (decimal.Decimal, uuid.UUID)):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_convert)


def _name_fault(value: Any, path: str, depth: int) -> None:
    try:
        _find_fault(value, path, depth)
    except Unencodable:
        raise
    except Exception:  # noqa: BLE001 - as in encode, which then says it without the field
        return


def _find_fault(value: Any, path: str = "", depth: int = 0) -> None:
    """Raise Unencodable for the first thing that does not fit; return when everything does."""
    if depth > MAX_DEPTH:
        raise Unencodable(path[:200], f"is nested deeper than {MAX_DEPTH}")
    if isinstance(value, dict):
        for key, member in value.items():
            if key is not None and not isinstance(key, (str, int, float)):
                raise Unencodable(path, f"has a key that is no text: {key!r}")
            _find_fault(str(key), f"a key of {path}", depth)
            _find_fault(member, f"{path}.{key}" if path else str(key), depth + 1)
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            _find_fault(item, f"{path}[{i}]", depth + 1)
    elif isinstance(value, str):
        if plain_text(value) != value:
            raise Unencodable(plain_text(path), "has text that is no Unicode, or has U+0000 in it")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise Unencodable(path, f"is {value}, which JSON cannot express")
    elif isinstance(value, int):
        if abs(value) > sys.float_info.max:
            raise Unencodable(path, "is a number beyond a double, which not every reader takes")
    elif value is not None:
        try:
            converted = _convert(value)
        except (TypeError, ValueError) as error:
            raise Unencodable(path, f"is not JSON but {type(value).__name__}") from error
        _find_fault(converted, path, depth + 1)


def present(**members: Any) -> Dict[str, Any]:
    """The members that are not None."""
    return {name: value for name, value in members.items() if value is not None}
