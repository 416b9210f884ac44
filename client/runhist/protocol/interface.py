"""The interface file, which is the single source of truth for methods, types and errors."""

from __future__ import annotations

INTERFACE = "dev.runhist.History"
SERVICE = "org.varlink.service"


def interface_text() -> str:
    """The varlink description of `dev.runhist.History`, as GetInterfaceDescription answers it."""
    from importlib import resources  # costs a fifth of the command line's start, and only daemons describe themselves

    return resources.files(__package__).joinpath(f"{INTERFACE}.varlink").read_text(encoding="utf-8")
