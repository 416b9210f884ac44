"""Events: what engines send, what the history keeps, the closed list of kinds, and what each kind's `data` may say.

The classes that stand on the append path are frozen msgspec Structs: they refuse unknown members and numbers out of
bounds while they decode, and keep `data` as the bytes that came.
"""

from __future__ import annotations

from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from .artifacts import Artifact, DataBlob
from .errors import InvalidParameter

MAX_COUNT = 2**63 - 1  # what SQLite's integers hold
MAX_USAGE = 10**15  # one event's tokens or microcents
MAX_ATTEMPT = 10**9  # that an engine may name; the attempts that count on from there still fit
MAX_PID = 2**31 - 1

Name = Annotated[str, Meta(min_length=1, max_length=255)]
Count = Annotated[int, Meta(ge=0, le=MAX_COUNT)]
Positive = Annotated[int, Meta(ge=1, le=MAX_COUNT)]
Amount = Annotated[int, Meta(ge=0, le=MAX_USAGE)]
Attempt = Annotated[int, Meta(ge=1, le=MAX_ATTEMPT)]
Pid = Annotated[int, Meta(ge=1, le=MAX_PID)]
# https://www.w3.org/TR/trace-context/#traceparent-header: no id is all zeros, ff is no version, later ones may be longer.
_TRACE_IDS = r"-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
Traceparent = Annotated[
    str, Meta(pattern=rf"\A(?:00{_TRACE_IDS}|(?!00|ff)[0-9a-f]{{2}}{_TRACE_IDS}(?:-[!-~]{{0,200}})?)\Z")
]

EMPTY: Final = Raw(b"{}")

TERMINAL_STATUS: Final = {"run.completed": "completed", "run.failed": "failed", "run.cancelled": "cancelled"}
TERMINAL: Final = frozenset(TERMINAL_STATUS.values())
STATUSES: Final = ("pending", "running", "paused", "incomplete", "completed", "failed", "cancelled")
STEP_ENDS: Final = {
    "step.completed": "completed",
    "step.failed": "failed",
    "step.retrying": "failed",
    "step.skipped": "skipped",
}
KINDS: Final = frozenset(
    """
    run.started run.updated run.paused gate.answered run.resumed run.completed run.failed run.cancelled run.incomplete
    step.started step.retrying step.completed step.failed step.skipped
    usage checkpoint artifact output note
    """.split()
)
DAEMON_KINDS: Final = frozenset({"run.started", "run.resumed", "run.incomplete"})  # no engine may send them


class Usage(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """Tokens and cost as an engine reports them; names as in OpenTelemetry's GenAI conventions.

    A delta, unless `cumulative` (a snapshot of the run so far) or `response_id` (a snapshot of that response so far).
    """

    input_tokens: Amount | None = None
    output_tokens: Amount | None = None
    cache_read_input_tokens: Amount | None = None
    cache_creation_input_tokens: Amount | None = None
    reasoning_output_tokens: Amount | None = None
    cost_microcents: Amount | None = None
    model: Name | None = None
    provider: Name | None = None
    response_id: Name | None = None
    cumulative: bool | None = None


class Event(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """A fact about a run as an engine sends it. With a `data_blob` its data is that content (see `large`)."""

    type: Name
    kind: Name | None = None
    key: Name | None = None
    time_us: Count | None = None
    step_id: Name | None = None
    attempt: Attempt | None = None
    usage: Usage | None = None
    data: Raw = EMPTY
    data_blob: DataBlob | None = None


class StoredEvent(Struct, frozen=True, omit_defaults=True, gc=False):
    """An event as the history keeps it and gives it back; `data`, or the `data_blob`, is byte for byte what was sent."""

    position: int
    namespace: str
    run_id: str
    seq: int
    epoch: int
    type: str
    kind: str
    received_us: int
    data: Raw
    key: str | None = None
    writer: UUID | None = None
    n: int | None = None
    step_id: str | None = None
    attempt: int | None = None
    usage: Usage | None = None
    time_us: int | None = None
    data_blob: DataBlob | None = None


class RunSpec(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How a run begins; stored as the data of its first event."""

    run_id: str
    namespace: str | None = None
    workflow: Name | None = None
    definition: dict[str, Any] | None = None
    agent_id: Name | None = None
    team_id: Name | None = None
    team_run_id: Name | None = None
    team_epoch: Positive | None = None
    parent_run_id: Name | None = None
    title: str | None = None
    metadata: dict[str, Any] | None = None
    time_us: Count | None = None
    root: str | None = None
    dir: str | None = None
    traceparent: Traceparent | None = None


class Updated(Struct, frozen=True):
    """run.updated: a merge patch (RFC 7386); an absent member changes nothing, null removes."""

    title: str | UnsetType | None = UNSET
    current_step: str | UnsetType | None = UNSET
    metadata: dict[str, Any] | UnsetType | None = UNSET
    state: dict[str, Any] | UnsetType | None = UNSET
    output: dict[str, Any] | UnsetType | None = UNSET


class Paused(Struct, frozen=True):
    """run.paused: the gate that somebody must answer."""

    name: str | None = None
    prompt: str | None = None


class Answered(Struct, frozen=True):
    """gate.answered: which gate; the answer itself stays in `data`."""

    gate_seq: Positive


class Ended(Struct, frozen=True):
    """run.completed, run.failed, run.cancelled."""

    error: str | None = None
    reason: str | None = None
    output: dict[str, Any] | None = None


class Incomplete(Struct, frozen=True):
    """run.incomplete: `reason` is orphaned, released, restored (the history was, from a copy that was taken before), or
    recovered (the history was, from a damaged database). For an orphan `evidence` says how its last holder, the process
    `pid`, is known to be dead: exited, gone (no process has the pid), replaced (another one has), boot changed,
    disconnected; `by` what that rests on: pidfd, start_time, boot_id, grace; and `seen_us` when."""

    reason: str | None = None
    pid: int | None = None
    evidence: str | None = None
    by: str | None = None
    seen_us: Count | None = None

    def text(self) -> str | None:
        """Why the run does not go on, for a person."""
        if self.reason != "orphaned" or self.evidence == "boot changed":
            return self.evidence or self.reason
        return f"owner {self.evidence}" if self.pid is None else f"owner pid {self.pid} {self.evidence}"


class StepStarted(Struct, frozen=True):
    """step.started."""

    name: Name | None = None
    parent_step_id: Name | None = None


class StepEnded(Struct, frozen=True):
    """step.completed, step.failed, step.retrying, step.skipped."""

    error: str | None = None
    reason: str | None = None


Payload = RunSpec | Updated | Paused | Answered | Ended | Incomplete | StepStarted | StepEnded | Artifact | None


class Accepted(Struct, frozen=True, gc=False):
    """An event that may be stored, with what its kind and data mean. `n` is None when only its key names it."""

    event: Event
    kind: str
    payload: Payload
    n: int | None


_PAYLOADS: Final[dict[str, msgspec.json.Decoder[Payload]]] = {
    "run.started": msgspec.json.Decoder(RunSpec),
    "run.updated": msgspec.json.Decoder(Updated),
    "run.paused": msgspec.json.Decoder(Paused),
    "gate.answered": msgspec.json.Decoder(Answered),
    **dict.fromkeys(TERMINAL_STATUS, msgspec.json.Decoder(Ended)),
    "run.incomplete": msgspec.json.Decoder(Incomplete),
    "step.started": msgspec.json.Decoder(StepStarted),
    **dict.fromkeys(STEP_ENDS, msgspec.json.Decoder(StepEnded)),
    "artifact": msgspec.json.Decoder(Artifact),
}

MEANINGFUL: Final = frozenset(_PAYLOADS)
"""The kinds whose data has members with a meaning."""


def meaningful_members(kind: str) -> frozenset[str]:
    """The members of `data` that this kind gives a meaning to."""
    decoder: Any = _PAYLOADS.get(kind)
    return frozenset() if decoder is None else frozenset(decoder.type.__struct_fields__)


def kind_of(event: Event, i: int) -> str:
    """What the event, the i-th of its call, means here: its `kind`, else its type if that is a kind, else a note."""
    if event.kind is None:
        return event.type if event.type in KINDS else "note"
    if event.kind not in KINDS:
        raise InvalidParameter(f"events[{i}].kind")
    return event.kind


def payload_of(kind: str, data: bytes | Raw, path: str) -> Payload:
    """The members of `data` that this kind gives a meaning to; InvalidParameter names the one that is ill-typed."""
    decoder = _PAYLOADS.get(kind)
    if decoder is None:
        return None
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise InvalidParameter(f"{path}{fault_path(error)}") from error


def fault_path(error: msgspec.ValidationError) -> str:
    """Where a validation error lies, as `.member[3].member`, read from the text, the only place that tells."""
    message = str(error)
    where = ""
    if " - at `" in message:
        message, _, tail = message.partition(" - at `")
        where = tail.rstrip("`").removeprefix("$")
    if "unknown field `" in message or "missing required field `" in message:
        where += "." + message.split("`")[1]
    return where
