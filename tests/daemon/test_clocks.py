"""The clocks over restarts of the daemon: one look is compared with the last one, whoever took that."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from runhistd.daemon.clocks import Clocks, RememberedClocks
from runhistd.model.retention import ClockWatch

DAY_S = 86_400.0


class Machine:
    """Clocks that the test sets, and daemons that come and go."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.wall_s, self.boot_s, self.boot_id = 1_000_000.0, 100.0, "first"
        self.start()

    def start(self) -> None:
        clocks = Clocks(lambda: self.wall_s, lambda: self.boot_s, lambda: self.boot_id)
        self.clocks = RememberedClocks(clocks, self.file)

    def pass_time(self, seconds: float, *, jump_s: float = 0.0) -> None:
        self.wall_s += seconds + jump_s
        self.boot_s += seconds


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path / "clocks.json")
    assert made.clocks.trusted()
    return made


@pytest.mark.parametrize("jump_s", [90 * DAY_S, -90 * DAY_S])
def test_a_clock_that_jumped_while_the_daemon_was_away_is_not_trusted(machine: Machine, jump_s: float) -> None:
    machine.pass_time(DAY_S, jump_s=jump_s)
    machine.start()
    assert not machine.clocks.trusted()
    machine.pass_time(10)
    machine.start()  # and no restart makes it trusted
    assert not machine.clocks.trusted()
    machine.pass_time(10, jump_s=-jump_s)
    machine.start()
    assert machine.clocks.trusted()


def test_a_jump_that_stays_is_trusted_after_a_day_also_over_restarts(machine: Machine) -> None:
    machine.pass_time(10, jump_s=90 * DAY_S)
    machine.start()
    assert not machine.clocks.trusted()
    machine.pass_time(ClockWatch.SETTLED_S)
    machine.start()
    assert machine.clocks.trusted()


def test_time_that_only_passes_while_the_daemon_is_away_is_no_jump(machine: Machine) -> None:
    machine.pass_time(90 * DAY_S)
    machine.start()
    assert machine.clocks.trusted()


def test_over_a_reboot_nothing_can_be_told(machine: Machine) -> None:
    machine.boot_id, machine.boot_s = "second", 1.0
    machine.wall_s += 90 * DAY_S
    machine.start()
    assert machine.clocks.trusted()
    machine.pass_time(10, jump_s=90 * DAY_S)
    machine.start()
    assert not machine.clocks.trusted()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "garbage",
        "{}",
        '{"boot_id": "first"}',
        '{"boot_id": "first", "offset_s": "x", "before_s": 1, "jumped_at_s": null}',
        '{"boot_id": "first", "offset_s": 1, "before_s": 1, "jumped_at_s": [], "more": 1}',
    ],
)
def test_what_cannot_be_read_is_as_if_it_were_not_there(machine: Machine, content: str) -> None:
    machine.file.write_text(content)
    machine.start()
    assert machine.clocks.trusted()
    machine.pass_time(10, jump_s=90 * DAY_S)
    machine.start()
    assert not machine.clocks.trusted()


def test_the_file_is_for_its_owner_alone_and_where_it_cannot_be_written_the_watch_goes_on(machine: Machine) -> None:
    assert stat.S_IMODE(machine.file.stat().st_mode) == 0o600
    machine.file.unlink()
    machine.file.mkdir()
    assert machine.clocks.trusted()
    machine.pass_time(10, jump_s=90 * DAY_S)
    assert not machine.clocks.trusted()
