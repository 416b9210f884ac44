"""What a run's handle records, whichever client it belongs to: the events, their steps, and what became of them.

Every method hands an event over and returns; how it then waits for the daemon, and how a full window is met, is what
the blocking handle (`run`) and the async one (`aio`) add. In a child after fork() a handle records nothing more.

What goes wrong breaks nothing: see `faults`. Raised are always StaleEpoch (another process owns the run now), and with
`errors="raise"` every fault at the next call.
"""

from __future__ import annotations

import os
import time
from typing import Any, ContextManager, Dict, Mapping, Optional, TypeVar, Union

from . import ambient
from .encoding import Unencodable, as_object, encode, plain_text, present, usage_members
from .endings import CANCELLED, FAILED, cancel_reason, failure_members, outcome_of
from .environment import RunName, lend
from .faults import Faults
from .large import encode_whole
from .outbox import Entry, Outbox
from .protocol.errors import Refusal, RunhistError, StaleEpoch, TooLarge
from .pump import Pump
from .recorder import Recorder
from .records import TERMINAL_KINDS, Event, Receipt
from .steps import Recording, Step, innermost_step

_UNSET: Any = object()
_R = TypeVar("_R", bound="RunHandle")
_LEASE_ENDS = TERMINAL_KINDS | {"run.paused"}
MAX_PUBLISHED_BYTES = 128 * 1024  # what the daemon takes


class RunHandle(Recording):
    """A run that this process records."""

    def __init__(self, history: Recorder, outbox: Optional[Outbox], faults: Faults, run_id: str, fresh: bool) -> None:
        self._history = history
        self._link: Optional[Pump] = history._link
        self._outbox = outbox
        self._faults = faults
        self._run_id = run_id
        self._fresh = fresh  # nobody recorded steps before, so attempts can be counted here
        self._attempts: Dict[str, int] = {}
        self._ended = False
        self._told = (0, 0, 0)  # stored, duplicates and faults at the last flush

    @property
    def run_id(self) -> str:
        """The run's name in its namespace."""
        return self._run_id

    @property
    def namespace(self) -> str:
        """The history of its own that the run belongs to."""
        return (self._outbox and self._outbox.namespace) or self._history.namespace or "default"

    @property
    def epoch(self) -> Optional[int]:
        """The number of the lease that this handle appends under; None until the run has begun, or where it is off."""
        return self._outbox.epoch if self._outbox else None

    @property
    def faults(self) -> int:
        """How many events of this handle were not recorded, for whatever reason."""
        return self._faults.count

    def environ(self) -> Dict[str, str]:
        """The environment variables that hand the run on: `subprocess.run(command, env={**os.environ, **run.environ()})`.

        There `runhist.current_run` and `runhist append` add to it, and the runs that are begun are its children; one
        that has not begun yet is a parent only. Empty where nothing is recorded.
        """
        if self._link is None or self._outbox is None or self._link.forked or self._outbox.refused is not None:
            return {}
        with self._link.lock:
            socket = self._link.socket_path
        return lend(RunName(self.namespace, self._run_id), self._outbox.lease, socket, self._outbox.traceparent)

    def use(self: _R) -> ContextManager[_R]:
        """A block in which `runhist.current_run` is this run, for a new thread; its end leaves the run as it is."""
        return ambient.use(self)

    # recording

    def append(
        self,
        type: str,
        data: Any = None,
        *,
        kind: Optional[str] = None,
        key: Optional[str] = None,
        step_id: Optional[str] = None,
        attempt: Optional[int] = None,
        usage: Optional[Mapping[str, Any]] = None,
    ) -> None:
        """An event of the engine's own: `type` is its word, `kind` what it means here (none: what `type` says, or a note).

        `data` is a dict; anything else is recorded as {"value": it}; see `encoding` for what JSON is made of. With
        `key` the daemon stores the event once in its run, however often it is sent. `usage` as in `usage()`.
        """
        members = present(kind=kind, key=key, step_id=step_id, attempt=attempt, usage=usage)
        self._record(type, None if data is None else as_object(data), **members)

    def publish(
        self,
        type: str,
        data: Any = None,
        *,
        kind: Optional[str] = None,
        step_id: Optional[str] = None,
        attempt: Optional[int] = None,
    ) -> None:
        """Show an event to those who follow the run now, in its place among the recorded ones; nobody keeps it.

        For what is too much to record: the tokens of an answer. It never waits. Where there is no room for it, or no
        daemon, it is dropped, and that is no fault. `kind` may be note (what it is without one) or output.
        """
        members = present(kind=kind, step_id=step_id, attempt=attempt)
        self._publish(type, None if data is None else as_object(data), **members)

    def checkpoint(self, data: Any) -> None:
        """A state to resume from."""
        self._record("checkpoint", as_object(data))

    def update(
        self,
        *,
        title: Optional[str] = _UNSET,
        current_step: Optional[str] = _UNSET,
        metadata: Optional[Any] = _UNSET,
        state: Optional[Any] = _UNSET,
        output: Optional[Any] = _UNSET,
    ) -> None:
        """Change what lists show of the run. None removes; metadata, state and output are merged (RFC 7386)."""
        objects = {"metadata": metadata, "state": state, "output": output}
        patch = {name: None if value is None else as_object(value) for name, value in objects.items() if value is not _UNSET}
        texts = {"title": title, "current_step": current_step}
        self._record("run.updated", {**patch, **{name: text for name, text in texts.items() if text is not _UNSET}})

    def step(self, name: str, step_id: Optional[str] = None) -> Step:
        """Begin a step. Its step_id is the name, then `name#2`, `name#3`; giving `step_id` begins its next attempt.

        A step that begins in the block of another, in the same thread or task, has that one as its parent; in another
        thread use `Step.step`. The step ends with its block, or by `complete`, `fail`, `skip` or `retrying`.
        """
        parent = innermost_step(self)
        return self._begin_step(name, step_id, None if parent is None else parent.step_id)

    def _begin_step(self, name: str, step_id: Optional[str], parent_step_id: Optional[str]) -> Step:
        attempt = None
        if self._link is not None:
            with self._link.lock:
                step_id = step_id if step_id is not None else self._free_step_id(name)
                count = self._attempts[step_id] = self._attempts.get(step_id, 0) + 1
            attempt = count if self._fresh else None
        step = Step(self, name, step_id or name, attempt, parent_step_id)
        step._record("step.started", {"name": name, **present(parent_step_id=parent_step_id)})
        return step

    def _free_step_id(self, name: str) -> str:
        step_id, count = name, 1
        while step_id in self._attempts:
            count += 1
            step_id = f"{name}#{count}"
        return step_id

    # ending

    def complete(self, output: Optional[Any] = None) -> None:
        """The run succeeded."""
        self._record("run.completed", {} if output is None else {"output": as_object(output)})

    def fail(self, error: Union[str, BaseException], *, exit_code: Optional[int] = None) -> None:
        """The run failed; of an exception type, message and traceback are kept."""
        self._record("run.failed", failure_members(error, exit_code))

    def cancel(self, reason: Optional[str] = None) -> None:
        """The run was given up."""
        self._record("run.cancelled", {} if reason is None else {"reason": plain_text(str(reason))})

    def pause(
        self,
        name: Optional[str] = None,
        *,
        prompt: Optional[str] = None,
        payload: Optional[Any] = None,
        answer_schema: Optional[Mapping[str, Any]] = None,
    ) -> None:
        """Stop at a gate until somebody answers it, and give the run up: whoever goes on claims it.

        `prompt` asks a person, `payload` is what the answer is about, `answer_schema` a JSON Schema of the answer. This
        handle records nothing more; `wait_gate` waits for the answer.
        """
        gate = {"name": name, "prompt": prompt, "payload": payload, "answer_schema": answer_schema}
        self._record("run.paused", present(**gate))

    def _end_as(self, error: Optional[BaseException]) -> None:
        outcome = outcome_of(error)
        if error is not None and outcome == FAILED:
            self.fail(error)
        elif error is not None and outcome == CANCELLED:
            self.cancel(cancel_reason(error))
        else:
            self.complete()

    def _record_artifact(self, path: str, members: Mapping[str, Any], error: Optional[Exception]) -> None:
        """Record what `artifacts.gather` found out."""
        if error is not None and self._link is not None:
            with self._link.lock:
                self._faults.add("artifact", error, f"the artifact {path!r} of run {self._run_id} is incomplete: {error}")
        self._record("artifact", members)

    # what became of it

    def _take_stock(self, link: Pump, outbox: Outbox) -> Receipt:
        """What a flush returns or raises after its wait."""
        with link.lock:
            spooled = link.saved(outbox)
            done = outbox.settled or spooled
            due = self._faults.take_pending()
            error: Optional[Exception] = self._faults.take_refused() or outbox.refused or due
            if error is None and not done:
                error = self._not_in_time()
            receipt = self._receipt(outbox, done, spooled)
            if self._ended:
                link.seal(outbox)
        self._history._journal.write()
        if error is not None:
            raise error
        return receipt

    def _take_last_stock(self, link: Pump, outbox: Outbox) -> None:
        """The end of a block, after its wait: what is not stored in time counts as faults, and waits on."""
        with link.lock:
            if link.saved(outbox):
                link.seal(outbox)
            elif not outbox.settled:
                why = link.why_not()
                self._faults.add(type(why).__name__, why, self._unstored(why), outbox.held_events)
                outbox.is_written_off = True
        self._raise_due()
        if isinstance(outbox.refused, StaleEpoch):
            raise outbox.refused

    def _not_in_time(self) -> Optional[RunhistError]:
        """What a flush raises for what is not stored yet: a refusal that may pass, or whatever the engine wants raised."""
        why = self._history._why_not()
        self._history._journal.add(type(why).__name__, self._unstored(why))
        return why if isinstance(why, Refusal) or self._history._raising else None

    def _unstored(self, why: RunhistError) -> str:
        return f"run {self._run_id} is not stored to its end: {why}"

    def _receipt(self, outbox: Outbox, done: bool, spooled: bool) -> Receipt:
        before, self._told = self._told, (outbox.stored, outbox.duplicates, self._faults.count)
        stored, duplicates, faults = (now - then for now, then in zip(self._told, before))
        durable = ("spooled" if spooled else "committed") if done and not faults and outbox.refused is None else "off"
        return Receipt(durable, stored, duplicates, outbox.last_seq, outbox.position, faults)

    # handing over

    def _record(self, type: str, data: Any = None, **members: Any) -> None:
        """Encode an event and hand it over; a fault is counted, and raised where it must be."""
        self._raise_due()
        self._record_quietly(type, data, **members)
        self._raise_due()

    def _record_quietly(self, type: str, data: Any = None, **members: Any) -> None:
        """As `_record`, but what must be raised waits for the next call."""
        link, outbox = self._link, self._outbox
        if link is None or outbox is None:
            return
        if link.forked:
            self._note_fork()
            return
        ends = str(members.get("kind") or type) in _LEASE_ENDS
        event = {"type": type, "time_us": time.time_ns() // 1000, **present(data=data), **members}
        try:
            if "usage" in event:
                event["usage"] = usage_members(event["usage"])
            entry = Entry(type, self._encode(event))
        except RunhistError as error:
            text = f"an event of type {type!r} of run {self._run_id} cannot be recorded: {error}"
            with link.lock:
                self._faults.add("not_json" if isinstance(error, Unencodable) else error.__class__.__name__, error, text)
        else:
            self._hand_over(entry, ends)
        self._ended = self._ended or ends
        self._history._journal.write()

    def _publish(self, type: str, data: Any = None, **members: Any) -> None:
        """Encode what is only to be shown; what cannot be is a fault, because it never will be."""
        link, outbox = self._link, self._outbox
        if link is None or outbox is None or link.forked:
            return
        fault: Optional[RunhistError] = None
        encoded = b""
        try:
            encoded = encode({"type": type, "time_us": time.time_ns() // 1000, **present(data=data), **members})
            if len(encoded) > MAX_PUBLISHED_BYTES:
                fault = TooLarge(parameter="the event", limit=MAX_PUBLISHED_BYTES)
        except Unencodable as error:
            fault = error
        with link.lock:
            if fault is None:
                link.show(outbox, encoded)
            else:
                text = f"an event of type {type!r} of run {self._run_id} cannot be shown: {fault}"
                self._faults.add("not_shown", fault, text)
        self._history._journal.write()

    def _hand_over(self, entry: Entry, ends: bool) -> None:
        link, outbox = self._link, self._outbox
        assert link is not None and outbox is not None
        # The end of a lease passes a full window: without it the run would seem to go on for ever.
        room = ends or self._make_room(len(entry.encoded))
        with link.lock:
            if outbox.refused is not None:
                error = outbox.refused
                self._faults.add(type(error).__name__, error, f"run {self._run_id} is not recorded: {error}")
            elif room:
                outbox.add(entry)
                link.take(outbox)
            else:
                why = self._history._why_not()
                text = f"an event of run {self._run_id} is lost, because {self._history.window} wait already: {why}"
                self._faults.add("window_full" if link.spool_fault is None else type(why).__name__, why, text)

    def _encode(self, event: Mapping[str, Any]) -> bytes:
        """The event as it is sent. Raises Unencodable, TooLarge, and why its data cannot be kept."""
        return encode_whole(event)

    def _make_room(self, size: int) -> bool:
        """Whether an event of `size` bytes may be handed over, possibly after a wait."""
        raise NotImplementedError

    def _raise_due(self) -> None:
        """Log what waits to be logged, and raise what the engine must see."""
        if self._link is None or self._link.forked:
            return
        self._history._journal.write()
        error = self._faults.take_pending()
        if error is not None:
            raise error

    def _note_fork(self) -> None:
        self._faults.count += 1
        text = (
            f"process {os.getpid()} was forked from the one that records run {self._run_id}, and records nothing of "
            "it; call runhist.connect() in the child to record there"
        )
        self._history._journal.add("forked", text)
        self._history._journal.write()


def is_answer(event: Event) -> bool:
    """Whether it is the answer that the one who paused a run waits for. Raises StaleEpoch where another one went on."""
    if event.kind == "run.resumed":
        raise StaleEpoch(epoch=event.epoch, owner_pid=event.data.get("pid"), last_n=0)
    return event.kind == "gate.answered"
