"""Record runs into, and read them from, the shared history that runhistd keeps on this machine.

    import runhist

    history = runhist.connect()
    with history.begin_run(workflow="nightly") as run:
        with run.step("fetch") as step:
            step.output("42 files")

Names are imported when they are first used, so that the command line starts as fast as what it needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, List

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .ambient import LogHandler as LogHandler
    from .ambient import current_run as current_run
    from .ambient import step as step
    from .claim import ClaimedRun as ClaimedRun
    from .client import History as History
    from .client import connect as connect
    from .connection import Connection as Connection
    from .connection import Unreachable as Unreachable
    from .encoding import Unencodable as Unencodable
    from .outbox import HistoryLost as HistoryLost
    from .protocol.errors import Busy as Busy
    from .protocol.errors import Conflict as Conflict
    from .protocol.errors import Damaged as Damaged
    from .protocol.errors import InternalError as InternalError
    from .protocol.errors import InvalidParameter as InvalidParameter
    from .protocol.errors import LeaseHeld as LeaseHeld
    from .protocol.errors import NoSuchRun as NoSuchRun
    from .protocol.errors import NotAllowed as NotAllowed
    from .protocol.errors import PermissionDenied as PermissionDenied
    from .protocol.errors import PositionExpired as PositionExpired
    from .protocol.errors import QuotaExceeded as QuotaExceeded
    from .protocol.errors import Refusal as Refusal
    from .protocol.errors import RunClosed as RunClosed
    from .protocol.errors import RunExists as RunExists
    from .protocol.errors import RunhistError as RunhistError
    from .protocol.errors import SequenceGap as SequenceGap
    from .protocol.errors import ShuttingDown as ShuttingDown
    from .protocol.errors import StaleEpoch as StaleEpoch
    from .protocol.errors import StaleTeamEpoch as StaleTeamEpoch
    from .protocol.errors import StatusChanged as StatusChanged
    from .protocol.errors import StorageFull as StorageFull
    from .protocol.errors import TooLarge as TooLarge
    from .reading import Follower as Follower
    from .reading import RunReader as RunReader
    from .records import Cursor as Cursor
    from .records import Event as Event
    from .records import Gap as Gap
    from .records import Gate as Gate
    from .records import InterruptedRun as InterruptedRun
    from .records import Published as Published
    from .records import Receipt as Receipt
    from .records import RunRecord as RunRecord
    from .records import StepRecord as StepRecord
    from .records import Usage as Usage
    from .records import UsageRow as UsageRow
    from .records import UsageTotals as UsageTotals
    from .run import Run as Run
    from .steps import Step as Step

_NAMES = {
    "ambient": ("LogHandler", "current_run", "step"),
    "claim": ("ClaimedRun",),
    "client": ("History", "connect"),
    "connection": ("Connection", "Unreachable"),
    "encoding": ("Unencodable",),
    "outbox": ("HistoryLost",),
    "protocol.errors": (
        *("Busy", "Conflict", "Damaged", "InternalError", "InvalidParameter", "LeaseHeld", "NoSuchRun", "NotAllowed"),
        "PermissionDenied",
        *("PositionExpired", "QuotaExceeded", "Refusal", "RunClosed", "RunExists", "RunhistError", "SequenceGap"),
        "ShuttingDown",
        *("StaleEpoch", "StaleTeamEpoch", "StatusChanged", "StorageFull", "TooLarge"),
    ),
    "reading": ("Follower", "RunReader"),
    "records": (
        *("Cursor", "Event", "Gap", "Gate", "InterruptedRun", "Published", "Receipt", "RunRecord", "StepRecord"),
        *("Usage", "UsageRow", "UsageTotals"),
    ),
    "run": ("Run",),
    "steps": ("Step",),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> List[str]:
    return sorted({*globals(), *_HOMES})
