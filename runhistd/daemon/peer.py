"""Who is at the other end of a connection."""

from __future__ import annotations

from attrs import define, field

from runhistd.model.holder import Holder

from .processes import Process


@define(eq=False)
class Peer:
    """Who is at the other end, by the kernel's word. `uid` is whose runs it reads and writes; an admin may see all."""

    uid: int
    process: Process
    is_admin: bool = False
    sender: Holder | None = field(init=False, default=None)
    """The process that stood behind what was read last; None when it had died by then, whoever keeps its socket."""

    @property
    def pid(self) -> int:
        """Of the process; 0 when it has none for us."""
        return self.process.holder.pid

    @property
    def holder(self) -> Holder:
        """The peer's process as a holder of leases."""
        return self.process.holder

    def look(self) -> None:
        """See whether the process lives, after something was read."""
        self.sender = None if self.process.is_dead() else self.process.holder
