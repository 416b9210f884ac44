"""What is only shown, with a real daemon: seen by those who follow, in its place among the events, and never kept."""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from runhist.connection import Connection
from runhist.protocol.errors import InvalidParameter, NotAllowed, RunClosed, StaleEpoch, TooLarge
from tests.acceptance.test_append import UUID, begin, connect, frame, raw, request
from tests.acceptance.test_follow import resident_kib

if TYPE_CHECKING:
    from tests.conftest import Daemon

INBOX_BYTES = 256 * 1024
START = {"cursor": {"position": 0}}
STARTED = {"type": "step.started", "step_id": "s"}
COMPLETED = {"type": "step.completed", "step_id": "s"}


@pytest.fixture
def connection(daemon: Daemon) -> Iterator[Connection]:
    daemon.start()
    with connect(daemon) as opened:
        yield opened


def shown(run_id: str, epoch: int | None, *texts: str, **members: Any) -> dict[str, Any]:
    """Publish's parameters: a token for each text."""
    return {"run_id": run_id, "epoch": epoch, "events": [{"type": "token", "data": {"text": t}, **members} for t in texts]}


def words(items: list[dict[str, Any]]) -> list[str]:
    """Of each item what it says: the kind of an event, the text of what is shown."""
    return [item["event"]["kind"] if "event" in item else item["published"]["data"]["text"] for item in items]


def followed(daemon: Daemon, until: Callable[[dict[str, Any]], bool], **wanted: Any) -> Iterator[dict[str, Any]]:
    """The replies of a Follow that has begun when this returns, up to the first with an item for which `until` holds."""
    following = connect(daemon)
    replies = following.stream("Follow", {"published": True, **wanted})
    first = next(replies)

    def rest() -> Iterator[dict[str, Any]]:
        with following:
            for reply in itertools.chain([first], replies):
                yield reply
                if any(map(until, reply["items"])):
                    return

    return rest()


def says(text: str) -> Callable[[dict[str, Any]], bool]:
    return lambda item: words([item]) == [text]


def test_it_is_seen_by_those_who_asked_for_it_and_never_stored(daemon: Daemon, connection: Connection) -> None:
    epoch = begin(connection, "r")
    asking = followed(daemon, says("output"))
    plain = followed(daemon, says("output"), published=None)
    parameters = shown("r", epoch, "a", step_id="s", attempt=2, time_us=7)
    assert connection.call("Publish", parameters) == {}
    connection.call("Append", request("r", epoch, 1))
    items = [item for reply in asking for item in reply["items"]]
    assert words(items) == ["a", "output"]
    seen = items[0]["published"]
    assert seen.pop("received_us") > 0
    named = {"namespace": "default", "run_id": "r", "epoch": epoch, "type": "token", "kind": "note"}
    assert seen == {**named, "step_id": "s", "attempt": 2, "time_us": 7, "data": {"text": "a"}}
    assert words([item for reply in plain for item in reply["items"]]) == ["output"]
    events = connection.call("GetEvents", {"run_id": "r"})["events"]
    assert [event["kind"] for event in events] == ["run.started", "output"]
    late = followed(daemon, says("output"), **START)
    assert words([item for reply in late for item in reply["items"]]) == ["run.started", "output"]


def test_it_never_overtakes_the_event_before_it(daemon: Daemon, connection: Connection) -> None:
    epoch = begin(connection, "r")
    following = followed(daemon, says("run.completed"))
    calls, expected = b"", []
    for n in range(1, 400, 2):
        calls += frame("Append", request("r", epoch, n, STARTED))
        calls += frame("Publish", shown("r", epoch, f"{n}", f"{n + 1}"), oneway=True)
        calls += frame("Append", request("r", epoch, n + 1, COMPLETED))
        expected += ["step.started", f"{n}", f"{n + 1}", "step.completed"]
    calls += frame("Append", request("r", epoch, 401, {"type": "run.completed"}))
    assert raw(daemon, calls).count(b'"stored":1') == 401
    seen = words([item for reply in following for item in reply["items"]])
    assert seen == [*expected, "run.completed"]


def test_a_follower_far_behind_sees_it_in_its_place_too(daemon: Daemon, connection: Connection) -> None:
    epoch = begin(connection, "r")
    for n in range(1, 1001, 100):
        connection.call("Append", request("r", epoch, n, *[{"type": "output", "data": {"x": "x" * 10_000}}] * 100))
    with connect(daemon) as behind:
        replies = behind.stream("Follow", {**START, "published": True})
        items = list(next(replies)["items"])  # the daemon waits for this peer now: more is there than sockets hold
        connection.call("Append", request("r", epoch, 1001, STARTED))
        connection.call("Publish", shown("r", epoch, "late"))
        connection.call("Append", request("r", epoch, 1002, COMPLETED))
        while not words(items)[-1:] == ["step.completed"]:
            items += next(replies)["items"]
    assert words(items)[-3:] == ["step.started", "late", "step.completed"]
    assert len(items) == 1004


def test_what_a_slow_follower_does_not_take_goes_oldest_first_and_is_counted(daemon: Daemon, connection: Connection) -> None:
    epoch = begin(connection, "r")
    with connect(daemon) as slow:
        replies = slow.stream("Follow", {"published": True})
        first = next(replies)
        assert first["dropped"] == 0
        for n in range(2000):
            connection.call("Publish", shown("r", epoch, f"{n:04}" + "x" * 2000))
        connection.call("Append", request("r", epoch, 1))
        kept, dropped, last = [], 0, ""
        while last != "output":
            reply = next(replies)
            dropped += reply["dropped"]
            for item in reply["items"]:
                last = words([item])[0]
                kept.append(last[:4])
        numbers = [int(word) for word in kept if word.isdigit()]
        assert numbers == sorted(numbers) and numbers[-1] == 1999
        assert len(numbers) + dropped == 2000
        assert INBOX_BYTES // 2500 < len(numbers) < 1000


def test_it_waits_for_large_data_before_it_that_is_kept_first(daemon: Daemon, connection: Connection) -> None:
    epoch = begin(connection, "r")
    following = followed(daemon, says("after"))
    large = {"type": "output", "data": {"text": "x" * 900_000}}
    calls = frame("Publish", shown("r", epoch, "before"), oneway=True) + frame("Append", request("r", epoch, 1, large))
    raw(daemon, calls + frame("Publish", shown("r", epoch, "after"), oneway=True))
    assert words([item for reply in following for item in reply["items"]]) == ["before", "output", "after"]


def test_fifty_followers_that_take_nothing_cost_bounded_memory(daemon: Daemon, connection: Connection) -> None:
    epoch = begin(connection, "r")
    stalled = []
    for _ in range(50):
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(str(daemon.socket))
        peer.sendall(frame("Follow", {"published": True}, more=True))
        peer.recv(65536)
        stalled.append(peer)
    before = resident_kib(daemon.pid)
    for n in range(500):
        connection.call("Publish", shown("r", epoch, f"{n}" + "x" * 100_000))
    grown = resident_kib(daemon.pid) - before
    assert grown < 80 * 1024, f"{grown} KiB"  # 50 MB were shown; 50 queues of it would be 2.5 GB
    for peer in stalled:
        peer.close()


def test_followers_get_it_by_their_filters(daemon: Daemon, connection: Connection) -> None:
    epoch, other = begin(connection, "r"), begin(connection, "other", 1)
    following = [
        followed(daemon, says("end"), **wanted)
        for wanted in ({"run_id": "r", "namespace": "default"}, {"types": ["token"]}, {"kinds": ["note"]}, {"run_id": "r"})
    ]
    connection.call("Publish", shown("other", other, "not mine"))
    connection.call("Publish", shown("r", epoch, "loud", kind="output"))
    connection.call("Publish", shown("r", epoch, "end"))
    seen = [words([item for reply in replies for item in reply["items"]]) for replies in following]
    assert seen == [["loud", "end"], ["not mine", "loud", "end"], ["not mine", "end"], ["loud", "end"]]


@pytest.mark.parametrize(
    ("members", "refusal", "parameter"),
    [
        ({"events": []}, InvalidParameter, "events"),
        ({"events": [{"type": "a", "kind": "b"}]}, InvalidParameter, "events[0].kind"),
        ({"events": [{"type": "run.completed"}]}, NotAllowed, "events[0].kind"),
        ({"events": [{"type": "a"}, {"type": "a", "usage": {"input_tokens": 1}}]}, NotAllowed, "events[1].usage"),
        ({"events": [{"type": "a", "key": "k"}]}, NotAllowed, "events[0].key"),
        ({"events": [{"type": "a", "data": {"x": "x" * 140_000}}]}, TooLarge, "events[0].data"),
        ({"events": [{"type": "a", "seq": 1}]}, InvalidParameter, "events[0].seq"),
        ({"epoch": None}, NotAllowed, "epoch"),
        ({"writer": UUID.format(1)}, InvalidParameter, "writer"),
    ],
)
def test_what_may_not_be_shown_is_named(
    connection: Connection, members: dict[str, Any], refusal: type[Exception], parameter: str
) -> None:
    epoch = begin(connection, "r")
    with pytest.raises(refusal) as caught:
        connection.call("Publish", {**shown("r", epoch, "a"), **members})
    assert caught.value.parameters["parameter"] == parameter  # type: ignore[attr-defined]


def test_who_was_fenced_out_or_has_ended_shows_nothing(connection: Connection) -> None:
    epoch = begin(connection, "r")
    claim = {"run_id": "r", "lease_key": UUID.format(9), "takeover": True}
    newer = connection.call("ClaimRun", claim)["epoch"]
    with pytest.raises(StaleEpoch):
        connection.call("Publish", shown("r", epoch, "a"))
    connection.call("Publish", shown("r", newer, "a"))
    connection.call("Append", request("r", newer, 1, {"type": "run.paused"}))
    with pytest.raises(NotAllowed):
        connection.call("Publish", shown("r", newer, "a"))
    ended = begin(connection, "ended", 1)
    connection.call("Append", request("ended", ended, 1, {"type": "run.completed"}))
    with pytest.raises(RunClosed):
        connection.call("Publish", shown("ended", ended, "a"))


def test_a_run_that_many_write_is_shown_without_an_epoch(daemon: Daemon, connection: Connection) -> None:
    connection.call("BeginRun", {"run": {"run_id": "r"}, "lease_key": UUID.format(0), "lease": "none"})
    following = followed(daemon, says("a"))
    connection.call("Publish", shown("r", None, "a"))
    assert [words(reply["items"]) for reply in following][-1] == ["a"]


def test_oneway_gets_no_reply_whatever_becomes_of_it(daemon: Daemon, connection: Connection) -> None:
    epoch = begin(connection, "r")
    following = followed(daemon, says("seen"))
    bad: tuple[dict[str, Any], ...] = (
        shown("r", epoch + 1, "stale"),
        shown("nobody", 1, "a"),
        {"run_id": "r", "events": 5},
        {},
    )
    calls = b"".join(frame("Publish", parameters, oneway=True) for parameters in bad)
    calls += frame("Publish", shown("r", epoch, "seen"), oneway=True) + frame("Describe", {})
    (reply, rest) = raw(daemon, calls).split(b"\0")
    assert json.loads(reply)["parameters"]["features"] == ["publish"] and rest == b""
    assert [word for reply in following for word in words(reply["items"])] == ["seen"]


def test_it_makes_no_transaction_and_no_figures(daemon: Daemon, connection: Connection) -> None:
    epoch = begin(connection, "r")
    before = connection.call("GetStatus", {})
    for _ in range(100):
        connection.call("Publish", shown("r", epoch, "a"))
    after = connection.call("GetStatus", {})
    assert after["position"] == before["position"]
    assert after["commit"]["commits"] - before["commit"]["commits"] < 10  # its own, such as those of a pass of retention


def test_a_follower_that_is_gone_is_waited_for_by_nothing(daemon: Daemon, connection: Connection) -> None:
    epoch = begin(connection, "r")
    for _ in range(20):
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(str(daemon.socket))
        peer.sendall(frame("Follow", {"published": True}, more=True))
        assert peer.recv(65536)
        peer.close()
    following = followed(daemon, says("b"))
    connection.call("Publish", shown("r", epoch, "b"))
    assert [word for reply in following for word in words(reply["items"])] == ["b"]
    assert connection.call("GetStatus", {})["followers"] <= 1
