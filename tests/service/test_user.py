"""The service of one user, under a real manager of theirs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from tests.service.conftest import ASK, PLACE

if TYPE_CHECKING:
    from tests.service.box import Box

pytestmark = pytest.mark.long  # it boots machines

Wait = Callable[..., None]
USER, UID, HOME = "tester", 4711, "/home/tester"
INSTALL = f"{PLACE}/bin/runhistd service install --enable --now"
STATE = f"{HOME}/.local/state/runhist"


@pytest.fixture
def box(box: Box, wait_until: Wait) -> Box:
    """A machine with a user whose manager runs."""
    box.run(f"useradd --create-home --uid {UID} {USER}; loginctl enable-linger {USER}")
    ready = "systemctl --user is-system-running"
    wait_until(lambda: "running" in box.run(ready, USER, check=False).stdout, "the user's manager runs")
    return box


def status(box: Box) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(box.run(f"{ASK}; runhist status --json", USER).stdout)
    return found


def record(box: Box) -> None:
    box.run(f"{ASK}; runhist exec --require -- true", USER)


def main_pid(box: Box) -> int:
    return int(box.show("runhistd.service", "MainPID", USER))


def test_the_users_first_client_starts_the_daemon_which_is_reached_at_both_places(box: Box) -> None:
    told = box.run(f"{PLACE}/bin/runhistd service install", USER).stdout
    assert told.endswith("next     runhistd service install --enable --now\n")
    assert "next" not in box.run(INSTALL, USER).stdout
    assert box.show("runhistd.service", "ActiveState", USER) == "inactive"
    record(box)
    sockets = [f"/run/user/{UID}/runhist/dev.runhist.History", f"{STATE}/dev.runhist.History"]
    assert status(box)["sockets"] == sockets
    assert box.run(f"stat -c '%a %U' {' '.join(sockets)} {STATE}").stdout.split("\n")[:3] == [
        *[f"600 {USER}"] * 2,
        f"700 {USER}",
    ]
    assert box.show("runhistd.service", "StatusText", USER).startswith(f"recording in {STATE}/history.db")
    in_state = f"RUNHIST_STATE_DIR={STATE} runhist list --json"
    assert json.loads(box.run(in_state, USER).stdout)["workflow"] == "true"
    assert "waits for clients" in box.run(f"{PLACE}/bin/runhistd service status", USER).stdout


def test_the_users_daemon_is_replaced_after_a_kill_and_its_socket_stays(box: Box) -> None:
    box.run(INSTALL, USER)
    record(box)
    before, pid = status(box), main_pid(box)
    box.run(f"kill -9 {pid}; exec {ASK}", USER)
    record(box)
    found = status(box)
    assert found["position"] > before["position"]
    assert found["instance_id"] == before["instance_id"]


def test_a_reload_of_the_users_daemon_takes_their_settings_over(box: Box, wait_until: Wait) -> None:
    box.run(INSTALL, USER)
    record(box)
    pid = main_pid(box)
    box.run("mkdir -p .config/runhist; printf '[daemon]\\nlog_level = \"debug\"\\n' >.config/runhist/config.toml", USER)
    box.run("systemctl --user reload runhistd", USER)
    told = "journalctl --no-pager --output=cat _SYSTEMD_USER_UNIT=runhistd.service"
    wait_until(lambda: "key=daemon.log_level value=debug" in box.run(told).stdout, "the change is logged")
    assert main_pid(box) == pid


def test_what_a_user_installed_is_undone_exactly_and_the_history_stays(box: Box) -> None:
    everything = "find ~ -not -path '*/.local*' | sort"
    before = box.run(everything, USER).stdout
    would = box.run(f"{INSTALL} --dry-run", USER).stdout
    assert box.run(everything, USER).stdout == before
    told = box.run(INSTALL, USER).stdout
    assert would == "".join(
        line + "\n" if line.startswith("note") else f"would {line}\n" for line in told.splitlines()
    )
    record(box)
    undone = box.run(f"{PLACE}/bin/runhistd service uninstall", USER).stdout
    assert undone.splitlines()[-1] == f"kept     {STATE}, where the history is"
    assert box.run(everything, USER).stdout == before
    assert box.run(f"test -e /run/user/{UID}/runhist/dev.runhist.History", check=False).returncode == 1
    assert box.run(f"{PLACE}/bin/runhistd service status", USER, check=False).returncode == 1


def test_a_daemon_that_was_started_by_hand_is_named_and_nothing_is_installed(box: Box, wait_until: Wait) -> None:
    box.run(f"nohup {PLACE}/bin/runhistd serve >/dev/null 2>&1 & sleep 0", USER)
    wait_until(lambda: box.run("runhist status", USER, check=False).returncode == 0, "it answers")
    pid = status(box)["pid"]
    ended = box.run(INSTALL, USER, check=False)
    assert ended.returncode == 1
    assert ended.stderr == f"runhistd: process {pid} serves {STATE} already; stop it first: kill {pid}\n"
    assert box.run(f"test -e {HOME}/.config/systemd", check=False).returncode == 1


def test_without_a_manager_of_ones_own_or_rights_the_refusal_says_what_to_do(box: Box) -> None:
    box.run("useradd --create-home lonely")
    told = box.run(f"runuser -u lonely -- {INSTALL}", check=False)
    assert told.returncode == 1
    assert "log in as that user, not by su or sudo, or let it always run: loginctl enable-linger" in told.stderr
    told = box.run(f"{INSTALL} --system", USER, check=False)
    assert told.returncode == 1
    assert f"needs root: sudo {PLACE}/bin/runhistd service … --system" in told.stderr
