"""The daemon that keeps one durable, shared history of every agent and workflow run on a machine."""

from runhist import __version__

__all__ = ["__version__"]
