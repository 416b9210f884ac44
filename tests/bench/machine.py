"""What the machine says about processes and about itself: processor time, memory, wake-ups, and pressure."""

from __future__ import annotations

import os
import platform
from pathlib import Path

PROC = Path("/proc")
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def family(root: int) -> list[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields:
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def cpu_s(root: int) -> dict[int, float]:
    """Processor time that a process and its living descendants have taken so far, each, in user and in kernel mode."""
    found = {pid: _stat(pid) for pid in family(root)}
    return {pid: (int(fields[11]) + int(fields[12])) * TICK_S for pid, fields in found.items() if fields}


def rss_bytes(pid: int) -> int:
    """The memory that a process has resident."""
    return int((PROC / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def switches(pid: int) -> int:
    """How often the threads of a process went to sleep of their own accord, which is how often they were woken."""
    total = 0
    for status in (PROC / str(pid) / "task").glob("*/status"):
        for line in status.read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                total += int(line.split()[1])
    return total


def pressure_us() -> dict[str, int]:
    """How long so far some task waited for the processor and for the disk; empty where the kernel does not tell."""
    found = {}
    for what in ("cpu", "io"):
        path = PROC / "pressure" / what
        if path.exists():
            found[what] = int(path.read_text().splitlines()[0].rpartition("total=")[2])
    return found


def describe(directory: Path) -> str:
    """The machine in one line: processors, kernel, and the file system of that directory."""
    device, kind, longest = "?", "?", -1
    for line in (PROC / "mounts").read_text().splitlines():
        source, mount, type_ = line.split()[:3]
        if directory.resolve().is_relative_to(mount) and len(mount) > longest:
            device, kind, longest = source, type_, len(mount)
    return f"{os.cpu_count()} processors, Linux {platform.release()}, {kind} on {device}, Python {platform.python_version()}"


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name, state first; empty when the process is gone."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
