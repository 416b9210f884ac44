"""Removing a run's own directory, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from runhist.cli import own_files
from runhist.cli.own_files import NotRemovable


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "root"
    (made / "runs" / "r" / "deep" / "deeper").mkdir(parents=True)
    (made / "runs" / "r" / "deep" / "file").write_text("x")
    (made / "runs" / "other").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").write_text("x")
    return made


def everything(below: Path) -> set[str]:
    return {str(path.relative_to(below)) for path in below.rglob("*")}


def test_the_directory_goes_with_all_that_is_in_it(root: Path) -> None:
    assert own_files.check(str(root), "runs/r")
    assert own_files.remove(str(root), "runs/r")
    assert everything(root) == {"runs", "runs/other"}


def test_what_is_gone_already_is_no_fault(root: Path) -> None:
    assert not own_files.check(str(root), "runs/none")
    assert not own_files.remove(str(root), "nowhere/none")


@pytest.mark.parametrize(
    "relative", ["x/../y", ".", "..", "", "/", "/etc", "runs/", "runs//r", "./runs", "runs/r/.", "a\0b"]
)
def test_a_name_that_is_not_plainly_below_the_root_removes_nothing(root: Path, relative: str) -> None:
    before = everything(root.parent)
    for act in (own_files.check, own_files.remove):
        with pytest.raises(NotRemovable):
            act(str(root), relative)
    assert everything(root.parent) == before


@pytest.mark.parametrize("bad_root", ["", "relative", "/"])
def test_a_root_that_is_none_removes_nothing(root: Path, bad_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root.parent)
    with pytest.raises(NotRemovable):
        own_files.remove(bad_root, "root")
    assert "root/runs/r" in everything(root.parent)


def link_in_place_of_the_directory(root: Path) -> None:
    (root / "runs" / "r").rename(root / "runs" / "aside")
    (root / "runs" / "r").symlink_to("../../outside")


def link_on_the_way(root: Path) -> None:
    (root / "runs").rename(root / "aside")
    (root.parent / "outside" / "r").mkdir()
    (root / "runs").symlink_to("../outside")


def file_in_place_of_the_directory(root: Path) -> None:
    (root / "runs" / "r").rename(root / "runs" / "aside")
    (root / "runs" / "r").write_text("x")


@pytest.mark.parametrize("prepare", [link_in_place_of_the_directory, link_on_the_way, file_in_place_of_the_directory])
def test_a_link_or_file_is_reported_and_nothing_removed(root: Path, prepare: Callable[[Path], None]) -> None:
    prepare(root)
    before = everything(root.parent)
    for act in (own_files.check, own_files.remove):
        with pytest.raises(NotRemovable):
            act(str(root), "runs/r")
    assert everything(root.parent) == before


def test_a_link_inside_is_removed_as_a_link(root: Path) -> None:
    (root / "runs" / "r" / "way-out").symlink_to("../../../outside")
    (root / "runs" / "r" / "deep" / "file-out").symlink_to("../../../../outside/precious")
    assert own_files.remove(str(root), "runs/r")
    assert (root.parent / "outside" / "precious").exists()


def test_a_root_behind_a_link_is_resolved(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    assert own_files.remove(str(tmp_path / "link"), "runs/r")
    assert everything(root) == {"runs", "runs/other"}


def test_a_swap_between_the_look_and_the_removal_harms_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look = own_files._inspect

    def look_then_swap(parent: int, name: str) -> bool:
        found = look(parent, name)
        link_on_the_way(root)
        return found

    monkeypatch.setattr(own_files, "_inspect", look_then_swap)
    assert own_files.remove(str(root), "runs/r")
    assert not (root / "aside" / "r").exists(), "the directory that was looked at is the one that went"
    assert {"outside/precious", "outside/r"} <= everything(root.parent)


def test_a_link_that_appears_while_it_is_emptied_harms_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = os.unlink

    def swap_then_unlink(path: str, *, dir_fd: int) -> None:
        if path == "file":
            (root / "runs" / "r" / "deep").rename(root / "aside")
            (root / "runs" / "r" / "deep").symlink_to("../../../outside")
        unlink(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", swap_then_unlink)
    own_files.remove(str(root), "runs/r")
    assert (root.parent / "outside" / "precious").exists()
    assert not (root / "runs" / "r").exists()
