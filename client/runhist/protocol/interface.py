"""The interface file, which is the single source of truth for methods, types and errors."""

from __future__ import annotations

from importlib import resources

INTERFACE = "dev.runhist.History"
SERVICE = "org.varlink.service"


def interface_text() -> str:
    """The varlink description of `dev.runhist.History`, as GetInterfaceDescription answers it."""
    return resources.files(__package__).joinpath(f"{INTERFACE}.varlink").read_text(encoding="utf-8")
