"""Refusals: "understood, no". Each becomes the wire error of the same name, which a test holds."""

from __future__ import annotations


class Refusal(Exception):
    """A request that is refused, with the members of the wire error as `parameters`. Nothing of it was stored."""

    def __init__(self, **parameters: str | int | None) -> None:
        super().__init__(parameters)
        self.parameters = parameters


class InvalidParameter(Refusal):
    """The request does not fit the interface; `parameter` is the path of the member, for instance `events[3].kind`."""

    def __init__(self, parameter: str) -> None:
        super().__init__(parameter=parameter)


class NoSuchRun(Refusal):
    """No run of that name."""

    def __init__(self, namespace: str, run_id: str) -> None:
        super().__init__(namespace=namespace, run_id=run_id)


class RunExists(Refusal):
    """The name is taken by a run that was begun with another lease_key."""

    def __init__(self, namespace: str, run_id: str) -> None:
        super().__init__(namespace=namespace, run_id=run_id)


class RunClosed(Refusal):
    """The run has ended; afterwards only a note or an artifact that has a key is taken."""

    def __init__(self, status: str) -> None:
        super().__init__(status=status)


class StaleEpoch(Refusal):
    """The request came under another lease than the current one, which was granted to the process `owner_pid`.

    `last_n` tells the writer what is stored of it.
    """

    def __init__(self, epoch: int, owner_pid: int | None, last_n: int) -> None:
        super().__init__(epoch=epoch, owner_pid=owner_pid, last_n=last_n)


class StaleTeamEpoch(Refusal):
    """The run belongs to an execution of its team that a newer one, of `team_epoch`, has replaced."""

    def __init__(self, team_epoch: int) -> None:
        super().__init__(team_epoch=team_epoch)


class LeaseHeld(Refusal):
    """The run is going on under the lease of the process `owner_pid`."""

    def __init__(self, owner_pid: int | None, epoch: int) -> None:
        super().__init__(owner_pid=owner_pid, epoch=epoch)


class StatusChanged(Refusal):
    """The run is not as the claim expects it."""

    def __init__(self, status: str, last_seq: int) -> None:
        super().__init__(status=status, last_seq=last_seq)


class SequenceGap(Refusal):
    """Events of this writer are missing before these."""

    def __init__(self, expected: int, last_n: int) -> None:
        super().__init__(expected=expected, last_n=last_n)


class Conflict(Refusal):
    """Something else is stored under that key, or has answered that gate, at `seq`."""

    def __init__(self, seq: int) -> None:
        super().__init__(seq=seq)


class NotAllowed(Refusal):
    """The status of the run, or the sender, does not allow it; `reason` is a sentence with the way out."""

    def __init__(self, parameter: str, reason: str) -> None:
        super().__init__(parameter=parameter, reason=reason)


class PositionExpired(Refusal):
    """The cursor belongs to another database, or lies beyond the head."""

    def __init__(self, instance_id: str, head: int) -> None:
        super().__init__(instance_id=instance_id, head=head)


class TooLarge(Refusal):
    """`parameter` is above `limit` bytes."""

    def __init__(self, parameter: str, limit: int) -> None:
        super().__init__(parameter=parameter, limit=limit)


class StorageFull(Refusal):
    """The disk is full. Nothing of the batch was stored."""


class Damaged(Refusal):
    """The database is only read from; `command` is what the operator should run."""

    def __init__(self, command: str) -> None:
        super().__init__(command=command)


class PermissionDenied(Refusal):
    """The peer may not do that."""


class Busy(Refusal):
    """As many clients are connected as the settings allow, or a read was ended because it held writing up for too long;
    trying again after that time may help."""

    def __init__(self, retry_after_us: int) -> None:
        super().__init__(retry_after_us=retry_after_us)


class QuotaExceeded(Refusal):
    """The user would have more stored than the setting `what` allows, which is `limit`."""

    def __init__(self, what: str, limit: int) -> None:
        super().__init__(what=what, limit=limit)


class ShuttingDown(Refusal):
    """The daemon is stopping; the request was not carried out."""


class RunLive(Refusal):
    """The run is at work, or waits for somebody; it must end before it can be deleted."""

    def __init__(self, status: str) -> None:
        super().__init__(status=status)


class NoSuchArtifact(Refusal):
    """The run has no artifact of that name."""

    def __init__(self, run_id: str, name: str) -> None:
        super().__init__(run_id=run_id, name=name)


class NoSuchBlob(Refusal):
    """The run does not use that content, or its user has not given it."""

    def __init__(self, sha256: str) -> None:
        super().__init__(sha256=sha256)


class RunDeleted(Refusal):
    """The run was deleted at `deleted_us`, by that rule; nothing is recorded into it any more."""

    def __init__(self, namespace: str, run_id: str, rule: str, deleted_us: int) -> None:
        super().__init__(namespace=namespace, run_id=run_id, rule=rule, deleted_us=deleted_us)


class InternalError(Refusal):
    """A fault of ours, isolated to this request; the log has its traceback under `request_id`."""

    def __init__(self, request_id: str) -> None:
        super().__init__(request_id=request_id)
