"""What a shell command does while the daemon is away: its requests go to the spool, in a file of their own.

The file is sealed when the command is done, so the daemon takes it in when it starts, and several of a script in the order
in which they were written. A run that was begun there is named by the lease_key that its BeginRun carries.
"""

from __future__ import annotations

import sys
from typing import Optional

from ..connection import Unreachable
from ..paths import choose_sockets
from ..spool import Spool, SpoolFault
from .main import UNREACHABLE, Complaint

_AWAY = frozenset({"not_running", "refused", "timeout"})  # of a daemon that was installed, and will be there again

NO_RECEIPT = {"first_seq": None, "last_seq": None, "position": None, "stored": 0, "duplicates": 0, "durable": "spooled"}


class SpooledRequests:
    """One command's requests in the spool. Its methods raise Complaint when they cannot be kept."""

    def __init__(
        self,
        trouble: Exception,
        lease_key: Optional[str],
        namespace: Optional[str],
        run_id: str,
        owner_pid: Optional[int] = None,
    ) -> None:
        self._trouble = trouble
        try:
            self._file = Spool(choose_sockets()).create(lease_key, namespace, run_id, owner_pid)
        except SpoolFault as fault:
            raise self._failed(fault) from fault

    def add(self, method: str, parameters: bytes) -> None:
        """Keep a request behind the others."""
        try:
            self._file.write(method, parameters)
        except SpoolFault as fault:
            raise self._failed(fault) from fault

    def seal(self) -> None:
        """Return when all is on the disk and left to the daemon, and say so on standard error."""
        try:
            self._file.sync()
            self._file.seal()
        except (SpoolFault, OSError) as fault:
            raise self._failed(fault) from fault
        what = self._trouble.what if isinstance(self._trouble, Unreachable) else str(self._trouble)
        sys.stderr.write(f"runhist: recorded in the spool, because {what}; it comes into the history with the daemon\n")

    def _failed(self, fault: Exception) -> Complaint:
        return Complaint(f"{self._trouble}; and {fault}", UNREACHABLE)


def is_away(trouble: Exception) -> bool:
    """Whether requests may wait in the spool for the daemon to come back."""
    return isinstance(trouble, Unreachable) and trouble.reason in _AWAY
