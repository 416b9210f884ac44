"""What the engines of a chaos run told, and what was done to them: what the history is held against."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Life:
    """One engine process. `over_us`: when it was killed, left, or was asked to finish; None while it must be alive."""

    pid: int
    over_us: int | None = None
    touched: set[str] = field(default_factory=set)


@dataclass
class Told:
    """All that was told: `acknowledged` by run and session how many events are safe, `ended` by run how it was ended."""

    acknowledged: dict[tuple[str, str], int] = field(default_factory=dict)
    ended: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    lives: list[Life] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def read(self, path: Path, life: Life) -> None:
        """Take what one engine told."""
        self.lives.append(life)
        for line in path.read_bytes().splitlines():
            try:
                told = json.loads(line)
            except ValueError:
                self.faults.append(f"engine {life.pid} said {line[:200].decode('utf-8', 'replace')!r}")
                continue
            if "fault" in told:
                self.faults.append(f"engine {life.pid}: {told['fault']}")
            if told.get("leaves"):
                life.over_us = told["at_us"]
                self.counts["left"] += 1
            if told.get("touches"):
                life.touched.add(told["run"])
            self.counts["claims"] += bool(told.get("claimed"))
            self.counts["claims refused"] += "refused" in told
            if "durable" in told:
                self._take_receipt(told)

        if life.over_us is None:
            self.faults.append(f"engine {life.pid} ended though nobody asked for it")

    def _take_receipt(self, told: dict[str, object]) -> None:
        run, session, safe = str(told["run"]), str(told["session"]), told["acknowledged"]
        assert isinstance(safe, int)
        self.counts[f"receipts {told['durable']}"] += 1
        for name in ("duplicates", "resent"):
            amount = told[name]
            assert isinstance(amount, int)
            self.counts[name] += amount
        if told["durable"] != "off":
            self.acknowledged[run, session] = max(safe, self.acknowledged.get((run, session), 0))
        if told["ended_as"] is not None:
            self.ended[run][str(told["ended_as"])] += 1
