"""The same frames on a daemon's socket."""

from __future__ import annotations

import contextlib
from collections import Counter

from tests.conftest import Daemon
from tests.fuzz.grammar import Grammar, begin
from tests.hostile.peers import Neighbour, Peer, frame

ROUND = 200
KNOWN_ERRORS = ("dev.runhist.History.", "org.varlink.service.")


def fuzz(daemon: Daemon, grammar: Grammar, frames: int) -> Counter[str]:
    """Send them, a connection until it is closed, and count the answers. Raises AssertionError."""
    neighbour = Neighbour(daemon)
    seen: Counter[str] = Counter()
    with Peer(daemon.socket) as peer:
        peer.ask(frame("BeginRun", begin()))
    for made in range(0, frames, ROUND):
        left = [grammar.frame() for _ in range(min(ROUND, frames - made))]
        while left:
            left = left[_send(daemon, left, seen) :]
        neighbour.go_on()
    neighbour.close()
    faults = [line for line in daemon.log_text().splitlines() if "level=error" in line or "level=critical" in line]
    assert not faults, "\n".join(faults[:3])
    return seen


def _send(daemon: Daemon, texts: list[bytes], seen: Counter[str]) -> int:
    """Send until the connection is closed, or up to what may have no answer or no last one; how many were sent."""
    with Peer(daemon.socket) as peer:
        for i, text in enumerate(texts, 1):
            if (b"more" in text or b"oneway" in text) and b"true" in text:
                seen["stream or oneway"] += 1
                with contextlib.suppress(OSError):
                    peer.send(text + b"\0")
                return i
            reply = peer.ask_or_closed(text + b"\0")
            if reply is None:
                seen["closed"] += 1
                return i
            error = reply.get("error")
            assert error is None or error.startswith(KNOWN_ERRORS), reply
            assert error is None or not error.endswith(".InternalError"), (text, reply)
            seen["reply" if error is None else error.rpartition(".")[2]] += 1
    return len(texts)
