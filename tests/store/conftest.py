from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.store.histories import History


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    opened = History(tmp_path / "history.db")
    yield opened
    opened.log.close()
