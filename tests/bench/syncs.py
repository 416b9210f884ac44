"""A shared object that is loaded before the C library counts a program's syncs, and makes each as slow as is asked for.

Disks of virtual machines often sync in a tenth of a millisecond, which no disk on a desk does; what groups commits well
shows only where a sync costs something.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import time
from pathlib import Path

HERE = Path(__file__).parent


def missing() -> str | None:
    """Why syncs can be neither counted nor slowed here."""
    return None if shutil.which("cc") else "cc is not installed"


def build(directory: Path) -> Path:
    """Compile the shared object into that directory."""
    built = directory / "slowsync.so"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", built, HERE / "slowsync.c"], check=True)
    return built


class Syncs:
    """What the processes started with `env` sync, each time `slower_us` microseconds slower than the disk."""

    def __init__(self, built: Path | None, directory: Path, slower_us: int) -> None:
        self.env: dict[str, str] = {}
        self._counter = directory / "syncs"
        if built is not None:
            self._counter.write_bytes(bytes(8))
            self._counter.chmod(0o666)  # a server may run as a user of its own
            self.env = {"LD_PRELOAD": str(built), "SLOWSYNC_US": str(slower_us), "SLOWSYNC_COUNT": str(self._counter)}

    def count(self) -> int | None:
        """Syncs so far; None where they cannot be counted."""
        return int.from_bytes(self._counter.read_bytes(), "little") if self.env else None


def sync_s(directory: Path, times: int = 200) -> float:
    """How long a sync of 4 KiB takes on that directory's disk, in the median."""
    path = directory / "sync"
    took = []
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    try:
        for _ in range(times):
            os.write(descriptor, b"x" * 4096)
            begun_s = time.perf_counter()
            os.fdatasync(descriptor)
            took.append(time.perf_counter() - begun_s)
    finally:
        os.close(descriptor)
        path.unlink()
    return statistics.median(took)
