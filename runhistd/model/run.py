"""What a run's events amount to: the head, and the fold that moves it from one event to the next.

The fold is a table of rules on a mutable head, because copying a frozen one costs seven times as much. It is pure in
the sense that counts: no input or output, no clock, and the same events always give the same head. Whatever it needs to
refuse has been refused before (see `decide`), so a rule never fails.

A head need not hold everything: `steps` and `marks` hold what the next events touch, and `usage_added` collects what
the usage rows grow by, so that a run of a million steps costs no more memory than its open ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from msgspec import UNSET, Struct

from .events import (
    STEP_ENDS,
    TERMINAL_STATUS,
    Accepted,
    Ended,
    Event,
    Incomplete,
    Paused,
    RunSpec,
    StepEnded,
    StepStarted,
    Updated,
    Usage,
)

SHOWN_CHARS = 4000
"""Of a title, an error and the like in what a run amounts to; its events keep them whole. Lists of runs hold a thousand."""
Amounts = tuple[int, int, int, int, int, int]
ZERO: Amounts = (0, 0, 0, 0, 0, 0)
UsageKey = tuple[str, int, str, str]
"""step_id, attempt, provider, model of a usage row; the empty string and 0 stand for none."""
DOCUMENTS = ("definition", "metadata", "state", "output")


def amounts_of(usage: Usage) -> tuple[int | None, ...]:
    """The six figures in the order of the wire's UsageTotals."""
    return (
        usage.input_tokens,
        usage.output_tokens,
        usage.cache_read_input_tokens,
        usage.cache_creation_input_tokens,
        usage.reasoning_output_tokens,
        usage.cost_microcents,
    )


def add_amounts(one: Amounts, other: Amounts) -> Amounts:
    """The sum, figure by figure. What the database cannot store was refused before."""
    return cast(Amounts, tuple(a + b for a, b in zip(one, other, strict=True)))


def highest_totals(totals: Amounts, usages: Iterable[Usage | None]) -> Amounts:
    """What the totals can come to at most by these reports, whatever of them was counted before."""
    for usage in usages:
        if usage is not None:
            totals = add_amounts(totals, cast(Amounts, tuple(figure or 0 for figure in amounts_of(usage))))
    return totals


class Step(Struct):
    """One attempt of a step. `status` is running, completed, failed, skipped or unfinished."""

    step_id: str
    attempt: int
    name: str
    parent_step_id: str | None
    status: str
    error: str | None
    first_seq: int
    started_us: int | None
    ended_us: int | None


class Head(Struct):
    """The state of one run after its event `last_seq`. No event changes its epoch, which comes from the newest lease."""

    status: str = "pending"
    workflow: str | None = None
    agent_id: str | None = None
    team_id: str | None = None
    team_run_id: str | None = None
    team_epoch: int | None = None
    parent_run_id: str | None = None
    title: str | None = None
    current_step: str | None = None
    error: str | None = None
    gate_seq: int | None = None
    gate_name: str | None = None
    gate_prompt: str | None = None
    gate_answer_seq: int | None = None
    epoch: int = 0
    last_seq: int = 0
    checkpoint_seq: int | None = None
    started_us: int = 0
    ended_us: int | None = None
    created_us: int = 0
    updated_us: int = 0
    closed_us: int | None = None
    totals: Amounts = ZERO
    documents: dict[str, dict[str, Any]] = {}
    steps: dict[str, dict[int, Step]] = {}
    marks: dict[str, Amounts] = {}
    """Highest snapshot seen, by response_id; the empty string is the run's own."""
    usage_added: dict[UsageKey, Amounts] = {}
    touched_steps: set[tuple[str, int]] = set()
    touched_marks: set[str] = set()
    touched_documents: set[str] = set()

    def forget_touched(self) -> None:
        """Start a new account of what changed, after it was written."""
        self.usage_added.clear()
        self.touched_steps.clear()
        self.touched_marks.clear()
        self.touched_documents.clear()

    def latest_attempt(self, step_id: str) -> int:
        """The step's highest attempt so far, 0 if it is unknown."""
        return max(self.steps.get(step_id, ()), default=0)


def fold(head: Head, accepted: Iterable[Accepted], received_us: int) -> None:
    """Move the head past its next events."""
    head.updated_us = received_us
    for new in accepted:
        head.last_seq += 1
        rule = _RULES.get(new.kind)
        if rule is not None:
            rule(head, new)
        if new.event.usage is not None:
            _add_usage(head, new.event, new.event.usage)


def _at_us(head: Head, new: Accepted) -> int:
    """When it happened: the engine's time if it gave one, else the daemon's."""
    return head.updated_us if new.event.time_us is None else new.event.time_us


def _shown(text: str | None) -> str | None:
    return text if text is None or len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 1] + "…"


def _run_started(head: Head, new: Accepted) -> None:
    spec = cast(RunSpec, new.payload)
    head.status = "running"
    head.workflow, head.agent_id = spec.workflow, spec.agent_id
    head.team_id, head.team_run_id, head.team_epoch = spec.team_id, spec.team_run_id, spec.team_epoch
    head.parent_run_id, head.title = spec.parent_run_id, _shown(spec.title)
    head.started_us, head.created_us = _at_us(head, new), head.updated_us
    for name in ("definition", "metadata"):
        document = getattr(spec, name)
        if document is not None:
            _set_document(head, name, document)


def _run_updated(head: Head, new: Accepted) -> None:
    patch = cast(Updated, new.payload)
    if patch.title is not UNSET:
        head.title = _shown(patch.title)
    if patch.current_step is not UNSET:
        head.current_step = _shown(patch.current_step)
    for name in ("metadata", "state", "output"):
        value = getattr(patch, name)
        if value is not UNSET:
            _set_document(head, name, None if value is None else merge_patch(head.documents.get(name), value))


def _run_paused(head: Head, new: Accepted) -> None:
    gate = cast(Paused, new.payload)
    head.status = "paused"
    head.gate_seq, head.gate_name, head.gate_prompt = head.last_seq, _shown(gate.name), _shown(gate.prompt)
    head.gate_answer_seq = None


def _gate_answered(head: Head, new: Accepted) -> None:
    head.gate_answer_seq = head.last_seq


def _run_resumed(head: Head, new: Accepted) -> None:
    head.status = "running"
    head.gate_seq = head.gate_name = head.gate_prompt = head.gate_answer_seq = None
    head.ended_us = head.closed_us = head.error = None


def _run_incomplete(head: Head, new: Accepted) -> None:
    head.status = "incomplete"
    head.error = cast(Incomplete, new.payload).text()
    head.ended_us, head.closed_us = _at_us(head, new), head.updated_us


def _run_ended(head: Head, new: Accepted) -> None:
    end = cast(Ended, new.payload)
    head.status = TERMINAL_STATUS[new.kind]
    head.error = None if new.kind == "run.completed" else _shown(end.error or end.reason)
    head.ended_us, head.closed_us = _at_us(head, new), head.updated_us
    if end.output is not None:
        _set_document(head, "output", end.output)
    for attempts in head.steps.values():
        for step in attempts.values():
            if step.status == "running":
                step.status, step.ended_us = "unfinished", _at_us(head, new)
                head.touched_steps.add((step.step_id, step.attempt))


def _step_started(head: Head, new: Accepted) -> None:
    start = cast(StepStarted, new.payload)
    step_id = cast(str, new.event.step_id)
    latest = head.latest_attempt(step_id)
    attempts = head.steps.setdefault(step_id, {})
    is_open = latest > 0 and attempts[latest].status == "running"
    attempt = new.event.attempt or (latest if is_open else latest + 1)
    step = attempts.get(attempt)
    if step is None:
        step = attempts[attempt] = Step(step_id, attempt, step_id, None, "running", None, head.last_seq, None, None)
    if step.started_us is None:
        step.started_us = _at_us(head, new)
        step.name, step.parent_step_id = start.name or step_id, start.parent_step_id
    if step.status == "running":
        head.current_step = step.name
    head.touched_steps.add((step_id, attempt))


def _step_ended(head: Head, new: Accepted) -> None:
    end = cast(StepEnded, new.payload)
    step_id = cast(str, new.event.step_id)
    attempt = new.event.attempt or head.latest_attempt(step_id) or 1
    attempts = head.steps.setdefault(step_id, {})
    step = attempts.get(attempt)
    if step is None:  # an engine may tell only how a step ended
        step = attempts[attempt] = Step(step_id, attempt, step_id, None, "running", None, head.last_seq, None, None)
    if step.status != "running":
        return  # the first end stands
    step.status, step.ended_us = STEP_ENDS[new.kind], _at_us(head, new)
    step.error = None if new.kind == "step.completed" else _shown(end.error or end.reason)
    head.touched_steps.add((step_id, attempt))


def _checkpoint(head: Head, new: Accepted) -> None:
    head.checkpoint_seq = head.last_seq


_RULES = {
    "run.started": _run_started,
    "run.updated": _run_updated,
    "run.paused": _run_paused,
    "gate.answered": _gate_answered,
    "run.resumed": _run_resumed,
    "run.incomplete": _run_incomplete,
    **dict.fromkeys(TERMINAL_STATUS, _run_ended),
    "step.started": _step_started,
    **dict.fromkeys(STEP_ENDS, _step_ended),
    "checkpoint": _checkpoint,
}


def _add_usage(head: Head, event: Event, usage: Usage) -> None:
    delta = _usage_delta(head, usage)
    attempt = 0
    if event.step_id is not None:
        attempt = event.attempt or head.latest_attempt(event.step_id) or 1
    key = (event.step_id or "", attempt, usage.provider or "", usage.model or "")
    head.usage_added[key] = add_amounts(head.usage_added.get(key, ZERO), delta)
    head.totals = add_amounts(head.totals, delta)


def _usage_delta(head: Head, usage: Usage) -> Amounts:
    """What this report adds: itself, or for a snapshot what it is above the highest one so far, figure by figure."""
    figures = amounts_of(usage)
    scope = usage.response_id or ("" if usage.cumulative else None)
    if scope is None:
        return cast(Amounts, tuple(figure or 0 for figure in figures))
    mark = head.marks.get(scope, ZERO)
    highest = cast(Amounts, tuple(max(old, new or 0) for old, new in zip(mark, figures, strict=True)))
    head.marks[scope] = highest
    head.touched_marks.add(scope)
    return cast(Amounts, tuple(new - old for old, new in zip(mark, highest, strict=True)))


def _set_document(head: Head, name: str, document: dict[str, Any] | None) -> None:
    if document is None:
        head.documents.pop(name, None)
    else:
        head.documents[name] = document
    head.touched_documents.add(name)


def merge_patch(target: object, patch: dict[str, Any]) -> dict[str, Any]:
    """RFC 7386: a new object that is `target` with `patch` laid over it; null members remove."""
    merged = dict(target) if isinstance(target, dict) else {}
    for member, value in patch.items():
        if value is None:
            merged.pop(member, None)
        elif isinstance(value, dict):
            merged[member] = merge_patch(merged.get(member), value)
        else:
            merged[member] = value
    return merged


