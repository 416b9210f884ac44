"""Signals as something to poll, with the one fact that forwarding needs: did the terminal send it?

Ctrl-C reaches every process of the terminal's foreground group, the command included; passing it on would make it arrive
twice, and many programs take the second one as "die at once". A signal that somebody sent to this process alone must be
passed on. Only the kernel tells the two apart: on Linux a signalfd, which needs ctypes, gives its word. Elsewhere a
signal that a terminal can send is taken as the terminal's while this process is in the foreground group.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
from contextlib import contextmanager
from typing import Iterable, Iterator, List, NamedTuple, Protocol, Set

_TERMINAL_SIGNALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTSTP)
_SI_KERNEL = 0x80
_SIGNALFD_SIGINFO = struct.Struct("=Iii116x")  # signo, errno, code of 128 bytes
_SFD_FLAGS = os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0)


class Arrival(NamedTuple):
    """A signal that came. `by_terminal`: it went to the whole foreground group."""

    number: signal.Signals
    by_terminal: bool


class SignalSource(Protocol):
    """Where signals arrive instead of interrupting; readable when one did."""

    def fileno(self) -> int:
        """The descriptor to poll."""

    def take(self) -> List[Arrival]:
        """The signals that came since; never waits."""

    def restore_in_child(self) -> None:
        """Give a forked child the signal state that this process was started with. Async-signal-safe enough for it."""


@contextmanager
def caught(numbers: Iterable[signal.Signals]) -> Iterator[SignalSource]:
    """Catch these signals for as long as the block runs, but those that this process was started to ignore (nohup)."""
    heeded = {number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN}
    open_source = _signalfd if sys.platform == "linux" else _wakeup_fd
    with open_source(heeded) as source:
        yield source


class _Signalfd:
    def __init__(self, fd: int, mask_before: Set[signal.Signals]) -> None:
        self._fd = fd
        self._mask_before = mask_before

    def fileno(self) -> int:
        return self._fd

    def take(self) -> List[Arrival]:
        infos = _SIGNALFD_SIGINFO.iter_unpack(_drain(self._fd))
        return [Arrival(signal.Signals(number), code == _SI_KERNEL) for number, _, code in infos]

    def restore_in_child(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask_before)


@contextmanager
def _signalfd(numbers: Set[signal.Signals]) -> Iterator[SignalSource]:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    mask = ctypes.create_string_buffer(128)
    libc.sigemptyset(mask)
    for number in numbers:
        libc.sigaddset(mask, int(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    fd = libc.signalfd(-1, mask, _SFD_FLAGS)
    try:
        if fd < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        yield _Signalfd(fd, {signal.Signals(number) for number in before})
    finally:
        if fd >= 0:
            _drain(fd)  # what came too late to be passed on must not strike when the mask is lifted
            os.close(fd)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _WakeupFd:
    def __init__(self, fd: int, mask_before: Set[signal.Signals]) -> None:
        self._fd = fd
        self._mask_before = mask_before

    def fileno(self) -> int:
        return self._fd

    def take(self) -> List[Arrival]:
        numbers = [signal.Signals(number) for number in _drain(self._fd)]
        return [Arrival(number, number in _TERMINAL_SIGNALS and _in_foreground()) for number in numbers]

    def restore_in_child(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask_before)  # exec resets the handlers


@contextmanager
def _wakeup_fd(numbers: Set[signal.Signals]) -> Iterator[SignalSource]:
    readable, writable = os.pipe()
    os.set_blocking(readable, False)
    os.set_blocking(writable, False)
    handlers = {number: signal.signal(number, lambda *_: None) for number in numbers}
    fd_before = signal.set_wakeup_fd(writable)
    try:
        yield _WakeupFd(readable, {signal.Signals(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])})
    finally:
        signal.set_wakeup_fd(fd_before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(readable)
        os.close(writable)


def _drain(fd: int) -> bytes:
    try:
        return os.read(fd, 4096)
    except BlockingIOError:
        return b""


def _in_foreground() -> bool:
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    finally:
        os.close(terminal)
