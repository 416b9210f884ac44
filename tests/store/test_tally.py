"""What each user has stored is counted with it, and no more than its quota is taken."""

from __future__ import annotations

from uuid import UUID, uuid4

import apsw
import pytest
from msgspec import Raw

from runhistd.model.artifacts import DropBlob, KeepBlob
from runhistd.model.errors import QuotaExceeded, Refusal
from runhistd.model.events import Event, Usage
from runhistd.model.importing import Import, ImportedEvent
from runhistd.model.quota import EVENT_BYTES, Quota, Stored
from runhistd.model.removal import Clear, Delete, Pin
from runhistd.store.blobs import UNUSED_US
from runhistd.store.database import open_reader
from runhistd.store.leases import Begun
from runhistd.store.log import Appended
from runhistd.store.prune import Cleared
from runhistd.store.tally import SAVE_EVENTS
from tests.store.histories import UID, History, append, begin, claim, event, keyed

OTHER = 2000
CONTENT = bytes(32)


def stored(history: History, uid: int = UID) -> tuple[int, int]:
    found = history.log.tally.of(uid)
    return found.runs, found.bytes


def text_of(size: int) -> Event:
    """An event whose data has so many bytes."""
    return event("output", {"text": "x" * (size - len('{"text": ""}'))})


def refused(outcome: object) -> Refusal:
    assert isinstance(outcome, Refusal), outcome
    return outcome


def test_an_event_counts_with_its_data_usage_and_key(history: History) -> None:
    epoch = history.begin()
    runs, before = stored(history)
    assert (runs, before) == (1, EVENT_BYTES + len('{"run_id": "r"}'))
    sent = Event("usage", key="schlüssel", usage=Usage(input_tokens=1, model="größer"), data=Raw(b"{}"))
    history.apply(keyed("r", epoch, sent))
    texts = ("{}", "schlüssel", '{"input_tokens":1,"model":"größer"}')
    assert stored(history) == (1, before + EVENT_BYTES + sum(len(text.encode()) for text in texts))
    assert history.differences() == []


def test_each_user_has_figures_of_its_own_and_a_restart_keeps_them(history: History) -> None:
    history.apply(begin("r"), begin("r", uid=OTHER), begin("s", uid=OTHER))
    before = stored(history), stored(history, OTHER)
    assert [runs for runs, _ in before] == [1, 2]
    for clean in (True, False):
        history.reopen(clean=clean)
        assert (stored(history), stored(history, OTHER)) == before


def written(history: History) -> list[tuple[object, ...]]:
    reader = open_reader(history.database)
    try:
        return list(reader.execute("SELECT uid, runs, bytes, position FROM users"))
    finally:
        reader.close()


def test_figures_that_a_crash_left_unwritten_are_counted_at_the_next_start(history: History) -> None:
    epoch = history.begin()
    for n in range(1, 4):
        history.append("r", epoch, n, text_of(100))
    assert written(history) == []
    before = stored(history)
    history.reopen(clean=False)
    assert stored(history) == before
    history.apply(Pin(UID, "default", "r", pinned=True))
    assert written(history) == [(UID, *before, 4)]
    history.apply(append("r", epoch, 4, text_of(100)), begin("s"), begin("r", uid=OTHER))
    after = stored(history), stored(history, OTHER)
    history.reopen(clean=False)
    assert (stored(history), stored(history, OTHER)) == after
    assert history.differences() == []


def test_figures_are_written_now_and_then(history: History) -> None:
    epoch = history.begin()
    history.apply(*(append("r", epoch, n, event()) for n in range(1, SAVE_EVENTS - 1)))
    assert written(history) == []
    history.apply(append("r", epoch, SAVE_EVENTS - 1, event()), begin("r", uid=OTHER))
    expected = [(UID, *stored(history), SAVE_EVENTS + 1), (OTHER, *stored(history, OTHER), SAVE_EVENTS + 1)]
    assert written(history) == expected
    history.append("r", epoch, SAVE_EVENTS, event())
    assert written(history) == expected
    assert history.differences() == []


def test_what_is_deleted_counts_until_it_is_cleared_away(history: History) -> None:
    epoch = history.begin()
    history.append("r", epoch, 1, text_of(1000), event("run.completed"))
    full = stored(history)
    history.apply(Delete(UID, "default", "r"))
    assert stored(history) == (0, full[1])
    while isinstance(cleared := history.apply(Clear())[0], Cleared) and cleared.more:
        assert history.differences() == []
    assert stored(history) == (0, 0)


def test_content_counts_once_for_each_user_who_gave_it(history: History) -> None:
    for _ in range(2):
        history.apply(KeepBlob(UID, CONTENT, 5000))
    history.apply(KeepBlob(OTHER, CONTENT, 5000))
    assert stored(history) == stored(history, OTHER) == (0, 5000)
    history.now_us += UNUSED_US + 1
    history.apply(DropBlob(UID, CONTENT))
    assert (stored(history), stored(history, OTHER)) == ((0, 0), (0, 5000))
    assert not [one for one in history.differences() if "of user" in one.what]


def test_what_is_rolled_back_does_not_count(history: History) -> None:
    epoch = history.begin()
    before = stored(history)
    writer = apsw.Connection(str(history.database))
    writer.execute("CREATE TRIGGER t BEFORE INSERT ON events WHEN new.type = 'bad' BEGIN SELECT raise(ABORT, 'no'); END")
    writer.close()
    good, bad = history.apply(append("r", epoch, 1, event()), append("r", epoch, 2, event("bad", {"long": "x" * 99})))
    assert isinstance(good, Appended) and not isinstance(bad, Appended)
    assert stored(history) == (1, before[1] + EVENT_BYTES + 2)
    assert history.differences() == []


def test_verify_finds_figures_that_are_not_so(history: History) -> None:
    history.begin()
    writer = apsw.Connection(str(history.database))
    writer.execute("INSERT INTO users VALUES (?, 7, 7, 1)", (UID,))
    writer.close()
    assert [difference.what for difference in history.differences()] == [f"runs and bytes of user {UID}"]


def test_no_more_runs_begin_than_the_quota_has_not_even_in_one_batch(history: History) -> None:
    history.log.tally.quota = Quota(runs=2)
    key = uuid4()
    outcomes = history.apply(begin("a", lease_key=key), begin("b"), begin("c"), begin("c", uid=OTHER))
    assert [isinstance(outcome, QuotaExceeded) for outcome in outcomes] == [False, False, True, False]
    assert refused(outcomes[2]).parameters == {"what": "runs_per_user", "limit": 2}
    assert isinstance(history.apply(begin("a", lease_key=key))[0], Begun)  # the repeat of one that is there
    history.apply(append("a", 1, 1, event("run.completed")), Delete(UID, "default", "a"))
    assert not isinstance(history.apply(begin("c"))[0], Refusal)


def test_at_the_quota_of_bytes_nothing_is_taken_but_ends_and_repeats(history: History) -> None:
    epoch = history.begin()
    first = append("r", epoch, 1, text_of(1000))
    history.apply(first)
    _, size = stored(history)
    history.log.tally.quota = Quota(bytes=size + EVENT_BYTES)
    refusal = history.refused(append("r", epoch, 2, text_of(1000)))
    assert (type(refusal), refusal.parameters) == (QuotaExceeded, {"what": "bytes_per_user", "limit": size + EVENT_BYTES})
    assert isinstance(history.refused(begin("s")), QuotaExceeded)
    assert isinstance(history.refused(KeepBlob(UID, CONTENT, 1000)), QuotaExceeded)
    assert isinstance(history.refused(claim("r", takeover=True, events=[event(key="k")])), QuotaExceeded)
    assert isinstance(history.refused(append("r", epoch, 2, text_of(50), event("run.completed"))), QuotaExceeded)
    (again,) = history.apply(first)
    assert isinstance(again, Appended) and again.duplicates == 1
    (ended,) = history.apply(append("r", epoch, 2, event("run.failed", {"error": "x" * 5000})))
    assert isinstance(ended, Appended) and ended.stored == 1
    assert history.differences() == []


def test_the_requests_of_one_batch_do_not_pass_the_quota_of_bytes_together(history: History) -> None:
    epoch = history.begin()
    _, size = stored(history)
    history.log.tally.quota = Quota(bytes=size + 3 * (EVENT_BYTES + 100))
    writers = [UUID(int=number) for number in range(1, 6)]
    outcomes = history.apply(*(append("r", epoch, 1, text_of(100), writer=writer) for writer in writers))
    assert [isinstance(outcome, QuotaExceeded) for outcome in outcomes] == [False, False, False, True, True]
    assert stored(history)[1] == history.log.tally.quota.bytes


@pytest.mark.parametrize("quota", [Quota(), Quota(runs=2, bytes=10**6)])
def test_below_the_quota_nothing_is_refused(quota: Quota) -> None:
    quota.check_run(Stored(1, 0), 1000)
    quota.check_bytes(Stored(1, 10**6 - 1000), 1000)


def imported(run_id: str, *events: ImportedEvent) -> Import:
    return Import(UID, "default", run_id, UUID(int=99), list(events))


def test_imported_runs_count_and_are_limited_as_all_others(history: History) -> None:
    started, other = (
        ImportedEvent(seq=1, type="run.started", received_us=1, data=Raw(b'{"run_id":"%s"}' % name)) for name in (b"r", b"s")
    )
    long = ImportedEvent(seq=2, type="output", received_us=2, data=Raw(b'{"text":"%s"}' % (b"x" * 1000)))
    history.apply(imported("r", started))
    runs, size = stored(history)
    assert (runs, size) == (1, EVENT_BYTES + len(b'{"run_id":"r"}'))
    history.log.tally.quota = Quota(runs=1, bytes=size + 1000)
    assert isinstance(history.refused(imported("s", other)), QuotaExceeded)
    assert isinstance(history.refused(imported("r", started, long)), QuotaExceeded)
    assert history.differences() == []
