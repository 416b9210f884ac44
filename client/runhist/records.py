"""What is read back, and what an append became: plain named tuples with the member names of the wire.

Members that this version does not know are left out, and may be added by later ones at the end, so take them by name.
Times are microseconds since 1970, UTC; costs are microcents, of which 1 USD has 100,000,000.
"""

from __future__ import annotations

from typing import Any, Dict, Mapping, NamedTuple, Optional, Tuple

TERMINAL_STATUSES = frozenset({"completed", "failed", "cancelled"})
TERMINAL_KINDS = frozenset({"run.completed", "run.failed", "run.cancelled"})


class Receipt(NamedTuple):
    """What became of the events that a run handle took since the last flush (at first: since it began).

    `durable` is "committed" when every one of them is in the history, "spooled" when those that are not are on disk in the
    spool, to be taken from there when the daemon is back, and otherwise "off": some wait still in memory, or are lost
    (`faults` counts those). `stored` were new to the daemon, `duplicates` it had already. `last_seq` and `position` are
    those of the newest event whose receipt came; None before the first.
    """

    durable: str
    stored: int = 0
    duplicates: int = 0
    last_seq: Optional[int] = None
    position: Optional[int] = None
    faults: int = 0


class Gap(NamedTuple):
    """Events from one position to the other are gone by that rule: of the run that is named, or (`forgotten`) of any."""

    namespace: Optional[str]
    run_id: Optional[str]
    from_position: int
    to_position: int
    rule: str


class Cursor(NamedTuple):
    """Up to where a follower has looked. instance_id names the history; None is whichever one answers."""

    instance_id: Optional[str]
    position: int


class UsageTotals(NamedTuple):
    """Tokens and cost."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0
    reasoning_output_tokens: int = 0
    cost_microcents: int = 0

    @classmethod
    def from_wire(cls, members: Mapping[str, Any]) -> UsageTotals:
        """From the wire's UsageTotals."""
        return cls(**_known(cls, members))


class UsageRow(NamedTuple):
    """What one step attempt used of one model; None where the engine did not say."""

    usage: UsageTotals
    step_id: Optional[str] = None
    attempt: Optional[int] = None
    provider: Optional[str] = None
    model: Optional[str] = None

    @classmethod
    def from_wire(cls, members: Mapping[str, Any]) -> UsageRow:
        """From the wire's UsageRow."""
        return cls(**{**_known(cls, members), "usage": UsageTotals.from_wire(members["usage"])})


class Usage(NamedTuple):
    """A run's tokens and cost; `rows` add up to `total`."""

    total: UsageTotals
    rows: Tuple[UsageRow, ...]


class Gate(NamedTuple):
    """What somebody must answer before a paused run can go on."""

    gate_seq: int
    name: Optional[str] = None
    prompt: Optional[str] = None
    answered: bool = False


class DataBlob(NamedTuple):
    """Content that the daemon keeps and that is the data of an event; `size` in bytes."""

    sha256: str
    size: int


class Event(NamedTuple):
    """A stored event. `seq` is its place in its run, `position` in the whole history; `usage` is as it was sent.

    With a `data_blob` the history keeps the data apart, for its size; whoever reads the event gets it with all its `data`.
    """

    position: int
    namespace: str
    run_id: str
    seq: int
    epoch: int
    type: str
    kind: str
    received_us: int
    data: Dict[str, Any]
    key: Optional[str] = None
    writer: Optional[str] = None
    n: Optional[int] = None
    step_id: Optional[str] = None
    attempt: Optional[int] = None
    usage: Optional[Dict[str, Any]] = None
    time_us: Optional[int] = None
    data_blob: Optional[DataBlob] = None

    @classmethod
    def from_wire(cls, members: Mapping[str, Any]) -> Event:
        """From the wire's StoredEvent; `data` is as it stands there."""
        blob = members.get("data_blob")
        known = _known(cls, members)
        return cls(**{**known, "data_blob": DataBlob(**_known(DataBlob, blob))} if blob else known)


class Published(NamedTuple):
    """An event that was only shown (`Run.publish`, `delta`): it is nowhere in the history."""

    namespace: str
    run_id: str
    epoch: int
    type: str
    kind: str
    received_us: int
    data: Dict[str, Any]
    step_id: Optional[str] = None
    attempt: Optional[int] = None
    time_us: Optional[int] = None

    @classmethod
    def from_wire(cls, members: Mapping[str, Any]) -> Published:
        """From the wire's Published."""
        return cls(**_known(cls, members))


class RunRecord(NamedTuple):
    """What a run's events amount to. definition, metadata, state, output, checkpoint_seq, root and dir (the
    run's own directory), traceparent, pinned, and evidence (why the run lost its owner) are only there when one run is
    read, not in lists. `lease` is owned, none or ended."""

    namespace: str
    run_id: str
    short_id: str
    status: str
    epoch: int
    last_seq: int
    started_us: int
    created_us: int
    updated_us: int
    usage: UsageTotals
    workflow: Optional[str] = None
    agent_id: Optional[str] = None
    parent_run_id: Optional[str] = None
    title: Optional[str] = None
    current_step: Optional[str] = None
    error: Optional[str] = None
    gate: Optional[Gate] = None
    owner_pid: Optional[int] = None
    ended_us: Optional[int] = None
    closed_us: Optional[int] = None
    definition: Optional[Dict[str, Any]] = None
    metadata: Optional[Dict[str, Any]] = None
    state: Optional[Dict[str, Any]] = None
    output: Optional[Dict[str, Any]] = None
    checkpoint_seq: Optional[int] = None
    evidence: Optional[Dict[str, Any]] = None
    root: Optional[str] = None
    dir: Optional[str] = None
    traceparent: Optional[str] = None
    pinned: Optional[bool] = None
    lease: str = "owned"
    team_id: Optional[str] = None
    team_run_id: Optional[str] = None
    team_epoch: Optional[int] = None
    uid: Optional[int] = None

    @classmethod
    def from_wire(cls, run: Mapping[str, Any], detail: Optional[Mapping[str, Any]] = None) -> RunRecord:
        """From the wire's Run, and its RunDetail if that was asked for."""
        gate = run.get("gate")
        members = {**_known(cls, run), **_known(cls, detail or {})}
        members["usage"] = UsageTotals.from_wire(run["usage"])
        members["gate"] = None if gate is None else Gate(**_known(Gate, gate))
        return cls(**members)

    @property
    def ended(self) -> bool:
        """Whether the run has come to its end: completed, failed or cancelled."""
        return self.status in TERMINAL_STATUSES


class InterruptedRun(NamedTuple):
    """A run that waits for somebody to go on with it, paused or incomplete. `resumable`: no open gate keeps it waiting.

    `evidence` tells why an incomplete one lost its owner.
    """

    run: RunRecord
    resumable: bool
    evidence: Optional[Dict[str, Any]] = None

    @classmethod
    def from_wire(cls, members: Mapping[str, Any]) -> InterruptedRun:
        """From the wire's Interrupted."""
        return cls(RunRecord.from_wire(members["run"]), members["resumable"], members.get("evidence"))


class StepRecord(NamedTuple):
    """One attempt of a step: running, completed, failed, skipped or unfinished."""

    step_id: str
    attempt: int
    name: str
    status: str
    first_seq: int
    parent_step_id: Optional[str] = None
    error: Optional[str] = None
    started_us: Optional[int] = None
    ended_us: Optional[int] = None

    @classmethod
    def from_wire(cls, members: Mapping[str, Any]) -> StepRecord:
        """From the wire's Step."""
        return cls(**_known(cls, members))


def _known(cls: Any, members: Mapping[str, Any]) -> Dict[str, Any]:
    return {name: members[name] for name in cls._fields if name in members}
