"""`runhist exec`: run a command and record it.

The command comes first: it gets its output, its signals, its terminal and its exit status as without us, and it runs
whether or not it can be recorded. A command that is recorded on a pseudo-terminal believes in a terminal, and so writes
each line at once; through pipes most programs collect theirs.
"""

from __future__ import annotations

import argparse
import os
import signal
from contextlib import suppress
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Tuple, Union

from .main import USAGE

if TYPE_CHECKING:
    from .command import Ended, NotStarted
    from .recording import Recording

OUR_FAULT = 125
MAX_OUTPUT_BYTES = 64 * 1024 * 1024
MAX_TITLE_CHARS = 200
MAX_ARGV_CHARS = 64 * 1024  # of the recorded copy; the command itself gets everything
MAX_NAME_CHARS = 255
_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}

DESCRIPTION = """\
Run a command and record it: its lines of output, its exit status, and what it used. Standard input and the environment
are not recorded. The command is run even if it cannot be recorded; one line on standard error says so then.
"""
EPILOG = """\
The exit status is the command's; a death by signal is repeated. 125: runhist is at fault; 126: the command cannot be
executed; 127: it was not found. The command finds RUNHIST_RUN, RUNHIST_NAMESPACE, RUNHIST_LEASE and RUNHIST_SOCKET in its
environment, so that `runhist append` adds to its run, and the runs that it begins are children of it; a TRACEPARENT (W3C
Trace Context) is handed on, and kept with the run. On a pseudo-terminal, what the command leaves running in the background
is hung up at its end, as when a terminal is closed.
"""


def add_parser(subparsers: Any) -> None:
    """The command's arguments."""
    parser = subparsers.add_parser("exec", help="run a command and record it", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--namespace", help="the history of its own that the run goes to (default: default)")
    parser.add_argument("--agent", metavar="ID", help="the lasting identity of the agent that the run belongs to")
    parser.add_argument("--workflow", metavar="NAME", help="what is run (default: the command's base name)")
    parser.add_argument("--title", help="a title for people (default: the command line)")
    terminal = parser.add_mutually_exclusive_group()
    terminal.add_argument("--pty", action="store_true", default=None, help="on a pseudo-terminal (default: on a terminal)")
    terminal.add_argument("--no-pty", dest="pty", action="store_false", help="with pipes, output and errors apart")
    parser.add_argument(
        "--max-output",
        metavar="SIZE",
        type=size,
        default=MAX_OUTPUT_BYTES,
        help="record no more output than this, in bytes or with K, M or G (default: 64M)",
    )
    parser.add_argument("--no-argv", action="store_true", help="do not record the command's arguments")
    parser.add_argument("--require", action="store_true", help="do not run the command unless it is recorded")
    parser.add_argument("command", metavar="CMD", nargs=argparse.REMAINDER, help="the command and its arguments")


def size(text: str) -> int:
    """A number of bytes, with an optional unit."""
    number = text.rstrip("KMG")
    try:
        return int(number) * _UNITS[text[len(number) :]]
    except (ValueError, KeyError):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write for instance 1000000 or 64M") from None


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit status, or does not return because the command was killed."""
    argv: List[str] = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not argv:
        _say("exec: which command? for instance: runhist exec -- make test")
        return USAGE
    _open_standard_streams()
    recording, trouble = _begin(args, argv)
    if trouble is not None:
        _say(trouble)
    if recording is None and args.require:
        return OUR_FAULT
    return carry_out(argv, args.pty, recording, trouble, {})


def carry_out(
    argv: List[str], pty: Optional[bool], recording: Optional[Recording], trouble: Optional[str], variables: Dict[str, str]
) -> int:
    """Run the command with those variables besides, and record it; its exit status. `trouble` was told already."""
    from .command import NotStarted

    try:
        outcome: Union[Ended, NotStarted] = _carry(argv, pty, recording, variables)
    except NotStarted as error:
        _say(str(error))
        outcome = error
    except OSError as error:
        _say(f"exec: {error}")
        return OUR_FAULT
    if recording is not None:
        lost = _end(recording, outcome)
        if lost is not None and trouble is None:  # else it was said at the beginning
            _say(lost)
    return outcome.exit_status if isinstance(outcome, NotStarted) else _repeat(outcome.status)


def _begin(args: argparse.Namespace, argv: List[str]) -> Tuple[Optional[Recording], Optional[str]]:
    """The recording, begun or at least tried; and what to tell the user about it."""
    from ..client import connect
    from ..connection import Unreachable
    from ..paths import choose_sockets
    from .recording import Recording

    prefix = "not run" if args.require else "not recorded"
    if connect(require=args.require).mode == "off":
        if os.environ.get("RUNHIST", "").strip().lower() == "off":
            return None, f"{prefix}: RUNHIST=off" if args.require else None
        choice = choose_sockets()
        return None, f"{prefix}: {Unreachable('not_installed', choice.sockets, choice.why)}"
    recording = Recording(choose_sockets(), _spec(args, argv), args.max_output, spools=not args.require)
    trouble = recording.begin()
    if trouble is None:
        return recording, None
    if args.require or recording.refused:
        recording.give_up()
        return None, f"{prefix}: {trouble}"
    return recording, f"{prefix} so far: {trouble}"


def _spec(args: argparse.Namespace, argv: List[str]) -> Dict[str, Any]:
    """The RunSpec. Arguments that are no text are recorded with replacement characters."""
    import shlex

    from .. import environment
    from ..encoding import plain_text, present
    from ..ids import new_run_id

    name = PurePath(argv[0]).name or argv[0]
    line = name if args.no_argv else shlex.join(argv)
    namespace = args.namespace or environment.own_namespace()
    texts = present(
        namespace=namespace,
        agent_id=args.agent,
        workflow=args.workflow or name[:MAX_NAME_CHARS] or None,
        title=args.title or (line if len(line) <= MAX_TITLE_CHARS else line[: MAX_TITLE_CHARS - 1] + "…"),
        parent_run_id=environment.parent_of(namespace, environment.own_run()),
        traceparent=environment.own_traceparent(),
    )
    metadata = {} if args.no_argv else {"metadata": {"argv": [plain_text(word) for word in _bounded(argv)]}}
    return {"run_id": new_run_id(), **{member: plain_text(text) for member, text in texts.items()}, **metadata}


def _bounded(argv: List[str]) -> List[str]:
    left = MAX_ARGV_CHARS
    words: List[str] = []
    for i, word in enumerate(argv):
        if len(word) > left:
            return [*words, word[:left] + "…", *([f"… and {len(argv) - i - 1} more"] if i + 1 < len(argv) else [])]
        left -= len(word) + 1
        words.append(word)
    return words


def _carry(
    argv: List[str], pty: Optional[bool], recording: Optional[Recording], variables: Dict[str, str]
) -> Ended:
    """Start the command and carry everything until it has ended. Raises NotStarted, and OSError when we cannot do it."""
    from .command import OnTerminal, Plain
    from .relay import CAUGHT, Relay
    from .signals import caught
    from .terminal import Keyboard, open_pseudo_terminal

    env = {**os.environ, **variables, **(recording.environment() if recording else {})}
    copy = recording or Unrecorded()
    if not (os.isatty(0) and os.isatty(1) if pty is None else pty):
        with caught(CAUGHT) as signals:
            return Relay(Plain(argv, env, signals), copy, signals).run()
    keyboard = Keyboard(0) if os.isatty(0) else None
    screen = next((fd for fd in (0, 1) if os.isatty(fd)), None)
    with caught((*CAUGHT, signal.SIGTSTP)) as signals:
        command = OnTerminal(argv, env, signals, open_pseudo_terminal(screen), stdin_inherited=keyboard is None)
        try:
            if keyboard is not None:
                keyboard.enter()
            return Relay(command, copy, signals, keyboard, screen).run()
        finally:
            if keyboard is not None:
                keyboard.leave()
            command.close()


class Unrecorded:
    """In place of a recording when there is none."""

    def take(self, stream: str, chunk: bytes) -> None:
        """Nothing is kept."""

    def full(self) -> bool:
        """Never."""
        return False

    def interest(self) -> Optional[Tuple[int, int]]:
        """Nothing to poll."""
        return None

    def timeout_s(self) -> Optional[float]:
        """No reason to wake up."""
        return None

    def pump(self) -> None:
        """Nothing to send."""


def _end(recording: Recording, outcome: Union[Ended, NotStarted]) -> Optional[str]:
    try:
        return recording.end(outcome)
    except KeyboardInterrupt:
        return "interrupted while the end of the run was being recorded"


def _repeat(status: int) -> int:
    """The exit status; or die as the command did, so that our caller sees the same, but leave no core of our own."""
    if not os.WIFSIGNALED(status):
        return os.WEXITSTATUS(status)
    import resource

    number = os.WTERMSIG(status)
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    # 1 byte and not 0: too little for a file, and Linux takes it as "none" where cores are piped to a program.
    resource.setrlimit(resource.RLIMIT_CORE, (0 if hard == 0 else 1, hard))
    with suppress(OSError):  # SIGKILL
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    os.kill(os.getpid(), number)
    return 128 + number


def _open_standard_streams() -> None:
    """Fill the first three descriptors if some are closed, or our own pipes would take their place."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _say(text: str) -> None:
    with suppress(OSError):
        os.write(2, f"runhist: {text}\n".encode("utf-8", "replace"))
