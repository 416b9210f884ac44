"""Emptying the spool: what clients left on disk while there was no daemon goes through the committer like any request.

Taken are sealed files, and open ones whose writer is dead by the kernel's word; the living empty their own. A file is
gone through in order and a bounded part at a time, and deleted only when all of it is committed; whatever interrupts that,
the next time stores nothing twice, because requests carry lease_key, writer and n. A file whose run is not known yet is
tried again after the others, since one of them may begin it.

What is refused for good is kept: an event that cannot be stored leaves a note in its place, and the file moves to the
quarantine, whole. Where all that follows would be refused too (another process owns the run, it was deleted, the file is
damaged or meant for another history) the rest of the file is left unread. One bad file costs only itself.

A change of the directory only says "look again", and every few seconds it is looked at anyway: that a writer died
changes no file.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from uuid import UUID

import msgspec
import trio
from msgspec import Raw

from runhist.paths import SOCKET_NAME, runtime_dir, state_dir
from runhist.spool import OPEN, SEALED, DamagedSpool, Header, SpooledRequest, quarantine, quarantined, read_spool
from runhistd.model.errors import (
    Damaged,
    NoSuchRun,
    QuotaExceeded,
    Refusal,
    RunDeleted,
    ShuttingDown,
    StaleEpoch,
    StaleTeamEpoch,
    StorageFull,
)
from runhistd.model.holder import Holder
from runhistd.model.lease import Begin
from runhistd.model.views import SpoolStatus
from runhistd.store.log import Request

from . import write_calls
from .commit import Outcome
from .processes import Evidence, Processes

logger = logging.getLogger("runhistd.spool")

PART_REQUESTS = 32  # queued at once
PART_BYTES = 1024 * 1024
UNBEGUN_S = 60.0  # how old an open file without a header must be, for its writer to be taken for dead

NO_FILE = frozenset({errno.ELOOP, errno.ENXIO, errno.EACCES, errno.EPERM})  # a symbolic link, a socket, not for us

_PASSING = (StorageFull, QuotaExceeded, Damaged, ShuttingDown)
_OF_THE_RUN = (StaleEpoch, StaleTeamEpoch, RunDeleted)  # whatever follows is refused too

Ask = Callable[[list[Request]], Awaitable[list[Outcome]]]
_encode = msgspec.json.Encoder().encode
_decode_members = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_list = msgspec.json.Decoder(list[Raw]).decode


class Unstorable(Exception):
    """The rest of a file is refused for good."""


class Postponed(Exception):
    """A file cannot be emptied now; it stays."""


class Spools:
    """The spool directory of the daemon's user. `ask` has requests committed, in their order."""

    def __init__(
        self, directory: Path, instance_id: str, processes: Processes, event_bytes: Callable[[], int], ask: Ask
    ) -> None:
        self.directory = directory
        self.ask = ask
        self._instance_id = instance_id
        self._processes = processes
        self._event_bytes = event_bytes
        self._sockets = {
            str((place).absolute()) for place in (runtime_dir() / "runhist" / SOCKET_NAME, state_dir() / SOCKET_NAME)
        }
        self._draining = trio.Lock()
        self._woken = trio.Event()
        self._why = ""
        self.drained = 0  # requests since the daemon's start

    def status(self) -> SpoolStatus:
        """What GetStatus says of the spool."""
        waiting = self._files()
        size = 0
        for path in waiting:
            try:
                size += path.lstat().st_size
            except OSError:
                continue
        return SpoolStatus(str(self.directory), len(waiting), size, self.drained, len(quarantined(self.directory)))

    def _files(self) -> list[Path]:
        """All spool files, oldest first."""
        found = []
        try:
            with os.scandir(self.directory) as entries:
                for entry in entries:
                    if entry.name.endswith((OPEN, SEALED)):
                        found.append((entry.stat(follow_symlinks=False).st_mtime_ns, entry.name))
        except FileNotFoundError:
            return []
        except OSError as error:
            logger.warning("cannot read the spool", extra={"fields": {"path": self.directory, "error": error}})
        return [self.directory / name for _, name in sorted(found)]

    # --- all files ---

    async def drain(self) -> str:
        """Empty what may be emptied now; returns why something had to stay, or an empty text."""
        async with self._draining:
            self._why = ""
            missing = await self._drain_files(self._files())
            while missing:
                left = await self._drain_files(missing)
                if len(left) == len(missing):
                    self._set_aside_unknown(left)
                    break
                missing = left
            return self._why

    async def _drain_files(self, paths: list[Path]) -> list[Path]:
        """Empty these; returns those whose run is not known."""
        missing = []
        for path in paths:
            try:
                await self._drain_file(path)
            except NoSuchRun:
                missing.append(path)
            except FileNotFoundError:
                continue  # its writer was faster
            except (Unstorable, DamagedSpool) as fault:
                self._quarantine(path, str(fault))
            except (ValueError, RecursionError, msgspec.MsgspecError) as fault:
                self._quarantine(path, f"a request in it is not one: {fault!r}")
            except (Postponed, OSError) as trouble:
                if isinstance(trouble, OSError) and trouble.errno in NO_FILE:
                    self._quarantine(path, f"it is no file that we may read: {trouble.strerror}")
                    continue
                self._why = f"{path.name} in the spool cannot be emptied: {trouble}"
        return missing

    def _set_aside_unknown(self, paths: list[Path]) -> None:
        """Give up files whose run nobody begins; one whose writer lives may be begun by another that still writes."""
        open_runs = set()
        for path in self._files():
            if path.suffix == OPEN and path not in paths:
                try:
                    header, _ = read_spool(path)
                except (OSError, DamagedSpool):
                    continue
                open_runs.add((header.namespace, header.run_id))
        for path in paths:
            try:
                header, _ = read_spool(path)
            except (OSError, DamagedSpool):
                continue  # it was changed meanwhile; the next look finds out
            if (header.namespace, header.run_id) not in open_runs:
                self._quarantine(path, f"there is no run {header.run_id!r} in namespace {header.namespace or 'default'!r}")

    def _quarantine(self, path: Path, reason: str) -> None:
        try:
            aside = quarantine(path, reason)
        except OSError as error:
            self._why = f"{path.name} cannot be moved aside: {error}"
            return
        logger.warning("a spool file was put aside", extra={"fields": {"path": aside, "reason": reason}})

    # --- one file ---

    async def _drain_file(self, path: Path) -> None:
        try:
            header, requests = read_spool(path)
        except DamagedSpool:
            if path.suffix == OPEN and is_young(path):
                return  # its writer has only just made it
            raise
        if header.instance_id not in (None, self._instance_id):
            raise Unstorable(f"it is meant for another history (instance {header.instance_id})")
        if header.instance_id is None and header.socket not in self._sockets:
            return  # another daemon's; whoever wrote it brings it there
        found = self._processes.find_again(Holder(header.pid, header.identity, header.boot_id))
        is_dead = isinstance(found, Evidence)
        if found is not None and not isinstance(found, Evidence):
            found.close()
        if path.suffix == OPEN and not is_dead:
            return
        alive = None if is_dead or found is None else Holder(header.pid, header.identity, header.boot_id)
        await _File(self, header, alive).store(path, requests)

    def request(self, header: Header, alive: Holder | None, one: SpooledRequest) -> Request:
        """The request as if it had come through a socket. Raises Refusal, Unstorable."""
        str(one.parameters, "utf-8")
        uid = os.geteuid()
        if one.method == "BeginRun":
            call, spec = write_calls.decode_begin(Raw(one.parameters), self._event_bytes())
            owner = Holder(header.pid, header.identity, header.boot_id)
            namespace = spec.namespace or "default"
            return Begin(uid, namespace, spec.run_id, call.lease_key, owner, bytes(call.run), spec.time_us, call.lease)
        if one.method != "Append":
            raise Unstorable(f"{one.method!r} is nothing that is spooled")
        append = write_calls.decode_append(Raw(one.parameters), uid, alive, self._event_bytes())
        if append.epoch is None and append.lease_key is None and header.lease_key is not None:
            try:
                return msgspec.structs.replace(append, lease_key=UUID(header.lease_key))
            except ValueError as error:
                raise Unstorable("its lease_key is no UUID") from error
        return append

    def wake(self) -> None:
        """Something may have changed."""
        self._woken.set()

    async def run(self) -> None:
        """Empty whenever something has changed, until cancelled."""
        while True:
            await self._woken.wait()
            self._woken = trio.Event()
            await self.drain()


class _File:
    """One file on its way into the history."""

    def __init__(self, spools: Spools, header: Header, alive: Holder | None) -> None:
        self._spools = spools
        self._header = header
        self._alive = alive
        self._refusal = ""

    async def store(self, path: Path, requests: Iterator[SpooledRequest]) -> None:
        """Have all of it committed, then remove it. Raises what keeps it from that."""
        while part := take_part(requests):
            while part:
                part = await self._store_part(part)
        if self._refusal:
            raise Unstorable(self._refusal)
        os.unlink(path)  # noqa: PTH108 - a blink, and never before the commit

    async def _store_part(self, part: list[SpooledRequest]) -> list[SpooledRequest]:
        """Have a part committed up to the first refusal; returns what is behind that."""
        made: list[Request] = []
        refusal: Refusal | None = None
        for one in part:
            try:
                made.append(self._spools.request(self._header, self._alive, one))
            except Refusal as fault:
                refusal = fault
                break
        outcomes = await self._spools.ask(made) if made else []
        stored = 0
        for outcome in outcomes:
            if isinstance(outcome, Refusal):
                refusal = outcome
                break
            stored += 1
        self._spools.drained += stored
        if refusal is None:
            return []
        return [*self._instead(part[stored], refusal), *part[stored + 1 :]]

    def _instead(self, one: SpooledRequest, refusal: Refusal) -> list[SpooledRequest]:
        """What to store in the place of a refused request. Raises Postponed, Unstorable, NoSuchRun."""
        if isinstance(refusal, NoSuchRun):
            raise refusal
        reason = describe(refusal)
        if isinstance(refusal, _PASSING):
            raise Postponed(reason)
        if one.method != "Append" or isinstance(refusal, _OF_THE_RUN):
            raise Unstorable(reason)
        try:
            members = _decode_members(one.parameters)
            events = _decode_list(members["events"])
            first_n = msgspec.json.decode(members["first_n"], type=int)
            writer = msgspec.json.decode(members["writer"], type=str)
            key = f"{writer}/{first_n}"
            if len(events) == 1 and msgspec.json.decode(events[0]).get("key") == key:
                raise Unstorable(self._refusal or reason)  # that was the note already
        except (msgspec.MsgspecError, KeyError, AttributeError, RecursionError) as error:
            raise Unstorable(reason) from error
        if len(events) > 1:
            return [_alone(one, members, first_n + i, event) for i, event in enumerate(events)]
        self._refusal = self._refusal or reason
        note = {"type": "note", "key": key, "data": {"text": f"an event from the spool was refused: {reason}"}}
        return [_alone(one, members, first_n, Raw(_encode(note)))]


def _alone(one: SpooledRequest, members: dict[str, Raw], n: int, event: Raw) -> SpooledRequest:
    return SpooledRequest(one.method, _encode({**members, "first_n": n, "events": [event]}))


def take_part(requests: Iterator[SpooledRequest]) -> list[SpooledRequest]:
    """The next requests, as many as are queued at once."""
    part: list[SpooledRequest] = []
    size = 0
    for one in itertools.islice(requests, PART_REQUESTS):
        part.append(one)
        size += len(one.parameters)
        if size >= PART_BYTES:
            break
    return part


def is_young(path: Path) -> bool:
    """Whether an open file was made so recently that its header may be still to come."""
    return time.time() - path.lstat().st_mtime < UNBEGUN_S


def describe(refusal: Refusal) -> str:
    """A refusal in a line."""
    members = ", ".join(f"{name} {value!r}" for name, value in refusal.parameters.items())
    return f"{type(refusal).__name__}: {members}" if members else type(refusal).__name__
