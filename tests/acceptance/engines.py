"""Engine processes that tests start, order about and kill: each takes Python statements on its standard input."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.conftest import Daemon

DEADLINE_S = 30.0

# What a statement may use. An engine speaks the protocol itself, so that nothing is sent again behind the test's back.
PRELUDE = """
import json, os, signal, socket, sys, uuid
path = sys.argv[1]
epochs, counts = {}, {}
writer = str(uuid.uuid4())

def connect():
    global peer
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(path)

def frame(method, **parameters):
    return json.dumps({"method": "dev.runhist.History." + method, "parameters": parameters}).encode() + b"\\0"

def answer():
    reply = b""
    while not reply.endswith(b"\\0"):
        reply += peer.recv(1)
    return json.loads(reply[:-1])

def call(method, **parameters):
    peer.sendall(frame(method, **parameters))
    return answer()["parameters"]

def begin(run_id, **members):
    epochs[run_id] = call("BeginRun", run={"run_id": run_id}, lease_key=str(uuid.uuid4()), **members)["epoch"]

def appending(run_id, *types, size=0):
    first_n = counts.get(run_id, 0) + 1
    counts[run_id] = first_n + len(types) - 1
    events = [{"type": one, "data": {"text": "x" * size}} for one in types]
    return frame("Append", run_id=run_id, epoch=epochs[run_id], writer=writer, first_n=first_n, events=events)

def append(run_id, *types):
    peer.sendall(appending(run_id, *types))
    return answer()["parameters"]

def leave_a_child_with_the_socket():
    if os.fork() == 0:
        signal.pause()

def fork_and_wait_for_usr1(then):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    child = os.fork()
    if child == 0:
        signal.sigwait({signal.SIGUSR1})
        then()
        os._exit(0)
    return child

connect()
for line in sys.stdin:
    print(json.dumps(eval(line)), flush=True)
"""


class Engine:
    """One engine process."""

    def __init__(self, daemon: Daemon) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE, str(daemon.socket)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=daemon.env,
            text=True,
            start_new_session=True,  # so that a child which it leaves behind is found again
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def tell(self, expression: str) -> None:
        """Let it evaluate something, without waiting for the outcome."""
        assert self.process.stdin is not None
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()

    def do(self, expression: str) -> Any:
        """Let it evaluate something; returns the outcome."""
        self.tell(expression)
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], DEADLINE_S)
        assert ready, f"the engine did not come to an end with {expression}"
        return json.loads(self.process.stdout.readline())

    def kill(self) -> None:
        """SIGKILL, and wait; children that it left go on."""
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """Kill it with all its children, and close the pipes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
