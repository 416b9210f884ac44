"""What `show` and `status` say of owners: who they are, how long they are silent, and how they are known to be dead."""

from __future__ import annotations

from typing import Any

import pytest

from runhist.cli import show, status

MINUTE_US = 60_000_000
RUNNING = {"status": "running", "owner_pid": 4711, "updated_us": 0}
INCOMPLETE = {"status": "incomplete", "owner_pid": 4711, "updated_us": 0}


@pytest.mark.parametrize(
    ("run", "evidence", "text"),
    [
        (RUNNING, {}, "pid 4711, silent for 20m00s"),
        ({**RUNNING, "updated_us": 19 * MINUTE_US + 1}, {}, "pid 4711"),
        ({**RUNNING, "status": "completed"}, {}, "pid 4711"),
        ({**RUNNING, "owner_pid": None}, {}, ""),
        (
            INCOMPLETE,
            {"reason": "orphaned", "pid": 4712, "evidence": "exited", "by": "pidfd", "seen_us": MINUTE_US},
            "pid 4712 exited, seen 1970-01-01T00:01:00.000000Z by pidfd",
        ),
        (
            INCOMPLETE,
            {"reason": "orphaned", "pid": None, "evidence": "boot changed", "by": "boot_id", "seen_us": MINUTE_US},
            "boot changed, seen 1970-01-01T00:01:00.000000Z by boot_id",
        ),
        (INCOMPLETE, {"reason": "released", "pid": 4711}, "pid 4711"),
        (RUNNING, {"reason": "orphaned"}, "pid 4711, silent for 20m00s"),  # it was taken back
    ],
)
def test_show_tells_who_owns_a_run_or_how_its_owner_died(run: Any, evidence: Any, text: str) -> None:
    assert show.owner_text(run, evidence, 20 * MINUTE_US) == text


@pytest.mark.parametrize(
    ("delayed", "text"),
    [
        ({"pid": 4711, "runs": 1}, "process 4711 was dead 1970-01-01T00:01:00.000000Z, and its run stays open: the disk"),
        ({"pid": None, "runs": 2}, "a process was dead 1970-01-01T00:01:00.000000Z, and its 2 runs stay open: the disk"),
    ],
)
def test_status_tells_which_verdicts_wait_and_what_for(delayed: Any, text: str) -> None:
    found = {"state": "recording", "free_bytes": 10**12, "database": "/x", "config": {"faults": []}}
    assert status.needs({**found, "delayed": [{**delayed, "since_us": MINUTE_US, "why": "the disk"}]}) == [text]
