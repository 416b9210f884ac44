"""What TAB offers: in real shells, and for every place of a command line."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from runhist.cli.completion import candidates
from runhist.cli.main import COMMANDS, command_parser
from tests.client.cli.shells import RUNHIST, Terminal, run
from tests.client.cli.test_reading import Recorder

if TYPE_CHECKING:
    from tests.conftest import Daemon

ID = "01a1fcee-a6cb-75a8-aa3d-e4ae77903da1"


@pytest.fixture
def recorder(daemon: Daemon, tmp_path: Path) -> Recorder:
    """A history with runs, and a `runhist` on the PATH of its environment."""
    command = tmp_path / "bin" / "runhist"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.join(RUNHIST)} "$@"\n')
    command.chmod(0o755)
    made = Recorder(daemon.start())
    made.env.update(PATH=f"{command.parent}:{made.env['PATH']}", HOME=str(tmp_path), TERM="xterm")
    made.begin(ID, title="Build docs")
    made.begin("release-17", workflow="release")
    made.begin("with space $(x)", namespace="other")
    made.begin("mail@host:7")
    return made


def offered(recorder: Recorder, *words: str) -> dict[str, str]:
    """What may stand in place of the last word."""
    stdin = "".join(f"{word}\0" for word in words).encode()
    done = run("completion", "words", env=recorder.env, stdin=stdin)
    assert (done.returncode, done.stderr) == (0, b"")
    return dict(line.split("\t") for line in done.stdout.decode().splitlines())


def test_every_command_is_offered_with_what_it_does(recorder: Recorder) -> None:
    assert offered(recorder, "") == COMMANDS
    assert list(offered(recorder, "art")) == ["artifacts", "artifact"]
    assert offered(recorder, "nothing", "") == {}


@pytest.mark.parametrize("command", COMMANDS)
def test_options_of_every_command_are_those_of_its_help(command: str) -> None:
    options = [option for option, _ in candidates([command, "--"])]
    text = command_parser(command).format_help()
    assert "--help" in options
    assert all(option in text for option in options)


def test_options_of_a_commands_own_commands_are_offered() -> None:
    assert {word for word, _ in candidates(["artifact", ""])} == {"get", "add"}
    assert "--keep" in dict(candidates(["artifact", "add", "--"]))
    assert "--keep" not in dict(candidates(["artifact", "get", "--"]))


def test_runs_are_offered_by_short_and_whole_id_with_what_they_are(recorder: Recorder) -> None:
    found = offered(recorder, "show", "")
    assert {"@last", "@failed", "@running", "@paused", "release-17", ID, "903da1"} <= set(found)
    assert found[ID] == found["903da1"] == "● running Build docs"
    assert list(offered(recorder, "logs", "-f", "rel")) == ["release-17"]
    assert "release-17" in offered(recorder, "wait", "903da1", "rel")  # any number
    assert offered(recorder, "show", "903da1", "") == {}  # only one
    assert ID in offered(recorder, "append", "note", "--run", "01a1")
    assert set(offered(recorder, "show", "--namespace", "other", "")) >= {"with space $(x)"}
    assert "release-17" not in offered(recorder, "show", "--namespace", "other", "")


def test_values_of_options_are_offered() -> None:
    assert "incomplete" in dict(candidates(["list", "--status", ""]))
    assert dict(candidates(["tail", "--cursor-file", ""])) == {}  # the shell's own: file names
    assert set(dict(candidates(["completion", ""]))) == {"bash", "zsh", "fish"}


def test_what_belongs_to_a_recorded_command_is_left_to_the_shell() -> None:
    for words in (["exec", "--", ""], ["exec", "make", "--"], ["resume", "@paused", "--", ""]):
        assert dict(candidates(words)) == {}


def test_without_a_daemon_no_ids_are_offered_and_nothing_is_said(recorder: Recorder, daemon: Daemon) -> None:
    daemon.stop()
    assert offered(recorder, "show", "") == {}
    assert "show" in offered(recorder, "sh")


def test_ids_and_titles_cannot_drive_the_terminal(recorder: Recorder) -> None:
    recorder.begin("evil\u202eid", title="\x1b[2J\tx\ny")
    found = offered(recorder, "show", "")
    assert not [name for name in found if "evil" in name]
    recorder.begin("plain-one", title="\x1b[2J\tx\ny")
    assert offered(recorder, "show", "plain")["plain-one"] == "● running \\x1b[2J\\tx\\ny"


# --- in real shells ---


def interactive(argv: list[str], recorder: Recorder, *setup: str) -> Terminal:
    """A shell at its prompt, in which the script is loaded."""
    terminal = Terminal(argv, {**recorder.env, "COLUMNS": "", "PS1": "> "}, columns=200)
    for line in (*setup, "PS1='REA''DY> '"):
        terminal.type(line.encode() + b"\n")
    terminal.until(b"READY> ")
    return terminal


def completes(terminal: Terminal, typed: str, line: str) -> None:
    """After these keys and TAB, `runhist` gets these arguments."""
    terminal.type(f"{typed}\t\n".encode())
    assert line.encode() in terminal.until(b"READY> ")


SAY = 'runhist() { if [ "$1" = completion ]; then command runhist "$@"; else printf "<%s>" "$@"; echo; fi; }'
TYPED = [
    ("runhist sho", "<show>"),
    ("runhist logs --fol", "<logs><--follow>"),
    ("runhist show rel", "<show><release-17>"),
    ("runhist show 903", "<show><903da1>"),
    ("runhist show @la", "<show><@last>"),
    ("runhist show mail@host:", "<show><mail@host:7>"),
    ("runhist show mai", "<show><mail@host:7>"),
    ("runhist show mail@h", "<show><mail@host:7>"),
    ("runhist show --namespace other with", "<show><--namespace><other><with space $(x)>"),
    ("runhist exec -- ./only-f", "<exec><--><./only-file>"),
]


def test_bash_completes(recorder: Recorder, tmp_path: Path, need: Callable[[str], str]) -> None:
    (tmp_path / "only-file").touch()
    setup = ["bind 'set enable-bracketed-paste off'", "source <(runhist completion bash)", SAY, f"cd {tmp_path}"]
    with interactive([need("bash"), "--norc", "--noprofile", "-i"], recorder, *setup) as terminal:
        for typed, line in TYPED:
            completes(terminal, typed, line)
        completes(terminal, "A=1 runhist sho", "<show>")
        completes(terminal, "true | runhist sho", "<show>")


def test_zsh_completes(recorder: Recorder, tmp_path: Path, need: Callable[[str], str]) -> None:
    (tmp_path / "only-file").touch()
    setup = ["unsetopt zle_bracketed_paste prompt_cr prompt_sp; zstyle ':completion:*' insert-tab false"]
    setup += ["autoload -U compinit; compinit -u -D", "source <(runhist completion zsh)", SAY, f"cd {tmp_path}"]
    with interactive([need("zsh"), "-f", "-i"], recorder, *setup) as terminal:
        for typed, line in TYPED:
            completes(terminal, typed, line)


def test_fish_completes(recorder: Recorder, tmp_path: Path, need: Callable[[str], str]) -> None:
    (tmp_path / "only-file").touch()

    def fish(line: str) -> list[str]:
        code = f"runhist completion fish | source; complete -C {shlex.quote(line)}"
        done = subprocess.run(
            [need("fish"), "--no-config", "-c", code],
            env={**recorder.env, "XDG_CONFIG_HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout.splitlines()

    assert fish("runhist sho") == [f"show\t{COMMANDS['show']}"]
    assert fish("runhist show rel") == ["release-17\t● running release"]
    assert "@last" in [line.split("\t")[0] for line in fish("runhist show @")]
    assert "wait" in [line.split("\t")[0] for line in fish("runhist ")]
    assert fish("runhist exec -- ./only-f") == ["./only-file"]


def test_an_unknown_shell_is_a_matter_of_usage(daemon: Daemon) -> None:
    done = run("completion", "tcsh", env=daemon.env)
    assert done.returncode == 2 and b"fish" in done.stderr


def test_the_bash_script_uses_nothing_newer_than_the_bash_of_macos(daemon: Daemon) -> None:
    script = run("completion", "bash", env=daemon.env).stdout.decode()
    assert not [word for word in ("mapfile", "readarray", "compopt", "[-1]") if word in script]
