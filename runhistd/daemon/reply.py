"""What a call is answered with, in its place among the replies of its connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runhist.protocol import INTERFACE, SERVICE
from runhistd.model.errors import InvalidParameter, Refusal

from .commit import Outcome

if TYPE_CHECKING:
    from .server import Connection


class Reply:
    """The place of one call's reply in its connection's order; a oneway call's has none, and is never sent."""

    __slots__ = ("connection", "frame")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.frame: bytes | None = None

    def settle(self, outcome: Outcome) -> None:
        """Take what became of a write."""
        if isinstance(outcome, Refusal):
            self.refuse(outcome)
        else:
            self.frame = self.connection.machine.send_reply(outcome)

    def refuse(self, refusal: Refusal) -> None:
        """Answer with the typed error."""
        name = type(refusal).__name__
        interface = SERVICE if isinstance(refusal, InvalidParameter) else INTERFACE
        self.frame = self.connection.machine.send_error(f"{interface}.{name}", refusal.parameters)

    def fail(self, name: str, **parameters: str) -> None:
        """Answer with an error of the varlink service itself."""
        self.frame = self.connection.machine.send_error(f"{SERVICE}.{name}", parameters)
