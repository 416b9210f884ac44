"""What peers make the daemon hold: frames that have not ended yet, and replies that are not taken.

A connection alone is bounded by what is read at once and by how much of its replies may wait. A thousand of them are not,
so all share a budget. When it is passed, whoever has been stuck longest is let go: of those who hold no less than the
average, the one whose bytes have not moved for the longest time. A peer in the middle of sending or taking something is
never that one, and a peer that has little to lose neither, however long it sleeps.
"""

from __future__ import annotations

from typing import Protocol


class Holding(Protocol):
    """Whoever makes us hold bytes."""

    def let_go(self) -> None:
        """Give up the peer, and what is held for it. Must not block."""


class Budget:
    """The bytes that are held for peers. Over the limit by at most what one peer may bring alone."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._held: dict[Holding, int] = {}  # longest stuck first

    def note(self, peer: Holding, held_bytes: int) -> None:
        """So much is held for the peer, which has just moved on; let others go where that is too much."""
        before = self._held.pop(peer, 0)
        self.held_bytes += held_bytes - before
        if held_bytes:
            self._held[peer] = held_bytes
        while self.held_bytes > self.limit_bytes and (stuck := self._longest_stuck(peer)) is not None:
            self.held_bytes -= self._held.pop(stuck)
            stuck.let_go()

    def _longest_stuck(self, moving: Holding) -> Holding | None:
        average = self.held_bytes / len(self._held)
        return next((peer for peer, held in self._held.items() if held >= average and peer is not moving), None)
