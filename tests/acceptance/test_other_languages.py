"""Clients that are not ours: a Node program without packages, a shell with socat, and stock clients of varlink."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from asyncvarlink import VarlinkClientProtocol, VarlinkMethodCall, connect_unix_varlink

from tests.acceptance.test_append import UUID, begin, connect, request

if TYPE_CHECKING:
    from tests.conftest import Daemon

EXAMPLES = Path(__file__).parents[2] / "client" / "examples"
DEADLINE_S = 60


def run(command: Sequence[str | Path], env: dict[str, str], status: int = 0) -> str:
    """What the command prints; it must end with that status."""
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=DEADLINE_S, stdin=subprocess.DEVNULL, check=False
    )
    assert done.returncode == status, (done.stdout, done.stderr)
    return done.stdout + done.stderr


def test_a_node_program_without_packages_begins_appends_and_follows(daemon: Daemon, need: Callable[[str], str]) -> None:
    node = need("node")
    daemon.start()
    with connect(daemon) as connection:
        begin(connection, "another")
        printed = run([node, EXAMPLES / "node.mjs", daemon.socket], daemon.env).splitlines()
        (found,) = connection.call("ListRuns", {"workflow": "node"})["runs"]
        assert (found["status"], found["title"], found["last_seq"]) == ("completed", "From Node", 4)
    assert "stored up to seq 4" in printed
    followed = [line for line in printed if line[0].isdigit()]
    assert [line.split()[:2] for line in followed] == [
        ["1", "run.started"],
        ["2", "output"],
        ["3", "output"],
        ["4", "run.completed"],
    ]
    assert json.loads(followed[1].split(maxsplit=2)[2]) == {"text": "Grüße aus Node"}


def test_the_node_program_says_what_the_daemon_refused_and_that_it_is_not_there(
    daemon: Daemon, need: Callable[[str], str], tmp_path: Path
) -> None:
    node = need("node")
    assert "lost" in run([node, EXAMPLES / "node.mjs", tmp_path / "nobody"], daemon.env, 1)
    program = (EXAMPLES / "node.mjs").read_text("utf-8").replace("lease_key: randomUUID()", 'lease_key: "no UUID"')
    changed = tmp_path / "changed.mjs"
    changed.write_text(program, "utf-8")
    daemon.start()
    assert 'InvalidParameter {"parameter":"lease_key"}' in run([node, changed, daemon.socket], daemon.env, 1)


def test_a_shell_calls_by_hand_with_socat(daemon: Daemon, need: Callable[[str], str]) -> None:
    need("socat")
    daemon.start()
    with connect(daemon) as connection:
        epoch = begin(connection, "r")
    script = str(EXAMPLES / "call.sh")
    appended = run(["sh", script, "Append", json.dumps(request("r", epoch, 1))], daemon.env)
    assert json.loads(appended)["parameters"]["stored"] == 1
    assert json.loads(run(["sh", script, "ListRuns"], daemon.env))["parameters"]["total"] == 1
    refused = run(["sh", script, "GetRun", '{"run_id": "nobody"}'], daemon.env, 1)
    assert json.loads(refused)["error"] == "dev.runhist.History.NoSuchRun"


async def ask(protocol: VarlinkClientProtocol, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
    answer = await protocol.call(VarlinkMethodCall(f"dev.runhist.History.{method}", parameters))
    assert answer is not None
    reply, _ = answer
    assert reply.error is None, reply
    return reply.parameters


def test_asyncvarlink_pipelines_its_calls_and_follows(daemon: Daemon) -> None:
    daemon.start()

    async def main() -> None:
        transport, protocol = await connect_unix_varlink(VarlinkClientProtocol, daemon.socket)
        epoch = (await ask(protocol, "BeginRun", {"run": {"run_id": "r"}, "lease_key": UUID.format(0)}))["epoch"]
        appends = (ask(protocol, "Append", request("r", epoch, n)) for n in range(1, 201))
        receipts = await asyncio.gather(*appends, ask(protocol, "GetRun", {"run_id": "r"}))
        assert [receipt["last_seq"] for receipt in receipts[:200]] == list(range(2, 202))
        assert receipts[200]["run"]["last_seq"] == 201
        seen: list[int] = []
        follow = VarlinkMethodCall("dev.runhist.History.Follow", {"cursor": {"position": 0}}, more=True)
        async for reply, _ in protocol.call_more(follow):
            items: Any = reply.parameters["items"]
            seen += [item["event"]["seq"] for item in items]
            if len(seen) == 201:
                break
        assert seen == list(range(1, 202))
        protocol.close()
        transport.close()
        await asyncio.sleep(0)

    asyncio.run(main())


def test_varlinkctl_reads_the_interface_calls_and_follows(daemon: Daemon) -> None:
    varlinkctl = shutil.which("varlinkctl")
    if varlinkctl is None:
        pytest.skip("varlinkctl is not installed (systemd 255 or newer has it, Debian 12 does not)")
    daemon.start()
    with connect(daemon) as connection:
        begin(connection, "r")
    address = f"unix:{daemon.socket}"
    env = {**os.environ, **daemon.env}
    assert "method BeginRun" in run([varlinkctl, "introspect", address, "dev.runhist.History"], env)
    listed = run([varlinkctl, "call", "-j", address, "dev.runhist.History.ListRuns", "{}"], env)
    assert json.loads(listed)["runs"][0]["run_id"] == "r"
    events = run([varlinkctl, "call", "--more", "-j", address, "dev.runhist.History.GetEvents", '{"run_id":"r"}'], env)
    assert "run.started" in events
