"""An engine of the chaos run: records numbered events in several runs at once, and tells what it was told is safe.

    python engine.py SEED

Its standard output is a file of JSON lines, so that what a killed one had been told is not lost with it. A line says
which run it touches (before it asks for it), what a receipt acknowledged of a session, or why it comes to its end. A
session is what one handle records of one run; its events carry its name and their number in it.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sys
import time
from typing import Any

import runhist
from runhist.outbox import Outbox
from runhist.protocol.errors import RunhistError, StaleEpoch

DEADLINE_S = 2.0
SESSIONS = 3
LAST_TRIES = 30
FATES = ("run.completed",) * 10 + ("run.failed", "run.cancelled") + ("run.paused",) * 4


def tell(**members: Any) -> None:
    """A line, in one write: a kill leaves all of it or nothing."""
    os.write(1, json.dumps({"pid": os.getpid(), "at_us": time.time_ns() // 1000, **members}).encode() + b"\n")


class Resent:
    """How many events were sent again since that was last told."""

    count = 0

    @classmethod
    def watch(cls) -> None:
        """Count from now on what a lost connection or a refusal has outboxes send again."""
        watched: Any = Outbox
        rewind = watched.rewind

        def counted(outbox: Outbox) -> None:
            cls.count += len(outbox._flying)
            rewind(outbox)

        watched.rewind = counted


class Session:
    """What this process records of one run."""

    def __init__(self, run: runhist.Run, name: str, length: int) -> None:
        self.run = run
        self.name = name
        self.left = length
        self.number = 0

    def append(self, count: int) -> None:
        """The next events."""
        for _ in range(count):
            self.run.append("work", {"session": self.name, "i": self.number})
            self.number += 1

    def end(self, fate: str) -> None:
        """Hand over the event that ends it."""
        if fate == "run.completed":
            self.run.complete({"session": self.name})
        elif fate == "run.failed":
            self.run.fail("so it was drawn")
        elif fate == "run.cancelled":
            self.run.cancel("so it was drawn")
        else:
            self.run.pause("go on?")

    def flush(self, ended_as: str | None = None) -> bool:
        """Ask for a receipt and tell it; false when it says that nothing is safe yet."""
        receipt = self.run.flush()
        told = {"durable": receipt.durable, "duplicates": receipt.duplicates, "resent": Resent.count}
        acknowledged = 0 if receipt.durable == "off" else self.number
        ended = ended_as if receipt.durable != "off" else None
        tell(run=self.run.run_id, session=self.name, acknowledged=acknowledged, ended_as=ended, **told)
        Resent.count = 0
        return receipt.durable != "off"


class Engine:
    """Begins, claims and ends sessions until it is asked to finish."""

    def __init__(self, seed: str) -> None:
        self.random = random.Random(seed)
        self.history = runhist.connect(deadline=DEADLINE_S)
        self.sessions: list[Session] = []
        self.finishing = False
        self._names = (f"{os.getpid()}-{seed}-{i}" for i in itertools.count())

    def work(self) -> None:
        """Until it is asked to finish, or it is drawn that it leaves its runs as they are."""
        while not self.finishing:
            if len(self.sessions) < SESSIONS and self.random.random() < 0.5:
                self.start()
            elif self.sessions:
                self.advance(self.random.choice(self.sessions))
                if self.random.random() < 0.001:
                    tell(leaves=True)
                    return
            time.sleep(self.random.uniform(0, 0.05))
        for session in list(self.sessions):
            self.end(session, "run.completed")
        tell(finished=True)

    def start(self) -> None:
        """A session of a run that somebody left, or of a new one."""
        name = next(self._names)
        run = self.claimed() if self.random.random() < 0.4 else None
        if run is None:
            tell(run=name, touches=True)
            run = self.history.begin_run(run_id=name, agent_id="chaos")
        self.sessions.append(Session(run, name, self.random.randint(2, 30)))

    def claimed(self) -> runhist.Run | None:
        """One of the runs that wait, if nobody else gets it first."""
        try:
            waiting = list(itertools.islice(self.history.interrupted(), 5))
            if not waiting:
                return None
            run = self.random.choice(waiting).run
            tell(run=run.run_id, touches=True)
            open_gate = run.gate is not None and not run.gate.answered
            claim = self.history.claim_run
            claimed = claim(run.run_id, answer="go on") if open_gate else claim(run.run_id)
        except RunhistError as error:
            tell(refused=type(error).__name__)
            return None
        tell(run=run.run_id, claimed=True)
        return claimed

    def advance(self, session: Session) -> None:
        """A step of a session."""
        session.append(self.random.randint(1, 8))
        session.left -= 1
        if session.left <= 0:
            self.end(session, self.random.choice(FATES))
        elif self.random.random() < 0.3:
            session.flush()

    def end(self, session: Session, fate: str) -> None:
        """End a session, and wait until that is safe."""
        session.end(fate)
        self.sessions.remove(session)
        for _ in range(LAST_TRIES):
            if session.flush(fate):
                return
        tell(fault=f"the end of {session.run.run_id} was not safe after {LAST_TRIES} tries")


def main() -> None:
    """Work, and tell what should not have happened."""
    Resent.watch()
    engine = Engine(sys.argv[1])

    def finish(*_: object) -> None:
        engine.finishing = True

    signal.signal(signal.SIGTERM, finish)
    tell(begins=True)
    try:
        engine.work()
    except StaleEpoch as error:
        tell(fault=f"a live engine lost its lease: {error}")
    except Exception as error:  # noqa: BLE001 - whatever breaks an engine is a finding
        tell(fault=repr(error))


if __name__ == "__main__":
    main()
