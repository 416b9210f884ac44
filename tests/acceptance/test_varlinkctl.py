"""systemd's own varlink client, which checks every reply against the interface, where there is one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.conftest import Daemon

INTERFACE = "dev.runhist.History"


class Control:
    """`varlinkctl` at a daemon's socket."""

    def __init__(self, tool: str, daemon: Daemon) -> None:
        self._tool = tool
        self._address = f"unix:{daemon.socket}"

    def run(self, command: str, *words: str) -> subprocess.CompletedProcess[str]:
        line = [self._tool, "--no-pager", "--json=short", command, self._address, *words]
        return subprocess.run(line, capture_output=True, text=True, timeout=60)

    def call(self, method: str, **parameters: object) -> Any:
        ended = self.run("call", f"{INTERFACE}.{method}", json.dumps(parameters))
        assert (ended.returncode, ended.stderr) == (0, ""), ended.stderr
        return json.loads(ended.stdout)


@pytest.fixture
def control(daemon: Daemon) -> Control:
    tool = shutil.which("varlinkctl")
    if tool is None:
        pytest.skip("varlinkctl comes with systemd 257, which Debian has from 13 on")
    daemon.start()
    command = [sys.executable, "-m", "runhist.cli.main", "exec", "--require", "--agent", "a", "--", "sh", "-c", "echo hi"]
    subprocess.run(command, env=daemon.env, check=True, capture_output=True)
    return Control(tool, daemon)


def test_it_reads_the_interface(control: Control) -> None:
    assert f"interface {INTERFACE}" in control.run("introspect", INTERFACE).stdout
    assert INTERFACE in control.run("list-interfaces").stdout


def test_it_finds_nothing_to_complain_of_in_the_replies(control: Control) -> None:
    (run,) = control.call("ListRuns")["runs"]
    assert run["agent_id"] == "a"
    name = {"namespace": run["namespace"], "run_id": run["run_id"]}
    for method in ("GetRun", "GetSteps", "GetUsage", "GetArtifacts"):
        control.call(method, **name)
    for method in ("Describe", "GetStatus", "ListInterrupted"):
        control.call(method)
    assert [event["seq"] for event in control.call("GetEvents", **name)["events"]] == [1, 2, 3]
    assert control.call("CollectGarbage", dry_run=True)["decisions"] == []


def test_it_tells_a_refusal_by_its_name(control: Control) -> None:
    ended = control.run("call", f"{INTERFACE}.GetRun", '{"run_id": "nope"}')
    assert ended.returncode != 0
    assert f"{INTERFACE}.NoSuchRun" in ended.stderr
