"""`runhist unpin`: retention may take these runs again."""

from __future__ import annotations

import argparse
from typing import Any

from . import pins


def add_parser(subparsers: Any) -> None:
    """The command's arguments."""
    pins.add_parser(subparsers, "unpin", "let retention take runs again")


def run(args: argparse.Namespace) -> int:
    """Unpin them. Raises Complaint, Refusal."""
    return pins.mark(args, "UnpinRun")
