"""The chaos run, for a few seconds."""

from __future__ import annotations

import re

import pytest

from runhist.records import Event, RunRecord, UsageTotals
from tests.chaos import __main__ as chaos
from tests.chaos.findings import Findings
from tests.chaos.journal import Life, Told


@pytest.mark.long
def test_what_was_acknowledged_is_there_once_after_kills_and_stops(capsys: pytest.CaptureFixture[str]) -> None:
    status = chaos.main(["--minutes", "0.13", "--engines", "4", "--seed", "4"])
    shown = capsys.readouterr().out
    assert status == 0, shown
    assert re.search(r"engines killed [1-9]", shown) and re.search(r"daemon killed [1-9]", shown), shown
    assert re.search(r"receipts committed [1-9]", shown) and shown.endswith("\n0 differences\n")


def event(seq: int, type: str, **data: object) -> Event:
    return Event(seq, "default", "r", seq, 1, type, "note" if type == "work" else type, 0, data)


def lines(status: str, told: Told, *events: Event) -> list[str]:
    found = Findings(told)
    run = RunRecord("default", "r", "r", status, 1, len(events), 0, 0, 0, UsageTotals())
    found._check_run(run, list(events), {"s": told.acknowledged.get(("r", "s"), 0)})
    return found.lines


def test_a_lost_a_doubled_and_a_displaced_event_are_found() -> None:
    told = Told(acknowledged={("r", "s"): 2})
    begun, end = event(1, "run.started"), event(4, "run.completed")
    first, second = event(2, "work", session="s", i=0), event(3, "work", session="s", i=1)
    assert lines("completed", told, begun, first, second, end) == []
    assert "2 were acknowledged" in lines("completed", told, begun, first, event(3, "run.completed"))[0]
    assert "1 different" in lines("completed", told, begun, first, first._replace(seq=3), end)[0]
    assert "gaps" in lines("completed", told, begun, first, second, end._replace(seq=5))[0]


def test_a_verdict_on_a_process_that_was_not_over_is_found() -> None:
    verdict = event(2, "run.incomplete", reason="orphaned", pid=7, evidence="exited", by="pidfd", seen_us=100)
    begun = event(1, "run.started")
    assert lines("incomplete", Told(lives=[Life(7, 99, {"r"})]), begun, verdict) == []
    assert "lived" in lines("incomplete", Told(lives=[Life(7, None, {"r"})]), begun, verdict)[0]
    assert "lived" in lines("incomplete", Told(lives=[Life(7, 101, {"r"})]), begun, verdict)[0]
    assert "is running" in lines("running", Told(), begun)[0]
