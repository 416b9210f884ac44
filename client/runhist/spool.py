"""The spool: what a client leaves on disk while the daemon is away, and how both sides read it.

A writer has one file, `spool/NAME.open` in the state directory; its first line says who writes, each further one is a
request exactly as it would go over the wire. It is sealed by a rename to `NAME.spool` when its writer is through with it.
A line is its checksum, its length, the JSON and a newline, so that a tail that was torn off in the middle of a write is
recognised and left out: nobody was told that it is kept. What is acknowledged as spooled was synced before.

While the writer lives, it alone empties or seals its open file. The daemon empties sealed ones, and open ones whose writer
is dead by the kernel's word (a lock would not do: forked children keep it). What the daemon refuses for good is moved to
`spool/quarantine`, whole, with the reason beside it.

A write that fails is taken back, so that the file holds whole requests only.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import zlib
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from .identity import Namer, boot_id, open_pidfd
from .ids import new_uuid
from .paths import SocketChoice, state_dir
from .protocol.errors import RunhistError

OPEN, SEALED = ".open", ".spool"
QUARANTINE = "quarantine"
REASON = ".reason"
MAX_SPOOL_BYTES = 256 * 1024 * 1024  # of the whole directory, quarantine included
MAX_LINE_BYTES = 2 * 1024 * 1024  # a request fits into a frame, and those are smaller
HEADER_FORMAT = 1


class SpoolFault(RunhistError):
    """Nothing can be spooled: the disk is full, or the directory cannot be used."""


class SpoolFull(SpoolFault):
    """The spool has reached its bound."""


class DamagedSpool(RunhistError):
    """A file is no spool, or not one to be trusted."""


class Header(NamedTuple):
    """Who writes a spool file, for which run, and for the daemon at which socket. What is not known is empty or None."""

    socket: str
    instance_id: Optional[str]
    pid: int
    identity: str
    boot_id: str
    lease_key: Optional[str]
    namespace: Optional[str]
    run_id: str

    def encode(self) -> bytes:
        """The header as JSON."""
        return json.dumps({"format": HEADER_FORMAT, **self._asdict()}).encode("ascii")

    @classmethod
    def decode(cls, line: bytes) -> Header:
        """From a header's JSON. Raises DamagedSpool."""
        try:
            members = json.loads(line)
            known = members.pop("format")
            header = cls(**members)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise DamagedSpool(f"its header cannot be read: {error!r}") from error
        if known != HEADER_FORMAT:
            raise DamagedSpool(f"its format is {known!r}, and {HEADER_FORMAT} is the one known here")
        texts = (header.socket, header.identity, header.boot_id, header.run_id)
        options = (header.instance_id, header.lease_key, header.namespace)
        if not (
            all(isinstance(text, str) for text in texts)
            and all(text is None or isinstance(text, str) for text in options)
            and type(header.pid) is int
            and 0 < header.pid < 2**31
        ):
            raise DamagedSpool("its header has a member of the wrong type")
        return header


class SpooledRequest(NamedTuple):
    """One request of a spool file."""

    method: str
    parameters: bytes


def encode_line(text: bytes) -> bytes:
    """One line of a spool file."""
    return b"%08x %d %s\n" % (zlib.crc32(text), len(text), text)


def decode_line(line: bytes) -> Optional[bytes]:
    """What the line holds; None when it is torn or damaged."""
    checksum, _, rest = line.partition(b" ")
    length, _, text = rest.partition(b" ")
    if text[-1:] != b"\n" or length != b"%d" % (len(text) - 1):
        return None
    text = text[:-1]
    return text if checksum == b"%08x" % zlib.crc32(text) else None


def encode_request(method: str, parameters: bytes) -> bytes:
    """A request in the text of a line. `method` is the short name."""
    return b'{"method":"%s","parameters":%s}' % (method.encode("ascii"), parameters)


def decode_request(text: bytes) -> SpooledRequest:
    """The request in the text of a line. Raises DamagedSpool."""
    head, separator, parameters = text.partition(b'","parameters":')
    if not separator or not head.startswith(b'{"method":"') or parameters[-1:] != b"}":
        raise DamagedSpool("a line is no request")
    return SpooledRequest(head[len(b'{"method":"') :].decode("ascii", "replace"), parameters[:-1])


def read_spool(path: Path) -> Tuple[Header, Iterator[SpooledRequest]]:
    """The header of a file and its requests, up to the first torn line. Raises OSError and DamagedSpool.

    A file that is not the user's own regular file, and one that has further lines behind a damaged one, is damaged.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        os.close(fd)
        raise DamagedSpool("it is no regular file of ours")
    file = os.fdopen(fd, "rb")
    try:
        first = decode_line(file.readline(MAX_LINE_BYTES))
        if first is None:
            raise DamagedSpool("its header is torn")
        header = Header.decode(first)
    except BaseException:
        file.close()
        raise
    return header, _requests(file)


def _requests(file: Any) -> Iterator[SpooledRequest]:
    with file:
        while True:
            line = file.readline(MAX_LINE_BYTES)
            if not line:
                return
            text = decode_line(line)
            if text is None:
                if file.read(1):
                    raise DamagedSpool("a line in its middle is damaged")
                return
            yield decode_request(text)


def quarantine(path: Path, reason: str) -> Path:
    """Move a file aside, whole, with the reason beside it; returns where it is now. Raises OSError."""
    aside = path.parent / QUARANTINE
    aside.mkdir(mode=0o700, exist_ok=True)
    with contextlib.suppress(OSError):  # a full disk keeps nothing from being moved
        (aside / (path.stem + REASON)).write_text(reason + "\n", "utf-8")
    target = aside / (path.stem + SEALED)
    path.replace(target)
    return target


def quarantined(directory: Path) -> List[Tuple[Path, str]]:
    """What was moved aside in a spool directory, with the reasons."""
    found = []
    with contextlib.suppress(OSError):
        for path in sorted((directory / QUARANTINE).glob("*" + SEALED)):
            reason = ""
            with contextlib.suppress(OSError):
                reason = path.with_suffix(REASON).read_text("utf-8", "replace").strip()
            found.append((path, reason))
    return found


def spool_dir() -> Path:
    """Where this user's spool is."""
    return state_dir() / "spool"


class Spool:
    """The directory as a writer sees it. Nothing is made before there is something to spool."""

    def __init__(self, choice: SocketChoice, max_bytes: int = MAX_SPOOL_BYTES, directory: Optional[Path] = None) -> None:
        self.directory = spool_dir() if directory is None else directory
        self.instance_id: Optional[str] = None
        self._socket = str(choice.sockets[0].absolute())
        self._max_bytes = max_bytes
        self._writer: Optional[Tuple[int, str, str]] = None

    def create(
        self, lease_key: Optional[str], namespace: Optional[str], run_id: str, pid: Optional[int] = None
    ) -> SpoolFile:
        """A new open file for a writer of that run: this process, or the one of that pid. Raises SpoolFault."""
        pid, identity, boot = self._identify(os.getpid() if pid is None else pid)
        header = Header(self._socket, self.instance_id, pid, identity, boot, lease_key, namespace, run_id)
        path = self.directory / (new_uuid() + OPEN)
        try:
            self.directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.directory.mkdir(mode=0o700, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SpoolFault(f"cannot spool to {self.directory}: {error.strerror}") from error
        file = SpoolFile(self, path, fd)
        try:
            file.write_lines(encode_line(header.encode()))
        except BaseException:
            file.remove()
            raise
        return file

    def check_room(self, size: int) -> None:
        """Raises SpoolFull when so many bytes more are too many."""
        used = 0
        for directory in (self.directory, self.directory / QUARANTINE):
            with contextlib.suppress(OSError), os.scandir(directory) as entries:
                used += sum(entry.stat(follow_symlinks=False).st_size for entry in entries if entry.is_file())
        if used + size > self._max_bytes:
            raise SpoolFull(f"the spool in {self.directory} is full ({used:,} of {self._max_bytes:,} bytes); start runhistd")

    def _identify(self, pid: int) -> Tuple[int, str, str]:
        if self._writer is None or self._writer[0] != pid:
            pidfd = open_pidfd(pid)
            try:
                self._writer = pid, Namer().identity(pid, pidfd), boot_id()
            finally:
                if pidfd is not None:
                    os.close(pidfd)
        return self._writer


class SpoolFile:
    """The open file of one writer; also read by it when the daemon is back."""

    def __init__(self, spool: Spool, path: Path, fd: int) -> None:
        self.path = path
        self._spool = spool
        self._fd = fd
        self._size = 0
        self._read_to = 0
        self._synced_to = 0

    @property
    def is_synced(self) -> bool:
        """Whether all that was written is on the disk."""
        return self._synced_to == self._size

    @property
    def has_unread(self) -> bool:
        """Whether there is a request that was not read back."""
        return self._read_to < self._size

    def write(self, method: str, parameters: bytes) -> None:
        """Add a request. Raises SpoolFault, and then the file is as before."""
        line = encode_line(encode_request(method, parameters))
        if len(line) > MAX_LINE_BYTES:
            raise SpoolFault(f"a request of {len(line):,} bytes is larger than what is spooled ({MAX_LINE_BYTES:,})")
        self.write_lines(line)

    def write_lines(self, lines: bytes) -> None:
        """Add whole lines. Raises SpoolFault, and then the file is as before."""
        self._spool.check_room(len(lines))
        is_header = self._size == 0
        try:
            written = os.write(self._fd, lines)
            if written < len(lines):
                written += os.write(self._fd, lines[written:])  # tells why it was cut short
            if written < len(lines):
                raise OSError(0, "it was cut short")
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
            raise SpoolFault(f"cannot spool to {self.path}: {error.strerror}") from error
        except BaseException:
            os.ftruncate(self._fd, self._size)
            raise
        self._size += len(lines)
        if is_header:
            self._read_to = self._size

    def sync(self) -> None:
        """Return when all that is in it now is on the disk. Raises SpoolFault."""
        size = self._size  # another thread may write meanwhile
        if self._synced_to == size:
            return
        try:
            os.fsync(self._fd)
            sync_directory(self.path.parent)
        except OSError as error:
            raise SpoolFault(f"cannot sync {self.path}: {error.strerror}") from error
        self._synced_to = size

    def read(self) -> Dict[str, Any]:
        """The next request that was not read back yet: method and decoded parameters. Raises DamagedSpool, OSError."""
        with os.fdopen(os.dup(self._fd), "rb") as file:
            file.seek(self._read_to)
            line = file.readline(MAX_LINE_BYTES)
        text = decode_line(line)
        if text is None:
            raise DamagedSpool(f"{self.path} was changed")
        self._read_to += len(line)
        request: Dict[str, Any] = json.loads(text)
        return request

    def seal(self) -> None:
        """Hand it over to the daemon. Raises OSError."""
        self.path.rename(self.path.with_suffix(SEALED))
        self.close()

    def remove(self) -> None:
        """All of it is committed."""
        with contextlib.suppress(OSError):
            self.path.unlink()
        self.close()

    def put_aside(self, reason: str) -> None:
        """Some of it was refused: keep it whole."""
        with contextlib.suppress(OSError):
            quarantine(self.path, reason)
        self.close()

    def close(self) -> None:
        """Close the descriptor; the file stays."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable. Raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
