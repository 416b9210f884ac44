"""What is done differently on macOS, as far as that can be shown elsewhere: with the answers that its manual promises."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from runhist import paths

# sysctl(3) and sysctlbyname(3) for one process (4711, of user 501, started at 1.5 s after 1970) and one boot.
LIBRARY = """
#include <errno.h>
#include <string.h>
#include <stddef.h>
int sysctlbyname(const char *name, void *old, size_t *size, void *fresh, size_t fresh_size) {
    static const char boot[] = "11111111-2222-4333-8444-555555555555";
    if (strcmp(name, "kern.bootsessionuuid") || *size < sizeof boot) { errno = ENOENT; return -1; }
    memcpy(old, boot, *size = sizeof boot);
    return 0;
}
int sysctl(int *name, unsigned length, void *old, size_t *size, void *fresh, size_t fresh_size) {
    if (length != 4 || name[0] != 1 || name[1] != 14 || name[2] != 1 || *size != 648) { errno = EINVAL; return -1; }
    if (name[3] != 4711) { *size = 0; return 0; }
    memset(old, 0, 648);
    *(long long *)old = 1;
    *(int *)((char *)old + 8) = 500000;
    *(unsigned *)((char *)old + 420) = 501;
    return 0;
}
"""
ASKED = """
import sys
sys.platform = "darwin"
from runhist import identity
def gone(ask):
    try:
        return ask(4712)
    except ProcessLookupError:
        return "gone"
identity._user_by_pidfd = lambda pid: None  # there are no pidfds
print(identity.boot_id({}), identity.start_time(4711), identity.user_of(4711))
print(gone(identity.start_time), gone(identity.user_of))
"""


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(paths, "runtime_dir", lambda: Path("/run/user/nobody"))  # there is none on a Mac
    monkeypatch.delenv("RUNHIST_STATE_DIR", raising=False)


def test_state_and_socket_are_in_the_users_library(mac: None) -> None:
    library = paths.home_dir() / "Library" / "Application Support" / "runhist"
    assert paths.state_dir() == library
    assert paths.user_sockets() == (library / "dev.runhist.History",)


def test_processes_and_the_boot_are_known_by_sysctl(tmp_path: Path, need: Callable[[str], str]) -> None:
    library = tmp_path / "sysctl.so"
    subprocess.run([need("gcc"), "-shared", "-fPIC", "-x", "c", "-", "-o", library], input=LIBRARY, text=True, check=True)
    told = subprocess.run(
        [sys.executable, "-c", ASKED],
        env={**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": str(Path(paths.__file__).parent.parent)},
        capture_output=True,
        text=True,
    )
    assert told.stderr == ""
    assert told.stdout == "11111111-2222-4333-8444-555555555555 1500000 501\ngone None\n"
