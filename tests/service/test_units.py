"""The shipped units and the launchd job: what the machine's own tools and the manuals say of them."""

from __future__ import annotations

import os
import plistlib
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runhistd.daemon import activation, listen
from runhistd.service import files

Need = Callable[[str], str]
EXPOSURE = 0.5
FIRST_WITH_NOTIFY_RELOAD = 253
# launchd.plist(5): each key with the type of its value, as far as a job of ours could want them.
JOB_KEYS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(["Label", "Program", "WorkingDirectory", "ProcessType", "UserName", "GroupName"], (str,)),
    **dict.fromkeys(["StandardOutPath", "StandardErrorPath"], (str,)),
    **dict.fromkeys(["RunAtLoad", "Disabled", "AbandonProcessGroup", "SessionCreate", "LowPriorityIO"], (bool,)),
    **dict.fromkeys(["ThrottleInterval", "ExitTimeOut", "Nice"], (int,)),
    **dict.fromkeys(["EnvironmentVariables", "Sockets", "SoftResourceLimits", "HardResourceLimits"], (dict,)),
    "ProgramArguments": (list,),
    "KeepAlive": (bool, dict),
    "Umask": (int, str),
}
SOCKET_KEYS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(["SockType", "SockPathName", "SecureSocketWithKey"], (str,)),
    **dict.fromkeys(["SockPathMode", "SockPathOwner", "SockPathGroup"], (int,)),
    "SockPassive": (bool,),
}


@pytest.fixture(params=["system", "user"])
def scope(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def write_units(folder: Path, scope: str, version: int) -> list[str]:
    """The units with a command that exists. What an older systemd says that it ignores is left out for it."""
    for name, text in files.systemd_units(scope, Path("/bin/true")).items():
        if version < FIRST_WITH_NOTIFY_RELOAD:
            text = text.replace("Type=notify-reload\n", "")
        (folder / name).write_text(text)
    return [str(folder / name) for name in (files.SERVICE_UNIT, files.SOCKET_UNIT)]


def analyze(need: Need, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(folder), "SYSTEMD_COLORS": "0", "LC_ALL": "C"}
    return subprocess.run([need("systemd-analyze"), *words], env=environment, capture_output=True, text=True)


def version_of(need: Need, folder: Path) -> int:
    return int(analyze(need, folder, "--version").stdout.split()[1])


def test_systemd_finds_nothing_to_complain_of(need: Need, tmp_path: Path, scope: str) -> None:
    units = write_units(tmp_path, scope, version_of(need, tmp_path))
    ended = analyze(need, tmp_path, "verify", *(["--user"] if scope == "user" else []), "--recursive-errors=no", *units)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_check_sees_a_misspelled_key(need: Need, tmp_path: Path) -> None:
    service, socket = write_units(tmp_path, "system", version_of(need, tmp_path))
    Path(service).write_text(Path(service).read_text().replace("ProtectHome=", "ProtectHouse="))
    ended = analyze(need, tmp_path, "verify", "--recursive-errors=no", service, socket)
    assert "ProtectHouse" in ended.stderr
    assert ended.returncode != 0


def test_the_system_service_is_hardly_exposed(need: Need, tmp_path: Path) -> None:
    service, _ = write_units(tmp_path, "system", version_of(need, tmp_path))
    threshold = f"--threshold={round(EXPOSURE * 10)}"
    ended = analyze(need, tmp_path, "security", "--offline=true", "--no-pager", threshold, service)
    assert ended.returncode == 0, ended.stdout[-200:]
    Path(service).write_text(Path(service).read_text().replace("PrivateNetwork=yes", "PrivateNetwork=no"))
    assert analyze(need, tmp_path, "security", "--offline=true", "--no-pager", threshold, service).returncode == 1


def test_what_keeps_clients_from_being_refused_stands_in_both_units(scope: str) -> None:
    units = files.systemd_units(scope, Path("/bin/true"))
    assert "\nStartLimitIntervalSec=0\n" in units[files.SERVICE_UNIT]
    assert f"\nFileDescriptorName={activation.VARLINK_NAME}\n" in units[files.SOCKET_UNIT]
    assert f"\nBacklog={listen.BACKLOG}\n" in units[files.SOCKET_UNIT]
    assert re.search(r"\nListenStream=(/run|%t)/runhist/dev\.runhist\.History\n", units[files.SOCKET_UNIT])


@pytest.mark.parametrize(
    ("path", "written"),
    [
        ("/usr/bin/runhistd", "/usr/bin/runhistd"),
        ("/home/a b/bin/runhistd", '"/home/a b/bin/runhistd"'),
        ("/opt/50%/x", "/opt/50%%/x"),
        ('/opt/"$x"\\/y', '"/opt/\\"$x\\"\\\\/y"'),
    ],
)
def test_a_path_with_odd_characters_stays_one_word(path: str, written: str) -> None:
    service = files.systemd_units("user", Path(path))[files.SERVICE_UNIT]
    assert f"\nExecStart={written} serve\n" in service


def findings(values: dict[str, Any], known: dict[str, tuple[type, ...]]) -> list[str]:
    """What is wrong with the keys of a dictionary and the types of their values; a boolean is not a number."""
    return [key for key, value in values.items() if type(value) not in known.get(key, ())]


def test_the_launchd_job_has_known_keys_with_values_of_their_types() -> None:
    job = plistlib.loads(files.shipped_text(f"launchd/{files.PLIST}").encode())
    assert findings(job, JOB_KEYS) == []
    assert [finding for socket in job["Sockets"].values() for finding in findings(socket, SOCKET_KEYS)] == []
    assert job["Sockets"]["varlink"]["SockPathMode"] == 0o600
    assert job["Umask"] == 0o077
    assert (job["KeepAlive"], job["ProcessType"]) == (True, "Standard")
    assert findings({"KeepAlife": True, "Umask": True, "Label": 1}, JOB_KEYS) == ["KeepAlife", "Umask", "Label"]


def test_the_launchd_job_gets_absolute_paths_of_this_machine() -> None:
    plist = files.launchd_plist(Path("/opt/a&b/runhistd"), Path("/Users/jo doe"))
    job = plistlib.loads(plist)
    assert job["ProgramArguments"] == ["/opt/a&b/runhistd", "serve"]
    state = "/Users/jo doe/Library/Application Support/runhist"
    assert job["EnvironmentVariables"] == {"RUNHIST_STATE_DIR": state}
    assert job["Sockets"]["varlink"]["SockPathName"] == f"{state}/dev.runhist.History"
    assert job["StandardErrorPath"] == "/Users/jo doe/Library/Logs/runhistd.log"
    assert b"/Users/me" not in plist
