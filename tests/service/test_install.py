"""Installing and undoing, with a manager of a few lines that keeps what it was told in files."""

from __future__ import annotations

import fcntl
import os
import plistlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from runhistd import cli
from runhistd.service import command, files, target
from runhistd.service.install import MADE_BY, ServiceFailed, Steps, install, state_of, uninstall
from runhistd.service.target import ServiceRefused, Target, choose, launchd, refuse_unfit, refuse_without_rights, systemd

RUNHISTD = Path("/opt/runhist/bin/runhistd")
# systemctl as far as it is asked: one file for each unit that is enabled or active, and a list of all that was changed.
SYSTEMCTL = """#!/bin/sh
[ "$1" = --user ] && shift
verb=$1; shift
for word; do case $word in -*) ;; *) unit=$word; case $verb in
    is-*) test -e "$STATE/${verb#is-}.$unit"; exit;;
    enable|start) touch "$STATE/$verb.$unit";;
    disable) rm -f "$STATE/enabled.$unit";;
    stop) rm -f "$STATE/active.$unit";;
esac;; esac; done
case $verb in
    enable) mv "$STATE/enable.$unit" "$STATE/enabled.$unit";;
    start) test ! -e "$STATE/fail" || { echo "no such luck" >&2; exit 5; }; mv "$STATE/start.$unit" "$STATE/active.$unit";;
    show) cat "$STATE/fragment" 2>/dev/null || ls "$UNITS/runhistd.service" 2>/dev/null; exit 0;;
esac
echo "$verb" >>"$STATE/changes"
"""
LAUNCHCTL = """#!/bin/sh
case $1 in
    print) test -e "$STATE/loaded"; exit;;
    bootstrap) test -d "$SOCKET_FOLDER" && touch "$STATE/loaded";;
    bootout) rm "$STATE/loaded";;
esac
echo "$1" >>"$STATE/changes"
"""


class Machine:
    """A home and the manager's own state."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home, self.state = root / "home", root / "state"
        self.home.mkdir()
        self.state.mkdir()
        tools = root / "tools"
        tools.mkdir()
        for name, text in (("systemctl", SYSTEMCTL), ("launchctl", LAUNCHCTL)):
            (tools / name).write_text(text)
            (tools / name).chmod(0o755)
        units = self.home / ".config" / "systemd" / "user"
        self.environment = {"STATE": str(self.state), "UNITS": str(units), "SOCKET_FOLDER": "/"}
        self.environment["PATH"] = f"{tools}:/usr/bin:/bin"
        monkeypatch.setenv("PATH", self.environment["PATH"])  # where subprocess looks for the command itself
        self.told: list[str] = []

    def systemd(self, command: Path = RUNHISTD) -> Target:
        folder = self.home / ".config" / "systemd" / "user"
        return systemd("user", folder, command, self.home / "history", self.environment, "")

    def install(self, target: Target, *, enable: bool = True, now: bool = True, dry_run: bool = False) -> list[str]:
        self.told.clear()
        install(target, Steps(target, self.told.append, dry_run=dry_run), enable=enable, now=now)
        return [line.partition(" ")[0] for line in self.told]

    def uninstall(self, target: Target, *, dry_run: bool = False) -> list[str]:
        self.told.clear()
        uninstall(target, Steps(target, self.told.append, dry_run=dry_run))
        return [line.partition(" ")[0] for line in self.told]

    def snapshot(self) -> dict[str, str]:
        found = {str(path): path.read_text() if path.is_file() else "" for path in self.home.rglob("*")}
        return {**found, **{path.name: "" for path in self.state.iterdir() if path.name != "changes"}}

    def changes(self) -> list[str]:
        listed = self.state / "changes"
        return listed.read_text().split() if listed.exists() else []


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with tempfile.TemporaryDirectory(prefix="rh") as root:  # short, as a home is: a socket's path must fit
        yield Machine(Path(root), monkeypatch)


def test_what_was_installed_is_undone_exactly(machine: Machine) -> None:
    (machine.home / ".config").mkdir()
    before = machine.snapshot()
    target = machine.systemd()
    assert machine.install(target) == ["make", "make", "write", "write", "run", "run", "run"]
    assert machine.changes() == ["daemon-reload", "enable", "start"]
    for path, text in target.files.items():
        assert path.read_text().startswith(f"# {MADE_BY}")
        assert path.read_text().partition("\n")[2] == text
        assert path.stat().st_mode & 0o777 == 0o644
    assert machine.uninstall(target) == ["run", "run", "remove", "remove", "run", "remove", "remove"]
    assert machine.snapshot() == before
    assert machine.changes()[3:] == ["stop", "disable", "daemon-reload"]


def test_what_was_there_before_stays(machine: Machine) -> None:
    other = machine.home / ".config" / "systemd" / "user" / "other.service"
    other.parent.mkdir(parents=True)
    other.write_text("[Service]\n")
    drop_in = other.with_name("runhistd.service.d") / "own.conf"
    machine.install(machine.systemd())
    drop_in.parent.mkdir()
    drop_in.write_text("[Service]\nNice=5\n")
    machine.uninstall(machine.systemd())
    assert sorted(machine.snapshot()) == sorted(map(str, [*other.parents[:3], other, drop_in.parent, drop_in]))


def test_a_second_time_does_nothing(machine: Machine) -> None:
    machine.install(machine.systemd())
    done = machine.changes()
    assert machine.install(machine.systemd()) == []
    assert machine.changes() == done
    machine.uninstall(machine.systemd())
    assert machine.uninstall(machine.systemd()) == []


def test_only_what_is_missing_is_done(machine: Machine) -> None:
    assert machine.install(machine.systemd(), enable=False, now=False)[-1] == "run"
    assert machine.changes() == ["daemon-reload"]
    machine.install(machine.systemd(), now=False)
    assert machine.told == ["run      systemctl --user enable --quiet runhistd.socket"]
    machine.install(machine.systemd())
    assert machine.told == ["run      systemctl --user start runhistd.socket"]


def test_another_place_of_the_command_replaces_the_unit_and_restarts_the_daemon(machine: Machine) -> None:
    machine.install(machine.systemd())
    moved = machine.systemd(Path("/srv/runhist/bin/runhistd"))
    assert state_of(moved)["files"][str(list(moved.files)[1])] == "of another version or place"
    assert machine.install(moved) == ["write", "run", "run"]
    assert machine.changes()[-2:] == ["daemon-reload", "try-restart"]
    assert set(state_of(moved)["files"].values()) == {"current"}
    machine.uninstall(moved)
    assert not (machine.home / ".config").exists()


def test_a_dry_run_tells_the_same_and_changes_nothing(machine: Machine) -> None:
    before = machine.snapshot()
    machine.install(machine.systemd(), dry_run=True)
    would = list(machine.told)
    assert machine.snapshot() == before
    machine.install(machine.systemd())
    assert would == [f"would {line}" for line in machine.told]
    installed = machine.snapshot()
    assert machine.uninstall(machine.systemd(), dry_run=True)
    assert machine.snapshot() == installed


def test_a_file_of_somebody_else_is_refused_before_anything_is_changed(machine: Machine) -> None:
    target = machine.systemd()
    theirs = next(iter(target.files))
    theirs.parent.mkdir(parents=True)
    theirs.write_text("[Socket]\n")
    before = machine.snapshot()
    for act in (machine.install, machine.uninstall):
        with pytest.raises(ServiceRefused, match="was made by somebody else; move it away first"):
            act(target)
    assert machine.snapshot() == before
    assert state_of(target)["files"] == {str(theirs): "made by somebody else"}


def test_a_file_that_was_changed_by_hand_is_not_overwritten_nor_removed(machine: Machine) -> None:
    target = machine.systemd()
    machine.install(target)
    service = list(target.files)[1]
    service.write_text(service.read_text().replace("RestartSec=1s", "RestartSec=5s"))
    before = machine.snapshot()
    for act in (machine.install, machine.uninstall):
        with pytest.raises(ServiceRefused, match=r"changed by hand .* systemctl edit runhistd\.service"):
            act(target)
    assert machine.snapshot() == before


def test_a_unit_of_a_package_is_refused(machine: Machine) -> None:
    (machine.state / "fragment").write_text("/usr/lib/systemd/user/runhistd.service\n")
    with pytest.raises(ServiceRefused, match=r"from /usr/lib/systemd/user/runhistd\.service already"):
        machine.install(machine.systemd())
    assert machine.changes() == []
    assert state_of(machine.systemd())["installed"]


def test_a_daemon_that_somebody_started_by_hand_is_not_got_in_the_way_of(machine: Machine) -> None:
    target = machine.systemd()
    target.serves.mkdir()
    with (target.serves / "runhistd.lock").open("w") as lock:
        lock.write("4711\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ServiceRefused, match=r"process 4711 serves .* already; stop it first: kill 4711"):
            machine.install(target)
        assert machine.changes() == []
        machine.install(target, now=False)
        assert state_of(target)["pid"] == 4711
    assert state_of(target)["pid"] is None


def test_a_step_that_fails_is_told_and_the_same_command_goes_on_from_there(machine: Machine) -> None:
    (machine.state / "fail").touch()
    with pytest.raises(ServiceFailed, match=r"`systemctl --user start runhistd.socket` failed with 5: no such luck"):
        machine.install(machine.systemd())
    (machine.state / "fail").unlink()
    assert machine.install(machine.systemd()) == ["run"]


def test_a_manager_that_does_not_find_the_units_is_told_of_and_all_can_be_undone(machine: Machine) -> None:
    machine.environment["UNITS"] = "/elsewhere"
    with pytest.raises(ServiceFailed, match=r"does not look for units in .*/\.config/systemd/user; .*XDG_CONFIG_HOME"):
        machine.install(machine.systemd())
    machine.uninstall(machine.systemd())
    assert list(machine.home.iterdir()) == []


def test_the_state_tells_what_is_installed_enabled_and_active(machine: Machine) -> None:
    found = state_of(machine.systemd())
    assert (found["installed"], found["enabled"], found["active"], found["files"]) == (False, False, False, {})
    assert "not installed; next: runhistd service install --enable --now" in command.state_as_text(found)
    machine.install(machine.systemd())
    found = state_of(machine.systemd())
    assert (found["installed"], found["enabled"], found["active"]) == (True, True, True)
    assert "installed, enabled, waits for clients" in command.state_as_text(found)


def test_launchd_gets_its_job_with_the_directories_that_it_needs_and_all_goes_again(machine: Machine) -> None:
    target = launchd(RUNHISTD, machine.home, 501, machine.environment)
    state = machine.home / "Library" / "Application Support" / "runhist"
    machine.environment["SOCKET_FOLDER"] = str(state)
    machine.install(target)
    assert machine.told[-1].endswith(f"launchctl bootstrap gui/501 {machine.home}/Library/LaunchAgents/dev.runhist.plist")
    assert state.stat().st_mode & 0o777 == 0o700
    (path,) = target.files
    assert plistlib.loads(path.read_bytes())["ProgramArguments"] == [str(RUNHISTD), "serve"]
    assert machine.install(target) == []
    assert state_of(target)["active"]
    machine.uninstall(target)
    assert machine.changes() == ["bootstrap", "bootout"]
    assert list(machine.home.iterdir()) == []


def test_on_macos_there_is_launchd_for_one_user_and_nothing_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    target = choose("user", RUNHISTD)
    assert [path.parts[-2:] for path in target.files] == [("LaunchAgents", files.PLIST)]
    with pytest.raises(ServiceRefused, match="no service for all users; leave --system out"):
        choose("system", RUNHISTD)


def test_a_socket_path_that_is_too_long_for_launchd_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServiceRefused, match=r"the socket path has .* bytes and the system takes"):
        launchd(RUNHISTD, tmp_path / ("d" * 100), 501)


def test_a_machine_without_systemd_is_told_what_to_do() -> None:
    if Path("/run/systemd/system").exists():
        pytest.skip("systemd runs this machine")
    with pytest.raises(ServiceRefused, match=r"systemd does not run this machine .* have what does run `/opt/.* serve`"):
        choose("user", RUNHISTD)


@pytest.mark.parametrize("action", ["install", "uninstall", "status"])
def test_the_command_refuses_in_one_sentence(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    if Path("/run/systemd/system").exists():
        pytest.skip("systemd runs this machine")
    assert cli.main(["service", action]) == 1
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert told.err.startswith("runhistd: systemd does not run this machine")


def test_the_service_for_all_users_needs_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    refuse_without_rights("user", RUNHISTD)
    with pytest.raises(ServiceRefused, match="needs root: sudo /opt/runhist/bin/runhistd service … --system"):
        refuse_without_rights("system", RUNHISTD)


@pytest.mark.parametrize("hidden", ["home", "root", "tmp"])
def test_a_command_that_the_sandbox_hides_is_refused_for_all_users(hidden: str) -> None:
    place = Path("/", hidden, "me", "bin", "runhistd")
    with pytest.raises(ServiceRefused, match=r"which the service is not let to see; install runhistd elsewhere"):
        refuse_unfit("system", place)


def test_a_command_behind_a_closed_directory_is_refused_for_all_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "HIDDEN_FROM_SYSTEM", ())
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(ServiceRefused, match=r"is closed to other users, and the service runs as one: chmod o\+x /"):
        refuse_unfit("system", closed / "bin" / "runhistd")


def test_an_environment_with_a_history_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNHIST_CONFIG", raising=False)
    monkeypatch.setenv("RUNHIST_STATE_DIR", "/elsewhere")
    with pytest.raises(ServiceRefused, match="RUNHIST_STATE_DIR is set here, and the service would not have it"):
        refuse_unfit("user", RUNHISTD)


def test_the_shipped_files_survive_their_marks(machine: Machine) -> None:
    odd = machine.home / "a--b"
    machine.environment["SOCKET_FOLDER"] = str(odd / "Library" / "Application Support" / "runhist")
    target = launchd(odd / "runhistd", odd, 501, machine.environment)
    machine.install(target)
    (path,) = target.files
    assert plistlib.loads(path.read_bytes())["Label"] == Path(files.PLIST).stem
    machine.uninstall(target)
    assert list(machine.home.iterdir()) == []
