"""`runhist exec` on a terminal: the command has one of its own, and keys do what they always did."""

from __future__ import annotations

import os
import select
import signal
import termios
import time

import pytest

from tests.client.cli.shells import PORTABLE, PYTHON, RUNHIST, Terminal, resize, run, shell

OFF = {**os.environ, "RUNHIST": "off"}
COUNTS_INTERRUPTS = """
import signal, time
def count(*_):
    global seen
    seen += 1
    print("interrupt", seen)
seen = 0
signal.signal(signal.SIGINT, count)
signal.signal(signal.SIGWINCH, lambda *_: print("size", *__import__("os").get_terminal_size(0)))
print("ready")
while True:
    time.sleep(10)
"""


def command(*arguments: str) -> list[str]:
    return [*RUNHIST, "exec", *arguments]


def typed(*arguments: str, runhist: list[str] = RUNHIST) -> bytes:
    """A command line as one types it. What it shows must not stand in it, because the terminal echoes it."""
    return b" ".join(b"'%s'" % word.replace("'", "'\\''").encode() for word in [*runhist, "exec", *arguments]) + b"\n"


def is_raw(terminal: Terminal) -> bool:
    local_modes = termios.tcgetattr(terminal.fd)[3]
    return not local_modes & (termios.ICANON | termios.ECHO | termios.ISIG)


def test_the_command_is_on_a_terminal_of_the_same_size() -> None:
    code = "import os; print([os.isatty(fd) for fd in range(3)], *os.get_terminal_size())"
    with Terminal(command("--", *PYTHON, code), OFF, rows=31, columns=99) as terminal:
        assert terminal.rest() == (0, b"[True, True, True] 99 31\r\n")


def test_the_commands_terminal_has_the_users_modes() -> None:
    with shell(OFF) as terminal:
        terminal.type(b"stty erase '#'\n")
        terminal.until(b"READY> ")
        terminal.type(typed("--", "stty", "-a"))
        assert b"erase = #;" in terminal.until(b"READY> ")


def test_with_no_pty_the_command_has_our_own_standard_input_and_pipes() -> None:
    code = "import os; print([os.isatty(fd) for fd in range(3)])"
    with Terminal(command("--no-pty", "--", *PYTHON, code), OFF) as terminal:
        assert terminal.rest() == (0, b"[True, False, False]\r\n")


def test_off_a_terminal_pty_gives_one_for_output_and_leaves_standard_input_alone() -> None:
    code = "import os, sys; print([os.isatty(fd) for fd in range(3)], *os.get_terminal_size(1), sys.stdin.read())"
    done = run("exec", "--pty", "--", *PYTHON, code, env=OFF, stdin=b"given")
    assert done.stdout == b"[False, True, True] 80 24 given\r\n"


def test_only_with_both_standard_input_and_output_on_a_terminal_the_default_is_one() -> None:
    code = "import os; print([os.isatty(fd) for fd in range(3)])"
    with shell(OFF) as terminal:
        terminal.type(typed("--", *PYTHON, code).replace(b"\n", b" </dev/null\n"))
        assert b"[False, False, False]" in terminal.until(b"READY> ")


def test_lines_come_one_by_one_and_keys_reach_the_command() -> None:
    with Terminal(command("--", *PYTHON, "print('na' + 'me?'); print('hello', input())"), OFF) as terminal:
        terminal.until(b"name?\r\n")
        assert is_raw(terminal)
        terminal.type(b"Adx\x7fa\r")
        status, shown = terminal.rest()
        assert status == 0 and shown.endswith(b"hello Ada\r\n")


def test_a_long_paste_reaches_a_command_that_reads_later() -> None:
    code = """
import sys, termios
modes = termios.tcgetattr(0)
modes[3] &= ~(termios.ICANON | termios.ECHO)
termios.tcsetattr(0, termios.TCSANOW, modes)
print("ready")
sys.stdout.write("x" * 100000 + "\\n")
pasted = 0
while pasted < 200000:
    pasted += len(__import__("os").read(0, 1000))
print("pasted", pasted)
"""
    with Terminal(command("--", *PYTHON, code), OFF) as terminal:
        terminal.until(b"ready")
        terminal.paste(b"y" * 200_000)
        terminal.until(b"pasted 200000")


def test_ctrl_c_interrupts_the_command_and_not_us() -> None:
    with Terminal(command("--", *PYTHON, COUNTS_INTERRUPTS), OFF) as terminal:
        terminal.until(b"ready")
        terminal.type(b"\x03")
        terminal.until(b"interrupt 1")
        terminal.type(b"\x03")
        terminal.until(b"interrupt 2")
        terminal.type(b"\x1c")
        status, _ = terminal.rest()
        assert os.WTERMSIG(status) == signal.SIGQUIT
        assert not os.WCOREDUMP(status)


@pytest.mark.parametrize("runhist", [RUNHIST, PORTABLE], ids=["signalfd", "portable"])
def test_ctrl_c_comes_once_also_through_pipes(runhist: list[str]) -> None:
    code = COUNTS_INTERRUPTS.replace("seen += 1", "seen += 1; time.sleep(0.3)")
    with shell(OFF) as terminal:
        terminal.type(typed("--no-pty", "--", *PYTHON, code, runhist=runhist))
        terminal.until(b"\nready")
        terminal.type(b"\x03")
        assert b"interrupt 2" not in terminal.until(b"interrupt 1")
        terminal.type(b"\x03")
        terminal.until(b"interrupt 2")
        terminal.type(b"\x1c")
        assert b"interrupt" not in terminal.until(b"READY> ")


def test_a_new_size_of_the_terminal_reaches_the_command() -> None:
    with Terminal(command("--", *PYTHON, COUNTS_INTERRUPTS), OFF) as terminal:
        terminal.until(b"ready")
        resize(terminal.fd, 40, 132)
        terminal.until(b"size 132 40")


@pytest.mark.parametrize("way", ["--pty", "--no-pty"])
@pytest.mark.parametrize("runhist", [RUNHIST, PORTABLE], ids=["signalfd", "portable"])
def test_ctrl_z_suspends_the_job_and_fg_goes_on(way: str, runhist: list[str]) -> None:
    with shell(OFF) as terminal:
        terminal.type(typed(way, "--", *PYTHON, COUNTS_INTERRUPTS, runhist=runhist))
        terminal.until(b"\nready")
        terminal.type(b"\x1a")
        assert b"Stopped" in terminal.until(b"READY> ")
        terminal.type(b"stty -a\n")
        assert b"isig icanon" in terminal.until(b"READY> ").replace(b"-icanon", b"")
        terminal.type(b"fg; echo $?\n")
        wait_for_foreground(terminal, raw=way == "--pty")
        terminal.type(b"\x03")
        terminal.until(b"interrupt 1")
        terminal.type(b"\x1c")
        assert b"131" in terminal.until(b"READY> ")


def wait_for_foreground(terminal: Terminal, raw: bool) -> None:
    """Until the shell has given its terminal to a job, and that has its modes."""
    end = time.monotonic() + 30
    while os.tcgetpgrp(terminal.fd) == terminal.pid or is_raw(terminal) != raw:
        assert time.monotonic() < end, "no job came into the foreground"
        os.sched_yield()


def test_in_the_background_the_shell_keeps_its_terminal() -> None:
    code = "import os; print('tty' if os.isatty(1) else 'no tty'); os.kill(os.getpid(), 15)"
    with shell(OFF) as terminal:
        terminal.type(typed("--", *PYTHON, code).replace(b"\n", b" & wait; echo; stty -a\n"))
        shown = terminal.until(b"extproc")
        assert b"\ntty\r" in shown and b" icanon" in shown.replace(b"-icanon", b"")


def test_a_program_that_suspends_itself_suspends_the_job() -> None:
    code = "import os, signal; os.kill(0, signal.SIGTSTP); print('going' + ' on')"
    with shell(OFF) as terminal:
        terminal.type(typed("--", *PYTHON, code))
        assert b"Stopped" in terminal.until(b"READY> ")
        terminal.type(b"fg\n")
        terminal.until(b"going on")


def test_where_no_shell_could_continue_us_ctrl_z_does_not_stop_us() -> None:
    code = "import signal, time; signal.signal(signal.SIGCONT, lambda *_: print('conti' + 'nued'))\n" + COUNTS_INTERRUPTS
    with Terminal(command("--", *PYTHON, code), OFF) as terminal:
        terminal.until(b"ready")
        terminal.type(b"\x1a")
        terminal.until(b"continued")
        terminal.type(b"\x03")
        terminal.until(b"interrupt 1")


@pytest.mark.parametrize("code", ["pass", "raise SystemExit(3)", "import os; os.kill(os.getpid(), 9)"])
def test_the_terminals_modes_are_restored(code: str) -> None:
    with shell(OFF) as terminal:
        terminal.type(b"stty -echoctl; stty -g; echo\n")
        before = terminal.until(b"READY> ")
        terminal.type(typed("--", *PYTHON, code))
        terminal.until(b"READY> ")
        terminal.type(b"stty -g; echo\n")
        modes = [line for line in before.split(b"\r\n") if line.count(b":") > 10]
        assert modes and modes[0] in terminal.until(b"READY> ")


def test_what_cannot_be_started_leaves_the_terminal_as_it_was() -> None:
    with Terminal(command("--", "no-such-command-here"), OFF) as terminal:
        status, shown = terminal.rest()
        assert os.waitstatus_to_exitcode(status) == 127
        assert shown == b"runhist: no-such-command-here: not found\r\n"


def test_a_hang_up_of_the_terminal_reaches_the_command() -> None:
    code = "import os, signal; print(os.getpid(), 'ready'); signal.pause()"
    with Terminal(command("--", *PYTHON, code), OFF) as terminal:
        pid = int(terminal.until(b" ready").split()[0])
        watched = os.pidfd_open(pid)
    assert select.select([watched], [], [], 20)[0]
    os.close(watched)
