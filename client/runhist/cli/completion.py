"""`runhist completion`: what a shell's TAB offers, run ids included.

The scripts only ask: they hand the words so far to `runhist completion words` (ended by NUL each, on stdin) and get a
candidate a line, with a tab and what it means behind it. What a command takes is read off its own parser, so there is no
second list to keep up. Where nothing is found, the shell completes file names.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any, Dict, Iterator, List, Optional, Tuple

from ..protocol.errors import RunhistError
from . import main, render

RUN = "RUN"  # the metavar of what names a run
PLACES = ("@last", "@failed", "@running", "@paused")
NEWEST = 200
TIMEOUT_S = 2.0  # a person waits for it

Candidate = Tuple[str, str]
"""What may stand there, and what it means."""

BASH = r"""
_runhist() {
    local line=${COMP_LINE:0:COMP_POINT} words full before candidate _
    read -ra words <<<"$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    while [[ ${words[0]} == *=* ]]; do words=("${words[@]:1}"); done
    full=${words[${#words[@]} - 1]}
    before=${full%"${full##*[:=]}"} # for readline a new word begins behind these, and with an @
    [[ ${full#"$before"} == ?*@* ]] && before=${full%@*}
    [[ $COMP_WORDBREAKS == *:* ]] || before=
    COMPREPLY=()
    while IFS=$'\t' read -r candidate _; do
        COMPREPLY+=("$(printf %q "${candidate#"$before"}")")
    done < <(printf '%s\0' "${words[@]:1}" | runhist completion words 2>/dev/null)
}
complete -o default -F _runhist runhist
"""

ZSH = r"""
#compdef runhist
_runhist() {
    local line
    local -a typed values shown
    typed=("${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}")
    for line in "${(@f)$(printf '%s\0' "${(@)typed}" | runhist completion words 2>/dev/null)}"; do
        [[ -n $line ]] || continue
        values+=("${line%%$'\t'*}")
        shown+=("${line%%$'\t'*}  ${line#*$'\t'}")
    done
    if (( $#values )); then
        compadd -l -d shown -a values
    else
        _files
    fi
}
if [[ $funcstack[1] == _runhist ]]; then
    _runhist "$@"
else
    compdef _runhist runhist
fi
"""

FISH = r"""
function __runhist_candidates
    set -l before (commandline -opc)
    set -l current (commandline -ct)
    set -l found (printf '%s\0' $before[2..-1] "$current" | runhist completion words 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\n' $found
    else
        __fish_complete_path "$current"
    end
end
complete -c runhist -f -a '(__runhist_candidates)'
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def add_parser(subparsers: Any) -> None:
    """The command's arguments."""
    parser = subparsers.add_parser(
        "completion",
        help="print what makes your shell complete commands and run ids",
        description="Print a script that makes TAB complete commands, options and the ids of runs.",
        epilog="bash: source <(runhist completion bash)    zsh, behind compinit: source <(runhist completion zsh)\n"
        "fish: runhist completion fish | source    in the file that your shell reads at its start",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=[*SCRIPTS, "words"], metavar="{bash,zsh,fish}", help="which shell")


def run(args: argparse.Namespace) -> int:
    """Print the script, or the candidates for the words on stdin."""
    if args.shell != "words":
        sys.stdout.write(SCRIPTS[args.shell].lstrip())
        return main.OK
    words = sys.stdin.buffer.read().decode("utf-8", "surrogateescape").split("\0")[:-1]
    for value, meaning in candidates(words or [""]):
        sys.stdout.write(f"{value}\t{meaning}\n")
    return main.OK


def candidates(words: List[str]) -> Iterator[Candidate]:
    """What may stand in place of the last word, behind the others."""
    *before, current = words
    return (one for one in _possible(before, current) if one[0].startswith(current))


def _possible(before: List[str], current: str) -> Iterator[Candidate]:
    at = next((i for i, word in enumerate(before) if not word.startswith("-")), None)
    if at is None:
        if current.startswith("-"):
            yield from _options(main.command_parser("list"))
        else:
            yield from main.COMMANDS.items()
        return
    if before[at] not in main.COMMANDS:
        return
    place = _Place(main.command_parser(before[at]))
    for word in before[at + 1 :]:
        place.pass_by(word)
    yield from place.possible(before, current)


class _Place:
    """Where in a command's arguments the words so far end. argparse tells what it parses only by its own attributes."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._parser = parser
        self._value_of: Optional[argparse.Action] = None  # the option whose value comes next
        self._passed = 0  # positional arguments
        self._is_behind_dashes = False

    def pass_by(self, word: str) -> None:
        """A whole word stands there."""
        if self._value_of is not None:
            self._value_of = None
        elif self._is_behind_dashes or not word.startswith("-"):
            actions = self._actions()
            if actions is not None and word in actions.choices:
                self._parser, self._passed = actions.choices[word], 0
            else:
                positional = self._positional()
                self._is_behind_dashes |= positional is not None and positional.nargs == argparse.REMAINDER
                self._passed += 1
        elif word == "--":
            self._is_behind_dashes = True
        else:
            action = self._parser._option_string_actions.get(word)
            self._value_of = action if action is not None and action.nargs != 0 else None

    def possible(self, before: List[str], current: str) -> Iterator[Candidate]:
        """What the next word may be."""
        if self._value_of is not None:
            yield from _values(self._value_of, before)
        elif current.startswith("-") and not self._is_behind_dashes:
            yield from _options(self._parser)
        elif (actions := self._actions()) is not None:
            yield from ((one.dest, one.help or "") for one in actions._choices_actions)
        elif (positional := self._positional()) is not None and not self._is_behind_dashes:
            yield from _values(positional, before)

    def _actions(self) -> Any:
        """The parser's own commands, if it has any."""
        return next((one for one in self._parser._actions if isinstance(one, argparse._SubParsersAction)), None)

    def _positional(self) -> Optional[argparse.Action]:
        positional = [action for action in self._parser._actions if not action.option_strings]
        if positional and (self._passed < len(positional) or positional[-1].nargs in ("*", "+")):
            return positional[min(self._passed, len(positional) - 1)]
        return None


def _options(parser: argparse.ArgumentParser) -> Iterator[Candidate]:
    for action in parser._actions:
        if action.help != argparse.SUPPRESS:
            yield from ((name, action.help or "") for name in action.option_strings if name.startswith("--"))


def _values(action: argparse.Action, before: List[str]) -> Iterator[Candidate]:
    if action.choices is not None:
        yield from ((str(choice), "") for choice in action.choices if choice != "words")
    elif action.metavar == RUN:
        yield from _runs(before)


def _runs(before: List[str]) -> Iterator[Candidate]:
    """Runs by their short and their whole ids. None where nobody tells in time."""
    from .. import environment
    from ..connection import Connection

    named = before.index("--namespace") + 1 if "--namespace" in before else len(before)
    namespace = before[named] if named < len(before) else environment.own_namespace()
    asked: Dict[str, Any] = {"limit": NEWEST, **({"namespace": namespace} if namespace else {})}
    try:
        with Connection.open(timeout=TIMEOUT_S) as connection:
            runs = connection.call("ListRuns", asked, timeout=TIMEOUT_S)["runs"]
    except RunhistError:
        return
    yield from ((place, "") for place in PLACES)
    for run in runs:
        meaning = f"{render.status_of(run['status'])} {run.get('title') or run.get('workflow') or ''}".rstrip()
        for name in {run["short_id"]: None, run["run_id"]: None}:
            if render.escaped(name) == name:  # another could drive the terminal
                yield name, render.escaped(meaning)
