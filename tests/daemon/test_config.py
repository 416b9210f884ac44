"""The settings file."""

from __future__ import annotations

import tomllib
from pathlib import Path

import attrs
import pytest

from runhistd import config


def faults_of(text: str, tmp_path: Path) -> dict[str, str]:
    path = tmp_path / "config.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(config.ConfigFaults) as caught:
        config.load(path)
    return dict(caught.value.faults)


def test_without_a_file_the_defaults_hold(tmp_path: Path) -> None:
    assert config.load(tmp_path / "none.toml") == config.Config()


def test_a_file_that_was_asked_for_must_exist(tmp_path: Path) -> None:
    with pytest.raises(config.ConfigFaults, match="no such file"):
        config.load(tmp_path / "none.toml", required=True)


def test_a_setting_replaces_its_default_and_leaves_the_others(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[limits]\nevent_bytes = 4096\n[daemon]\nstop_s = 3\nlog_level = "debug"\n')
    loaded = config.load(path)
    assert loaded == attrs.evolve(config.Config(), event_bytes=4096, stop_s=3.0, log_level="debug")
    assert isinstance(loaded.stop_s, float)


def test_all_faults_are_reported_at_once_each_with_its_dotted_key(tmp_path: Path) -> None:
    faults = faults_of(
        '[limits]\nframe_bytes = "16 MiB"\nevent_bytes = true\nconnections = 0\nconections = 3\n'
        '[daemon]\nlog_level = "loud"\nstop_s = nan\n[surprise]\n',
        tmp_path,
    )
    assert set(faults) == {
        "limits.frame_bytes",
        "limits.event_bytes",
        "limits.connections",
        "limits.conections",
        "daemon.log_level",
        "daemon.stop_s",
        "surprise",
    }
    assert "whole number" in faults["limits.frame_bytes"]
    assert "did you mean limits.connections?" in faults["limits.conections"]
    assert "debug, info, warning, error" in faults["daemon.log_level"]


@pytest.mark.parametrize(
    "line",
    [
        "[daemon]\nstop_s = true",
        '[daemon]\nstop_s = "5"',
        "[daemon]\nstop_s = inf",
        "[daemon]\nlog_level = 1",
        "[limits]\nconnections = 7.0",
        "[limits]\nconnections = true",
        '[limits]\nconnections = "7"',
    ],
)
def test_nothing_is_converted_to_fit(line: str, tmp_path: Path) -> None:
    (key,) = faults_of(line, tmp_path)
    assert key.split(".")[1] in line


def test_a_key_in_the_wrong_place_is_told_its_right_one(tmp_path: Path) -> None:
    faults = faults_of("stop_s = 3\n[limits]\nlog_level = 'info'\n", tmp_path)
    assert "did you mean daemon.stop_s?" in faults["stop_s"]
    assert "did you mean daemon.log_level?" in faults["limits.log_level"]


def test_a_table_that_is_no_table_is_a_fault(tmp_path: Path) -> None:
    assert "must be a table" in faults_of("limits = 3\n", tmp_path)["limits"]


def test_settings_that_cannot_hold_together_are_faults(tmp_path: Path) -> None:
    faults = faults_of("[limits]\nframe_bytes = 1048576\nevent_bytes = 1048576\n", tmp_path)
    assert "half of limits.frame_bytes" in faults["limits.event_bytes"]
    faults = faults_of("[limits]\nqueue_bytes = 1048576\n", tmp_path)
    assert "at least limits.frame_bytes" in faults["limits.queue_bytes"]


def test_an_unusable_file_is_one_fault(tmp_path: Path) -> None:
    assert "line 2" in faults_of("[limits]\nframe_bytes = 1 2\n", tmp_path)[""]
    (tmp_path / "latin.toml").write_bytes(b"# \xff")
    with pytest.raises(config.ConfigFaults, match="not UTF-8"):
        config.load(tmp_path / "latin.toml")
    with pytest.raises(config.ConfigFaults, match="cannot be read"):
        config.load(tmp_path)


def test_every_setting_stands_in_one_table_and_in_the_help() -> None:
    named = [key for keys in config.TABLES.values() for key in keys]
    assert sorted(named) == sorted(field.name for field in attrs.fields(config.Config))
    assert config.parse(tomllib.loads(config.describe()), Path("help")) == config.Config()


def test_a_cap_is_a_number_from_1_or_off(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[retention]\nmax_runs_per_agent = "off"\nmax_age_days = 1\nmax_bytes = "off"\n')
    loaded = config.load(path)
    assert (loaded.max_runs_per_agent, loaded.max_age_days, loaded.max_bytes) == (None, 1, None)


@pytest.mark.parametrize("value", ["0", "-1", "true", "1.5", '"none"', '"50"'])
@pytest.mark.parametrize("cap", ["max_runs_per_agent", "max_age_days", "max_bytes"])
def test_a_cap_of_0_or_below_is_a_fault_and_never_means_keep_none(cap: str, value: str, tmp_path: Path) -> None:
    assert list(faults_of(f"[retention]\n{cap} = {value}\n", tmp_path)) == [f"retention.{cap}"]


def test_overrides_name_what_they_are_about_and_a_cap(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        '[[retention.override]]\nagent = "me"\nmax_runs_per_agent = 500\n'
        '[[retention.override]]\nnamespace = "keep"\nworkflow = "w"\nmax_age_days = "off"\n'
    )
    assert config.load(path).override == (
        config.Override(None, "me", None, {"max_runs_per_agent": 500}),
        config.Override("keep", None, "w", {"max_age_days": None}),
    )


def test_every_fault_in_an_override_is_told_with_its_place(tmp_path: Path) -> None:
    faults = faults_of(
        '[[retention.override]]\nagent = 3\nmax_age_days = 0\nmax_bytes = 5\n[[retention.override]]\nmax_age_days = 5\n'
        '[[retention.override]]\nagent = "me"\n',
        tmp_path,
    )
    assert set(faults) == {
        *("retention.override[0].agent", "retention.override[0].max_age_days", "retention.override[0].max_bytes"),
        *("retention.override[1]", "retention.override[2]"),
    }
    assert "array of tables" in faults_of("[retention]\noverride = 3\n", tmp_path)["retention.override"]


def test_only_events_without_effect_may_be_dropped(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[retention.events]\noutput = 7\nnote = "off"\n')
    assert config.load(path).events == {"output": 7, "note": None}
    faults = faults_of("[retention.events]\nusage = 7\noutput = 0\n'step.started' = 1\n", tmp_path)
    assert set(faults) == {"retention.events.usage", "retention.events.output", "retention.events.step.started"}


@pytest.mark.parametrize("text", ["x = " + "[" * 100_000, "x = " + "9" * 10_000])
def test_a_file_that_no_parser_can_take_is_one_fault_too(text: str, tmp_path: Path) -> None:
    assert list(faults_of(text, tmp_path)) == [""]
