"""The entry point: find the command, run it, and turn what went wrong into a sentence and an exit code.

0 ok, 1 what was asked about failed, 2 usage, 3 no such run, 4 refused, 5 the daemon cannot be reached, 6 time-out.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any, Callable, List, NoReturn, Optional, Sequence

OK, FAILED, USAGE, NO_SUCH_RUN, REFUSED, UNREACHABLE, TIMED_OUT, INTERRUPTED = 0, 1, 2, 3, 4, 5, 6, 130

COMMANDS = {
    "list": "list runs, newest first (what `runhist` alone does)",
    "show": "show one run: its steps, times, tokens and cost",
    "logs": "print a run's events; -f follows it while it runs",
    "tail": "show the events of all runs as they come",
    "wait": "wait until runs have ended",
    "status": "how the daemon stands, and which one is meant",
    "exec": "run a command and record it, line by line",
    "begin": "begin a run for a shell script",
    "append": "add events to a run",
    "end": "end a run that a shell script began",
    "artifacts": "list what a run made",
    "artifact": "get or add one thing that a run made",
    "rm": "delete runs for good",
    "gc": "forget what retention no longer keeps",
    "pin": "let retention leave runs alone",
    "unpin": "let retention take runs again",
    "resume": "answer a paused run's gate, or go on with an interrupted run",
    "export": "print runs as lines of JSON",
    "import": "take in runs that were exported",
    "completion": "print what makes your shell complete commands and run ids",
}

EPILOG = """\
RUN is an id, a unique beginning or ending of one (4 characters or more), or @last, @last~2,
@failed, @running, @paused; left out, it is $RUNHIST_RUN, else @last.

examples:
  runhist exec --agent me -- make test     record a command
  runhist                                  what ran lately
  runhist show @failed                     why the last failure failed
  runhist logs -f                          watch the newest run

exit status: 0 ok, 1 what was asked about failed, 2 usage, 3 no such run, 4 refused,
5 the daemon cannot be reached, 6 time-out. `runhist COMMAND --help` tells the rest.
"""


def main(arguments: Optional[List[str]] = None) -> int:
    """Run one command; returns its exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    args = parse(words)
    try:
        status = int(args.run_command(args))
        if sys.stdout is not None:  # exec passes closed streams on as they are
            sys.stdout.flush()  # here, where a closed pipe is still caught
        return status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter complains at its end
        return FAILED
    except Exception as error:  # noqa: BLE001 - what is not ours is raised again
        return explain(error, as_json=getattr(args, "json", False))


def parse(words: List[str]) -> argparse.Namespace:
    """The arguments of the command that the words name; only that command's module is imported."""
    from importlib import import_module

    behind_dashes: List[str] = []
    chosen = next((word for word in words if not word.startswith("-")), None)
    if chosen is None and not {"-h", "--help", "--version"} & set(words):
        chosen, words = "list", ["list", *words]
    parser = _Parser(
        prog="runhist",
        description="Record agent and workflow runs into the history that runhistd keeps on this machine, and read it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    if chosen == "resume" and "--" in words:  # argparse cannot tell an optional RUN's options from a command's
        at = words.index("--")
        words, behind_dashes = words[:at], words[at + 1 :]
    named = words[:1] == [chosen] and chosen in COMMANDS  # then nobody asks for the others, which take time to make
    for name, text in COMMANDS.items():
        if name == chosen:
            module = import_module(f"runhist.cli.{name}")
            module.add_parser(subparsers)
            subparsers.choices[name].set_defaults(run_command=module.run, behind_dashes=behind_dashes)
        elif not named:
            subparsers.add_parser(name, help=text, add_help=False)
    return parser.parse_args(words)


def command_parser(name: str) -> argparse.ArgumentParser:
    """The parser of one command."""
    from importlib import import_module

    subparsers = _Parser(prog="runhist").add_subparsers()
    import_module(f"runhist.cli.{name}").add_parser(subparsers)
    parser: argparse.ArgumentParser = subparsers.choices[name]
    return parser


class _Parser(argparse.ArgumentParser):
    """Arguments may be recorded text that a script hands on: a complaint shows them escaped.

    argparse makes a formatter for each argument that is added, and the terminal's width, which only help needs, costs the
    import of shutil.
    """

    def __init__(
        self, *, formatter_class: Callable[..., argparse.HelpFormatter] = argparse.HelpFormatter, **options: Any
    ) -> None:
        self._width = 80
        super().__init__(formatter_class=lambda prog: formatter_class(prog, width=self._width), **options)

    def format_help(self) -> str:
        """What --help prints."""
        self._measure()
        return super().format_help()

    def format_usage(self) -> str:
        """The first line of a complaint."""
        self._measure()
        return super().format_usage()

    def _measure(self) -> None:
        import shutil

        self._width = shutil.get_terminal_size().columns - 2

    def error(self, message: str) -> NoReturn:
        from .render import escaped

        super().error(escaped(message))


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from .. import __version__

        sys.stdout.write(f"runhist {__version__}\n")
        parser.exit()


def run_name(text: str) -> str:
    """A RUN of the command line; an empty one, where a script's variable is unset, must not mean @last."""
    if not text:
        raise argparse.ArgumentTypeError("the name is empty; which run is meant?")
    return text


class Complaint(Exception):
    """What a person can mend, with the exit status that it means, and lines that stand below the message."""

    def __init__(self, message: str, status: int, lines: Sequence[str] = ()) -> None:
        super().__init__("\n  ".join((message, *lines)))
        self.status = status
        self.lines = (message, *lines)


def explain(error: Exception, *, as_json: bool) -> int:
    """Say what went wrong on stderr; what is no known fault is a bug and raised again."""
    from ..connection import Unreachable
    from ..protocol.errors import NoSuchRun, Refusal

    fields = {"error": type(error).__name__, "message": str(error)}
    if isinstance(error, Complaint):
        status = error.status
    elif isinstance(error, Unreachable):
        status = UNREACHABLE
        fields["reason"] = error.reason
    elif isinstance(error, NoSuchRun):
        status = NO_SUCH_RUN
    elif isinstance(error, Refusal):
        status = REFUSED
    else:
        raise error
    if as_json:
        import json

        sys.stderr.write(json.dumps(fields) + "\n")
    else:
        from .render import escaped

        lines = error.lines if isinstance(error, Complaint) else (str(error),)
        sys.stderr.write("runhist: " + "\n  ".join(map(escaped, lines)) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
