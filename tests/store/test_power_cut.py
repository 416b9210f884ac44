"""Acknowledged is durable: whatever of the unsynced a disk kept when the power failed."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest

from runhistd.store.log import Appended, EventLog
from tests.store.histories import History, append, event
from tests.store.power_cut import disks_after, recording

SEED = 20  # draws batch sizes, and which unsynced sectors survive
REQUESTS = 40
CHECKED = 300  # disks of those that the workload leaves behind, spread over it


class Workload:
    """Requests to one run, the operations on the disk that they led to, and after which of these each was acknowledged."""

    def __init__(self, directory: Path, settings: Callable[[EventLog], object]) -> None:
        numbers = range(1, REQUESTS + 1)
        self.sent = [append("r", 1, n, event("turn", {"n": n, "text": "x" * (n * 37 % 3000)})) for n in numbers]
        self.acknowledged_at: list[int] = []
        history = History(directory / "history.db")
        history.begin("r")
        history.log.close()
        self.start = {path.name: path.read_bytes() for path in directory.iterdir()}
        dice = random.Random(SEED)
        with recording() as recorder:
            history.log = EventLog.open(history.database)
            settings(history.log)
            while len(self.acknowledged_at) < REQUESTS:
                batch = self.sent[len(self.acknowledged_at) :][: dice.randint(1, 4)]
                outcomes = history.apply(*batch)
                assert all(isinstance(outcome, Appended) and outcome.stored == 1 for outcome in outcomes)
                self.acknowledged_at += [len(recorder.operations)] * len(batch)
                match dice.randint(0, 9):
                    case 0:
                        history.log.checkpoint(truncate=dice.random() < 0.5)
                    case 1:
                        history.reopen(clean=dice.random() < 0.5)
                        settings(history.log)
            history.log.close()
            self.operations = list(recorder.operations)

    def lost(self, directory: Path) -> list[int]:
        """The number of acknowledged requests that each of the checked disks lacks."""
        found: list[int] = []
        every = max(1, len(self.operations) * 3 // CHECKED)
        number = 0
        for done, disks in enumerate(disks_after(self.start, self.operations, SEED), 1):
            acknowledged = sum(at <= done for at in self.acknowledged_at)
            for disk in disks:
                number += 1
                if number % every == 0:
                    found.append(self._lost_on(disk, acknowledged, directory / str(number)))
        return found

    def _lost_on(self, disk: dict[str, bytes], acknowledged: int, directory: Path) -> int:
        """Start on that disk, as after the power came back, and send everything again, as a client that got no answer."""
        directory.mkdir()
        for name, content in disk.items():
            (directory / name).write_bytes(content)
        history = History(directory / "history.db")
        history.now_us = 10**9
        outcomes = history.apply(*self.sent)
        assert history.differences() == []
        history.log.close()
        assert all(isinstance(outcome, Appended) for outcome in outcomes)
        stored_anew = [outcome.stored for outcome in outcomes if isinstance(outcome, Appended)]
        assert stored_anew == sorted(stored_anew), "what was kept is a beginning of what was sent"
        return sum(stored_anew[:acknowledged])


def test_a_power_cut_at_any_point_loses_no_acknowledged_event_and_doubles_none(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    workload = Workload(tmp_path / "work", lambda log: None)
    (tmp_path / "disks").mkdir()
    lost = workload.lost(tmp_path / "disks")
    assert len(lost) >= CHECKED and not any(lost)


@pytest.mark.long
def test_the_simulation_sees_what_a_weaker_setting_loses(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    workload = Workload(tmp_path / "work", lambda log: log._connection.execute("PRAGMA synchronous = NORMAL"))
    (tmp_path / "disks").mkdir()
    assert sum(lost > 0 for lost in workload.lost(tmp_path / "disks")) > CHECKED // 10


@pytest.fixture(autouse=True)
def nothing_else_is_the_default() -> None:
    """A test that fails in the middle must not leave its file layer behind."""
    assert "power-cut" not in apsw.vfs_names()
