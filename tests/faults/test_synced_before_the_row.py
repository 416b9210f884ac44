"""Content is on the disk, under its name, before anything is committed that counts on it: the calls of the kernel tell."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.making import Made

if TYPE_CHECKING:
    from tests.conftest import Daemon

SYNCED = {
    "the content": r"fsync\(\d+<[^>]*/blobs/incoming/[0-9a-f]+>\) += 0",
    "the new directory": r"fsync\(\d+<[^>]*/blobs>\) += 0",
    "its name": r'rename\("[^"]*/blobs/incoming/[^"]*", "[^"]*/blobs/[0-9a-f]{2}/[0-9a-f]{64}"\) += 0',
    "the directory": r"fsync\(\d+<[^>]*/blobs/[0-9a-f]{2}>\) += 0",
    "the commit": r"fdatasync\(\d+<[^>]*/history.db-wal>\) += 0",
}


def calls(trace: Path) -> list[str]:
    """What was synced and renamed, in order, from the first content on."""
    lines = trace.read_text().splitlines()
    found = [name for line in lines for name, pattern in SYNCED.items() if re.search(pattern, line)]
    return found[found.index("the content") :]


def give_artifact(made: Made, epoch: int) -> None:
    made.record("r", epoch, "a", name="x", blob=made.put(b"content"))


def append_large(made: Made, epoch: int) -> None:
    data = json.loads('{"text":"' + "x" * 100_000 + '"}')
    made.append("r", epoch, "a", "note", data=data)


@pytest.mark.parametrize("keep", [give_artifact, append_large])
def test_content_is_synced_before_what_counts_on_it_is_committed(
    daemon: Daemon, need: Callable[[str], str], tmp_path: Path, keep: Callable[[Made, int], None]
) -> None:
    trace = tmp_path / "trace"
    made = Made(daemon.start(wrapper=[need("strace"), "-f", "-y", "-e", "fsync,fdatasync,rename", "-o", str(trace)]))
    keep(made, made.begin("r"))
    made.connection.close()
    daemon.stop()
    assert calls(trace)[:6] == ["the content", "the new directory", "its name", "the directory", "the commit", "the commit"]
