"""How a block ended: what an exception that leaves it means for the run or the step."""

from __future__ import annotations

from typing import Any, Dict, Optional

from .encoding import describe_exception, error_members

COMPLETED = "completed"
FAILED = "failed"
CANCELLED = "cancelled"

# By name, so that neither library is imported by a program that does not use it.
_CANCELLATIONS = frozenset({("asyncio", "CancelledError"), ("trio", "Cancelled")})


def outcome_of(error: Optional[BaseException]) -> str:
    """completed, failed or cancelled.

    An interrupt, a closed generator and a cancelled task cancel; sys.exit() and sys.exit(0) complete; everything else
    fails. A group fails if anything in it does, and else cancels if anything in it does.
    """
    if error is None:
        return COMPLETED
    members = getattr(error, "exceptions", None)
    if isinstance(members, tuple) and any(cls.__name__ == "BaseExceptionGroup" for cls in type(error).__mro__):
        outcomes = {outcome_of(member) for member in members}
        return next(outcome for outcome in (FAILED, CANCELLED, COMPLETED) if outcome in outcomes)
    if isinstance(error, SystemExit):
        return COMPLETED if not error.code else FAILED
    if isinstance(error, (KeyboardInterrupt, GeneratorExit)):
        return CANCELLED
    names = {(cls.__module__.partition(".")[0], cls.__name__) for cls in type(error).__mro__}
    return CANCELLED if names & _CANCELLATIONS else FAILED


def failure_members(error: Any, exit_code: Optional[int] = None) -> Dict[str, Any]:
    """The data of run.failed and step.failed."""
    members = error_members(error)
    if isinstance(error, SystemExit) and exit_code is None:
        if isinstance(error.code, int):
            exit_code = error.code
            members["error"] = f"exit {exit_code}"
        else:
            exit_code = 1  # what the interpreter makes of a message
            members["error"] = error_members(str(error.code))["error"]
    if exit_code is not None:
        members["exit_code"] = exit_code
    return members


def cancel_reason(error: BaseException) -> str:
    """Why, in one line."""
    return describe_exception(error)
