"""Recording one run from threads: the handle that waits.

A recording call sends its event if the socket takes it now; otherwise it waits in the history's window. Only `flush`,
`events` and leaving the run's block wait for the daemon; a full window makes any call wait up to the history's
deadline. Data too large to travel with its event is given to the daemon at once, which waits until it is
there (see `large`). Handles are thread-safe. See `handle` for what they record.

An exception that is leaving a block is never replaced by one of recording's; `flush` raises what the daemon refused.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import TYPE_CHECKING, Any, Dict, Iterator, Mapping, Optional, Sequence, Type, TypeVar, Union

from . import ambient
from .faults import Faults
from .handle import RunHandle, is_answer
from .large import SENT_WHOLE_BYTES, encode_event, give_to
from .link import Link
from .outbox import Outbox
from .protocol.errors import RunClosed, RunhistError
from .reading import RunReader
from .records import Event, Gap, Receipt

if TYPE_CHECKING:
    from .client import History

_R = TypeVar("_R", bound="Run")


class Run(RunHandle):
    """A run that this process records; made by `History.begin_run`, or by `attach` under a lease that exists.

    Leaving its block completes it; an exception fails or cancels it. What was said inside by `complete`, `fail` or
    `cancel` stands. Without a block, call one of these and then `flush`.
    """

    def __init__(self, history: History, outbox: Optional[Outbox], faults: Faults, run_id: str, fresh: bool) -> None:
        super().__init__(history, outbox, faults, run_id, fresh)
        self._history: History = history
        self._link: Optional[Link] = history._link

    @classmethod
    def attach(cls, history: History, namespace: Optional[str], run_id: str, lease: Union[int, str]) -> Run:
        """A handle that appends to a run under a lease that another handle or process got, with a count of its own.

        The lease is its epoch or its lease_key.
        """
        faults = history._new_faults()
        off = history._link is None
        epoch, key = (lease, None) if isinstance(lease, int) else (None, lease)
        outbox = None if off else Outbox(faults, namespace or history.namespace, run_id, None, epoch, lease_key=key)
        return cls(history, outbox, faults, run_id, fresh=False)

    def artifact(
        self,
        path: Union[str, "os.PathLike[str]"],
        *,
        name: Optional[str] = None,
        kind: Optional[str] = None,
        digest: bool = False,
        keep: bool = False,
    ) -> None:
        """A file that the run made: its path, size and time, with `digest` its SHA-256.

        With `keep` the daemon keeps the content as it is now, whatever becomes of the file; that waits until it has it.
        What cannot be read or kept is a fault of recording like others: it is counted in `faults`, and the rest is recorded.
        """
        if self._link is None:
            return
        from .artifacts import gather

        given = os.fspath(path)
        connect = self._history._reader.connect if keep else None
        self._record_artifact(given, *gather(given, name=name, kind=kind, digest=digest, keep=connect))

    def wait_gate(self) -> Any:
        """The answer to the gate that this handle paused the run at, waited for without an end.

        To go on, claim the run. Raises RunClosed when the run was ended instead, StaleEpoch when another process went
        on with it, and what `flush` raises.
        """
        self.flush()
        reader = RunReader(self._history._reader, self.namespace, self._run_id)
        gate_seq = self._outbox.last_seq if self._outbox else None  # nothing of ours comes behind it
        for event in reader.events(follow=True, after_seq=gate_seq or 0):
            if isinstance(event, Event) and is_answer(event):
                return event.data.get("answer")
        raise RunClosed(status=reader.get().status)

    def release(self) -> None:
        """Give the run up before its end, so that another process may claim it. Raises what `flush` raises."""
        self.flush()
        if self.epoch is not None:
            name = {"namespace": self.namespace, "run_id": self._run_id}
            self._history._reader.call("ReleaseRun", {**name, "epoch": self.epoch})
        self._ended = True

    def __enter__(self: _R) -> _R:
        ambient.enter(self)
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        ambient.leave(self)
        try:
            if not self._ended:
                self._end_as(error)
            self._settle_last()
        except RunhistError:
            if error is None:
                raise

    # what became of it

    def flush(self, deadline: Optional[float] = None) -> Receipt:
        """Wait until everything is stored, at most `deadline` seconds (the history's, if none is given).

        Raises what the daemon refused since the last flush. While the daemon is away the receipt says "spooled" when all
        of it is on the disk. Events that are not stored in time wait on; the receipt says "off" then.
        """
        link, outbox = self._link, self._outbox
        if link is None or outbox is None or link.forked:
            return Receipt("off", faults=self._faults.count)
        seconds = self._history.deadline if deadline is None else deadline
        link.wait(lambda: outbox.settled or link.spool_fault is not None or link.saved(outbox), seconds, patient=True)
        return self._take_stock(link, outbox)

    def events(
        self,
        *,
        follow: bool = False,
        after_seq: int = 0,
        types: Optional[Sequence[str]] = None,
        kinds: Optional[Sequence[str]] = None,
    ) -> Iterator[Union[Event, Gap]]:
        """The run's events as they are stored (see `RunReader.events`), after what this handle recorded before."""
        link, outbox = self._link, self._outbox
        if link is not None and outbox is not None:
            link.wait(lambda: outbox.settled or link.saved(outbox), self._history.deadline)
        reader = RunReader(self._history._reader, self.namespace, self._run_id)
        return reader.events(follow=follow, after_seq=after_seq, types=types, kinds=kinds)

    def _settle_last(self) -> None:
        """The last flush of a block: what is not stored in time counts as faults, and waits on."""
        link, outbox = self._link, self._outbox
        if link is None or outbox is None or link.forked:
            return
        link.wait(lambda: outbox.settled or link.spool_fault is not None or link.saved(outbox), self._history.deadline)
        self._take_last_stock(link, outbox)

    def _encode(self, event: Mapping[str, Any]) -> bytes:
        link = self._link
        assert link is not None
        return encode_event(event, min(link.event_bytes, SENT_WHOLE_BYTES), self._give)

    def _give(self, data: Any) -> Dict[str, Any]:
        """Give the daemon large data, unless it is known to be away: then that would only hold the engine up."""
        link = self._link
        assert link is not None
        with link.lock:
            link.pump()
            if link.away:
                raise link.trouble
        return give_to(link.choice, self._history.deadline)(data)

    def _make_room(self, size: int) -> bool:
        assert self._link is not None
        return self._link.make_room(size, self._history.deadline)
