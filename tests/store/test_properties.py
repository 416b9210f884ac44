"""Whatever is sent in whatever order, what people see is the fold of the events, and each event is stored once."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from unittest import mock
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from runhistd.model.decide import Append
from runhistd.model.errors import Refusal
from runhistd.model.events import DAEMON_KINDS, Event, Usage
from runhistd.model.holder import Holder
from runhistd.model.lease import Claim, Death, Release
from runhistd.store import event_reader, heads, run_reader
from runhistd.store.database import open_reader
from runhistd.store.leases import Claimed
from runhistd.store.log import Appended
from tests.store.histories import OWNER, UID, History, append, begin, event

RUNS = ["a", "b", "c"]
SECOND = Holder(43, "start:2", "boot")
WRITERS = [UUID(int=1), UUID(int=2)]
amount = st.none() | st.integers(0, 50)
usages = st.none() | st.builds(
    Usage,
    input_tokens=amount,
    cost_microcents=amount,
    model=st.sampled_from([None, "m"]),
    response_id=st.sampled_from([None, None, "r1", "r2"]),
    cumulative=st.sampled_from([None, True]),
)
kinds = st.sampled_from(
    """
    step.started step.started step.retrying step.completed step.failed step.skipped usage checkpoint artifact output
    note turn run.updated run.paused run.completed run.failed
    """.split()
)


@st.composite
def events(draw: Any) -> Event:
    """An event that an engine may send."""
    kind = draw(kinds)
    data = {"title": draw(st.sampled_from([None, "t"])), "state": {"n": draw(amount)}} if kind == "run.updated" else {}
    key = draw(st.sampled_from([None, None, None, "k1", "k2"]))
    step_id = draw(st.sampled_from(["s1", "s2", "s3"])) if kind.startswith("step.") else None
    return event(kind, data, step_id=step_id, attempt=draw(st.sampled_from([None, None, 1, 2])), usage=draw(usages), key=key)


operations = st.one_of(
    st.tuples(
        st.just("append"),
        st.sampled_from(RUNS),
        st.sampled_from(WRITERS),
        st.integers(-2, 1),
        st.lists(events(), min_size=1, max_size=4),
    ),
    st.tuples(st.just("resend"), st.integers(0, 30)),
    st.tuples(st.just("stale"), st.sampled_from(RUNS)),
    st.tuples(st.just("reopen"), st.booleans()),
    st.tuples(st.just("batch")),
    st.tuples(st.just("claim"), st.sampled_from(RUNS), st.booleans(), st.lists(events(), max_size=2)),
    st.tuples(st.just("death"), st.sampled_from(RUNS), st.booleans()),
    st.tuples(st.just("release"), st.sampled_from(RUNS)),
)


class Sender:
    """Sends as engines do, and keeps what was acknowledged."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.epochs = {run_id: history.begin(run_id) for run_id in RUNS}
        self.sent: list[Append] = []
        self.claims: list[Claim] = []
        self.acknowledged: dict[tuple[str, UUID], int] = {}

    def send(self, *requests: Append) -> None:
        for request, outcome in zip(requests, self.history.apply(*requests), strict=True):
            assert isinstance(outcome, Appended | Refusal), outcome
            if isinstance(outcome, Appended):
                assert outcome.stored + outcome.duplicates == len(request.events)
                assert request.writer is not None and request.first_n is not None
                name = (request.run_id, request.writer)
                last_n = request.first_n + len(request.events) - 1
                if request.first_n <= self.acknowledged.get(name, 0) + 1:
                    self.acknowledged[name] = max(self.acknowledged.get(name, 0), last_n)

    def claim(self, run_id: str, takeover: bool, first_events: list[Event]) -> None:
        writer, key = UUID(int=len(self.claims) + 100), UUID(int=len(self.claims) + 1000)
        claim = Claim(
            UID, "default", run_id, key, SECOND, takeover=takeover, writer=writer, first_n=1, events=first_events
        )
        (outcome,) = self.history.apply(claim)
        assert isinstance(outcome, Claimed | Refusal), outcome
        if isinstance(outcome, Claimed):
            assert outcome.epoch > max(self.epochs.values()), "an epoch only grows"
            self.epochs[run_id] = outcome.epoch
            assert self.history.apply(claim) == [outcome], "a repeated claim changes nothing"
        self.claims.append(claim)

    def do(self, operation: tuple[Any, ...]) -> None:
        match operation:
            case ("append", run_id, writer, shift, sent):
                first_n = max(1, self.acknowledged.get((run_id, writer), 0) + 1 + shift)
                holder = SECOND if writer == WRITERS[1] else None
                request = append(run_id, self.epochs[run_id], first_n, *sent, writer=writer, holder=holder)
                self.sent.append(request)
                self.send(request)
            case ("resend", i) if self.sent:
                self.send(self.sent[i % len(self.sent)])
            case ("stale", run_id):
                self.send(append(run_id, 999, 1000, event()))
            case ("claim", run_id, takeover, first_events):
                self.claim(run_id, takeover, first_events)
            case ("death", run_id, everybody):
                for holder in (OWNER, SECOND)[: 1 + everybody]:
                    self.history.apply(Death(UID, "default", run_id, holder, b'{"reason":"orphaned"}'))
            case ("release", run_id):
                self.history.apply(Release(UID, "default", run_id, self.epochs[run_id]))
            case ("reopen", clean):
                self.history.reopen(clean=clean)
            case ("batch",):
                self.send(*self.sent[-3:])


@settings(max_examples=60)
@given(st.lists(operations, max_size=30), st.integers(1, 3))
def test_any_interleaving_leaves_the_projection_equal_to_the_fold(steps: list[tuple[Any, ...]], bound: int) -> None:
    bounds = mock.patch.multiple(heads, MAX_RUNS=bound, MAX_STEPS=bound, MAX_WRITERS=bound)
    with tempfile.TemporaryDirectory() as directory, bounds:
        history = History(Path(directory) / "history.db")
        sender = Sender(history)
        for operation in steps:
            sender.do(operation)
        assert history.differences() == []
        check_stored_once(history, sender)
        history.log.close()


def check_stored_once(history: History, sender: Sender) -> None:
    """No n twice, none above what was acknowledged, and usage that adds up."""
    connection = open_reader(history.database)
    for run_id in RUNS:
        stored, _, _ = event_reader.get_events(
            connection, UID, "default", run_id, after_seq=1, from_checkpoint=False, types=None, kinds=None, limit=10_000
        )
        names = [(sent.writer, sent.n) for sent in stored if sent.kind not in DAEMON_KINDS]
        assert len(names) == len(set(names))
        for writer in WRITERS:
            highest = max((n or 0 for of, n in names if of == writer), default=0)
            assert highest <= sender.acknowledged.get((run_id, writer), 0)
        total, rows, _ = run_reader.get_usage(connection, UID, "default", run_id, None, 1000)
        assert total.input_tokens == sum(row.usage.input_tokens for row in rows)
        assert total.cost_microcents == sum(row.usage.cost_microcents for row in rows)
    connection.close()


def test_a_run_begun_again_by_its_lease_key_changes_nothing() -> None:
    with tempfile.TemporaryDirectory() as directory:
        history = History(Path(directory) / "history.db")
        request = begin("r")
        history.apply(request, request)
        assert history.log.position == 1
        history.log.close()
