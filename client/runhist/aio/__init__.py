"""The async client: the same names as the blocking one, for asyncio and trio (`pip install 'runhist[async]'`).

    from runhist import aio

    async with aio.connect() as history:
        async with history.begin_run(workflow="nightly") as run:
            with run.step("fetch") as step:
                step.output("42 files")

What records (append, step, output, usage, note and the like) is a plain call that never waits: it may stand anywhere, in
a callback or a worker thread too. What waits for the daemon is awaited. All that touches the socket is one task of the
history's own, which lives as long as the history's block; so an event leaves at the next await.
"""

from __future__ import annotations

try:
    from .claim import ClaimedRun
    from .client import History, connect
    from .link import HistoryLeft
    from .reading import Follower, RunReader
    from .run import Run
except ModuleNotFoundError as error:
    if error.name != "anyio":
        raise
    raise ImportError("runhist.aio needs anyio: pip install 'runhist[async]'") from error

__all__ = ["ClaimedRun", "Follower", "History", "HistoryLeft", "Run", "RunReader", "connect"]
