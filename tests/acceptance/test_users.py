"""The system's daemon, and three real users: everybody has a history of his own, and another's does not exist for him."""

from __future__ import annotations

import grp
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runhist.paths import SOCKET_NAME

if TYPE_CHECKING:
    from tests.conftest import Daemon

ANNA, BERT, CARL = 61001, 61002, 61003
GROUP = grp.getgrgid(grp.getgrall()[-1].gr_gid)
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be several users")
# Other users may not be able to start this interpreter or to read its modules: all are imported before root becomes one.
BECOME = """
import ast, encodings.idna, importlib, json, locale, os, pkgutil, pwd, runhist, runhist.cli, shlex, shutil, sys, traceback
from pathlib import Path
for module in pkgutil.walk_packages(runhist.__path__, "runhist."):
    if not module.name.endswith("__main__") and ".aio" not in module.name:
        importlib.import_module(module.name)
from runhist.connection import Connection
from runhist.paths import SocketChoice
from runhist.protocol.errors import RunhistError
uid, groups = int(sys.argv[1]), json.loads(sys.argv[2])
os.setgroups(groups)
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
del sys.argv[1:3]
def connected():
    return Connection.open(SocketChoice((Path(os.environ["RUNHIST_SOCKET"]),), "a test", True))
"""
CALL = """
with connected() as connection:
    for line in sys.stdin:
        method, parameters = json.loads(line)
        try:
            answer = connection.call(method, parameters)
        except RunhistError as error:
            answer = {"error": type(error).__name__}
        print(json.dumps(answer), flush=True)
"""
FOLLOW = """
with connected() as connection:
    for reply in connection.stream("Follow", {"cursor": {"position": 0}, "heartbeat_us": 1000, **json.loads(sys.argv[1])}):
        for item in reply["items"]:
            print(item["event"]["run_id"], flush=True)
        if reply["cursor"]["position"] >= 2:
            break
"""
CLI = "from runhist.cli.main import main; sys.exit(main())"
KNOCK = """
import socket
with socket.socket(socket.AF_UNIX) as peer:
    peer.connect(os.environ["RUNHIST_SOCKET"])
    print(peer.recv(1000))
"""


def as_user(uid: int, code: str, *words: str, groups: list[int] | None = None) -> list[str]:
    """The command of a process of that user."""
    return [sys.executable, "-c", BECOME + code, str(uid), json.dumps(groups or []), *words]


class User:
    """A process of that user with one connection."""

    def __init__(self, uid: int, system: System, groups: list[int] | None = None) -> None:
        self.uid = uid
        self._process = subprocess.Popen(
            as_user(uid, CALL, groups=groups),
            env=system.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def call(self, method: str, **parameters: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([method, parameters]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def begin(self, run_id: str, **members: Any) -> Any:
        return self.call("BeginRun", run={"run_id": run_id, **members}, lease_key=f"00000000-0000-0000-0000-{self.uid:012}")

    def runs(self, **wanted: Any) -> list[str]:
        return [run["run_id"] for run in self.call("ListRuns", **wanted)["runs"]]

    def end(self) -> None:
        self._process.communicate(timeout=60)


class System:
    """A system's daemon at a socket that anybody may connect to."""

    def __init__(self, daemon: Daemon, directory: Path) -> None:
        self.daemon = daemon
        self.socket = directory / SOCKET_NAME
        directory.chmod(0o755)
        self.env = {**daemon.env, "RUNHIST_SOCKET": str(self.socket)}
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.socket))
        self._listener.listen()
        self.socket.chmod(0o666)
        self._users: list[User] = []

    def start(self) -> None:
        self.daemon.config_file.write_text(f'[daemon]\nadmin_group = "{GROUP.gr_name}"\n')
        code = f"""
import os, sys
os.dup2({self._listener.fileno()}, 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, "-m", "runhistd", "serve", "--system"])
"""
        with self.daemon.log_file.open("ab") as log:
            self.daemon.process = subprocess.Popen(
                [sys.executable, "-c", code],
                env=self.daemon.env,
                pass_fds=[self._listener.fileno()],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def user(self, uid: int, groups: list[int] | None = None) -> User:
        self._users.append(User(uid, self, groups))
        return self._users[-1]

    def close(self) -> None:
        for user in self._users:
            user.end()
        self._listener.close()


@pytest.fixture
def system(daemon: Daemon) -> Iterator[System]:
    directory = Path(tempfile.mkdtemp(prefix="rh"))
    made = System(daemon, directory)
    made.start()
    yield made
    made.close()
    shutil.rmtree(directory)


def test_the_same_name_is_another_run_for_every_user(system: System) -> None:
    users = [system.user(uid) for uid in (ANNA, BERT, CARL)]
    begun = [user.begin("r", title=str(user.uid)) for user in users]
    assert len({answer["epoch"] for answer in begun}) == 3
    for user in users:
        found = user.call("GetRun", run_id="r")["run"]
        assert (found["title"], found["uid"]) == (str(user.uid), user.uid)
        assert user.runs() == ["r"] and user.call("ListRuns")["total"] == 1


def test_what_belongs_to_another_is_as_if_it_did_not_exist(system: System) -> None:
    anna, bert = system.user(ANNA), system.user(BERT)
    epoch = anna.begin("secret", title="of anna")["epoch"]
    content = anna.call("PutBlob", upload="u", offset=0, base64="YWJj", done=True)["sha256"]
    event = {"type": "artifact", "key": "a", "data": {"name": "a", "path": "a", "sha256": content, "size": 3}}
    assert anna.call("Append", run_id="secret", epoch=epoch, events=[event])["stored"] == 1
    name, note = {"run_id": "secret"}, {"type": "note", "key": "k"}
    unknown = {"run_id": "never there"}
    key = "00000000-0000-0000-0000-000000000009"
    for method, parameters in (
        ("GetRun", {}),
        ("GetSteps", {}),
        ("GetUsage", {}),
        ("GetEvents", {}),
        ("GetArtifacts", {}),
        ("GetBlob", {"sha256": content}),
        ("Append", {"epoch": epoch, "events": [note]}),
        ("Append", {"events": [{"type": "note", "kind": "gate.answered", "key": "k", "data": {"gate_seq": 1}}]}),
        ("Publish", {"epoch": epoch, "events": [{"type": "delta"}]}),
        ("ClaimRun", {"lease_key": key, "takeover": True}),
        ("ReleaseRun", {"epoch": epoch}),
        ("PinRun", {}),
        ("UnpinRun", {}),
        ("DeleteRun", {}),
    ):
        refused = bert.call(method, **name, **parameters)
        assert refused == bert.call(method, **unknown, **parameters), method  # and nothing tells the two apart
        if method != "DeleteRun":
            assert "error" in refused, method
    assert bert.runs() == [] and bert.call("ListRuns", name="secret")["runs"] == []
    assert bert.call("ListInterrupted")["runs"] == [] and bert.call("CollectGarbage", dry_run=True)["decisions"] == []
    assert bert.call("GetStatus")["runs"] == []
    assert anna.call("GetRun", run_id="secret")["run"]["status"] == "running"
    assert [run["title"] for run in anna.call("ListRuns")["runs"]] == ["of anna"]


def test_nobody_is_made_the_owner_of_a_run_by_another_user(system: System) -> None:
    anna, bert = system.user(ANNA), system.user(BERT)
    theirs = anna._process.pid
    lease = {"lease_key": "00000000-0000-0000-0000-000000000001", "owner_pid": theirs, "caller_pid": bert._process.pid}
    assert bert.call("BeginRun", run={"run_id": "r"}, **lease) == {"error": "InvalidParameter"}


def test_a_follower_is_told_of_its_own_users_events_only(system: System) -> None:
    anna, bert = system.user(ANNA), system.user(BERT)
    anna.begin("a")
    bert.begin("b")

    def followed(user: int, **wanted: Any) -> str:
        command = as_user(user, FOLLOW, json.dumps(wanted))
        return subprocess.run(command, env=system.env, capture_output=True, text=True).stdout

    assert (followed(ANNA), followed(BERT), followed(CARL)) == ("a\n", "b\n", "")
    assert followed(0, uid=BERT) == "b\n"


def test_only_root_and_the_admin_group_see_all_and_they_change_nothing(system: System) -> None:
    anna, bert = system.user(ANNA), system.user(BERT)
    epoch = anna.begin("a")["epoch"]
    bert.begin("b")
    for refused in (bert.call("ListRuns", all_users=True), bert.call("GetRun", run_id="a", uid=ANNA)):
        assert refused == {"error": "PermissionDenied"}
    assert bert.runs(uid=BERT) == ["b"]
    for admin in (system.user(0), system.user(CARL, [GROUP.gr_gid])):
        listed = admin.call("ListRuns", all_users=True)
        assert [(run["run_id"], run["uid"]) for run in listed["runs"]] == [("b", BERT), ("a", ANNA)]
        assert listed["total"] == 2 and admin.runs(all_users=True, status=["failed"]) == []
        assert admin.runs() == [] and admin.runs(uid=ANNA) == ["a"]
        assert admin.call("GetRun", run_id="a", uid=ANNA)["run"]["owner_pid"] == anna._process.pid
        assert len(admin.call("GetEvents", run_id="a", uid=ANNA)["events"]) == 1
        assert admin.call("ListRuns", all_users=True, name="a") == {"error": "InvalidParameter"}
        note = {"type": "note", "key": "k"}
        assert admin.call("Append", run_id="a", epoch=epoch, events=[note]) == {"error": "NoSuchRun"}
        assert admin.call("PinRun", run_id="a") == {"error": "NoSuchRun"}


def test_the_admins_command_line(system: System) -> None:
    anna = system.user(ANNA)
    epoch = anna.begin("run-of-anna", workflow="nightly")["epoch"]
    large = {"type": "large", "key": "k", "data": {"text": "x" * 100_000}}
    anna.call("Append", run_id="run-of-anna", epoch=epoch, events=[large])

    def runhist(*words: str, uid: int = 0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(as_user(uid, CLI, *words), env=system.env, capture_output=True, text=True)

    titles, line = runhist("list", "--all-users").stdout.splitlines()
    assert titles.split()[1] == "USER" and line.split()[1] == str(ANNA)
    assert json.loads(runhist("list", "--user", str(ANNA), "--json").stdout)["run_id"] == "run-of-anna"
    assert "run-of-anna" in runhist("show", "anna", "--user", str(ANNA)).stdout
    printed = runhist("logs", "@last", "--user", str(ANNA)).stdout
    assert "nightly" in printed and "x" * 100_000 in printed
    assert runhist("show", "anna").returncode == 3
    refused = runhist("list", "--all-users", uid=BERT)
    assert refused.returncode == 4 and "only root and its admin group see" in refused.stderr
    assert runhist("show", "anna", "--user", "nobody at all").returncode == 2


def test_an_owner_of_another_user_is_seen_to_die(system: System, wait_until: Callable[..., None]) -> None:
    anna, watcher = system.user(ANNA), system.user(ANNA)
    anna.begin("r")
    anna._process.kill()
    anna.end()
    wait_until(lambda: watcher.call("GetRun", run_id="r")["run"]["status"] == "incomplete", "the verdict")
    detail = watcher.call("GetRun", run_id="r")["detail"]
    assert detail["evidence"]["by"] == "pidfd"


def test_a_users_own_daemon_serves_that_user_and_root_alone(daemon: Daemon) -> None:
    daemon.start()
    for path in (daemon.socket, *daemon.socket.parents):  # whatever the modes: the peer's credentials are looked at as well
        if path.stat().st_uid == 0 and not path.stat().st_mode & 1:
            path.chmod(path.stat().st_mode | 0o111)
    daemon.socket.chmod(0o666)
    env = {**daemon.env, "RUNHIST_SOCKET": str(daemon.socket)}
    told = subprocess.run(as_user(ANNA, KNOCK), env=env, capture_output=True, text=True)
    assert "PermissionDenied" in told.stdout, told.stderr
