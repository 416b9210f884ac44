"""One daemon for the tests of a module, and after each of them a neighbour that still records and reads."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Daemon
from tests.hostile.peers import Neighbour, Peer


@pytest.fixture(scope="module")
def make_served() -> Iterator[Callable[[str], Daemon]]:
    """Starts a daemon with these settings that serves all the module's tests and logs no fault of its own meanwhile."""
    home = Path(tempfile.mkdtemp(prefix="rh"))
    daemon = Daemon(home / "state")

    def start(settings: str) -> Daemon:
        daemon.config_file.write_text(settings)
        return daemon.start()

    try:
        yield start
        assert daemon.process is not None and daemon.process.poll() is None, daemon.log_text()
        assert "level=error" not in daemon.log_text() and "level=critical" not in daemon.log_text(), daemon.log_text()
    finally:
        daemon.kill()
        shutil.rmtree(home)


@pytest.fixture(scope="module")
def served(make_served: Callable[[str], Daemon]) -> Daemon:
    """A daemon with the settings that it has by itself."""
    return make_served("")


@pytest.fixture
def neighbour(served: Daemon) -> Iterator[Neighbour]:
    """Somebody who records before, while and after a test does its worst."""
    found = Neighbour(served)
    found.go_on()
    yield found
    found.go_on()
    found.close()


@pytest.fixture
def peer(served: Daemon, neighbour: Neighbour) -> Iterator[Peer]:
    """A raw connection, and a neighbour beside it."""
    with Peer(served.socket) as connected:
        yield connected
