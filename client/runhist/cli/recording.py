"""The recorded copy of a command's output: lines become events on their way to the daemon, without ever waiting for it.

Events wait in a window until the daemon has acknowledged them. While the window is full the command is slowed: `full`
tells the relay to read no more. When nothing moves for the deadline, output passes on unrecorded; once half of the
window is free again, or at the end, a note in the run tells how much was left out there.
"""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from functools import partial
from typing import Any, Callable, Deque, Dict, Iterable, Mapping, NamedTuple, Optional, Tuple, Union

from ..encoding import encode
from ..environment import RunName, lend
from ..faults import Faults, Journal
from ..ids import new_uuid
from ..link import Link
from ..outbox import Entry, Outbox
from ..paths import SocketChoice
from ..protocol.errors import NotAllowed, Refusal, RunClosed
from ..spool import Spool
from .command import Ended, NotStarted
from .lines import Line, LineCutter

WINDOW_EVENTS = 20_000
WINDOW_BYTES = 8 * 1024 * 1024
DEADLINE_S = 5.0
ABSENT_S = 1.0  # how long the command waits for a daemon that does not even accept a connection: enough for a restart


class _Heard(NamedTuple):
    """A line that waits for room in the window."""

    stream: str
    time_us: int
    line: Line


class Recording:
    """One run on its way into the history. Whatever fails here, the command never notices."""

    def __init__(
        self,
        choice: SocketChoice,
        spec: Mapping[str, Any],
        max_output_bytes: int,
        epoch: Optional[int] = None,
        *,
        spools: bool = True,
    ) -> None:
        """Begin the run of that RunSpec, or with `epoch` go on under a lease of the run that the spec names.

        Unless `spools`, nothing is kept on the disk while the daemon is away.
        """
        self._link = Link(choice, WINDOW_EVENTS, WINDOW_BYTES, Spool(choice) if spools else None)
        self._faults = Faults(Journal(), raising=False)
        begin = None
        if epoch is None:
            begin = encode({"run": {**spec, "time_us": _now_us()}, "lease_key": new_uuid()})
        self._outbox = Outbox(self._faults, spec.get("namespace"), spec["run_id"], begin, epoch, spec.get("traceparent"))
        self._max_output_bytes = max_output_bytes
        self._cutters: Dict[str, LineCutter] = {}
        self._held: Deque[_Heard] = deque()  # lines that wait for room: those of one read at most
        self._held_since = 0.0  # since when nothing of it moved
        self._output_bytes = 0
        self._recorded_bytes = 0
        self._beyond_limit = False
        self._refusal: Optional[Refusal] = None
        self._leaving_out = False
        self._left_out_lines = 0  # since the last note that told it
        self._left_out_bytes = 0
        self._lost_events = 0

    def begin(self) -> Optional[str]:
        """Begin the run and wait for the daemon's answer, not for long; None, or why nothing is recorded so far."""
        with self._link.lock:
            self._link.take(self._outbox)
        if not self._link.wait(self._answered, ABSENT_S, patient=True) and self._link.socket_path is not None:
            self._link.wait(self._answered, DEADLINE_S - ABSENT_S, patient=True)
        return str(self._outbox.refused or self._link.why_not()) if self._outbox.epoch is None else None

    @property
    def refused(self) -> bool:
        """Whether the daemon wants nothing of this run."""
        return self._outbox.refused is not None

    def _answered(self) -> bool:
        return self._outbox.epoch is not None or self._outbox.refused is not None

    def give_up(self) -> None:
        """Record nothing more."""
        with self._link.lock:
            self._link.discard(self._outbox)
            self._link.close()

    def environment(self) -> Dict[str, str]:
        """What the command needs to add to this run, or to begin runs within it."""
        run = RunName(self._outbox.namespace, self._outbox.run_id)
        return lend(run, self._outbox.epoch, self._link.socket_path, self._outbox.traceparent)

    # what the relay uses

    def take(self, stream: str, chunk: bytes) -> None:
        """A piece of output that was passed on."""
        self._output_bytes += len(chunk)
        if self._beyond_limit:
            return
        cutter = self._cutters.setdefault(stream, LineCutter())
        self._hear(stream, cutter.feed(chunk))
        self.pump()

    def full(self) -> bool:
        """Whether the command should be slowed."""
        return bool(self._held)

    def interest(self) -> Optional[Tuple[int, int]]:
        """The socket and the poll events that it waits for."""
        fd, events, _ = self._link.interest()
        return None if fd is None else (fd, events)

    def timeout_s(self) -> Optional[float]:
        """When to pump although nothing happened: to try a connection, or because the deadline has passed."""
        _, _, retry_s = self._link.interest()
        if not self._held:
            return retry_s
        left_s = self._held_since + DEADLINE_S - time.monotonic()
        return left_s if retry_s is None else min(left_s, retry_s)

    def pump(self) -> None:
        """Send and receive what is possible without waiting."""
        with self._link.lock:
            self._link.pump()
            self._move()

    # from lines to events

    def _hear(self, stream: str, lines: Iterable[Line]) -> None:
        now_us = _now_us()
        if not self._held:
            self._held_since = time.monotonic()
        self._held.extend(_Heard(stream, now_us, line) for line in lines)

    def _move(self) -> None:
        """Move lines into the window as far as it has room, or leave them out where waiting was in vain."""
        moved = False
        while self._held and self._outbox.refused is None:
            heard = self._held[0]
            if self._recorded_bytes + heard.line.size > self._max_output_bytes:
                self._mark_limit()
                break
            if not self._has_room(heard.line.size):
                if not self._leaving_out and time.monotonic() < self._held_since + DEADLINE_S:
                    break
                self._leave_out()
                continue
            self._note_left_out()
            self._held.popleft()
            self._recorded_bytes += heard.line.size
            self._add("output", _output_members(heard), heard.time_us)
            moved = True
        self._heed_refusals()
        if moved:
            self._held_since = time.monotonic()
            self._link.take(self._outbox)

    def _heed_refusals(self) -> None:
        """After some refusals nothing more is worth sending: another owner, or the command has ended its own run."""
        refusal = self._faults.take_refused()
        self._refusal = self._refusal or refusal
        if refusal is not None and _is_over(refusal) and self._outbox.refused is None:
            self._outbox.rewind()
            self._outbox.give_up(refusal)
        if self._outbox.refused is not None:
            self._lost_events += len(self._held)
            self._held.clear()

    def _has_room(self, size: int) -> bool:
        # Once lines are left out, not before half of the window is free: or notes and lines would take turns.
        share = 2 if self._leaving_out else 1
        events, held = self._outbox.held_events, self._outbox.held_bytes
        return events < WINDOW_EVENTS // share and held + size <= WINDOW_BYTES // share

    def _leave_out(self) -> None:
        self._leaving_out = True
        self._left_out_lines += 1
        self._left_out_bytes += self._held.popleft().line.size

    def _note_left_out(self) -> None:
        """Say in the run what is missing here. A note this small passes a full window."""
        if self._leaving_out:
            text = f"{self._left_out_lines:,} lines ({self._left_out_bytes:,} bytes) of output were left out here"
            members = {"left_out_lines": self._left_out_lines, "left_out_bytes": self._left_out_bytes}
            self._add("note", {"text": f"{text}, because the history did not take them in time", **members})
            self._lost_events += self._left_out_lines
            self._leaving_out = False
            self._left_out_lines = self._left_out_bytes = 0

    def _mark_limit(self) -> None:
        self._beyond_limit = True
        self._held.clear()
        self._add("note", {"text": f"output beyond {self._max_output_bytes:,} bytes is not recorded (--max-output)"})
        self._link.take(self._outbox)

    def _add(self, type: str, members: Mapping[str, Any], time_us: Optional[int] = None) -> None:
        if self._outbox.refused is not None:
            self._lost_events += 1
            return
        self._outbox.add(Entry(type, encode({"type": type, "time_us": time_us or _now_us(), "data": members})))

    # the end

    def end(self, outcome: Union[Ended, NotStarted]) -> Optional[str]:
        """Record what became of the command and wait for the receipts as long as some come; None, or what is lost."""
        if isinstance(outcome, NotStarted):
            return self._end("run.failed", {"error": str(outcome), "exit_code": outcome.exit_status})
        figures = {
            "user_us": outcome.user_us,
            "system_us": outcome.system_us,
            "max_rss_bytes": outcome.max_rss_bytes,
            "output_bytes": self._output_bytes,
        }
        code = os.waitstatus_to_exitcode(outcome.status)
        if code == 0:
            return self._end("run.completed", {"output": {"exit_code": 0, **figures}})
        if code > 0:
            how: Dict[str, Any] = {"exit_code": code}
            error = f"exit {code}"
        else:
            how = {"signal": signal_name(-code)}
            error = f"killed by {how['signal']}"
        return self._end("run.failed", {"error": error, **how, "output": {**how, **figures}})

    def _end(self, kind: str, members: Mapping[str, Any]) -> Optional[str]:
        for stream, cutter in self._cutters.items():
            last = cutter.finish()
            self._hear(stream, [] if last is None or self._beyond_limit else [last])
        self._wait_while_receipts_come(lambda: not self._held)
        with self._link.lock:
            while self._held:
                self._leave_out()
            self._note_left_out()
            self._add(kind, members)
            self._link.take(self._outbox)
        first_news = partial(self._moved_on, self._is_kept, self._progress())
        self._link.wait(first_news, ABSENT_S, patient=True)  # tries to connect first, if the daemon was away
        self._wait_while_receipts_come(self._is_kept)
        with self._link.lock:
            self._heed_refusals()
            self._link.seal(self._outbox)
        held = 0 if self._outbox.refused or self._link.saved(self._outbox) else self._outbox.held_events
        lost = self._lost_events + self._faults.count + held
        why = self._outbox.refused or self._refusal or self._link.why_not()
        self.give_up()
        if _is_over(why):
            lost -= 1  # the command ended its run itself, so it needs no end from us
        return f"{lost:,} events of run {self._outbox.run_id} are not recorded: {why}" if lost > 0 else None

    def _is_kept(self) -> bool:
        return self._outbox.settled or self._link.saved(self._outbox)

    def _wait_while_receipts_come(self, done: Callable[[], bool]) -> None:
        """Wait until `done`, as long as each deadline brings something."""
        patience_s = ABSENT_S if self._outbox.epoch is None and self._link.socket_path is None else DEADLINE_S
        moving = True
        while moving and not done():
            before = self._progress()
            moving = self._link.wait(partial(self._moved_on, done, before), patience_s, patient=True)

    def _moved_on(self, done: Callable[[], bool], before: object) -> bool:
        self._move()
        return done() or self._progress() != before

    def _progress(self) -> object:
        outbox = self._outbox
        return outbox.epoch, outbox.stored, outbox.duplicates, self._faults.count


def _is_over(refusal: Exception) -> bool:
    """Whether the command has ended or paused its run itself: then no kind of what we send is allowed any more."""
    return isinstance(refusal, RunClosed) or (isinstance(refusal, NotAllowed) and refusal.parameter.endswith(".kind"))


def signal_name(number: int) -> str:
    """SIGTERM and so on; also for real-time signals, which have no name of their own."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _output_members(heard: _Heard) -> Dict[str, Any]:
    members = {"stream": heard.stream, "text": heard.line.text}
    return members if heard.line.base64 is None else {**members, "base64": heard.line.base64}


def _now_us() -> int:
    return time.time_ns() // 1000
