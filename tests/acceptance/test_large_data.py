"""Data above the inline limit: kept as content, and given back as it was sent."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from runhist.protocol.errors import Conflict, InvalidParameter, NoSuchBlob, NotAllowed, TooLarge
from runhistd.config import Config
from runhistd.store.verify import verify
from tests.acceptance.engines import Engine
from tests.acceptance.making import HOUR_US, UPLOAD, Made, make_old, restarted

if TYPE_CHECKING:
    from tests.conftest import Daemon

Wait = Callable[..., None]
LIMIT = Config().inline_limit
AGING = (
    ("events", "received_us = received_us - :by"),
    ("runs", ", ".join(f"{name}_us = {name}_us - :by" for name in ("started", "ended", "created", "updated", "closed"))),
)


def padded(size: int, **members: Any) -> bytes:
    """A JSON object of so many bytes, with spaces that a decoder would not bring back."""
    start = json.dumps({**members, "": ""}, ensure_ascii=False).encode()[:-2]
    return start + "ä".encode() * ((size - len(start) - 2) // 2) + b"x" * ((size - len(start)) % 2) + b'"}'


def append_raw(made: Made, run_id: str, epoch: int, key: str, type: str, data: bytes, **members: Any) -> None:
    """An event whose data is exactly these bytes."""
    head = json.dumps({"run_id": run_id, "epoch": epoch})[:-1].encode()
    event = json.dumps({"type": type, "key": key, **members})[:-1].encode()
    made.connection.call("Append", head + b',"events":[' + event + b',"data":' + data + b"}]}")


def differences(made: Made) -> list[Any]:
    """What verify finds."""
    return list(verify(made.daemon.database, lambda checked, of: None).differences)


@pytest.mark.parametrize("size", [LIMIT - 1, LIMIT, LIMIT + 1, 1024 * 1024])
def test_data_above_the_limit_is_content_and_comes_back_byte_for_byte(made: Made, size: int) -> None:
    data = padded(size)
    assert len(data) == size
    epoch = made.begin("r")
    append_raw(made, "r", epoch, "a", "note", data)
    _, event = made.events("r")
    if size <= LIMIT:
        assert (event["data"], event.get("data_blob")) == (json.loads(data), None)
        assert made.files() == []
        return
    assert (event["data"], event["data_blob"]) == ({}, {"sha256": hashlib.sha256(data).hexdigest(), "size": size})
    assert made.get("r", event["data_blob"]["sha256"]) == data
    assert differences(made) == []
    again = restarted(made)
    assert again.get("r", event["data_blob"]["sha256"]) == data
    again.connection.close()


def test_data_above_what_an_event_may_be_sent_with_is_refused(made: Made) -> None:
    epoch = made.begin("r")
    with pytest.raises(TooLarge):
        append_raw(made, "r", epoch, "a", "note", padded(1024 * 1024 + 1))
    assert made.files() == []


def test_what_its_kind_gives_a_meaning_to_stays_with_the_event(made: Made) -> None:
    epoch = made.begin("r")
    made.append("r", epoch, "s", "step.started", step_id="s")
    append_raw(made, "r", epoch, "f", "step.failed", padded(100_000, error="it broke", log="x"), step_id="s")
    append_raw(made, "r", epoch, "e", "run.failed", padded(100_000, error="all broke", output={"n": 1}))
    *_, failed, ended = made.events("r")
    assert failed["data"] == {"error": "it broke"}
    assert ended["data"] == {"error": "all broke", "output": {"n": 1}}
    reply = made.connection.call("GetRun", {"run_id": "r"})
    assert (reply["run"]["status"], reply["run"]["error"], reply["detail"]["output"]) == ("failed", "all broke", {"n": 1})
    assert differences(made) == []


def test_a_large_state_is_in_the_database_because_the_run_amounts_to_it(made: Made) -> None:
    state = {"text": "x" * 100_000}
    made.append("r", made.begin("r"), "u", "run.updated", data={"state": state})
    assert made.events("r")[1]["data"] == {"state": state}
    assert made.connection.call("GetRun", {"run_id": "r"})["detail"]["state"] == state
    assert made.files() == []


def test_a_large_answer_of_a_gate_reaches_whoever_goes_on(made: Made) -> None:
    made.append("r", made.begin("r"), "p", "run.paused", data={"name": "gate"})
    answer = {"gate_seq": 2, "answer": "x" * 100_000}
    made.connection.call("Append", {"run_id": "r", "events": [{"type": "gate.answered", "key": "a", "data": answer}]})
    made.connection.call("ClaimRun", {"run_id": "r", "lease_key": UPLOAD})
    assert made.events("r")[3]["data"]["answer"] == "x" * 100_000
    claiming = {"run_id": "r", "lease_key": UPLOAD.replace("ff", "fe"), "takeover": True}
    large = {"type": "note", "key": "n", "data": {"text": "y" * 100_000}}
    made.connection.call("ClaimRun", {**claiming, "events": [large]})
    assert made.events("r")[-1]["data_blob"]["size"] == 100_011


def test_content_that_was_given_before_is_the_data_of_an_event(made: Made) -> None:
    data = padded(3_000_000)
    sha256 = made.put(data, chunk=500_000)
    blob = {"sha256": sha256, "size": len(data)}
    epoch = made.begin("r")
    made.append("r", epoch, "a", "step.failed", step_id="s", data={"error": "e"}, data_blob=blob)
    event = made.events("r")[1]
    assert (event["data"], event["data_blob"]) == ({"error": "e"}, blob)
    assert made.get("r", sha256) == data
    make_old(made)
    made.sweep()
    assert made.get("r", sha256) == data
    assert differences(made) == []


def test_content_that_was_not_given_or_is_of_another_size_is_no_data(made: Made) -> None:
    epoch = made.begin("r")
    blob = {"sha256": made.put(b"{}"), "size": 3}
    with pytest.raises(NoSuchBlob):
        made.append("r", epoch, "a", "note", data_blob=blob)
    with pytest.raises(NoSuchBlob):
        made.append("r", epoch, "a", "note", data_blob={"sha256": "0" * 64, "size": 2})
    with pytest.raises(InvalidParameter, match=r"events\[0\].data_blob.sha256"):
        made.append("r", epoch, "a", "note", data_blob={"sha256": "../../etc/passwd", "size": 2})
    with pytest.raises(InvalidParameter, match=r"events\[0\].data_blob.size"):
        made.append("r", epoch, "a", "note", data_blob={"sha256": "0" * 64, "size": -2})
    with pytest.raises(NotAllowed, match="data_blob"):
        made.append("r", epoch, "a", "gate.answered", data={"gate_seq": 2}, data_blob=blob)
    assert len(made.events("r")) == 1


@pytest.mark.parametrize("content", [b"", b"no JSON", b"[1]", b'{"a":1', b'{"a":"\xff"}', b'{"a":1e999}'])
def test_content_that_no_reader_could_take_is_no_data(made: Made, content: bytes) -> None:
    epoch = made.begin("r")
    blob = {"sha256": made.put(content), "size": len(content)}
    with pytest.raises(InvalidParameter, match=r"events\[0\].data_blob is wrong"):
        made.append("r", epoch, "a", "note", data_blob=blob)
    assert len(made.events("r")) == 1


def test_a_key_with_the_same_data_is_a_duplicate_wherever_that_lies(made: Made, wait_until: Wait) -> None:
    data = padded(100_000)
    epoch = made.begin("r")
    append_raw(made, "r", epoch, "large", "note", data)
    append_raw(made, "r", epoch, "small", "note", b'{"a":1}')
    append_raw(made, "r", epoch, "large", "note", data)
    with pytest.raises(Conflict):
        append_raw(made, "r", epoch, "large", "note", data[:-2] + b'y"}')
    with pytest.raises(Conflict):
        append_raw(made, "r", epoch, "large", "note", b"{}")
    blob = {"sha256": made.put(data), "size": len(data)}
    assert made.append("r", epoch, "large", "note", data_blob=blob)["duplicates"] == 1
    blob = {"sha256": made.put(b'{"a":1}', upload=UPLOAD.replace("ff", "fe")), "size": 7}
    assert made.append("r", epoch, "small", "note", data_blob=blob)["duplicates"] == 1
    made.daemon.config_file.write_text("[limits]\ninline_limit = 200_000\n")
    describe = made.connection.call
    wait_until(lambda: describe("Describe", {})["limits"]["inline_limit"] == 200_000, "the new limit holds")
    append_raw(made, "r", epoch, "large", "note", data)
    assert len(made.events("r")) == 3
    append_raw(made, "r", epoch, "second", "note", data)
    assert "data_blob" not in made.events("r")[3]


def test_calls_of_one_connection_take_effect_in_order_around_large_data(made: Made) -> None:
    epoch = made.begin("r")
    for i in range(20):
        data = {"text": "x" * (100_000 if i % 3 == 0 else 10)}
        event = {"type": "note", "data": data, "kind": "note"}
        asked = {"run_id": "r", "epoch": epoch, "writer": UPLOAD, "first_n": i + 1, "events": [event]}
        made.connection.send("Append", asked)
    made.connection.send("GetRun", {"run_id": "r"})
    replies: list[Any] = []
    while len(replies) < 21:
        made.connection.push()
        replies += made.connection.receive()
        if len(replies) < 21:
            made.connection.wait(30)
    assert [reply.parameters["last_seq"] for reply in replies[:20]] == list(range(2, 22))
    assert replies[20].parameters["run"]["last_seq"] == 21


def test_large_last_words_of_a_killed_engine_are_heard(daemon: Daemon, wait_until: Wait) -> None:
    engine = Engine(daemon.start())
    made = Made(daemon)
    try:
        engine.do("begin('r')")
        engine.tell("peer.sendall(appending('r', 'turn', size=900_000) + appending('r', 'run.completed', size=900_000))")
        engine.tell("os.kill(os.getpid(), 9)")
        ended = lambda: made.connection.call("GetRun", {"run_id": "r"})["run"]["status"] != "running"  # noqa: E731
        wait_until(ended, "the run has ended")
        assert [event["kind"] for event in made.events("r")] == ["run.started", "note", "run.completed"]
    finally:
        engine.end()
        made.connection.close()


def test_deleting_the_run_deletes_its_data(made: Made, wait_until: Wait) -> None:
    for run_id in ("r", "s"):
        epoch = made.begin(run_id)
        append_raw(made, run_id, epoch, "a", "note", padded(100_000, run_id=run_id))
        made.end(run_id, epoch)
    make_old(made)
    made.connection.call("DeleteRun", {"run_id": "r"})
    wait_until(lambda: len(made.files()) == 1, "its file is gone")
    blob = made.events("s")[1]["data_blob"]
    assert made.get("s", blob["sha256"]) == padded(100_000, run_id="s")
    assert differences(made) == []


def test_what_content_took_counts_as_freed(made: Made, wait_until: Wait) -> None:
    epoch = made.begin("r")
    append_raw(made, "r", epoch, "a", "note", padded(1_000_000))
    made.end("r", epoch)
    make_old(made)
    made.connection.call("DeleteRun", {"run_id": "r"})
    wait_until(lambda: made.files() == [], "its file is gone")
    status = made.connection.call
    wait_until(lambda: status("GetStatus", {})["retention"]["freed_bytes"] > 1_000_000, "that is told")


def test_dropping_notes_drops_their_data_but_not_what_others_use(made: Made, wait_until: Wait) -> None:
    dropped, kept, file = (padded(100_000, name=name) for name in ("dropped", "kept", "file"))
    epoch = made.begin("r")
    append_raw(made, "r", epoch, "k", "note", kept)  # for its key it stays
    made.record("r", epoch, "f", name="file", blob=made.put(file))
    head = json.dumps({"run_id": "r", "epoch": epoch, "writer": UPLOAD, "first_n": 1})[:-1].encode()
    events = b",".join(b'{"type":"note","data":' + data + b"}" for data in (dropped, kept, file))
    made.connection.call("Append", head + b',"events":[' + events + b"]}")
    made.end("r", epoch)
    assert len(made.files()) == 3
    assert differences(made) == []
    make_old(made)
    with closing(sqlite3.connect(made.daemon.database, timeout=10)) as database, database:
        for table, times in AGING:
            database.execute(f"UPDATE {table} SET {times}", {"by": 3 * 24 * HOUR_US})  # noqa: S608
    again = restarted(made)
    again.daemon.config_file.write_text("[retention]\ninterval_s = 1\n[retention.events]\nnote = 1\n")
    wait_until(lambda: len(again.files()) == 2, "the data of the dropped note is gone")
    (note,) = [event["data_blob"] for event in again.events("r") if event["kind"] == "note"]
    assert again.get("r", note["sha256"]) == kept
    assert again.get("r", again.listed("r")[0]["blob"]) == file
    assert differences(again) == []
    again.connection.close()


def test_verify_tells_data_that_is_lost_or_that_nobody_uses(made: Made) -> None:
    epoch = made.begin("r")
    append_raw(made, "r", epoch, "a", "note", padded(100_000, name="a"))
    append_raw(made, "r", epoch, "b", "note", padded(100_000, name="b"))
    lost, unnoted = (event["data_blob"]["sha256"] for event in made.events("r")[1:])
    for file in made.files():
        if file.name == lost:
            file.unlink()
    made.connection.close()
    made.daemon.stop()
    with closing(sqlite3.connect(made.daemon.database)) as database, database:
        database.execute("DELETE FROM blob_uses WHERE sha256 = ?", (bytes.fromhex(unnoted),))
        database.execute("INSERT INTO blob_uses SELECT run, ? FROM runs", (bytes.fromhex("ab" * 32),))
    assert {one.what for one in differences(made)} == {
        f"content {lost[:12]}",
        f"use of {unnoted}",
        f"use of {'ab' * 32}",
    }


def test_a_follower_hears_what_the_data_is(made: Made) -> None:
    epoch = made.begin("r")
    append_raw(made, "r", epoch, "a", "note", padded(100_000))

    def size(asked: Made) -> int:
        for reply in asked.connection.stream("Follow", {"cursor": {"position": 1}}):
            return int(reply["items"][0]["event"]["data_blob"]["size"])
        return 0

    assert size(made) == 100_000  # from memory
    again = restarted(made)
    assert size(again) == 100_000  # from the database
    again.connection.close()
