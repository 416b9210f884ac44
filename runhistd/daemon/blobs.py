"""The files of blobs: taken in chunks or from an event, synced before their row is queued, removed after their row is gone.

    blobs/incoming/UPLOAD        what is still coming; emptied at the start
    blobs/ab/abcdef…             content under its SHA-256

A finished upload is synced, renamed into place, the directory is synced, and only then the row is queued: never in the
committer, which would make every writer wait for it. The bytes are always taken, also of content that is there already, so
that how long it takes or what is answered tells nobody what others keep. One lock holds a rename with its row, and a row's
removal with its file's, or the file of a fresh row could be removed for an old one. Nothing is removed while somebody
copies the directory (see `runhistd.store.contents`); the next pass does.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import trio
from attrs import define, field
from msgspec import Raw

from runhistd.model.artifacts import DataBlob, DropBlob, KeepBlob
from runhistd.model.decide import Append
from runhistd.model.errors import InvalidParameter, NoSuchBlob, NotAllowed, QuotaExceeded, StorageFull
from runhistd.model.importing import Import
from runhistd.model.large import part_to_keep
from runhistd.model.lease import Claim
from runhistd.store.blobs import UNUSED_US, BlobDropped
from runhistd.store.contents import BLOBS_NAME, path_of, removing, sync_directory

from . import json_stream
from .sweep import Sweeper

CHUNK_BYTES = 256 * 1024  # of a reply; base64 makes it a third longer
CHECKED_BYTES = 64 * 1024  # at once: as long as others wait meanwhile
MAX_UPLOADS = 64  # of one user
R = TypeVar("R", bound=Append | Claim | Import)
ENOSPC = (28, 122)  # ENOSPC, EDQUOT


@define
class _Upload:
    path: Path
    descriptor: int
    digest: hashlib._Hash = field(factory=hashlib.sha256)
    size: int = 0

    def give_up(self) -> None:
        """Remove what has come so far."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        _unlink(self.path)


class Blobs:
    """The blob directory of one state directory. `check_size` raises QuotaExceeded when a user may not have so much more."""

    def __init__(self, state_dir: Path, sweeper: Sweeper, check_size: Callable[[int, int], None]) -> None:
        self.on_full: Callable[[], None] = lambda: None
        """Called when content is refused because the disk is full."""
        self._directory = state_dir / BLOBS_NAME
        self._incoming = self._directory / "incoming"
        self._sweeper = sweeper
        self._uploads: dict[tuple[int, str], _Upload] = {}
        self._files_and_rows = trio.Lock()
        self._uploading: defaultdict[int, trio.Lock] = defaultdict(trio.Lock)
        self._check_size = check_size
        for path in self._incoming.glob("*"):  # of a daemon that was killed; nobody can go on with it
            _unlink(path)

    def path_of(self, sha256: str) -> Path:
        """Where the content lies."""
        return path_of(self._directory, sha256)

    async def put(self, uid: int, upload: str, offset: int, encoded: str, *, done: bool) -> tuple[int, str | None]:
        """Take the chunk that begins at `offset`; with `done` keep the whole. The size so far, and the hash when kept.

        Raises InvalidParameter, NotAllowed, StorageFull and QuotaExceeded; then the upload is at an end.
        """
        try:
            chunk = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InvalidParameter("base64") from error
        name = (uid, upload)
        async with self._uploading[uid]:
            try:
                found = self._uploads.get(name)
                if found is None:
                    if offset:
                        raise InvalidParameter("offset")  # of an upload that is not known (any more)
                    if len(own := self._uploads_of(uid)) >= MAX_UPLOADS:
                        self._end(own[0])  # the oldest: it may be of a client that is gone
                    found = self._uploads[name] = await trio.to_thread.run_sync(self._begin)
                if offset != found.size:
                    raise InvalidParameter("offset")
                self._check_size(uid, len(chunk) + sum(self._uploads[one].size for one in self._uploads_of(uid)))
                await trio.to_thread.run_sync(_add, found, chunk)
                if not done:
                    return found.size, None
                sha256 = await self._keep(uid, found)
                del self._uploads[name]
                return found.size, sha256
            except OSError as error:
                self._end(name)
                if error.errno in ENOSPC:
                    self.on_full()
                    raise StorageFull from error
                raise NotAllowed("base64", f"the content cannot be stored: {error.strerror}") from error
            except BaseException:
                self._end(name)
                raise

    def _uploads_of(self, uid: int) -> list[tuple[int, str]]:
        """The names of the user's uploads, oldest first."""
        return [name for name in self._uploads if name[0] == uid]

    async def keep_large(self, request: R, limit_bytes: int) -> R:
        """The request with its data above that limit kept here. Raises InvalidParameter, StorageFull, QuotaExceeded.

        Should it be refused, the content is unused, and goes like all that is.
        """
        events: list[Any] = list(request.events)
        for i, event in enumerate(events):
            part = part_to_keep(event, limit_bytes, i)
            if part is not None:
                blob = await self._keep_data(request.uid, bytes(event.data))
                events[i] = msgspec.structs.replace(event, data=Raw(part), data_blob=blob)
        return msgspec.structs.replace(request, events=events)

    async def _keep_data(self, uid: int, data: bytes) -> DataBlob:
        upload: _Upload | None = None
        try:
            upload = await trio.to_thread.run_sync(self._begin)
            await trio.to_thread.run_sync(_add, upload, data)
            return DataBlob(await self._keep(uid, upload), len(data))
        except BaseException as error:
            if upload is not None:
                upload.give_up()
            if isinstance(error, OSError) and error.errno in ENOSPC:
                self.on_full()
                raise StorageFull from error
            raise

    async def read(self, sha256: str) -> Callable[[int], bytes]:
        """A function that gives the chunk at an offset of content that is known to be there."""
        descriptor = await trio.to_thread.run_sync(os.open, self.path_of(sha256), os.O_RDONLY)
        return _Open(descriptor).chunk

    async def check_data(self, sha256: str) -> None:
        """Return when content that is known to be there may be the data of an event. Raises Unsound, NoSuchBlob."""

        def look() -> None:
            with self.path_of(sha256).open("rb") as file:
                json_stream.check(iter(lambda: file.read(CHECKED_BYTES), b""))

        try:
            await trio.to_thread.run_sync(look)
        except FileNotFoundError as error:  # it was old, and went since
            raise NoSuchBlob(sha256) from error

    async def collect(self, unused: list[tuple[int, bytes]]) -> int:
        """Remove what no run uses; the bytes of the files that went."""
        freed_bytes = 0
        for uid, sha256 in unused:
            async with self._files_and_rows:
                with removing(self._directory) as may_remove:
                    if not may_remove:
                        return freed_bytes
                    freed_bytes += await self._remove(uid, sha256)
        return freed_bytes

    async def _remove(self, uid: int, sha256: bytes) -> int:
        """Remove content that is still unused, the row first; the bytes of its file, if that went."""
        outcome = await self._sweeper.ask(DropBlob(uid, sha256))
        if isinstance(outcome, BlobDropped) and outcome.unlink:
            return await trio.to_thread.run_sync(_remove_file, self.path_of(sha256.hex()))
        return 0

    def clean(self, known: set[str], now_us: int) -> None:
        """Remove what a crash left: files whose rows were never made, or are gone. For a thread."""
        for path in self._directory.glob("[0-9a-f][0-9a-f]/*"):
            if path.name not in known and path.stat().st_mtime_ns // 1000 < now_us - UNUSED_US:
                _unlink(path)

    def close(self) -> None:
        """Give up all uploads."""
        for name in list(self._uploads):
            self._end(name)

    def _begin(self) -> _Upload:
        self._incoming.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._incoming / os.urandom(16).hex()
        return _Upload(path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))

    async def _keep(self, uid: int, upload: _Upload) -> str:
        sha256 = upload.digest.digest()
        try:
            async with self._files_and_rows:
                await trio.to_thread.run_sync(self._rename, upload, sha256.hex())
                await self._sweeper.ask(KeepBlob(uid, sha256, upload.size))
        except QuotaExceeded:
            await self.collect([(uid, sha256)])
            raise
        return sha256.hex()

    def _rename(self, upload: _Upload, sha256: str) -> None:
        os.fsync(upload.descriptor)
        os.close(upload.descriptor)
        upload.descriptor = -1
        target = self.path_of(sha256)
        if not target.parent.is_dir():
            target.parent.mkdir(mode=0o700)
            sync_directory(self._directory)
        upload.path.replace(target)
        sync_directory(target.parent)

    def _end(self, name: tuple[int, str]) -> None:
        upload = self._uploads.pop(name, None)
        if upload is not None:
            upload.give_up()


class _Open:
    """An open file that is closed when nobody reads from it any more."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def chunk(self, offset: int) -> bytes:
        return os.pread(self._descriptor, CHUNK_BYTES, offset)

    def __del__(self) -> None:
        os.close(self._descriptor)


def _add(upload: _Upload, chunk: bytes) -> None:
    left = memoryview(chunk)
    while left:
        left = left[os.write(upload.descriptor, left) :]
    upload.digest.update(chunk)
    upload.size += len(chunk)


def _remove_file(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        size = path.stat().st_size
        path.unlink()
        return size
    return 0


def _unlink(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
