"""Watching directories, for all who want to know: one thread, and what it says is only "look again".

Directories are watched and not files, because editors rename a new file over the old one. The thread wakes once a second at
most. What it may miss (a directory that is made later, a file system that tells nothing, a writer that died) is found
because everybody is told to look again every few seconds anyway.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Set
from pathlib import Path

import trio
import watchfiles

logger = logging.getLogger("runhistd.watching")

STEP_MS = 1000  # between two looks of the thread: an idle daemon wakes that often
LOOK_AGAIN_MS = 5000


async def watch(directories: Callable[[], Set[Path]], changed: Callable[[], None]) -> None:
    """Call `changed` whenever something in them may have changed, until cancelled; then the thread ends within STEP_MS.

    `directories` is called in the thread, again and again, so that they may come and go; OSError of it is logged.
    """
    stop = threading.Event()
    token = trio.lowlevel.current_trio_token()
    threading.Thread(target=_watch, args=(directories, stop, lambda: token.run_sync_soon(changed))).start()
    try:
        await trio.sleep_forever()
    finally:
        stop.set()  # nobody waits for the thread: it holds nothing


def _watch(directories: Callable[[], Set[Path]], stop: threading.Event, changed: Callable[[], None]) -> None:
    while not stop.is_set():
        try:
            watched = directories()
            for _ in watchfiles.watch(
                *watched,
                watch_filter=None,
                step=STEP_MS,
                debounce=STEP_MS,
                rust_timeout=LOOK_AGAIN_MS,
                yield_on_timeout=True,
                recursive=False,
                stop_event=stop,
                raise_interrupt=False,
            ):
                _tell(stop, changed)
                if directories() != watched:
                    break
        except OSError as error:  # one of them is gone again, or the system has no watches to give
            logger.warning("cannot watch directories", extra={"fields": {"error": error}})
            stop.wait(LOOK_AGAIN_MS / 1000)
            _tell(stop, changed)


def _tell(stop: threading.Event, changed: Callable[[], None]) -> None:
    if not stop.is_set():
        try:
            changed()
        except trio.RunFinishedError:
            stop.set()
