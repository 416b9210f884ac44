"""Where an engine begins: `connect` gives a History, which begins runs and reads them.

`connect` neither raises nor waits, whatever the state of the daemon: `History.mode` says how it stands. It is "off" with
RUNHIST=off, and where no daemon was ever installed for this user (neither a socket nor a database): then every call does
nothing, one INFO record of the logger `runhist` says so, and no file is written. RUNHIST=on and `require=True` insist:
then `begin_run` raises when the run cannot be recorded.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any, Dict, Iterator, Literal, Mapping, Optional, Sequence, Tuple, Union

from .claim import UNSET, ClaimedRun, answer_gate, claim_run
from .encoding import Unencodable, as_object, encode, present
from .faults import Faults, Journal
from .ids import new_run_id, new_uuid
from .link import Link
from .outbox import Outbox
from .paths import SocketChoice, choose_sockets
from .protocol.errors import InvalidParameter, RunhistError
from .reading import Follower, Reader, RunReader, follow_from
from .records import Cursor, InterruptedRun, RunRecord
from .run import Run
from .spool import MAX_SPOOL_BYTES, Spool

DEADLINE_S = 5.0
WINDOW_EVENTS = 10_000
WINDOW_BYTES = 16 * 1024 * 1024

Mode = Literal["recording", "spooling", "off"]


def connect(
    *,
    namespace: Optional[str] = None,
    errors: Literal["log", "raise"] = "log",
    require: bool = False,
    deadline: float = DEADLINE_S,
    window: int = WINDOW_EVENTS,
    spool_bytes: int = MAX_SPOOL_BYTES,
) -> History:
    """The history of this user. Nothing is connected yet: the first call that needs the daemon does that.

    `namespace` is the default of its runs. With `errors="raise"` a recording fault is raised at the next call instead of
    only being logged and counted. `require` insists on recording. `deadline` is how many seconds a call may wait;
    `window` how many events (and 16 MiB) of all its runs may wait in memory for the daemon. While there is no daemon to
    connect to, events go to the spool, which may have `spool_bytes`; with `require` there is none.
    """
    if errors not in ("log", "raise"):
        raise ValueError(f'errors must be "log" or "raise", not {errors!r}')
    journal = Journal()
    wish = os.environ.get("RUNHIST", "").strip().lower()
    choice, off = _choose(wish, require)
    if wish not in ("", "on", "off"):
        journal.add("setting", f"RUNHIST is {wish!r} and is taken for unset; it may be on or off")
    if off is not None:
        journal.add("off", f"recording is off: {off}", logging.INFO)
    journal.write()
    spool = None if choice is None or require else Spool(choice, spool_bytes)
    link = None if choice is None else Link(choice, window, WINDOW_BYTES, spool)
    return History(link, journal, namespace, errors == "raise", require or wish == "on", deadline, window)


def _choose(wish: str, require: bool) -> Tuple[Optional[SocketChoice], Optional[str]]:
    """Which sockets to use, or why none."""
    if wish == "off":
        return None, "RUNHIST=off"
    try:
        choice = choose_sockets()
    except (OSError, RuntimeError) as error:  # no home, or one that may not be looked into
        return None, f"it cannot be found out where the history is: {error}"
    if choice.installed or require or wish == "on":
        return choice, None
    return None, f"no runhistd was ever started for this user (nothing at {choice.sockets[0]}); RUNHIST=on insists"


class History:
    """One history: begins runs, and reads what is stored. Made by `connect`; thread-safe."""

    def __init__(
        self,
        link: Optional[Link],
        journal: Journal,
        namespace: Optional[str],
        raising: bool,
        require: bool,
        deadline: float,
        window: int,
    ) -> None:
        self.namespace = namespace
        self.deadline = deadline
        self.window = window
        self._link = link
        self._journal = journal
        self._raising = raising
        self._require = require
        self._reader = Reader(link.choice if link else None)

    @property
    def mode(self) -> Mode:
        """ "recording", "spooling" (the daemon is away, and events go to the disk) or "off" (also in a child after fork)."""
        if self._link is None or self._link.forked:
            return "off"
        return "spooling" if self._link.spools else "recording"

    def close(self) -> None:
        """Close the connection. A run that is used again makes a new one and sends what is unacknowledged again."""
        if self._link is not None:
            with self._link.lock:
                self._link.close()

    # recording

    def begin_run(
        self,
        *,
        run_id: Optional[str] = None,
        workflow: Optional[str] = None,
        agent_id: Optional[str] = None,
        title: Optional[str] = None,
        definition: Optional[Any] = None,
        metadata: Optional[Any] = None,
        parent_run_id: Optional[str] = None,
        team_id: Optional[str] = None,
        team_run_id: Optional[str] = None,
        team_epoch: Optional[int] = None,
        root: Optional[str] = None,
        dir: Optional[str] = None,
        namespace: Optional[str] = None,
    ) -> Run:
        """Begin a run and own it. Waits for the daemon up to the deadline; if that is in vain, later calls try on.

        `run_id` is the engine's own id, or a UUIDv7 is made. `team_run_id` names an execution of the team `team_id` that
        several runs belong to, `team_epoch` its version: members of an older one than the newest seen are refused
        (StaleTeamEpoch). `root`, an absolute path, and `dir`, a relative one below it, name a directory of the run's own,
        which `runhist rm --files` removes. Raises nothing, unless recording is insisted on or
        `errors="raise"`: then Unreachable, or the refusal (RunExists, for instance).
        """
        run_id = new_run_id() if run_id is None else run_id
        faults = self._new_faults()
        if self._link is None or self._link.forked:
            return Run(self, None, faults, run_id, fresh=True)
        team = {"team_id": team_id, "team_run_id": team_run_id, "team_epoch": team_epoch}
        names = {"workflow": workflow, "agent_id": agent_id, "title": title, "parent_run_id": parent_run_id, **team}
        names.update(root=root, dir=dir)
        objects = {"definition": definition, "metadata": metadata}
        namespace = self.namespace if namespace is None else namespace
        spec = present(
            namespace=namespace,
            time_us=time.time_ns() // 1000,
            **names,
            **{name: as_object(value) for name, value in objects.items() if value is not None},
        )
        outbox = self._prepare(faults, namespace, run_id, spec)
        run = Run(self, outbox, faults, run_id, fresh=True)
        self._begin(self._link, outbox)
        run._raise_due()
        return run

    def claim_run(
        self,
        run_id: str,
        *,
        answer: Any = UNSET,
        expect_status: Optional[Sequence[str]] = None,
        expect_seq: Optional[int] = None,
        takeover: bool = False,
        namespace: Optional[str] = None,
    ) -> ClaimedRun:
        """Go on with a run that is paused or incomplete; of several that try, one gets it.

        `answer` answers the gate that it is paused at, in the same transaction. `expect_status` and `expect_seq` claim
        it only as it is known. `takeover` takes it from an owner that is alive, who is fenced out; that is recorded.
        Raises LeaseHeld while somebody goes on with it, Conflict where the gate was answered already, StatusChanged,
        RunClosed, StaleTeamEpoch, NoSuchRun (also where recording is off), and Unreachable: a claim never waits in memory.
        """
        namespace = self.namespace if namespace is None else namespace
        expected: Dict[str, Any] = {"expect_status": expect_status, "expect_seq": expect_seq}
        return claim_run(self, namespace, run_id, answer=answer, takeover=takeover, **expected)

    def answer_gate(self, run_id: str, answer: Any, *, namespace: Optional[str] = None) -> None:
        """Answer the gate that a run is paused at; the run stays paused until somebody claims it.

        Raises Conflict where it was answered already, NotAllowed where no gate is open, NoSuchRun, Unreachable.
        """
        answer_gate(self, self.namespace if namespace is None else namespace, run_id, answer)

    def interrupted(
        self, *, namespace: Optional[str] = None, agent_id: Optional[str] = None, workflow: Optional[str] = None
    ) -> Iterator[InterruptedRun]:
        """Paused and incomplete runs, newest first, with whether they can be claimed to go on, and why they stopped."""
        if self._reader.off:
            return iter(())
        namespace = self.namespace if namespace is None else namespace
        pages = self._reader.pages("ListInterrupted", present(namespace=namespace, agent_id=agent_id, workflow=workflow))
        return (InterruptedRun.from_wire(one) for page in pages for one in page["runs"])

    def _prepare(self, faults: Faults, namespace: Optional[str], run_id: str, spec: Dict[str, Any]) -> Outbox:
        """An outbox with its BeginRun; a member that is not JSON is left out as a fault."""
        for name, value in list(spec.items()):
            try:
                encode({name: value})
            except Unencodable as error:
                del spec[name]
                faults.add("not_json", error, f"run {run_id!r} begins without its {name}: {error}")
        try:
            begin = encode({"run": {**spec, "run_id": run_id}, "lease_key": new_uuid()})
        except Unencodable:
            outbox = Outbox(faults, namespace, run_id, b"")
            outbox.give_up(InvalidParameter(parameter="run.run_id"))
            return outbox
        return Outbox(faults, namespace, run_id, begin)

    def _begin(self, link: Link, outbox: Outbox) -> None:
        try:
            if outbox.refused is None:
                self._send_begin(link, outbox)
        except BaseException:
            with link.lock:
                link.discard(outbox)  # nobody gets this run's handle, so it must not begin later
                outbox.forget_spooled()
            raise
        finally:
            self._journal.write()
        if outbox.refused is not None and self._require:
            raise outbox.refused

    def _send_begin(self, link: Link, outbox: Outbox) -> None:
        room = link.make_room(outbox.held_bytes, self.deadline)
        if room:
            with link.lock:
                link.take(outbox)
            link.wait(lambda: _is_taken(link, outbox) or link.spool_fault is not None, self.deadline)
            with link.lock:
                taken = _is_taken(link, outbox)
            if taken:
                if link.spools:
                    self._journal.add("spooling", f"recording goes to the spool for now: {link.trouble}")
                return
        why = self._why_not()
        if self._require or self._raising:
            raise why
        with link.lock:
            if room:
                text = f"run {outbox.run_id} has not begun, its events wait in memory: {why}"
                outbox.faults.add(type(why).__name__, why, text)
            else:
                outbox.give_up(why)

    def _why_not(self) -> RunhistError:
        assert self._link is not None
        return self._link.why_not()

    def _new_faults(self) -> Faults:
        return Faults(self._journal, self._raising)

    # reading

    def run(self, run_id: str, namespace: Optional[str] = None) -> RunReader:
        """A run to read, whoever records it."""
        return RunReader(self._reader, self.namespace if namespace is None else namespace, run_id)

    def list_runs(
        self,
        *,
        namespace: Optional[str] = None,
        status: Optional[Sequence[str]] = None,
        agent_id: Optional[str] = None,
        workflow: Optional[str] = None,
        team_id: Optional[str] = None,
        team_run_id: Optional[str] = None,
        parent_run_id: Optional[str] = None,
        since_us: Optional[int] = None,
        name: Optional[str] = None,
        limit: Optional[int] = None,
    ) -> Iterator[RunRecord]:
        """Runs, newest first, read page by page; without a namespace here or in `connect`, those of all.

        `name` is a whole run_id, its beginning or its ending; `since_us` is a time.
        """
        filters = present(
            namespace=self.namespace if namespace is None else namespace,
            status=None if status is None else list(status),
            agent_id=agent_id,
            workflow=workflow,
            team_id=team_id,
            team_run_id=team_run_id,
            parent_run_id=parent_run_id,
            since_us=since_us,
            name=name,
        )
        return self._reader.list_runs(filters, limit)

    def follow(
        self,
        cursor: Union[int, Cursor, None] = None,
        *,
        tail: Optional[int] = None,
        namespace: Optional[str] = None,
        run_id: Optional[str] = None,
        agent_id: Optional[str] = None,
        team_run_id: Optional[str] = None,
        types: Optional[Sequence[str]] = None,
        kinds: Optional[Sequence[str]] = None,
    ) -> Follower:
        """Events of all runs as they are committed, from this moment on. It never ends; see `Follower`.

        `cursor` continues behind a `Follower.cursor` of before, 0 begins with the oldest event; `tail` begins with the
        newest so many. Raises Unreachable if there is no daemon now; where recording is off it ends at once.
        """
        filters: Mapping[str, Any] = present(
            namespace=self.namespace if namespace is None else namespace,
            run_id=run_id,
            agent_id=agent_id,
            team_run_id=team_run_id,
            types=None if types is None else list(types),
            kinds=None if kinds is None else list(kinds),
        )
        return Follower(self._reader, follow_from(cursor), filters, tail)


def _is_taken(link: Link, outbox: Outbox) -> bool:
    """Whether a begin was answered, or is in the spool."""
    return outbox.epoch is not None or outbox.refused is not None or link.saved(outbox)
