"""Removing content: the row first, then the file, and the file only when nobody's row is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from runhistd.daemon.blobs import Blobs
from runhistd.daemon.commit import Slot
from runhistd.daemon.sweep import Sweeper
from runhistd.model.artifacts import DropBlob
from runhistd.store.blobs import BlobDropped
from runhistd.store.log import Request

SHA256 = "ab" * 32


class Rows:
    """Stands where the committer is: answers that the row is gone, and notes whether the file was there then."""

    last_commit_s = 0.0

    def __init__(self, state_dir: Path, *, unlink: bool) -> None:
        self.file_was_there: list[bool] = []
        self._unlink = unlink
        self.blobs = Blobs(state_dir, Sweeper(self, self.no_blobs), lambda uid, size: None)
        self.path = self.blobs.path_of(SHA256)
        self.path.parent.mkdir(parents=True)
        self.path.write_bytes(b"content")

    def submit(self, request: Request, slot: Slot, size: int) -> None:
        assert isinstance(request, DropBlob)
        self.file_was_there.append(self.path.exists())
        slot.settle(BlobDropped(self._unlink))

    async def no_blobs(self) -> int:
        return 0


@pytest.mark.parametrize("unlink", [True, False])
async def test_the_row_goes_first_and_then_the_file_unless_somebody_else_has_it(tmp_path: Path, unlink: bool) -> None:
    rows = Rows(tmp_path, unlink=unlink)
    assert await rows.blobs.collect([(1000, bytes.fromhex(SHA256))]) == (len(b"content") if unlink else 0)
    assert rows.file_was_there == [True]
    assert rows.path.exists() is not unlink
