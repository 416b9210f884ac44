"""What readers get: the replies' types of the interface, member for member (a test holds them against it).

They are encoded as they are, so a list of runs costs no second copy of each; and what readers may ask for.
"""

from __future__ import annotations

from attrs import frozen
from msgspec import Raw, Struct

from .run import Amounts


class UsageTotals(Struct, frozen=True, gc=False):
    """What usage amounts to, in tokens and microcents."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int
    reasoning_output_tokens: int
    cost_microcents: int

    @classmethod
    def of(cls, amounts: Amounts) -> UsageTotals:
        """From the fold's figures."""
        return cls(*amounts)


class Gate(Struct, frozen=True, gc=False):
    """What somebody must answer before a paused run can go on."""

    gate_seq: int
    name: str | None
    prompt: str | None
    answered: bool


class Run(Struct, frozen=True, gc=False):
    """What a run's events amount to. `uid` is the user who began it."""

    uid: int
    namespace: str
    run_id: str
    short_id: str
    status: str
    workflow: str | None
    agent_id: str | None
    team_id: str | None
    team_run_id: str | None
    team_epoch: int | None
    parent_run_id: str | None
    title: str | None
    current_step: str | None
    error: str | None
    gate: Gate | None
    epoch: int
    lease: str
    owner_pid: int | None
    last_seq: int
    started_us: int
    ended_us: int | None
    created_us: int
    updated_us: int
    closed_us: int | None
    usage: UsageTotals


class RunDetail(Struct, frozen=True, gc=False):
    """The parts of a run that may be large, as the JSON that was stored."""

    definition: Raw | None
    metadata: Raw | None
    state: Raw | None
    output: Raw | None
    checkpoint_seq: int | None
    evidence: Raw | None
    root: str | None
    dir: str | None
    traceparent: str | None
    pinned: bool


class Interrupted(Struct, frozen=True, gc=False):
    """A run that waits for somebody to go on with it. `evidence` tells why it lost its owner."""

    run: Run
    resumable: bool
    evidence: Raw | None


class Step(Struct, frozen=True, gc=False):
    """One attempt of a step."""

    step_id: str
    attempt: int
    name: str
    parent_step_id: str | None
    status: str
    error: str | None
    first_seq: int
    started_us: int | None
    ended_us: int | None


class UsageRow(Struct, frozen=True, gc=False):
    """What one step attempt used of one model."""

    step_id: str | None
    attempt: int | None
    provider: str | None
    model: str | None
    usage: UsageTotals


class Gap(Struct, frozen=True, gc=False):
    """Events between these positions, both included, are gone by that rule: of one run, or where none is named of any."""

    namespace: str | None
    run_id: str | None
    from_position: int
    to_position: int
    rule: str


class ArtifactRow(Struct, frozen=True, gc=False):
    """Something a run made. `blob` is the SHA-256 of content that the daemon keeps."""

    seq: int
    name: str | None
    path: str | None
    kind: str | None
    size: int | None
    mtime_us: int | None
    sha256: str | None
    blob: str | None


class Retained(Struct, frozen=True, gc=False):
    """A run that retention takes, about how many bytes it has, and the rule."""

    namespace: str
    run_id: str
    status: str
    ended_us: int
    bytes: int
    rule: str


class RetentionStatus(Struct, frozen=True, gc=False):
    """The last pass and the next one; what was removed and given back since the daemon's start. `skipped` tells which rule
    was left out of the last pass, and why."""

    last_us: int | None
    next_us: int | None
    removed: int
    freed_bytes: int
    skipped: str | None


class ConfigFault(Struct, frozen=True, gc=False):
    """Something in the settings file that cannot be used. `key` is dotted, and empty for the file as a whole."""

    key: str
    message: str


class ConfigStatus(Struct, frozen=True, gc=False):
    """Where the settings are, and why the newest change of them is not in force."""

    file: str
    faults: list[ConfigFault]


class StatusCount(Struct, frozen=True, gc=False):
    """How many runs have a status."""

    status: str
    runs: int


class Delayed(Struct, frozen=True, gc=False):
    """A process that is dead, and whose runs cannot be declared orphaned yet. `pid` is None where it has none for us."""

    pid: int | None
    runs: int
    since_us: int
    why: str


class SpoolStatus(Struct, frozen=True, gc=False):
    """The spool: where, its files that wait and their bytes, requests taken from it since the daemon's start, and files that
    were put aside because something in them was refused."""

    directory: str
    files: int
    bytes: int
    drained: int
    quarantined: int


@frozen
class RunFilter:
    """Which runs a list is about; None does not restrict. `name` is a whole run_id, its beginning or its ending."""

    namespace: str | None = None
    status: tuple[str, ...] | None = None
    agent_id: str | None = None
    workflow: str | None = None
    team_id: str | None = None
    team_run_id: str | None = None
    parent_run_id: str | None = None
    since_us: int | None = None
    name: str | None = None


@frozen
class EventFilter:
    """Which events a follower wants; None does not restrict."""

    namespace: str | None = None
    run_id: str | None = None
    agent_id: str | None = None
    team_run_id: str | None = None
    types: frozenset[str] | None = None
    kinds: frozenset[str] | None = None

    def wants_run(self, namespace: str, run_id: str, agent_id: str | None, team_run_id: str | None) -> bool:
        """Whether events of that run are wanted."""
        return (
            (self.namespace is None or self.namespace == namespace)
            and (self.run_id is None or self.run_id == run_id)
            and (self.agent_id is None or self.agent_id == agent_id)
            and (self.team_run_id is None or self.team_run_id == team_run_id)
        )

    def wants_event(self, type: str, kind: str) -> bool:
        """Whether events of that type and kind are wanted, of the runs that are."""
        return (self.types is None or type in self.types) and (self.kinds is None or kind in self.kinds)


class Share(Struct, frozen=True, gc=False):
    """What a user takes of what the setting `what` allows each user; no limit is None."""

    what: str
    used: int
    limit: int | None


class Trouble(Struct, frozen=True, gc=False):
    """Something that somebody must see to, and the command that shows more or mends it."""

    what: str
    command: str
