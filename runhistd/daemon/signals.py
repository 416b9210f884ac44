"""The event loop's start and end: serve until a signal, stop gracefully, or at once at a second one. SIGHUP means: look at
the settings again.

Once the daemon serves, what exists then exists for good; the collector need not look at it again and again (gc.freeze). Nor
need it look after every few events: what a batch makes is freed without it, and little but a cancelled task leaves cycles.
"""

from __future__ import annotations

import functools
import gc
import logging
import signal

import trio

from .instance import Instance
from .listen import Doors
from .main import serve
from .notify import Notifier
from .reload import Reload

logger = logging.getLogger("runhistd.signals")

COLLECT_AFTER = 20_000  # new objects: some batches' worth


def run(instance: Instance, reload: Reload, notifier: Notifier, doors: Doors) -> None:
    """Serve until SIGTERM or SIGINT. What ends the daemon otherwise comes out in an ExceptionGroup."""
    trio.run(serve_until_signal, instance, reload, notifier, doors)


async def serve_until_signal(
    instance: Instance, reload: Reload, notifier: Notifier, doors: Doors
) -> None:
    """Serve, with the signals turned into the stop event before anything answers."""
    stop = trio.Event()
    async with trio.open_nursery() as signals:
        async with trio.open_nursery() as serving:
            await signals.start(heed_signals, stop, serving.cancel_scope, reload, notifier)
            await serving.start(functools.partial(serve, instance, reload, stop=stop, notifier=notifier, doors=doors))
            gc.collect()
            gc.freeze()
            gc.set_threshold(COLLECT_AFTER)
        signals.cancel_scope.cancel()


async def heed_signals(
    stop: trio.Event,
    at_once: trio.CancelScope,
    reload: Reload,
    notifier: Notifier,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """The first SIGTERM or SIGINT asks for a graceful stop, the second ends it at once."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as received:
        task_status.started()
        async for number in received:
            name = signal.Signals(number).name
            if number == signal.SIGHUP:
                with notifier.reloading():
                    reload.look()
            elif stop.is_set():
                logger.warning("stopping at once", extra={"fields": {"signal": name}})
                at_once.cancel()
            else:
                logger.info("stopping", extra={"fields": {"signal": name}})
                stop.set()
