"""The varlink protocol of the history, without any input or output (sans-IO).

The daemon and every client drive the same machines: bytes go in, calls or replies come out, and what must be sent comes
back as bytes. How JSON is decoded and encoded is passed in, so that the daemon can use a fast decoder with a schema and
the client the standard library. The protocol itself is described at https://varlink.org/Method-Call.
"""

from .interface import INTERFACE, SERVICE, interface_text
from .machine import Call, ClientConnection, FrameTooLong, ProtocolError, Reply, ServerConnection

__all__ = [
    "INTERFACE",
    "SERVICE",
    "Call",
    "ClientConnection",
    "FrameTooLong",
    "ProtocolError",
    "Reply",
    "ServerConnection",
    "interface_text",
]
