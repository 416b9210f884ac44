"""A connection to the daemon: finding it, saying clearly why it cannot be reached, and calling it.

Theory of operation. The socket never blocks by itself; waiting is one poll with a deadline, so that the same
connection serves both ways of use. *Asking* (`call`, `stream`) sends one call and waits for its reply. *Recording*
(`send`, `push`, `receive`, `wait`) hands over bytes and takes replies as they come, without waiting; the replies come
in the order of the calls. A connection is used in one of the two ways at a time and by one thread at a time; whoever
shares one holds a lock.

Whatever goes wrong on the way ends the connection and is an `Unreachable` with its reason; what the daemon refuses is a
`Refusal` and leaves the connection open. That something else than a history listens at the socket is found out at its
first reply, so that opening costs no round trip.
"""

from __future__ import annotations

import errno
import json
import select
import socket
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple, Union

from . import environment
from .paths import SocketChoice, check_socket_path, choose_sockets
from .protocol.errors import InterfaceNotFound, Refusal, RunhistError, ShuttingDown, error_from_wire
from .protocol.interface import INTERFACE
from .protocol.machine import ClientConnection, ProtocolError, Reply, encode_json

DEFAULT_TIMEOUT_S = 5.0
READ_BYTES = 64 * 1024
READS_AT_ONCE = 64  # bounds what one `receive` takes into memory to 4 MiB
AGAIN_PAUSE_S = 0.05
BACKLOG_PAUSE_S = 0.01  # a full backlog cannot be waited for by poll
NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)  # a program may have restored SIGPIPE's default, which kills

Parameters = Union[Mapping[str, Any], bytes]

_WHAT = {
    "not_installed": "no runhistd was ever started for this user: there is no socket at {socket}",
    "not_running": "runhistd is not running: there is no socket at {socket}",
    "refused": "runhistd is not running: nobody listens at the socket {socket}, which an earlier one left behind",
    "not_permitted": "this user may not connect to the socket {socket}",
    "not_a_history": "another program than runhistd answers at the socket {socket}",
    "timeout": "runhistd did not answer in time at the socket {socket}",
    "lost": "runhistd closed the connection at the socket {socket}",
    "path_too_long": "no connection can be made",
}
_NEXT = {
    "not_permitted": "ls -l {socket}",
    "not_a_history": "lsof {socket}",
    "timeout": "runhist status",
    "lost": "runhist status",
    "path_too_long": "export RUNHIST_STATE_DIR=/a/shorter/path",
}
_START = "runhistd serve"
# Of several sockets the most telling failure is the one to report.
_TELLING = ("path_too_long", "not_permitted", "not_a_history", "timeout", "refused", "not_running", "not_installed")
_REASON_BY_ERRNO = {
    errno.ENOENT: "not_running",
    errno.ENOTDIR: "not_running",
    errno.ECONNREFUSED: "refused",
    errno.EACCES: "not_permitted",
    errno.EPERM: "not_permitted",
    errno.EPROTOTYPE: "not_a_history",
    errno.EAGAIN: "timeout",
}


class Unreachable(RunhistError):
    """The daemon cannot be reached, or was lost. The text says what, where, why this socket, and the next command.

    `reason` is one of not_installed, not_running, refused (a dead socket), not_permitted, not_a_history (another
    program answers), timeout, lost and path_too_long; `sockets` were tried in this order; `why` says why these.
    """

    def __init__(self, reason: str, sockets: Tuple[Path, ...], why: str, detail: str = "") -> None:
        self.reason = reason
        self.sockets = sockets
        self.why = why
        self.detail = detail
        self.next_command = _NEXT.get(reason, _START).format(socket=sockets[0])
        if reason == "not_a_history" and why.startswith(environment.SOCKET):
            self.next_command = "unset RUNHIST_SOCKET"
        super().__init__(reason)

    @property
    def what(self) -> str:
        """What is wrong and where, without the way out."""
        text = _WHAT[self.reason].format(socket=" or ".join(map(str, self.sockets)))
        return f"{text} ({self.detail})" if self.detail else text

    def __str__(self) -> str:
        return f"{self.what}; this socket because: {self.why}; next: {self.next_command}"


class _Socket(socket.socket):
    """A socket that may be forgotten: an engine that never closes its history is no fault worth a ResourceWarning."""

    # socket.socket's own fails where an interrupt kept it from being built; and names of modules are gone at the very end.
    def __del__(self, plain: Any = socket.socket.__base__) -> None:
        plain.close(self)


class Connection:
    """One connection to the daemon, made by `open`; closed by `close`, by leaving its block or when it is forgotten."""

    decode: Callable[[bytes], Any] = staticmethod(json.loads)
    """What makes a reply of a frame."""

    def __init__(self, connected: socket.socket, socket_path: Path, why: str) -> None:
        self.socket_path = socket_path
        self.why = why
        self._socket: Optional[socket.socket] = connected
        self._machine = ClientConnection(decode=self.decode, encode=_encode_call)
        self._outgoing = bytearray()
        self._answered = False  # by something that looks like a varlink service
        self._ended = False  # the peer sends no more

    @classmethod
    def open(cls, choice: Optional[SocketChoice] = None, *, timeout: float = DEFAULT_TIMEOUT_S) -> Connection:
        """Connect to the first socket that takes a connection; `timeout` seconds only matter while its backlog is full.

        Raises Unreachable with the most telling reason. With `timeout=0` nothing waits.
        """
        choice = choose_sockets() if choice is None else choice
        deadline = time.monotonic() + timeout
        failures: Dict[str, str] = {}
        for path in choice.sockets:
            try:
                check_socket_path(path)
                return cls(_connect(path, deadline), path, choice.why)
            except ValueError as error:
                failures["path_too_long"] = str(error)
            except OSError as error:
                reason = _REASON_BY_ERRNO.get(error.errno or 0, "not_running")
                if reason == "not_running" and not choice.installed:
                    reason = "not_installed"
                known = error.errno in _REASON_BY_ERRNO
                failures.setdefault(reason, "" if known else str(error))
        reason = min(failures, key=_TELLING.index)
        raise Unreachable(reason, choice.sockets, choice.why, failures[reason])

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it; calls that are open get no reply. May be repeated."""
        connected, self._socket = self._socket, None
        if connected is not None:
            connected.close()

    @property
    def closed(self) -> bool:
        """Whether it was closed, by us or after a fault."""
        return self._socket is None

    def fileno(self) -> int:
        """The socket's descriptor, for a caller that waits for several things at once."""
        return self._live().fileno()

    # asking

    def call(
        self, method: str, parameters: Parameters, *, timeout: Optional[float] = DEFAULT_TIMEOUT_S
    ) -> Dict[str, Any]:
        """Call a method (its short name, or a full one that has a dot) and return the reply's parameters.

        Raises the typed Refusal that the daemon answered, or Unreachable; after a time-out (seconds; None waits for
        ever) the connection is closed, because the reply that comes too late would be taken for another's.
        """
        self.send(method, parameters)
        return self._take(self._wait_reply(timeout))

    def stream(
        self, method: str, parameters: Mapping[str, Any], *, timeout: Optional[float] = None
    ) -> Iterator[Dict[str, Any]]:
        """Call a method with `more` and yield the parameters of each reply, waiting for each at most `timeout` seconds.

        The call is sent at once, not at the first `next`. Raises as `call` does. Closing the generator before the
        stream has ended closes the connection, which is how the daemon learns of it.
        """
        self.send(method, parameters, more=True)
        self.push()
        return self._replies(timeout)

    def _replies(self, timeout: Optional[float]) -> Iterator[Dict[str, Any]]:
        ended = False
        try:
            while not ended:
                reply = self._wait_reply(timeout)
                ended = not reply.continues
                yield self._take(reply)
        finally:
            if not ended:
                self.close()

    def _wait_reply(self, timeout: Optional[float]) -> Reply:
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            self.push()
            replies = self.receive(1)
            if replies:
                return replies[0]
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                self.close()
                raise self.unreachable("timeout")
            self.wait(remaining)

    def _take(self, reply: Reply) -> Dict[str, Any]:
        if reply.error is not None:
            raise self.refusal(reply)
        parameters: Dict[str, Any] = reply.parameters
        return parameters

    # recording

    @property
    def unsent_bytes(self) -> int:
        """What was handed over and the socket has not taken yet."""
        return len(self._outgoing)

    def send(self, method: str, parameters: Parameters, *, more: bool = False, oneway: bool = False) -> None:
        """Hand a call over without waiting and without sending yet; parameters may be JSON that is already encoded."""
        self._live()
        full_name = method if "." in method else f"{INTERFACE}.{method}"
        self._outgoing += self._machine.send_call(full_name, parameters, more=more, oneway=oneway)

    def push(self) -> None:
        """Send what the socket takes now. A peer that is gone is told by `receive`, after its last replies."""
        connected = self._live()
        try:
            while self._outgoing and not self._ended:
                del self._outgoing[: connected.send(self._outgoing, NO_SIGNAL)]
        except BlockingIOError:
            pass
        except OSError:
            self._outgoing.clear()
        except BaseException:
            self.close()  # an interrupt between sending and noting it: what was sent is unknown now
            raise

    def receive(self, limit: Optional[int] = None) -> List[Reply]:
        """The replies that are there, at most `limit`, without waiting; errors are replies too (see `refusal`).

        Raises Unreachable once the peer is gone and its last reply was given out, or broke the protocol.
        """
        replies: List[Reply] = []
        try:
            while limit is None or len(replies) < limit:
                reply = self._machine.next_reply()
                if reply is None:
                    if self._ended or not self._read():
                        break
                    continue
                self._answered = True
                replies.append(reply)
        except ProtocolError as error:
            self.close()
            reason = "lost" if self._answered else "not_a_history"
            raise self.unreachable(reason, str(error)) from error
        except BaseException:
            self.close()
            raise
        if self._ended and not replies:
            self.close()
            stray = self._machine.framing.buffered_bytes and not self._answered
            raise self.unreachable("not_a_history" if stray else "lost")
        return replies

    def wait(self, timeout: Optional[float]) -> bool:
        """Wait until there is something to receive, or room for what is unsent; False after `timeout` seconds."""
        poll = select.poll()
        poll.register(self._live(), select.POLLIN | (select.POLLOUT if self._outgoing else 0))
        return bool(poll.poll(None if timeout is None else max(0.0, timeout * 1000)))

    def refusal(self, reply: Reply) -> RunhistError:
        """The exception for a reply that is a typed error."""
        refusal: Refusal = error_from_wire(reply.error or "", reply.parameters)
        if isinstance(refusal, InterfaceNotFound):
            self.close()
            return self.unreachable("not_a_history", str(refusal))
        return refusal

    def unreachable(self, reason: str, detail: str = "") -> Unreachable:
        """An Unreachable about this connection."""
        return Unreachable(reason, (self.socket_path,), self.why, detail)

    def _read(self) -> bool:
        """Take what is there now, up to a bound; False when that was nothing."""
        connected = self._live()
        for rounds in range(READS_AT_ONCE):
            try:
                received = connected.recv(READ_BYTES)
            except BlockingIOError:
                return rounds > 0
            except OSError:
                received = b""
            if not received:
                self._ended = True
                return rounds > 0
            if not self._answered and not self._machine.framing.buffered_bytes and received[:1] != b"{":
                raise ProtocolError("what it sent is not a varlink message")
            self._machine.receive_data(received)
            if len(received) < READ_BYTES:
                break
        return True

    def _live(self) -> socket.socket:
        if self._socket is None:
            raise self.unreachable("lost")
        return self._socket


def call_again_if_lost(
    method: str, parameters: Parameters, choice: Optional[SocketChoice] = None, seconds: float = DEFAULT_TIMEOUT_S
) -> Dict[str, Any]:
    """Call a method that is safe to repeat, again when the daemon is restarted meanwhile. Raises Refusal, Unreachable."""
    return again_if_lost(lambda connection: connection.call(method, parameters, timeout=seconds), choice, seconds)


def again_if_lost(
    ask: Callable[[Connection], Dict[str, Any]], choice: Optional[SocketChoice], seconds: float
) -> Dict[str, Any]:
    """What `ask` has from a connection of its own; asked again when the daemon is restarted meanwhile.

    Raises Unreachable after `seconds`, and what `ask` raises.
    """
    deadline = time.monotonic() + seconds
    lost = False
    while True:
        try:
            with Connection.open(choice, timeout=seconds) as connection:
                return ask(connection)
        except (Unreachable, ShuttingDown) as trouble:
            lost = lost or isinstance(trouble, ShuttingDown) or trouble.reason == "lost"
            if not lost or time.monotonic() >= deadline:
                raise
            time.sleep(AGAIN_PAUSE_S)


def _connect(path: Path, deadline: float) -> socket.socket:
    connecting = _Socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connecting.setblocking(False)
        while True:
            try:
                connecting.connect(str(path))
                return connecting
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(BACKLOG_PAUSE_S)
    except BaseException:
        connecting.close()
        raise


def _encode_call(message: Dict[str, Any]) -> bytes:
    """As encode_json, but parameters that are bytes are JSON already: an event is encoded once, and may go often."""
    parameters = message["parameters"]
    if not isinstance(parameters, bytes):
        return encode_json(message)
    rest = b"".join(b',"%s":true' % name.encode("ascii") for name in message if name not in ("method", "parameters"))
    return b'{"method":"%s","parameters":%s%s}' % (message["method"].encode("ascii"), parameters, rest)
