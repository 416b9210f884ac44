"""Where an engine begins: `connect` gives a History, which begins runs and reads them.

`connect` neither raises nor waits, whatever the state of the daemon: `History.mode` says how it stands. It is "off" with
RUNHIST=off, and where no daemon was ever installed for this user (neither a socket nor a database): then every call does
nothing, one INFO record of the logger `runhist` says so, and no file is written. RUNHIST=on and `require=True` insist:
then `begin_run` raises when the run cannot be recorded.
"""

from __future__ import annotations

from typing import Any, Dict, Iterator, Literal, Mapping, Optional, Sequence, Union, overload

from .claim import UNSET, ClaimedRun, answer_gate, claim_run
from .encoding import present
from .ids import new_run_id
from .link import Link
from .outbox import Outbox
from .reading import Follower, Reader, RunReader, follow_from
from .recorder import DEADLINE_S, WINDOW_BYTES, WINDOW_EVENTS, Errors, Recorder, Setting, find_setting
from .records import Cursor, Event, Gap, InterruptedRun, Published, RunRecord
from .run import Run
from .spool import MAX_SPOOL_BYTES


def connect(
    *,
    namespace: Optional[str] = None,
    errors: Errors = "log",
    require: bool = False,
    deadline: float = DEADLINE_S,
    window: int = WINDOW_EVENTS,
    spool_bytes: int = MAX_SPOOL_BYTES,
) -> History:
    """The history of this user. Nothing is connected yet: the first call that needs the daemon does that.

    `namespace` is the default of its runs, else what RUNHIST_NAMESPACE says; lists are of all where neither they nor this
    name one. With `errors="raise"` a recording fault is raised at the next call instead of only being logged and counted.
    `require` insists on recording. `deadline` is how many seconds a call may wait;
    `window` how many events (and 16 MiB) of all its runs may wait in memory for the daemon. While there is no daemon to
    connect to, events go to the spool, which may have `spool_bytes`; with `require` there is none.
    """
    setting = find_setting(errors, require, spool_bytes)
    link = None if setting.choice is None else Link(setting.choice, window, WINDOW_BYTES, setting.spool)
    return History(link, setting, namespace, errors == "raise", deadline, window)


class History(Recorder):
    """One history: begins runs, and reads what is stored. Made by `connect`; thread-safe."""

    def __init__(
        self, link: Optional[Link], setting: Setting, namespace: Optional[str], raising: bool, deadline: float, window: int
    ) -> None:
        super().__init__(link, setting, namespace, raising, deadline, window)
        self._link: Optional[Link] = link
        self._reader = Reader(setting.choice)

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
        traceparent: Optional[str] = None,
        namespace: Optional[str] = None,
    ) -> Run:
        """Begin a run and own it. Waits for the daemon up to the deadline; if that is in vain, later calls try on.

        `run_id` is the engine's own id, or a UUIDv7 is made. `team_run_id` names an execution of the team `team_id` that
        several runs belong to, `team_epoch` its version: members of an older one than the newest seen are refused
        (StaleTeamEpoch). `root`, an absolute path, and `dir`, a relative one below it, name a directory of the run's own,
        which `runhist rm --files` removes. `parent_run_id` and `traceparent`, the trace that it belongs to, are else those
        that `environment` tells of; a traceparent that is malformed is ignored. Raises nothing, unless recording is
        insisted on or `errors="raise"`: then Unreachable, or the refusal (RunExists, for instance).
        """
        run_id = new_run_id() if run_id is None else run_id
        faults = self._new_faults()
        if self._link is None or self._link.forked:
            return Run(self, None, faults, run_id, fresh=True)
        team = {"team_id": team_id, "team_run_id": team_run_id, "team_epoch": team_epoch}
        names = {"workflow": workflow, "agent_id": agent_id, "title": title, "parent_run_id": parent_run_id, **team}
        names.update(root=root, dir=dir, traceparent=traceparent)
        objects = {"definition": definition, "metadata": metadata}
        outbox = self._prepare(faults, namespace, run_id, names, objects)
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
        namespace = self._namespace_of_one(namespace)
        expected: Dict[str, Any] = {"expect_status": expect_status, "expect_seq": expect_seq}
        return claim_run(self, namespace, run_id, answer=answer, takeover=takeover, **expected)

    def answer_gate(self, run_id: str, answer: Any, *, namespace: Optional[str] = None) -> None:
        """Answer the gate that a run is paused at; the run stays paused until somebody claims it.

        Raises Conflict where it was answered already, NotAllowed where no gate is open, NoSuchRun, Unreachable.
        """
        answer_gate(self, self._namespace_of_one(namespace), run_id, answer)

    def interrupted(
        self, *, namespace: Optional[str] = None, agent_id: Optional[str] = None, workflow: Optional[str] = None
    ) -> Iterator[InterruptedRun]:
        """Paused and incomplete runs, newest first, with whether they can be claimed to go on, and why they stopped."""
        if self._reader.off:
            return iter(())
        namespace = self.namespace if namespace is None else namespace
        pages = self._reader.pages("ListInterrupted", present(namespace=namespace, agent_id=agent_id, workflow=workflow))
        return (InterruptedRun.from_wire(one) for page in pages for one in page["runs"])

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
                self._note_spooling(link)
                return
        self._begin_late(link, outbox, room)

    # reading

    def run(self, run_id: str, namespace: Optional[str] = None) -> RunReader:
        """A run to read, whoever records it."""
        return RunReader(self._reader, self._namespace_of_one(namespace), run_id)

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

    @overload
    def follow(
        self,
        cursor: Union[int, Cursor, None] = ...,
        *,
        tail: Optional[int] = ...,
        namespace: Optional[str] = ...,
        run_id: Optional[str] = ...,
        agent_id: Optional[str] = ...,
        team_run_id: Optional[str] = ...,
        types: Optional[Sequence[str]] = ...,
        kinds: Optional[Sequence[str]] = ...,
        published: Literal[False] = ...,
    ) -> Follower[Union[Event, Gap]]: ...

    @overload
    def follow(
        self,
        cursor: Union[int, Cursor, None] = ...,
        *,
        tail: Optional[int] = ...,
        namespace: Optional[str] = ...,
        run_id: Optional[str] = ...,
        agent_id: Optional[str] = ...,
        team_run_id: Optional[str] = ...,
        types: Optional[Sequence[str]] = ...,
        kinds: Optional[Sequence[str]] = ...,
        published: Literal[True],
    ) -> Follower[Union[Event, Gap, Published]]: ...

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
        published: bool = False,
    ) -> Follower[Any]:
        """Events of all runs as they are committed, from this moment on. It never ends; see `Follower`.

        `cursor` continues behind a `Follower.cursor` of before, 0 begins with the oldest event; `tail` begins with the
        newest so many. With `published` also what is only shown (`Run.publish`). Raises Unreachable if there is no daemon
        now; where recording is off it ends at once.
        """
        filters: Mapping[str, Any] = present(
            namespace=self.namespace if namespace is None else namespace,
            run_id=run_id,
            agent_id=agent_id,
            team_run_id=team_run_id,
            types=None if types is None else list(types),
            kinds=None if kinds is None else list(kinds),
            published=published or None,
        )
        return Follower(self._reader, follow_from(cursor), filters, tail)


def _is_taken(link: Link, outbox: Outbox) -> bool:
    """Whether a begin was answered, or is in the spool."""
    return outbox.epoch is not None or outbox.refused is not None or link.saved(outbox)
