"""Following for a person or a pipe: over restarts of the daemon, but not for ever without one."""

from __future__ import annotations

import sys
import time
from typing import Callable, Iterator, Optional, TypeVar

from ..connection import Unreachable
from ..protocol.errors import ShuttingDown

RETRY_S = 30.0
PAUSE_S = 0.2
T = TypeVar("T")


def patiently(begin: Callable[[], Iterator[T]], *, retry: bool = True) -> Iterator[T]:
    """What `begin()` iterates over, begun again from where we are when the daemon goes away for a while.

    Raises Unreachable, or ShuttingDown, when it stays away longer than RETRY_S.
    """
    deadline: Optional[float] = None
    while True:
        try:
            for one in begin():
                deadline = None
                yield one
            return
        except (Unreachable, ShuttingDown) as error:
            if not retry:
                raise
            if deadline is None:
                deadline = time.monotonic() + RETRY_S
                sys.stderr.write(f"runhist: the daemon went away; waiting up to {RETRY_S:.0f} s for it\n")
            if time.monotonic() > deadline:
                raise error
            time.sleep(PAUSE_S)
