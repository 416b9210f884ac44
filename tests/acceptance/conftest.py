"""What the acceptance tests share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.making import Made

if TYPE_CHECKING:
    from tests.conftest import Daemon


@pytest.fixture
def made(daemon: Daemon) -> Iterator[Made]:
    opened = Made(daemon.start())
    yield opened
    opened.connection.close()
