"""Identifiers that the client makes itself: UUIDv7 for runs, random UUIDs for leases and writers (RFC 9562).

Written out because Python 3.9 has no version 7, and importing `uuid` costs as much as the rest of a small program.
"""

from __future__ import annotations

import os
import time

_VARIANT = 0b10 << 62


def new_run_id() -> str:
    """A UUIDv7: 48 bits of milliseconds, 12 bits of what is below them, 62 random bits; so ids sort by their making."""
    milliseconds, below = divmod(time.time_ns(), 1_000_000)
    high = (milliseconds & (1 << 48) - 1) << 16 | 7 << 12 | below * 4096 // 1_000_000
    return _text(high, _VARIANT | _random_bits() >> 2)


def new_uuid() -> str:
    """A random UUID, version 4."""
    return _text(_random_bits() & ~0xF000 | 0x4000, _VARIANT | _random_bits() >> 2)


def _random_bits() -> int:
    return int.from_bytes(os.urandom(8), "big")


def _text(high: int, low: int) -> str:
    digits = f"{high:016x}{low:016x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
