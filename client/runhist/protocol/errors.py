"""The typed errors of the interface as exceptions, one class an error, with the same names and members.

Every class here stands in the interface file and the other way round; a test holds that.
"""

from __future__ import annotations

from typing import Any, Dict, Mapping, Type

from .interface import INTERFACE, SERVICE


class RunhistError(Exception):
    """Everything that this package raises about recording and reading."""


class Refusal(RunhistError):
    """The daemon understood and said no. `parameters` holds the error's members as they came."""

    message = "the daemon refused: {parameters}"

    def __init__(self, **parameters: Any) -> None:
        self.parameters = parameters
        super().__init__(parameters)

    @property
    def name(self) -> str:
        """The error's short name in the interface."""
        return type(self).__name__

    def __getattr__(self, member: str) -> Any:
        try:
            return self.__dict__["parameters"][member]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no member {member!r}") from None

    def __str__(self) -> str:
        try:
            return self.message.format(parameters=self.parameters, **self.parameters)
        except (KeyError, IndexError):
            return f"{self.name} {self.parameters}"


class NoSuchRun(Refusal):
    """No run of that name."""

    message = "there is no run {run_id!r} in namespace {namespace!r}"


class RunExists(Refusal):
    """Another begin already made a run of that name."""

    message = "run {run_id!r} in namespace {namespace!r} exists already; choose another run_id"


class RunClosed(Refusal):
    """The run has ended; only notes and artifacts named by key are taken."""

    message = "the run is {status}; only notes and artifacts with a key are taken now"


class StaleEpoch(Refusal):
    """Somebody else owns the run now. `last_n` is the last event of this writer that is stored."""

    message = "this process no longer owns the run (its epoch is now {epoch}, its owner process {owner_pid})"


class StaleTeamEpoch(Refusal):
    """The run belongs to an execution of its team that a newer one has replaced."""

    message = "a newer execution of the team has begun (team_epoch {team_epoch})"


class LeaseHeld(Refusal):
    """The run is going on; `owner_pid` is the process that its lease was granted to, None where nobody owns it."""

    message = "the run is going on under process {owner_pid}; only a takeover ends that"


class RunLive(Refusal):
    """The run is at work, or waits for somebody, and cannot be deleted."""

    message = "the run is {status}; end it (runhist end) or wait for its end (runhist wait), then delete it"


class NoSuchArtifact(Refusal):
    """The run has no artifact of that name."""

    message = "run {run_id!r} has no artifact {name!r}; see: runhist artifacts"


class NoSuchBlob(Refusal):
    """The run does not use that content, or it was never given."""

    message = "there is no content {sha256} for this run; it must be put first, and is forgotten when unused for an hour"


class RunDeleted(Refusal):
    """The run was deleted; nothing is recorded into it any more."""

    message = "run {run_id!r} in namespace {namespace!r} was deleted (rule: {rule}); begin a new one"


class StatusChanged(Refusal):
    """The run is not as it was expected: it has `status` now, and `last_seq` events."""

    message = "the run is {status} by now (at seq {last_seq})"


class SequenceGap(Refusal):
    """Events are missing before these. `expected` is the n that the daemon waits for."""

    message = "events are missing: the next one must have n = {expected}"


class Conflict(Refusal):
    """An event of that key, or an answer to that gate, is stored with other content, at `seq`."""

    message = "something else is already stored under that name, at seq {seq}"


class NotAllowed(Refusal):
    """The run's present status does not allow it. `parameter` names the member at fault."""

    message = "{parameter}: {reason}"


class PositionExpired(Refusal):
    """The cursor belongs to another history, or lies beyond this one's head."""

    message = "the cursor does not belong to this history; its newest position is {head}"


class TooLarge(Refusal):
    """`parameter` is above `limit` bytes."""

    message = "{parameter} is larger than {limit} bytes"


class StorageFull(Refusal):
    """The disk is full; nothing of the call was stored."""

    message = "the disk that holds the history is full; free some space and send again"


class Damaged(Refusal):
    """The database is damaged and only read from. `command` is what the operator should run."""

    message = "the history's database is damaged; run: {command}"


class PermissionDenied(Refusal):
    """This user may not do that."""

    message = "this user may not: the history is another user's, or only root and its admin group see the runs of others"


class Busy(Refusal):
    """As many clients are connected as the daemon's settings allow, or a read was ended because it held writing up for too
    long. Trying again after `retry_after_us` may help."""

    message = "the daemon has its hands full (limits.connections… in its settings, or a read that took too long); try again"


class QuotaExceeded(Refusal):
    """This user has as much stored as the daemon's setting `what` allows. Runs end all the same, and can be deleted."""

    message = "this user has as much stored as limits.{what} allows ({limit}); delete runs (runhist rm, runhist gc)"


class ShuttingDown(Refusal):
    """The daemon is stopping; the call was not carried out."""

    message = "the daemon is stopping"


PASSING = (StorageFull, Damaged, Busy, ShuttingDown)
"""Refusals that say nothing against the call: try again later."""


class InternalError(Refusal):
    """A fault of the daemon, which has its traceback in the log under `request_id`."""

    message = "the daemon failed on this call; its log has the traceback under {request_id}"


class InvalidParameter(Refusal):
    """The call does not fit the interface. `parameter` is the path of the member."""

    message = "the parameter {parameter} is wrong"


class MethodNotFound(Refusal):
    """The daemon has no such method; it may be older than this client."""

    message = "the daemon does not know the method {method}; it may be older than this client"


class InterfaceNotFound(Refusal):
    """Something else answers at the socket."""

    message = "what answers at the socket does not know the interface {interface}"


class MethodNotImplemented(Refusal):
    """The method exists and cannot be used here."""

    message = "the daemon does not implement {method}"


class ExpectedMore(Refusal):
    """The method only works as a stream."""

    message = "the method must be called with `more`"


_SERVICE_ERRORS = {
    cls.__name__
    for cls in (InvalidParameter, MethodNotFound, InterfaceNotFound, MethodNotImplemented, ExpectedMore)
}
ERRORS: Dict[str, Type[Refusal]] = {
    f"{SERVICE if name in _SERVICE_ERRORS else INTERFACE}.{name}": cls
    for name, cls in ((cls.__name__, cls) for cls in Refusal.__subclasses__())
}


def error_from_wire(name: str, parameters: Mapping[str, Any]) -> Refusal:
    """The exception for a typed error; an unknown one, of a newer daemon, becomes a plain Refusal."""
    cls = ERRORS.get(name)
    if cls is None:
        return Refusal(error=name, **parameters)
    return cls(**parameters)
