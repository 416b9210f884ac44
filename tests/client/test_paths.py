"""Which daemon a client means."""

from __future__ import annotations

from pathlib import Path

import pytest

from runhist import paths


def test_a_state_directory_where_only_root_may_look_counts_as_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "link"
    monkeypatch.setattr(paths, "SYSTEM_STATE_DIR", link)
    monkeypatch.setattr(paths, "SYSTEM_SOCKET", tmp_path / "socket")
    monkeypatch.setenv("RUNHIST_STATE_DIR", str(tmp_path / "own"))
    monkeypatch.delenv("RUNHIST_SOCKET", raising=False)
    assert not paths.choose_sockets().installed
    link.symlink_to(tmp_path / "private")  # which is as good as gone to whom it is closed
    assert paths.choose_sockets().sockets == (tmp_path / "socket",)
