"""`runhist pin`: retention leaves these runs alone."""

from __future__ import annotations

import argparse
from typing import Any

from . import pins


def add_parser(subparsers: Any) -> None:
    """The command's arguments."""
    pins.add_parser(subparsers, "pin", "let retention leave runs alone")


def run(args: argparse.Namespace) -> int:
    """Pin them. Raises Complaint, Refusal."""
    return pins.mark(args, "PinRun")
