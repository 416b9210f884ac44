"""The user's terminal while a command runs on a pseudo-terminal of its own.

The user's terminal goes into raw mode, so that every key, Ctrl-C and Ctrl-Z included, reaches the pseudo-terminal, whose
line discipline does with it what the command asked for. Raw mode is only for the foreground: a job that was put into
the background neither reads keys nor touches the modes, which belong to the shell then.
"""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import termios
import tty
from contextlib import suppress
from typing import Any, List, NamedTuple, Optional

_SIZE_BYTES = 8  # struct winsize: rows, columns and two counts of pixels
_USUAL_SIZE = struct.pack("HHHH", 24, 80, 0, 0)


class PseudoTerminal(NamedTuple):
    """Both ends; the command gets `slave`. The master never blocks."""

    master: int
    slave: int


def open_pseudo_terminal(like: Optional[int]) -> PseudoTerminal:
    """A new pair with the size and the modes, for instance the erase character, of the terminal `like`."""
    master, slave = pty.openpty()
    fcntl.ioctl(master, termios.TIOCSWINSZ, _USUAL_SIZE)
    if like is not None:
        termios.tcsetattr(slave, termios.TCSANOW, termios.tcgetattr(like))
        copy_size(like, master)
    os.set_blocking(master, False)
    return PseudoTerminal(master, slave)


def copy_size(terminal: int, master: int) -> None:
    """Give the pseudo-terminal the size of a terminal; the kernel tells what runs on it by SIGWINCH."""
    with suppress(OSError):  # either may have been hung up by now
        fcntl.ioctl(master, termios.TIOCSWINSZ, fcntl.ioctl(terminal, termios.TIOCGWINSZ, bytes(_SIZE_BYTES)))


class Keyboard:
    """The terminal that keys come from. Raw between `enter` and `leave`, as long as this process is in its foreground."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._modes_before: Optional[List[Any]] = None

    @property
    def raw(self) -> bool:
        """Whether keys may be read and passed on."""
        return self._modes_before is not None

    def enter(self) -> None:
        """Raw mode, unless it is on already or this process is in the background. May be repeated."""
        if self.raw or not self._in_foreground():
            return
        with suppress(termios.error):  # hung up
            modes = termios.tcgetattr(self.fd)
            tty.setraw(self.fd, termios.TCSADRAIN)
            self._modes_before = modes

    def leave(self) -> None:
        """The modes as they were before, unless the shell has set its own meanwhile. May be repeated."""
        modes, self._modes_before = self._modes_before, None
        if modes is not None and self._in_foreground():
            with suppress(termios.error):
                termios.tcsetattr(self.fd, termios.TCSADRAIN, modes)

    def suspend_job(self) -> None:
        """Stop this process and its job as Ctrl-Z would have, and come back when the shell continues them.

        Returns at once where nobody could continue them, for instance without a shell that does job control.
        """
        self.leave()
        handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTSTP])
        try:
            os.killpg(0, signal.SIGTSTP)  # the kernel drops it for an orphaned process group
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            signal.signal(signal.SIGTSTP, handler)
            self.enter()

    def _in_foreground(self) -> bool:
        try:
            return os.tcgetpgrp(self.fd) == os.getpgrp()
        except OSError:
            return True  # not our controlling terminal: no job control takes it away
