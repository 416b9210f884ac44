"""What a run's handle has to show on its way to the daemon: published events that nobody keeps.

Each is sent right behind the event that was recorded before it, so that no token comes before the beginning of its step
or after its end. Nothing waits for them and nothing sends them again: what finds no room, or no connection, is dropped.
"""

from __future__ import annotations

from collections import deque
from typing import Deque, Generic, List, Optional, Tuple, TypeVar

MAX_WAITING_BYTES = 64 * 1024

Entry = TypeVar("Entry")


class ShownQueue(Generic[Entry]):
    """Encoded events; those that must wait for a recorded one to be sent are kept with it."""

    def __init__(self) -> None:
        self._ready: Deque[bytes] = deque()
        self._behind: Deque[Tuple[Entry, List[bytes]]] = deque()  # in the order in which the entries will be sent
        self._bytes = 0

    def __bool__(self) -> bool:
        return bool(self._ready or self._behind)

    def add(self, encoded: bytes, entry: Optional[Entry]) -> None:
        """Take one in, to be sent behind the entry, or (None) at once; dropped where too much waits already."""
        if self and self._bytes + len(encoded) > MAX_WAITING_BYTES:
            return
        self._bytes += len(encoded)
        if entry is None:
            self._ready.append(encoded)
        elif self._behind and self._behind[-1][0] is entry:
            self._behind[-1][1].append(encoded)
        else:
            self._behind.append((entry, [encoded]))

    def release(self, entry: Entry) -> bool:
        """The entry is on its way; whether something is to be shown before the next one."""
        if not self._behind or self._behind[0][0] is not entry:
            return False
        self._ready.extend(self._behind.popleft()[1])
        return True

    def take(self, limit_bytes: int) -> List[bytes]:
        """What is to be shown now, as much as one call of that size holds; a larger one is dropped."""
        taken: List[bytes] = []
        room = limit_bytes
        while self._ready and (len(self._ready[0]) <= room or not taken):
            encoded = self._ready.popleft()
            self._bytes -= len(encoded)
            if len(encoded) <= room:
                room -= len(encoded) + 1  # and a comma
                taken.append(encoded)
        return taken

    def clear(self) -> None:
        """Drop them all."""
        self._ready.clear()
        self._behind.clear()
        self._bytes = 0
