"""The loop of `exec`: passes the command's output on as it comes, keys and signals to the command, and listens to both.

One poll, no threads. The loop never writes where it could block, so that a signal is passed on even while whoever reads
our output is slow; and it reads no more of an output before all that it read was passed on, so that the command is
slowed by its reader just as it would be without us. Passing on comes first, recording second.
"""

from __future__ import annotations

import math
import os
import select
import signal
import stat
import time
from typing import Dict, List, Optional, Protocol, Tuple

from .command import Change, Ended, Output
from .signals import Arrival, SignalSource
from .terminal import Keyboard, copy_size

READ_BYTES = 64 * 1024
PIPE_ROOM_BYTES = 4096  # what a writable pipe takes without blocking (PIPE_BUF)
KEYS_BYTES = 4096
LINGER_S = 0.5  # for output of processes that the command left behind and that hold its output open
HELD_BYTES = 64 * 1024  # what a pipe or pseudo-terminal can hold: read in any case, the command wrote it while it lived

PASSED_ON = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
CAUGHT = (*PASSED_ON, signal.SIGCHLD, signal.SIGCONT, signal.SIGWINCH)


class Command(Protocol):
    """What runs: see the module `command`."""

    outputs: Tuple[Output, ...]
    in_our_group: bool

    def report_fd(self) -> Optional[int]:
        """What to poll for changes besides SIGCHLD."""

    def changes(self) -> List[Change]:
        """What became of it since the last call."""

    def send_signal(self, number: int) -> None:
        """Pass a signal on."""

    def resume(self) -> None:
        """Continue it after a stop."""


class Recorder(Protocol):
    """Where the copy goes."""

    def take(self, stream: str, chunk: bytes) -> None:
        """A piece of output that was passed on."""

    def full(self) -> bool:
        """Whether the command should be slowed: nothing more is read of it meanwhile."""

    def interest(self) -> Optional[Tuple[int, int]]:
        """A descriptor and the poll events that it waits for."""

    def timeout_s(self) -> Optional[float]:
        """In how many seconds `pump` should be called even if nothing happens."""

    def pump(self) -> None:
        """Send and receive what is possible without waiting."""


class Flow:
    """One output on its way: read, passed on, recorded."""

    def __init__(self, output: Output) -> None:
        self.output = output
        self.open = True
        self.late_bytes = 0  # read after the command's end
        self.pending = b""  # read, and not taken by our reader yet
        self._room = READ_BYTES if _never_blocks(output.sink) else PIPE_ROOM_BYTES

    def read(self) -> bytes:
        """What is there. Closes the flow at its end; a pseudo-terminal ends with EIO."""
        try:
            self.pending = os.read(self.output.fd, READ_BYTES)
        except BlockingIOError:
            return b""
        except OSError:
            self.pending = b""
        if not self.pending:
            self.close()
        return self.pending

    def write(self) -> None:
        """Pass on what our reader takes now. When that is gone, the command shall notice as if it wrote there itself."""
        try:
            written = os.write(self.output.sink, self.pending[: self._room])
        except BlockingIOError:
            return
        except OSError:
            self.abandon()
            return
        self.pending = self.pending[written:]

    def abandon(self) -> None:
        """Give up on it, with what was not passed on yet."""
        self.pending = b""
        self.close()

    def close(self) -> None:
        """Read no more of it."""
        if self.open:
            self.open = False
            os.close(self.output.fd)


class Keys:
    """The way from the keyboard to the pseudo-terminal."""

    def __init__(self, keyboard: Keyboard, flow: Flow) -> None:
        self.keyboard = keyboard
        self._flow = flow
        self._pending = b""
        self._hung_up = False

    def interest(self) -> Tuple[int, int]:
        """What to poll: the keyboard, or the pseudo-terminal when it has to take keys first. Events 0: nothing."""
        if self._pending and self._flow.open:
            return self._flow.output.fd, select.POLLOUT
        return self.keyboard.fd, select.POLLIN if self.keyboard.raw and self._flow.open and not self._hung_up else 0

    def carry(self) -> None:
        """Carry keys one step further, as `interest` was answered."""
        if not self._pending:
            try:
                self._pending = os.read(self.keyboard.fd, KEYS_BYTES)
            except OSError:
                self._pending = b""
            self._hung_up = not self._pending
        if not self._flow.open:
            return
        try:
            self._pending = self._pending[os.write(self._flow.output.fd, self._pending) :]
        except BlockingIOError:
            pass
        except OSError:
            self._pending = b""  # the pseudo-terminal is gone, which its flow finds out


class Relay:
    """Carries everything between a started command and us until the command has ended and its output is passed on.

    For a command on a pseudo-terminal, keys come from `keyboard`, and the terminal `screen` gives the size.
    """

    def __init__(
        self,
        command: Command,
        recorder: Recorder,
        signals: SignalSource,
        keyboard: Optional[Keyboard] = None,
        screen: Optional[int] = None,
    ) -> None:
        self._command = command
        self._recorder = recorder
        self._signals = signals
        self._flows = [Flow(output) for output in command.outputs]
        self._keys = None if keyboard is None else Keys(keyboard, self._flows[0])
        self._screen = screen
        self._ended: Optional[Ended] = None
        self._linger_until = 0.0

    def run(self) -> Ended:
        """Returns when all is done; the modes of the keyboard are the caller's to restore."""
        while True:
            if self._ended is not None and not any(flow.open or flow.pending for flow in self._flows):
                return self._ended
            ready = self._wait()
            changed = self._command.report_fd() in ready
            if self._signals.fileno() in ready:
                for arrival in self._signals.take():
                    changed |= arrival.number == signal.SIGCHLD
                    self._heed(arrival)
            for flow in self._flows:
                self._carry(flow, ready)
            if self._keys is not None and self._keys.interest()[0] in ready:
                self._keys.carry()
            self._recorder.pump()
            if changed:
                for change in self._command.changes():
                    self._note(change)
            if self._ended is not None and time.monotonic() >= self._linger_until:
                self._end_flows()

    def _wait(self) -> Dict[int, int]:
        """What is ready, by descriptor."""
        interests = {self._signals.fileno(): select.POLLIN}
        wanted = [(self._command.report_fd(), select.POLLIN), self._recorder.interest() or (None, 0)]
        if self._keys is not None:
            wanted.append(self._keys.interest())
        full = self._recorder.full()
        for flow in self._flows:
            if flow.pending:
                wanted.append((flow.output.sink, select.POLLOUT))
            elif flow.open and not full:
                wanted.append((flow.output.fd, select.POLLIN))
        for fd, events in wanted:
            if fd is not None and events:
                interests[fd] = interests.get(fd, 0) | events
        poll = select.poll()
        for fd, events in interests.items():
            poll.register(fd, events)
        timeouts = [self._recorder.timeout_s()]
        if self._ended is not None and self._linger_until > time.monotonic():
            timeouts.append(self._linger_until - time.monotonic())
        timeout_s = min((timeout for timeout in timeouts if timeout is not None), default=None)
        return dict(poll.poll(None if timeout_s is None else math.ceil(max(0.0, timeout_s) * 1000)))

    def _carry(self, flow: Flow, ready: Dict[int, int]) -> None:
        if flow.pending:
            if flow.output.sink in ready:
                flow.write()
        elif flow.open and flow.output.fd in ready and not self._recorder.full():
            self._read(flow)

    def _read(self, flow: Flow) -> int:
        """Read once, pass on what goes at once, record; how much it was."""
        chunk = flow.read()
        if not chunk:
            return 0
        if self._ended is not None:
            flow.late_bytes += len(chunk)
        if is_ready(flow.output.sink, select.POLLOUT):
            flow.write()
        self._recorder.take(flow.output.stream, chunk)
        return len(chunk)

    def _heed(self, arrival: Arrival) -> None:
        if arrival.number in PASSED_ON:
            if self._ended is not None:
                for flow in self._flows:  # nobody is left to pass it on to: it is meant for us
                    flow.abandon()
            elif not (arrival.by_terminal and self._command.in_our_group):
                self._command.send_signal(arrival.number)
        elif arrival.number == signal.SIGTSTP:
            self._command.send_signal(signal.SIGTSTP)
        elif arrival.number in (signal.SIGCONT, signal.SIGWINCH):
            if self._keys is not None:
                self._keys.keyboard.enter()  # it may be in the foreground again
            self._resize()

    def _note(self, change: Change) -> None:
        if isinstance(change, Ended):
            self._ended = change
            self._linger_until = time.monotonic() + LINGER_S
        elif self._keys is not None:
            self._suspend(self._keys)

    def _suspend(self, keys: Keys) -> None:
        """The command was stopped: show what it still said, stop our job too, and later go on together."""
        for flow in self._flows:
            taken = 0
            while flow.pending or (flow.open and taken < HELD_BYTES and self._read(flow)):
                taken += len(flow.pending)
                if flow.pending and is_ready(flow.output.sink, select.POLLOUT, None):
                    flow.write()
        keys.keyboard.suspend_job()
        self._resize()
        self._command.resume()

    def _resize(self) -> None:
        if self._screen is not None and self._flows[0].open:
            copy_size(self._screen, self._flows[0].output.fd)

    def _end_flows(self) -> None:
        """Close what only stays open because of processes that the command left behind."""
        for flow in self._flows:
            if flow.open and not flow.pending:
                if flow.late_bytes >= HELD_BYTES or not is_ready(flow.output.fd, select.POLLIN):
                    flow.close()


def is_ready(fd: int, event: int, timeout_ms: Optional[float] = 0) -> bool:
    """Whether a read or write would not block, or would fail at once."""
    poll = select.poll()
    poll.register(fd, event)
    return bool(poll.poll(timeout_ms))


def _never_blocks(fd: int) -> bool:
    return stat.S_ISREG(os.fstat(fd).st_mode)
