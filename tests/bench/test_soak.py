"""The soak, for some seconds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.bench import soak


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="what a process takes is read in /proc")
def test_nothing_grows_while_all_is_appended_followed_deleted_and_collected(capsys: pytest.CaptureFixture[str]) -> None:
    status = soak.main(["--minutes", "0.2"])
    shown = capsys.readouterr().out
    assert status == 0, shown
    assert re.search(r"removed +[1-9]\d* runs by name", shown), shown  # retention has its turn on a fast machine only
    assert " 0 differences" in shown


def test_what_grows_is_named_and_what_settles_is_not() -> None:
    first = {"database": 1_000_000, "wal": 1_000_000, "memory": 50_000_000, "descriptors": 30}
    assert soak.growing(first, {**first, "wal": 5_000_000}) == []
    assert soak.growing(first, {**first, "memory": 100_000_000, "descriptors": 60}) == ["memory", "descriptors"]
