"""Where nothing is installed, or nothing is wanted, every call does nothing."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

import runhist
from runhist import NoSuchRun, Unreachable


@pytest.fixture(params=["not installed", "switched off"])
def home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory, in which recording is off for either reason."""
    for name in ("RUNHIST_SOCKET", "RUNHIST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RUNHIST_STATE_DIR", str(tmp_path / "state"))
    if request.param == "switched off":
        monkeypatch.setenv("RUNHIST", "off")
    return tmp_path


def test_every_call_does_nothing_and_one_record_says_so(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    history = runhist.connect()
    assert history.mode == "off"
    with history.begin_run(workflow="w", metadata={"a": {1, 2}}) as run:
        with run.step("a") as step, step.step("b"):
            step.output("x")
            step.usage(input_tokens="many")  # type: ignore[arg-type]
            step.retrying("e")
        run.append("x", {"a": float("nan")})
        run.update(title="t")
        run.checkpoint({})
        receipt = run.flush()
    assert receipt == runhist.Receipt("off")
    assert (run.faults, run.epoch, len(run.run_id)) == (0, None, 36)
    history.close()
    assert [(record.name, record.levelname) for record in caplog.records] == [("runhist", "INFO")]
    assert list(home.iterdir()) == []


def test_there_is_nothing_to_read(home: Path) -> None:
    history = runhist.connect()
    run = history.begin_run(run_id="r")
    assert list(run.events(follow=True)) == []
    assert list(history.list_runs()) == []
    assert list(history.follow()) == list(history.follow(0)) == []
    reader = history.run("r")
    assert reader.steps() == [] and reader.usage().total == runhist.UsageTotals() and list(reader.events()) == []
    with pytest.raises(NoSuchRun, match="'r'"):
        reader.get()


def test_an_exception_leaves_the_block_unchanged(home: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        with runhist.connect().begin_run() as run:
            with run.step("a"):
                raise ZeroDivisionError


def test_a_handle_on_an_existing_lease_does_nothing_either(home: Path) -> None:
    run = runhist.Run.attach(runhist.connect(), None, "r", 1)
    run.append("x")
    assert run.flush().durable == "off"


@pytest.mark.parametrize("home", ["not installed"], indirect=True)
def test_who_insists_is_told_that_nothing_is_installed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = runhist.connect(require=True, deadline=0.01)
    assert history.mode == "recording"
    with pytest.raises(Unreachable) as caught:
        history.begin_run()
    assert caught.value.reason == "not_installed" and "runhistd serve" in str(caught.value)
    monkeypatch.setenv("RUNHIST", "on")
    assert runhist.connect().mode == "recording"


@pytest.mark.parametrize("home", ["switched off"], indirect=True)
def test_the_users_switch_stands_above_what_the_engine_requires(home: Path) -> None:
    assert runhist.connect(require=True).begin_run().flush().durable == "off"


@pytest.mark.parametrize("home", ["not installed"], indirect=True)
def test_a_daemon_that_was_once_there_counts_as_installed(home: Path) -> None:
    (home / "state").mkdir()
    (home / "state" / "history.db").touch()
    assert runhist.connect().mode == "recording"


@pytest.mark.parametrize("home", ["not installed"], indirect=True)
def test_an_unknown_switch_is_told_and_taken_for_none(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RUNHIST", "maybe")
    assert runhist.connect().mode == "off"
    assert "'maybe'" in caplog.text


def test_a_wrong_argument_is_a_fault_of_the_program(home: Path) -> None:
    with pytest.raises(ValueError, match="raises"):
        runhist.connect(errors="raises")  # type: ignore[arg-type]
