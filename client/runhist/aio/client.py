"""Where an async engine begins: `connect` gives a History, whose block keeps the task that records.

`connect` neither raises nor waits, whatever the state of the daemon, and entering the block does not wait for it either;
see `runhist.client` for when recording is off. Leaving the block waits, at most the deadline and shielded from
cancellation, for what runs without a block of their own have not stored yet.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, AsyncIterator, Dict, Literal, Mapping, Optional, Sequence, Type, Union, overload

import anyio
import anyio.abc

from ..claim import UNSET, answer_request, claim_request, gate_answer
from ..encoding import present
from ..endings import cancel_reason
from ..ids import new_run_id, new_uuid
from ..outbox import Outbox
from ..protocol.errors import NoSuchRun, RunhistError
from ..reading import follow_from
from ..recorder import DEADLINE_S, WINDOW_BYTES, WINDOW_EVENTS, Errors, Mode, Recorder, Setting, find_setting
from ..records import Cursor, Event, Gap, InterruptedRun, Published, RunRecord
from ..spool import MAX_SPOOL_BYTES
from .asking import call_again_if_lost
from .claim import ClaimedRun, Claiming
from .link import TaskLink
from .reading import Follower, Pages, Reader, RunReader
from .run import Opening, Run


def connect(
    *,
    namespace: Optional[str] = None,
    errors: Errors = "log",
    require: bool = False,
    deadline: float = DEADLINE_S,
    window: int = WINDOW_EVENTS,
    spool_bytes: int = MAX_SPOOL_BYTES,
) -> History:
    """The history of this user; enter it to record. Nothing is connected yet: the first run does that.

    The members are those of `runhist.connect`. `deadline` is how many seconds an awaited call may take; `window` how many
    events (and 16 MiB) of all its runs may wait in memory for the daemon: past it they wait in the spool, and with `require`
    they are faults, because no recording call waits.
    """
    setting = find_setting(errors, require, spool_bytes)
    return History(setting, namespace, errors == "raise", deadline, window)


class History(Recorder):
    """One history: begins runs, and reads what is stored. Made by `connect`; of one event loop, entered once."""

    def __init__(
        self, setting: Setting, namespace: Optional[str], raising: bool, deadline: float, window: int
    ) -> None:
        link = None if setting.choice is None else TaskLink(setting.choice, window, WINDOW_BYTES, setting.spool)
        super().__init__(link, setting, namespace, raising, deadline, window)
        self._link: Optional[TaskLink] = link
        self._tasks: Optional[anyio.abc.TaskGroup] = None
        self._reader = Reader(setting.choice)

    @property
    def mode(self) -> Mode:
        """As `runhist.History.mode`; also "off" when the block was left."""
        return "off" if self._link is not None and self._link.is_left else super().mode

    async def __aenter__(self) -> History:
        if self._tasks is not None:
            raise RuntimeError("this history was entered before; call runhist.aio.connect() again")
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        if self._link is not None:
            self._link.begin()
            self._tasks.start_soon(self._link.run, self._tasks.cancel_scope)
        return self

    async def __aexit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        assert self._tasks is not None
        try:
            if self._link is not None:
                await self._link.settle_all(self.deadline)
        finally:
            if self._link is not None:
                self._write_off(self._link.why_not(), self._link.stop())
            try:
                # Without the exception, which the group would wrap; it goes on by itself.
                await self._tasks.__aexit__(None, None, None)
            except anyio.get_cancelled_exc_class():
                if error is None:
                    raise
        if self._link is not None and self._link.interrupt is not None:
            raise self._link.interrupt

    def _write_off(self, why: RunhistError, unsettled: Sequence[Outbox]) -> None:
        """Count what was not stored before the block was left, unless the end of its run has done that."""
        for outbox in unsettled:
            if not outbox.is_written_off:
                text = f"run {outbox.run_id} is not stored to its end: {why}"
                outbox.faults.add(type(why).__name__, why, text, outbox.held_events)
        self._journal.write()

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
    ) -> Opening[Run]:
        """Begin a run and own it: `run = await history.begin_run()`, or `async with history.begin_run() as run`.

        Waits for the daemon up to the deadline; if that is in vain, the history's task tries on. What the members mean,
        and what is raised, is said at `runhist.History.begin_run`. A run whose begin is cancelled does not begin later, and
        is cancelled if it has begun.
        """
        team = {"team_id": team_id, "team_run_id": team_run_id, "team_epoch": team_epoch}
        names = {"workflow": workflow, "agent_id": agent_id, "title": title, "parent_run_id": parent_run_id, **team}
        names.update(root=root, dir=dir, traceparent=traceparent)
        objects: Dict[str, Any] = {"definition": definition, "metadata": metadata}
        return Opening(lambda: self._begin_run(run_id, namespace, names, objects))

    def claim_run(
        self,
        run_id: str,
        *,
        answer: Any = UNSET,
        expect_status: Optional[Sequence[str]] = None,
        expect_seq: Optional[int] = None,
        takeover: bool = False,
        namespace: Optional[str] = None,
    ) -> Opening[ClaimedRun]:
        """Go on with a run: `run = await history.claim_run(…)`, or `async with history.claim_run(…) as run`.

        See `runhist.History.claim_run` for what the members mean and what is raised. A claim that is cancelled is given
        back if it was granted.
        """
        namespace = self._namespace_of_one(namespace)
        return Opening(lambda: self._claim_run(namespace, run_id, answer, expect_status, expect_seq, takeover))

    async def answer_gate(self, run_id: str, answer: Any, *, namespace: Optional[str] = None) -> None:
        """Answer the gate that a run is paused at; the run stays paused until somebody claims it.

        Raises Conflict where it was answered already, NotAllowed where no gate is open, NoSuchRun, Unreachable.
        """
        namespace = self._namespace_of_one(namespace)
        run = await RunReader(self._reader, namespace, run_id).get()
        assert self._link is not None  # or reading the gate would have raised
        await call_again_if_lost("Append", answer_request(run, namespace, answer), self._link.choice, self.deadline)

    # reading

    def interrupted(
        self, *, namespace: Optional[str] = None, agent_id: Optional[str] = None, workflow: Optional[str] = None
    ) -> AsyncIterator[InterruptedRun]:
        """Paused and incomplete runs, newest first, with whether they can be claimed to go on, and why they stopped."""
        namespace = self.namespace if namespace is None else namespace
        filters = present(namespace=namespace, agent_id=agent_id, workflow=workflow)
        return Pages(self._reader, "ListInterrupted", filters, lambda page: map(InterruptedRun.from_wire, page["runs"]))

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
    ) -> AsyncIterator[RunRecord]:
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
        return Pages(
            self._reader, "ListRuns", filters, lambda page: map(RunRecord.from_wire, page["runs"]), limit=limit
        )

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
        """Events of all runs as they are committed, from when it begins on. It never ends; see `Follower`.

        `cursor` continues behind a `Follower.cursor` of before, 0 begins with the oldest event; `tail` begins with the
        newest so many. With `published` also what is only shown (`Run.publish`). Where recording is off it ends at
        once.
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

    # beginning and claiming

    async def _claim_run(
        self,
        namespace: Optional[str],
        run_id: str,
        answer: Any,
        expect_status: Optional[Sequence[str]],
        expect_seq: Optional[int],
        takeover: bool,
    ) -> ClaimedRun:
        link = self._live_link()
        if link is None or self._tasks is None:
            raise NoSuchRun(namespace=namespace or "default", run_id=run_id)
        lease_key = new_uuid()
        answers = []
        if answer is not UNSET:
            answers = [gate_answer(await RunReader(self._reader, namespace, run_id).get(), answer, lease_key)]
        request = claim_request(namespace, run_id, lease_key, answers, expect_status, expect_seq, takeover)
        claiming = Claiming(request, link.choice, self.deadline)
        self._tasks.start_soon(claiming.run)
        try:
            await claiming.ended.wait()
        except BaseException:
            self._tasks.start_soon(claiming.give_back)
            raise
        if claiming.error is not None:
            raise claiming.error
        granted, faults = claiming.granted, self._new_faults()
        outbox = Outbox(faults, granted["namespace"], run_id, None, granted["epoch"])
        return ClaimedRun(self, outbox, faults, run_id, granted["last_seq"])

    async def _begin_run(
        self, run_id: Optional[str], namespace: Optional[str], names: Mapping[str, Any], objects: Mapping[str, Any]
    ) -> Run:
        run_id = new_run_id() if run_id is None else run_id
        faults = self._new_faults()
        link = self._live_link()
        if link is None or link.forked:
            return Run(self, None, faults, run_id, fresh=True)
        outbox = self._prepare(faults, namespace, run_id, names, objects)
        run = Run(self, outbox, faults, run_id, fresh=True)
        await self._begin(link, outbox, run)
        run._raise_due()
        return run

    async def _begin(self, link: TaskLink, outbox: Outbox, run: Run) -> None:
        try:
            if outbox.refused is None:
                await self._send_begin(link, outbox)
        except BaseException as error:
            with link.lock:  # nobody gets this run's handle, so it must not begin later, or go on
                if outbox.may_have_begun:
                    run._record_quietly("run.cancelled", {"reason": f"given up while it began: {cancel_reason(error)}"})
                else:
                    link.discard(outbox)
                    outbox.forget_spooled()
            raise
        finally:
            self._journal.write()
        if outbox.refused is not None and self._require:
            raise outbox.refused

    async def _send_begin(self, link: TaskLink, outbox: Outbox) -> None:
        size = outbox.held_bytes
        room = link.has_room(size) or await link.wait(lambda: link.has_room(size), self.deadline)
        if room:
            with link.lock:
                link.take(outbox)
            await link.wait_kept(outbox, lambda: _is_answered(outbox), self.deadline)
            with link.lock:
                if _is_answered(outbox) or link.saved(outbox):
                    self._note_spooling(link)
                    return
        self._begin_late(link, outbox, room)

    def _live_link(self) -> Optional[TaskLink]:
        """The link, where recording is not off. Raises RuntimeError outside of the history's block."""
        if self._tasks is None or (self._link is not None and self._link.is_left):
            raise RuntimeError("runs are begun in the block of their history: async with runhist.aio.connect() as history")
        return self._link


def _is_answered(outbox: Outbox) -> bool:
    return outbox.epoch is not None or outbox.refused is not None
