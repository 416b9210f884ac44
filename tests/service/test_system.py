"""The service for all users under a real systemd: the shipped units, the installed wheels, and what happens to both."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

import runhist
from tests.service.conftest import ASK, OLD_VERSION, PLACE

if TYPE_CHECKING:
    from tests.service.box import Box

pytestmark = pytest.mark.long  # it boots machines

Wait = Callable[..., None]
SOCKET = "/run/runhist/dev.runhist.History"
STATE = "/var/lib/private/runhist"
CONFIG = "/etc/runhist/config.toml"
UNITS = ("/etc/systemd/system/runhistd.socket", "/etc/systemd/system/runhistd.service")
WRITERS, EVENTS = 3, 400
# Records notes for as long as there is no /run/enough, at least EVENTS, and tells how many were acknowledged.
WRITER = f"""
import pathlib, sys
import runhist
with runhist.connect().begin_run(run_id=sys.argv[1], workflow="load") as run:
    sent = 0
    while sent < {EVENTS} or not pathlib.Path("/run/enough").exists():
        sent += 1
        run.append("note", {{"i": sent}})
        if sent % 20 == 0:
            run.flush()
            if sent == 20:
                pathlib.Path("/run/begun-" + sys.argv[1]).touch()
    receipt = run.flush()
print(sent, receipt.durable, run.faults)
"""
# What the daemon's sandbox lets a program do; what it says is JSON.
PROBE = """
import ctypes, json, mmap, os, pathlib, socket
def tried(act):
    try:
        act()
        return "done"
    except Exception as error:
        return type(error).__name__
libc = ctypes.CDLL(None, use_errno=True)
def unshare():
    if libc.unshare(0x10000000):
        raise OSError(ctypes.get_errno(), "")
print(json.dumps({
    "write /etc": tried(lambda: pathlib.Path("/etc/written").write_text("")),
    "write /usr": tried(lambda: pathlib.Path("/usr/written").write_text("")),
    "TCP": tried(lambda: socket.socket(socket.AF_INET)),
    "netlink": tried(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)),
    "home": tried(lambda: list(pathlib.Path("/home/other").iterdir())),
    "root": tried(lambda: list(pathlib.Path("/root").iterdir())),
    "user namespace": tried(unshare),
    "write and execute": tried(lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)),
    "others in /proc": tried(lambda: os.stat("/proc/1/stat")),
    "boot id": tried(lambda: pathlib.Path("/proc/sys/kernel/random/boot_id").read_text()),
    "own state": tried(lambda: pathlib.Path(os.environ["RUNHIST_STATE_DIR"], "probe").write_text("")),
    "Unix": tried(lambda: socket.socket(socket.AF_UNIX)),
    "root's rights": int(next(line for line in open("/proc/self/status") if line.startswith("CapBnd")).split()[1], 16),
    "is root": os.geteuid() == 0,
}), flush=True)
"""


def start_service(box: Box) -> Box:
    box.run(f"{PLACE}/bin/runhistd service install --system --enable --now")
    return box


def drop_in(box: Box, text: str) -> None:
    box.write("/etc/systemd/system/runhistd.service.d/test.conf", f"[Service]\n{text}\n")
    box.run("systemctl daemon-reload")


def status(box: Box) -> dict[str, Any]:
    """What the daemon says of itself, asked by a client."""
    found: dict[str, Any] = json.loads(box.run(f"{ASK}; runhist status --json || true").stdout)
    return found


def record(box: Box, title: str) -> None:
    box.run(f"{ASK}; runhist exec --require --title {title} -- echo {title}")


def titles(box: Box) -> set[str]:
    listed = box.run("runhist list --json").stdout.splitlines()
    return {json.loads(line)["title"] for line in listed}


def verify(box: Box) -> None:
    """The history agrees with its events."""
    told = box.run(f"RUNHIST_STATE_DIR={STATE} runhistd verify --json").stdout
    assert json.loads(told.splitlines()[-1])["differences"] == 0


def main_pid(box: Box) -> int:
    return int(box.show("runhistd.service", "MainPID"))


def test_the_first_client_starts_the_daemon(box: Box) -> None:
    start_service(box)
    assert box.show("runhistd.service", "ActiveState") == "inactive"
    record(box, "first")
    assert box.show("runhistd.service", "ActiveState") == "active"
    assert SOCKET in status(box)["sockets"]
    assert box.show("runhistd.service", "StatusText").startswith(f"recording in {STATE}/history.db, position ")
    assert "served by process" in box.run(f"{PLACE}/bin/runhistd service status --system").stdout


def test_whoever_connects_right_after_a_kill_is_served_and_positions_go_on(box: Box) -> None:
    start_service(box)
    record(box, "before")
    before, pid = status(box), main_pid(box)
    box.run(f"kill -9 {pid}; exec {ASK}")
    record(box, "after")
    found = status(box)
    assert found["position"] > before["position"]
    assert found["instance_id"] == before["instance_id"]
    assert main_pid(box) != pid
    assert titles(box) == {"before", "after"}
    verify(box)


def test_a_frozen_daemon_is_killed_and_the_next_one_goes_on(box: Box) -> None:
    start_service(box)
    drop_in(box, "WatchdogSec=1s")
    record(box, "before")
    pid = main_pid(box)
    box.run(f"kill -STOP {pid}")
    record(box, "after")
    assert main_pid(box) != pid
    assert "Failed with result 'watchdog'" in box.journal("runhistd.service")
    assert titles(box) == {"before", "after"}
    verify(box)


def test_a_working_daemon_is_left_alone_by_the_watchdog(box: Box) -> None:
    start_service(box)
    drop_in(box, "WatchdogSec=1s")
    record(box, "before")
    pid = main_pid(box)
    box.run("sleep 4")  # idle for much longer than the watchdog waits
    assert main_pid(box) == pid


def test_a_reload_takes_changed_settings_over_without_a_restart(box: Box, wait_until: Wait) -> None:
    start_service(box)
    record(box, "before")
    pid = main_pid(box)
    box.write(CONFIG, "[limits]\nevent_bytes = 4096\n")
    box.run("systemctl reload runhistd")
    wait_until(lambda: "key=limits.event_bytes" in box.journal("runhistd.service"), "the change is logged")
    assert box.show("runhistd.service", "ActiveState") == "active"
    box.write(CONFIG, "[limits]\nevent_bytes = 1\n")
    box.run("systemctl reload runhistd")
    wait_until(lambda: status(box)["config"]["faults"], "the fault is told")
    assert main_pid(box) == pid


def test_crashing_starts_do_not_close_the_socket(box: Box, wait_until: Wait) -> None:
    start_service(box)
    drop_in(box, "RestartSec=100ms")
    box.write(CONFIG, "nonsense = 1\n")
    box.run("systemctl start --no-block runhistd.service")
    wait_until(lambda: int(box.show("runhistd.service", "NRestarts")) > 6, "it was started again and again", 90)
    assert box.show("runhistd.socket", "ActiveState") == "active"
    told = "failing  the daemon ends again and again; see: journalctl --system --unit=runhistd.service\n"
    stands = f"{PLACE}/bin/runhistd service status --system"
    wait_until(lambda: told in box.run(stands, check=False).stdout, "the status tells of it")
    waiting = box.start(ASK)
    box.run(f"rm {CONFIG}")
    told, _ = waiting.communicate(timeout=120)
    assert (waiting.returncode, told) == (0, "")


def test_the_sandbox_denies_what_a_history_has_no_use_for(box: Box) -> None:
    start_service(box)
    box.write("/home/other/secret", "")
    box.write("/opt/probe", PROBE)
    drop_in(box, f"Type=oneshot\nRestart=no\nExecStart=\nExecStart={PLACE}/bin/python /opt/probe")
    box.run("systemctl start runhistd.service", check=False)
    told = next(line for line in box.journal("runhistd.service").splitlines() if line.startswith("{"))
    assert json.loads(told) == {
        "write /etc": "OSError",
        "write /usr": "OSError",
        "TCP": "OSError",
        "netlink": "OSError",
        "home": "PermissionError",
        "root": "PermissionError",
        "user namespace": "PermissionError",
        "write and execute": "PermissionError",
        "others in /proc": "FileNotFoundError",
        "boot id": "FileNotFoundError",
        "own state": "done",
        "Unix": "done",
        "root's rights": 0,
        "is root": False,
    }


def test_in_the_sandbox_the_dead_are_found_and_the_living_are_left_alone(box: Box, wait_until: Wait) -> None:
    start_service(box)

    def found(name: str) -> Any:
        return json.loads(box.run("runhist list --json").stdout or "{}").get(name)

    owner = box.start(f"{ASK}; echo $$; exec runhist exec --require -- sleep 1000")
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    wait_until(lambda: found("status") == "running", "it runs")
    box.run(f"kill -9 {main_pid(box)}; {ASK}")
    assert found("status") == "running"
    box.run(f"kill -9 {pid}")
    owner.communicate()
    wait_until(lambda: found("status") == "incomplete", "it is found dead")
    assert re.search(rf"owner +pid {pid} exited, seen .* by pidfd\n", box.run("runhist show @last").stdout)
    # And whoever looks for the run in the journal finds that, without the daemon's other lines.
    logged = box.run(f"journalctl --no-pager --output=json RUNHIST_RUN={found('run_id')}").stdout.splitlines()
    (line,) = map(json.loads, logged)
    assert (line["RUNHIST_PEER_PID"], line["RUNHIST_EVIDENCE"], line["PRIORITY"]) == (str(pid), "exited", "6")
    assert line["_SYSTEMD_UNIT"] == "runhistd.service"
    assert line["MESSAGE"].startswith('msg="the process that held a run is dead" logger=liveness ')


def start_load(box: Box, wait_until: Wait) -> list[Any]:
    """Writers that have begun, and go on until /run/enough is there."""
    box.write("/opt/writer", WRITER)
    writers = [box.start(f"exec {PLACE}/bin/python /opt/writer w{number}") for number in range(WRITERS)]
    begun = f"test $(ls /run/begun-* | wc -l) = {WRITERS}"
    wait_until(lambda: box.run(begun, check=False).returncode == 0, "all writers have begun", 60)
    return writers


def end_load(box: Box, writers: list[Any]) -> None:
    """Let them end, and hold the history against what they were told."""
    box.run("touch /run/enough")
    for number, writer in enumerate(writers):
        told, _ = writer.communicate(timeout=120)
        sent = re.fullmatch(r"(\d+) committed 0\n", told)
        assert sent, told
        events = box.run(f"runhist logs --json w{number}").stdout.splitlines()
        notes = [json.loads(line)["data"]["i"] for line in events if json.loads(line)["type"] == "note"]
        assert notes == list(range(1, int(sent[1]) + 1))
    verify(box)


def test_a_stop_under_load_is_clean_and_nothing_that_was_acknowledged_is_lost(box: Box, wait_until: Wait) -> None:
    start_service(box)
    writers = start_load(box, wait_until)
    box.run("systemctl stop runhistd.socket runhistd.service")
    assert box.show("runhistd.service", "Result") == "success"
    assert "msg=stopped" in box.journal("runhistd.service")
    assert box.run(f"ls {STATE}/history.db-wal", check=False).returncode != 0  # all is in the database itself
    assert box.run(f"test -e {SOCKET}", check=False).returncode != 0
    box.run("systemctl start runhistd.socket")
    end_load(box, writers)


def test_an_upgrade_while_clients_write_loses_nothing(box: Box, wait_until: Wait) -> None:
    box.run(f"ln -sfn old {PLACE}")
    start_service(box)
    writers = start_load(box, wait_until)
    assert status(box)["version"] == OLD_VERSION
    box.run(f"ln -sfn new {PLACE}")
    box.run(f"{PLACE}/bin/runhistd service install --system --enable --now; systemctl restart runhistd.service")
    assert status(box)["version"] == runhist.__version__
    end_load(box, writers)


def test_what_was_installed_is_undone_exactly_and_the_history_stays(box: Box) -> None:
    everything = "cd /etc/systemd; find . | sort; systemctl list-unit-files --no-legend 'runhist*' || true"
    before = box.run(everything).stdout
    start_service(box)
    record(box, "kept")
    again = box.run(f"{PLACE}/bin/runhistd service install --system --enable --now").stdout
    assert again == "systemd (system): all is as it should be\n"
    box.run(f"{PLACE}/bin/runhistd service status --system")
    told = box.run(f"{PLACE}/bin/runhistd service uninstall --system").stdout
    assert told.splitlines()[-1] == f"kept     {STATE}, where the history is"
    assert box.run(everything).stdout == before
    assert box.run(f"test -e {SOCKET}", check=False).returncode != 0
    start_service(box)
    assert titles(box) == {"kept"}


def test_the_units_of_a_package_are_refused(box: Box) -> None:
    box.run(f"cp {PLACE}/lib/python*/site-packages/runhistd/units/systemd/system/* /usr/lib/systemd/system/")
    box.run("systemctl daemon-reload")
    ended = box.run(f"{PLACE}/bin/runhistd service install --system", check=False)
    assert ended.returncode == 1
    assert "/lib/systemd/system/runhistd.service already" in ended.stderr
    assert box.run(f"ls {' '.join(UNITS)}", check=False).returncode != 0


def test_three_users_of_one_machine_see_their_own_runs_only(box: Box) -> None:
    start_service(box)
    users = ("ann", "ben", "eve")
    box.run("groupadd watchers; " + "; ".join(f"useradd --create-home {user}" for user in users))
    box.run("usermod --append --groups watchers eve")
    box.write(CONFIG, '[daemon]\nadmin_group = "watchers"\n')
    runs = {}
    for user in users:
        box.run(f"{ASK}; runhist exec --require --title of-{user} -- true", user)
        (line,) = map(json.loads, box.run("runhist list --json", user).stdout.splitlines())
        assert line["title"] == f"of-{user}"
        runs[user] = line["run_id"]
    assert box.run(f"runhist show {runs['ann']}", "ben", check=False).returncode == 3  # no such run
    assert "was not there" in box.run(f"runhist rm --yes {runs['ann']}", "ben").stdout
    for who in ("eve", None):
        seen = box.run("runhist list --all-users --json", who).stdout.splitlines()
        assert {json.loads(line)["title"] for line in seen} == {f"of-{user}" for user in users}
    assert box.run("runhist list --all-users", "ben", check=False).returncode == 4  # refused


def test_in_the_sandbox_a_script_of_another_user_owns_its_run_and_is_found_dead(box: Box, wait_until: Wait) -> None:
    start_service(box)
    box.run("useradd --create-home ann")
    box.run(ASK)
    script = 'eval "$(runhist begin --owner-pid $$ --title script)"; echo $$; exec sleep 1000'
    shell = box.start(script, "ann")
    assert shell.stdout is not None
    pid = int(shell.stdout.readline())

    def status_of_it() -> str:
        return str(json.loads(box.run("runhist list --json", "ann").stdout)["status"])

    assert status_of_it() in ("pending", "running")
    box.run(f"kill -9 {main_pid(box)}; {ASK}")
    assert status_of_it() in ("pending", "running")
    box.run(f"kill -9 {pid}")
    shell.communicate()
    wait_until(lambda: status_of_it() == "incomplete", "it is found dead")
