"""A machine for tests: a real systemd as the first process of a container, over a throw-away view of this machine's files.

What is written in it goes to memory and vanishes with it. All mounts live in a mount namespace of its own, and a box that
nobody ended dies with the test's process. Each has its own cgroups, which systemd wants to own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

TOOLS = ("systemd-nspawn", "unshare", "setpriv", "nsenter", "dbus-daemon")
PAM_MODULE = "pam_systemd.so"  # which makes a user's manager
BOOT_S = 60.0
# What this machine may have that would cost the boot time, or hide what the tests look at.
MASKED = ("tmp.mount", "apt-daily.timer", "apt-daily-upgrade.timer", "systemd-timesyncd.service", "e2scrub_reap.service")
SETUP = r"""
set -e
mount -t tmpfs -o mode=755 tmpfs /run
box=/run/box
mkdir -p $box
mount -t tmpfs -o size=2g tmpfs $box
mkdir -p $box/upper/etc/systemd/system $box/work $box/root
for unit in $MASKED; do ln -s /dev/null $box/upper/etc/systemd/system/$unit; done
mount -t overlay overlay -o lowerdir=/,upperdir=$box/upper,workdir=$box/work $box/root
exec systemd-nspawn --quiet -D $box/root -M $NAME --keep-unit --register=no --link-journal=no --private-network \
    --console=pipe "$@" --boot
"""


class Box:
    """A booted machine; a context manager. `binds` maps a path inside to what of this machine is there, read-only."""

    def __init__(self, binds: Mapping[str, Path]) -> None:
        self.name = f"runhist-{uuid.uuid4().hex[:8]}"
        self._binds = [f"--bind-ro={outside}:{inside}" for inside, outside in binds.items()]
        roots = map(Path, ("/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup"))
        self._cgroups = [root / self.name for root in roots if (root / "cgroup.procs").exists()]
        self._console = tempfile.TemporaryFile("w+")
        self.leader = 0

    def __enter__(self) -> Box:
        for cgroup in self._cgroups:
            cgroup.mkdir()
        isolated = ["--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--propagation", "private"]
        enter = "for procs in $CGROUPS; do echo $$ >$procs/cgroup.procs; done; exec \"$@\""
        self._process = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL", "bash", "-c", enter, "enter"),
                *("unshare", *isolated, "bash", "-c", SETUP, "setup", *self._binds),
            ],
            env={
                **os.environ,
                "MASKED": " ".join(MASKED),
                "NAME": self.name,
                "CGROUPS": " ".join(map(str, self._cgroups)),
                "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
            },
            stdin=subprocess.DEVNULL,
            stdout=self._console,
            stderr=self._console,
        )
        try:
            self.leader = self._wait(self._find_leader, "the first process of the box")
            self._wait(self._is_up, "systemd in the box")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self.leader:
                os.kill(self.leader, signal.SIGKILL)  # the first process of a pid namespace takes all others with it
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for cgroup in self._cgroups:
            self._remove_cgroup(cgroup)
        self._console.close()

    def _remove_cgroup(self, cgroup: Path) -> None:
        folders = sorted((path for path in cgroup.rglob("*") if path.is_dir()), key=lambda path: -len(path.parts))
        for folder in (*folders, cgroup):
            for _ in range(100):  # the kernel lets go of them a moment after their last process
                try:
                    folder.rmdir()
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(0.02)
                else:
                    break

    def _wait(self, look: Callable[[], int], what: str) -> int:
        end = time.monotonic() + BOOT_S
        while not (found := look()):
            if self._process.poll() is not None or time.monotonic() > end:
                self._console.seek(0)
                raise RuntimeError(f"{what} did not come up:\n{self._console.read()[-4000:]}")
            time.sleep(0.02)
        return found

    def _find_leader(self) -> int:
        """The process that is systemd and has pid 1 in its own namespace."""
        for listed in (procs for cgroup in self._cgroups for procs in cgroup.rglob("cgroup.procs")):
            with contextlib.suppress(OSError):
                for pid in listed.read_text().split():
                    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
                    if status["Name"] == "systemd" and status["NSpid"].split()[-1] == "1" and " " not in status["PPid"]:
                        return int(pid)
        return 0

    def _is_up(self) -> int:
        state = self.run("systemctl is-system-running", check=False).stdout.strip()
        return state in ("running", "degraded")

    def argv(self, command: str, user: str | None = None) -> list[str]:
        """The command line, for this machine, of a shell command in the box."""
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        words = ["nsenter", "-t", str(self.leader), "-a", "env", "-i", path, "LC_ALL=C.UTF-8", "SYSTEMD_PAGER="]
        if user is not None:
            runtime = f'export XDG_RUNTIME_DIR=/run/user/$(id -u) HOME=~{user}; cd; exec bash -ec "$0"'
            return [*words, "runuser", "-u", user, "--", "bash", "-c", runtime, command]
        return [*words, "bash", "-ec", command]

    def run(self, command: str, user: str | None = None, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a shell command in the box, as root or that user; with `check` it has to succeed."""
        ended = subprocess.run(self.argv(command, user), capture_output=True, text=True, timeout=120)
        if check and ended.returncode:
            raise AssertionError(f"{command}: {ended.returncode}\n{ended.stdout}{ended.stderr}")
        return ended

    def start(self, command: str, user: str | None = None) -> subprocess.Popen[str]:
        """Start a shell command in the box; its output is piped."""
        return subprocess.Popen(self.argv(command, user), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def write(self, path: str, text: str) -> None:
        """Put a file into the box, with the folders above it."""
        command = f"mkdir -p $(dirname {path}); cat >{path}"
        subprocess.run(self.argv(command), input=text, text=True, check=True, timeout=60)

    def show(self, unit: str, name: str, user: str | None = None) -> str:
        """One property of a unit."""
        manager = "" if user is None else "--user "
        return self.run(f"systemctl {manager}show --value --property={name} {unit}", user).stdout.strip()

    def journal(self, unit: str) -> str:
        """What the unit's processes logged, and the manager of them."""
        return self.run(f"journalctl --no-pager --output=cat --unit={unit}").stdout
