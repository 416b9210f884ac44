"""Going on with a run that waits for somebody: claims, answers to gates, and what the claimant finds.

A claim is compare-and-set in the daemon: of all that claim a run at the same moment one gets it, and everybody who wrote
to it before is fenced out. It is repeated under its lease_key when the reply is lost, so that it never leaves a run that
nobody knows to own. Unlike recording it raises what goes wrong: a process that is not the owner must not go on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, Iterator, Mapping, Optional, Sequence, Union

from .connection import call_again_if_lost
from .encoding import encode, present
from .faults import Faults
from .ids import new_uuid
from .outbox import Outbox
from .protocol.errors import NoSuchRun, NotAllowed
from .reading import RunReader
from .records import Event, Gap, RunRecord
from .run import Run

if TYPE_CHECKING:
    from .client import History

UNSET: Any = object()


class ClaimedRun(Run):
    """A run that this process goes on with; made by `History.claim_run`. What it finds is read when it is asked for."""

    def __init__(self, history: History, outbox: Optional[Outbox], faults: Faults, run_id: str, resumed_seq: int) -> None:
        super().__init__(history, outbox, faults, run_id, fresh=False)
        self._resumed_seq = resumed_seq
        self._resumed: Optional[Mapping[str, Any]] = None

    @property
    def from_status(self) -> str:
        """What the run was before: paused, incomplete, or running where it was taken over."""
        return str(self._resumed_data()["from_status"])

    @property
    def answer(self) -> Any:
        """What the gate of the paused run was answered with; None where there was no gate or no answer."""
        return self._resumed_data().get("answer")

    @property
    def checkpoint_data(self) -> Optional[Dict[str, Any]]:
        """The data of the last checkpoint that the run recorded before; None where there is none."""
        for event in self._reader().events(kinds=["checkpoint"], from_checkpoint=True):
            if isinstance(event, Event) and event.seq < self._resumed_seq:
                return event.data
        return None

    def earlier_events(self) -> Iterator[Union[Event, Gap]]:
        """What was recorded behind the last checkpoint, or from the beginning, up to this claim."""
        for event in self._reader().events(from_checkpoint=True):
            if isinstance(event, Event) and event.seq >= self._resumed_seq:
                return
            if isinstance(event, Gap) or event.kind != "checkpoint":
                yield event

    def _resumed_data(self) -> Mapping[str, Any]:
        if self._resumed is None:
            behind = self._reader().events(after_seq=self._resumed_seq - 1, kinds=["run.resumed"])
            self._resumed = next(event.data for event in behind if isinstance(event, Event))
        return self._resumed

    def _reader(self) -> RunReader:
        return RunReader(self._history._reader, self.namespace, self._run_id)


def claim_run(
    history: History,
    namespace: Optional[str],
    run_id: str,
    *,
    answer: Any = UNSET,
    expect_status: Optional[Sequence[str]] = None,
    expect_seq: Optional[int] = None,
    takeover: bool = False,
) -> ClaimedRun:
    """Claim a run. Raises the refusals of `History.claim_run`, and Unreachable."""
    if history._link is None:
        raise NoSuchRun(namespace=namespace or "default", run_id=run_id)
    lease_key = new_uuid()
    answers = []
    if answer is not UNSET:
        answers = [gate_answer(RunReader(history._reader, namespace, run_id).get(), answer, lease_key)]
    claim = claim_request(namespace, run_id, lease_key, answers, expect_status, expect_seq, takeover)
    granted = call_again_if_lost("ClaimRun", claim, history._link.choice, history.deadline)
    faults = history._new_faults()
    outbox = Outbox(faults, granted["namespace"], run_id, None, granted["epoch"])
    return ClaimedRun(history, outbox, faults, run_id, granted["last_seq"])


def claim_request(
    namespace: Optional[str],
    run_id: str,
    lease_key: str,
    answers: Sequence[Mapping[str, Any]],
    expect_status: Optional[Sequence[str]],
    expect_seq: Optional[int],
    takeover: bool,
) -> bytes:
    """The parameters of ClaimRun. Raises Unencodable where an answer is not JSON."""
    expected = {"expect_status": None if expect_status is None else list(expect_status), "expect_seq": expect_seq}
    claim = {**present(namespace=namespace, **expected), "run_id": run_id, "lease_key": lease_key, "takeover": takeover}
    return encode({**claim, "events": list(answers)})


def gate_answer(run: RunRecord, answer: Any, key: str) -> Dict[str, Any]:
    """The event that answers the run's open gate. Raises NotAllowed where none is open."""
    if run.gate is None:
        raise NotAllowed(parameter="answer", reason="the run is not paused at a gate")
    return {"type": "gate.answered", "key": key, "data": {"gate_seq": run.gate.gate_seq, "answer": answer}}


def answer_request(run: RunRecord, namespace: Optional[str], answer: Any) -> bytes:
    """The parameters of the Append that answers the run's open gate. Raises NotAllowed, Unencodable."""
    event = gate_answer(run, answer, new_uuid())
    return encode({**present(namespace=namespace), "run_id": run.run_id, "events": [event]})


def answer_gate(history: History, namespace: Optional[str], run_id: str, answer: Any) -> None:
    """Answer the gate that a run is paused at, without owning the run. Raises Conflict where it was answered already."""
    request = answer_request(RunReader(history._reader, namespace, run_id).get(), namespace, answer)
    assert history._link is not None  # or reading the gate would have raised
    call_again_if_lost("Append", request, history._link.choice, history.deadline)
