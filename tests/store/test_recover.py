"""What is salvaged of a damaged history is what was recorded, and what is lost is named."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from runhistd.model.events import Usage
from runhistd.model.lease import Begin
from runhistd.model.removal import Clear, Delete, Pin
from runhistd.store.database import open_reader
from runhistd.store.leases import Begun
from runhistd.store.pages import Pages, varint
from runhistd.store.recover import Recovered, holes, is_sound, recover
from runhistd.store.verify import verify
from tests.faults.damage import PAGE, flip, page_with, root_of
from tests.store.histories import OWNER, UID, History, event

NOW_US = 9_000_000
Events = dict[tuple[str, int], tuple[Any, ...]]


def nothing(done: int, of: int) -> None:
    pass


def events_of(database: Path) -> Events:
    """Every event by its run's name and seq, with all that was recorded of it."""
    connection = open_reader(database)
    rows: list[Any] = connection.execute(
        "SELECT run_id, seq, type, kind, key, writer, n, step_id, usage, received_us, data FROM events JOIN runs USING (run)"
    ).fetchall()
    connection.close()
    return {(row[0], row[1]): tuple(row[2:]) for row in rows}


@pytest.fixture
def filled(history: History, tmp_path: Path) -> Path:
    """The directory of a history that was ended cleanly: five runs, one of them pinned, one live, one deleted."""
    for number, run_id in enumerate(("one", "two", "three", "long", "gone")):
        (begun,) = history.apply(Begin(UID, "default", run_id, UUID(int=number), OWNER, spec(run_id), None))
        assert isinstance(begun, Begun)
        epoch = begun.epoch
        for n in range(1, 60):
            text = "x" * (12_000 if run_id == "long" and n % 10 == 0 else 40)
            history.append(run_id, epoch, n, event(data={"n": n, "of": run_id, "text": text}, usage=Usage(input_tokens=n)))
        if run_id != "two":
            history.append(run_id, epoch, 60, event("run.completed"))
    history.apply(Pin(UID, "default", "one", pinned=True), Delete(UID, "default", "gone"), Clear())
    history.reopen(clean=True)
    source = tmp_path / "damaged"
    source.mkdir()
    shutil.copy(history.database, source / "history.db")
    return source


def spec(run_id: str) -> bytes:
    return json.dumps({"run_id": run_id, "workflow": "w", "title": f"the {run_id}"}).encode()


def recovered(source: Path, tmp_path: Path) -> tuple[Recovered, Path]:
    state = tmp_path / "state"
    state.mkdir()
    made = recover(source, state, NOW_US, before=lambda: None, progress=nothing)
    assert made.verdict.differences == []
    assert verify(state / "history.db", nothing).differences == []
    return made, state / "history.db"


def query(database: Path, statement: str) -> list[tuple[Any, ...]]:
    connection = open_reader(database)
    rows = connection.execute(statement).fetchall()
    connection.close()
    return rows


def check_against(made: Recovered, before: Events, database: Path) -> None:
    """Every event is there as it was, or named as lost; nothing else is there but what the recovery itself says."""
    after = events_of(database)
    lost = {(one.run_id, seq) for one in made.losses for first, last in one.ranges for seq in range(first, last + 1)}
    for name, content in before.items():
        if name in lost:
            assert name not in after
        elif after[name] != content:
            assert name[1] == 1 and after[name][0] == "run.started", f"{name} differs"
    added = after.keys() - before.keys()
    assert {after[name][1] for name in added} <= {"note", "run.incomplete", "run.completed"}
    assert sum(one.events for one in made.losses) == len(lost)


def test_nothing_is_lost_where_only_what_is_derived_was_damaged(filled: Path, tmp_path: Path) -> None:
    before = events_of(filled / "history.db")
    names = ("runs_by_name", "steps", "usage", "keys", "events_by_run")
    for page in [root_of(filled / "history.db", name) for name in names]:
        flip(filled / "history.db", page)
    flip(filled / "history.db", 1)  # the names and roots of all tables
    flip(filled / "history.db", 2, length=5)  # what the first page behind it is
    made, database = recovered(filled, tmp_path)
    assert made.losses == []
    check_against(made, before, database)
    assert query(database, "SELECT run_id, status FROM runs ORDER BY run") == [
        ("one", "completed"),
        ("two", "incomplete"),
        ("three", "completed"),
        ("long", "completed"),
    ]
    assert made.incomplete == [("default", "two")]
    assert query(database, "SELECT run_id FROM pins JOIN runs USING (run)") == [("one",)]
    assert query(database, "SELECT run_id, cleared FROM tombstones") == [("gone", 1)]


def test_a_lost_page_of_events_is_a_gap_that_is_named(filled: Path, tmp_path: Path) -> None:
    before = events_of(filled / "history.db")
    flip(filled / "history.db", page_with(filled / "history.db", b'"n": 30, "of": "three"'))
    made, database = recovered(filled, tmp_path)
    assert {one.run_id for one in made.losses} == {"three"}
    ((first, last),) = made.losses[0].ranges
    assert first <= 31 <= last
    check_against(made, before, database)
    (row,) = query(database, "SELECT kind, events, from_seq, to_seq FROM compactions")
    assert row == ("lost", last - first + 1, first, last)
    ((text,),) = query(database, "SELECT data ->> '$.text' FROM events WHERE kind = 'note' AND key IS NULL AND n IS NULL")
    assert f"lost are the events {first} to {last}" in text


def test_a_run_whose_beginning_and_end_are_lost_keeps_its_name_its_status_and_its_seqs(filled: Path, tmp_path: Path) -> None:
    before = events_of(filled / "history.db")
    for text in (b'"title": "the one"', b'"n": 59, "of": "three"'):
        flip(filled / "history.db", page_with(filled / "history.db", text))
    made, database = recovered(filled, tmp_path)
    check_against(made, before, database)
    rows = query(database, "SELECT run_id, title, workflow, status, last_seq FROM runs WHERE run_id IN ('one', 'three')")
    assert [row[:4] for row in rows] == [("one", "the one", "w", "completed"), ("three", "the three", "w", "completed")]
    assert all(row[4] > 61 for row in rows), "no seq is given twice"


def test_without_its_row_a_run_is_what_its_events_say(filled: Path, tmp_path: Path) -> None:
    before = events_of(filled / "history.db")
    flip(filled / "history.db", root_of(filled / "history.db", "runs"))
    made, database = recovered(filled, tmp_path)
    assert made.losses == []
    check_against(made, before, database)
    statuses = dict(query(database, "SELECT run_id, status FROM runs"))
    assert statuses == {"one": "completed", "two": "incomplete", "three": "completed", "long": "completed"}


def test_what_is_in_the_write_ahead_log_is_saved_up_to_where_it_is_damaged(history: History, tmp_path: Path) -> None:
    epoch = history.begin("r")
    for n in range(1, 50):
        history.append("r", epoch, n, event(data={"n": n}))
    source = tmp_path / "damaged"
    source.mkdir()
    for name in ("history.db", "history.db-wal"):
        shutil.copy(tmp_path / name, source / name)
    (source / "history.db").write_bytes(random.Random(1).randbytes(PAGE))
    half = (source / "history.db-wal").stat().st_size // 2
    with (source / "history.db-wal").open("r+b") as wal:
        wal.seek(half)
        wal.write(b"\xff" * 100)
    _, database = recovered(source, tmp_path)
    saved = [row[0] for row in query(database, "SELECT n FROM events WHERE n IS NOT NULL ORDER BY seq")]
    assert saved == list(range(1, len(saved) + 1)) and 10 < len(saved) < 49


@pytest.mark.parametrize("seed", range(12))
def test_whatever_is_damaged_all_else_is_saved_and_nothing_is_invented(seed: int, filled: Path, tmp_path: Path) -> None:
    chance = random.Random(seed)
    before = events_of(filled / "history.db")
    pages = (filled / "history.db").stat().st_size // PAGE
    for page in chance.sample(range(1, pages + 1), chance.randint(1, 4)):
        start = chance.choice((0, chance.randrange(PAGE - 200)))
        flip(filled / "history.db", page, start=start, length=chance.choice((8, 200, PAGE - start)))
    made, database = recovered(filled, tmp_path)
    after = events_of(database)
    lost = {(one.run_id, seq) for one in made.losses for first, last in one.ranges for seq in range(first, last + 1)}
    for run_id, seq in before.keys() - after.keys() - lost:  # the end of a run whose row is lost too: nobody knows of it
        assert seq > max((kept for name, kept in after.keys() & before.keys() if name == run_id), default=0)
    invented = {after[name][1] for name in after.keys() - before.keys()}
    assert invented <= {"run.started", "note", "run.incomplete", "run.completed"}
    changed = [name for name in before if name in after and after[name] != before[name]]
    assert len(changed) <= 8, "only what was written over within an event's own text can go unnoticed"


def test_a_recovered_history_is_another_one_and_records_on(filled: Path, tmp_path: Path) -> None:
    old = query(filled / "history.db", "SELECT instance_id, epoch, position FROM history")[0]
    flip(filled / "history.db", 1)
    made, database = recovered(filled, tmp_path)
    ((instance_id, epoch, position),) = query(database, "SELECT instance_id, epoch, position FROM history")
    assert instance_id == made.instance_id != old[0]
    assert epoch > old[1] and position > old[2]
    again = History(database)
    epoch = again.begin("new")
    assert again.append("new", epoch, 1, event()).first_seq == 2
    again.log.close()


def test_a_sound_history_is_known_as_such(filled: Path) -> None:
    assert is_sound(filled / "history.db")
    flip(filled / "history.db", root_of(filled / "history.db", "events"))
    assert not is_sound(filled / "history.db")


def test_the_pages_give_what_sqlite_gives(filled: Path) -> None:
    pages = Pages(filled / "history.db")
    rows_found = [row for number in range(1, pages.count + 1) for row in pages.rows(number) if is_long(row)]
    found = {row.rowid: row.columns[1:] for row in rows_found}
    pages.close()
    rows = query(filled / "history.db", "SELECT * FROM events")
    assert {row[0]: list(row[1:]) for row in rows}.items() <= found.items()
    assert pages.unusable == 0


def is_long(row: Any) -> bool:
    return row.rowid is not None and len(row.columns) == 17


@pytest.mark.parametrize(("content", "value"), [(b"\x05", 5), (b"\x81\x00", 128), (b"\xff" * 9, -1), (b"\x80\x01", 1)])
def test_numbers_of_the_file_format_are_read(content: bytes, value: int) -> None:
    assert varint(content, 0) == (value, len(content))


def test_holes_are_the_ranges_that_are_missing() -> None:
    assert holes([], 0) == []
    assert holes([1, 2, 3], 3) == []
    assert holes([2, 5], 7) == [(1, 1), (3, 4), (6, 7)]
