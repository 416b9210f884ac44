"""The frame of the benchmarks: contestants record what they say, and what is measured is what was done."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from pathlib import Path

import pytest

from tests.bench import client, measure, syncs, writing
from tests.bench.client import Schedule
from tests.bench.contestants import NAMES, REQUEST_EVENTS, contestant, event_text
from tests.conftest import missing

HERE = measure.Place(Path(tempfile.gettempdir()), None)


def able(name: str) -> None:
    """Skip where the contestant cannot take part."""
    if why := contestant(name).missing():
        missing(why)


def test_an_event_has_about_300_bytes() -> None:
    assert {290 <= len(event_text(i)) <= 320 for i in range(100)} == {True}


WAYS = [workload for workload in measure.WORKLOADS if workload.processes > 1]


@pytest.mark.parametrize(("name", "kind"), [(name, w.kind) for w in WAYS for name in NAMES if writing.takes_part(name, w)])
def test_each_contestant_records_in_each_way_that_it_can(name: str, kind: str) -> None:
    able(name)
    found = measure.measure(name, measure.Workload(kind, "", kind, 2), HERE, 0.2, 0.0)
    assert found.events_s > 0 and 0 < found.p50_us <= found.p99_us <= found.worst_us
    assert (found.server_cpu_us is None) == (found.server_rss is None)


def test_what_clients_say_is_on_the_disk() -> None:
    with measure.started("sqlite", HERE) as arena:
        one = contestant("sqlite").connect(arena.directory, 0)
        said = one.one() + one.request()
        with sqlite3.connect(arena.directory / "events.db") as connection:
            assert connection.execute("SELECT count(*) FROM events").fetchone() == (said,) == (1 + REQUEST_EVENTS,)
        connection.close()


@pytest.mark.parametrize("name", ["runhistd", "jsonl"])
def test_syncs_are_counted_and_slowed(name: str) -> None:
    if why := syncs.missing():
        missing(why)
    with measure.folder(HERE) as directory:
        place = measure.Place(HERE.directory, syncs.build(directory), 20_000)
        lone = measure.WORKLOADS[1]
        found = measure.measure(name, lone, place, 0.5, 0.0)
    assert found.events_per_sync is not None and 0.5 <= found.events_per_sync <= 2
    assert found.p50_us >= 20_000


def test_only_what_ends_in_the_time_that_counts_is_counted_and_what_ends_later_has_its_latency() -> None:
    schedule = Schedule(0.0, 1.0, 2.0)
    done = [(0.0, 0.5, 7), (0.5, 1.5, 1), (1.5, 4.5, 1)]
    found = client.tally(done, 0.25, schedule)
    assert found == client.Tally(1, [1_000_000, 3_000_000], 0.25)


def test_percentiles_are_of_what_was_measured() -> None:
    ordered = list(range(1, 101))
    assert [measure.percentile(ordered, p) for p in (0, 50, 99, 100)] == [1, 51, 100, 100]
    assert measure.percentile([], 50) == 0


def test_a_client_that_fails_ends_the_measurement() -> None:
    workload = measure.Workload("lone", "", "flight", 1)  # which a file of lines cannot do
    with pytest.raises(RuntimeError, match="a client ended with 1"):
        measure.measure("jsonl", workload, HERE, 0.1, 0.0)


def test_what_was_measured_can_be_written_as_json() -> None:
    found = measure.measure("jsonl", measure.WORKLOADS[1], HERE, 0.1, 0.0)
    assert measure.Measured(**json.loads(json.dumps(found._asdict()))) == found
