"""The daemon put together: open the log, listen, serve until told to stop, and stop without losing an answer.

The order of a stop: nobody new is accepted, calls that come now are refused with ShuttingDown, followers are told so, what
was queued is committed and answered, and then the log is closed with everything in the database file.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import trio

from runhistd.config import Config
from runhistd.model.quota import Quota
from runhistd.store.database import DamagedDatabase, DiskFull, StorageFault, open_reader, read_history
from runhistd.store.log import Batch, EventLog

from . import watching
from .accept import accept_all
from .commit import Bounds, Committer, now_us
from .damage import answer_damaged, damage_in
from .follow import Tail
from .instance import Instance
from .listen import Doors, Endpoint, all_accepted
from .liveness import Liveness, descriptors_to_spare
from .notify import Answers, Notifier
from .reload import Reload, directories_of
from .service import Service
from .space import Space
from .status import status_of

logger = logging.getLogger("runhistd.main")


async def serve(
    instance: Instance,
    reload: Reload,
    *,
    stop: trio.Event,
    notifier: Notifier,
    doors: Doors,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the instance with the settings of `reload` until `stop`, at the passed sockets too.

    When the daemon answers, `task_status` is started and the service manager told. Raises what opening the log raises but
    DamagedDatabase, ListenFault, and, in an ExceptionGroup, StorageFault or InstanceLost: then nothing that was not answered
    may be assumed to be stored, and the files were left as they are. A damaged database is closed, as it is, and everybody
    is told so until `stop`, or until another one is in its place: then `instance.replaced` is True; it is to be served anew.
    """
    answers = Answers(notifier, task_status)
    damage = instance.known_damage()
    if damage is None:
        try:
            await serve_history(instance, reload, stop, answers, doors)
        except* DamagedDatabase as group:
            damage = damage_in(group)
    if damage is not None and not stop.is_set():
        await answer_damaged(instance, reload, damage, stop, answers, doors)


async def serve_history(
    instance: Instance, reload: Reload, stop: trio.Event, answers: Answers, doors: Doors
) -> None:
    """Serve while the database is sound."""
    notifier = answers.notifier
    with notifier.starting(f"opening {instance.database}"):
        space = Space(instance.state_dir)
        log = None if instance.damaged(now_us()) else open_log(instance, space)
    service = assemble(instance, reload, log, space, notifier, doors)
    try:
        if log is not None:
            with notifier.starting(f"adopting what ended while nobody served {instance.database}"):
                await adopt_orphans(service, log)
        async with doors.open() as endpoints:
            await serve_endpoints(service, endpoints, stop, answers)
    except BaseException:
        service.close()
        service.liveness.close()
        if log is not None:
            log.abandon()
        raise
    service.close()
    service.liveness.close()
    if log is not None:
        log.close()
    logger.info("stopped", extra={"fields": {"position": service.tail.position}})


def assemble(
    instance: Instance, reload: Reload, log: EventLog | None, space: Space, notifier: Notifier, doors: Doors
) -> Service:
    """The parts of the daemon, each told of the others."""
    if log is None:
        instance_id, position = read_only_history(instance)
        logger.critical("storage faults ended the daemon again and again: it only reads now")
    else:
        instance_id, position = log.instance_id, log.position
    config, tail = reload.current, Tail(position)
    liveness = Liveness(grace_s=config.disconnect_grace_s, max_pidfds=descriptors_to_spare(config.connections))

    def on_commit(batch: Batch) -> None:
        tail.extend(batch.events)
        tail.show(batch.shown)
        if batch.gaps:
            tail.forget()
        liveness.leases_changed(batch.held)

    def on_beat() -> None:
        notifier.beat(status_of(service))

    def set_quota(config: Config) -> None:
        if log is not None:
            log.tally.quota = Quota(config.runs_per_user, config.bytes_per_user)

    def on_reload(config: Config) -> None:
        set_quota(config)
        committer.configure(Bounds.of(config))
        service.budget.limit_bytes = config.queue_bytes // 2
        liveness.configure(grace_s=config.disconnect_grace_s, max_pidfds=descriptors_to_spare(config.connections))
        service.collector.reschedule()

    committer = Committer(log, instance, space, Bounds.of(config), on_commit, notifier.beat_s, on_beat)
    service = Service(instance, reload, instance_id, committer, tail, liveness, doors.serves_all)
    set_quota(config)
    reload.applied = on_reload
    space.on_full = service.collector.reschedule
    committer.on_long_wal = service.readers.end_all
    service.state = "recording" if log is not None else "damaged"
    return service


def open_log(instance: Instance, space: Space) -> EventLog:
    """Open the log and remember which files it lies in."""
    try:
        log = space.open_log(instance.database)
    except DiskFull:
        raise  # which is no fault of the disk
    except StorageFault:
        instance.record_storage_failure(now_us())
        raise
    instance.check_inodes()
    return log


def read_only_history(instance: Instance) -> tuple[str, int]:
    """The identity and head of a history that is only read."""
    connection = open_reader(instance.database)
    try:
        instance_id, counters = read_history(connection)
    finally:
        connection.close()
    return instance_id, counters.position


async def adopt_orphans(service: Service, log: EventLog) -> None:
    """Take in who holds runs and what was spooled; then declare orphaned what processes held that died meanwhile.

    Where the spool could not be emptied the verdicts wait: they are tried again while the daemon serves.
    """
    dead = service.liveness.take_over(log.held())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(commit, service)
        why = await service.spools.drain()
        nursery.cancel_scope.cancel()
    if why:
        logger.error("the spool is not emptied", extra={"fields": {"why": why}})
        return
    service.liveness.submit_verdicts(service.committer.submit)
    with noting_storage_faults(service):
        while service.committer.waiting:
            service.committer.commit_queued()
    if dead:
        logger.info("adopted what dead processes left", extra={"fields": {"processes": len(dead)}})


async def serve_endpoints(
    service: Service,
    endpoints: Sequence[Endpoint],
    stop: trio.Event,
    answers: Answers,
) -> None:
    """Accept and commit until `stop`, then let what was begun come to its end, for at most `stop_s`."""
    service.sockets = [str(endpoint.path) for endpoint in endpoints]
    async with trio.open_nursery() as committing:
        committing.start_soon(commit, service)
        committing.start_soon(take_in, service)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch_processes, service, endpoints)
            nursery.start_soon(watch_files, service)
            nursery.start_soon(service.spools.run)
            nursery.start_soon(service.sweeper.run)
            nursery.start_soon(service.collector.run)
            accepting = trio.CancelScope()
            nursery.start_soon(accept_all, service, endpoints, nursery, accepting)
            logger.info("ready", extra={"fields": {"position": service.tail.position, "sockets": service.sockets}})
            nursery.start_soon(service.wait_damage)
            answers.ready(status_of(service))
            await stop.wait()
            answers.notifier.stopping(service.config.stop_s)
            accepting.cancel()
            service.stopping.set()
            with trio.move_on_after(service.config.stop_s):
                for connection in list(service.connections):
                    if connection.stream_ended is not None:
                        await connection.stream_ended.wait()
                    await connection.answered()
                    await connection.sent(0)
            nursery.cancel_scope.cancel()
        committing.cancel_scope.cancel()
    service.committer.commit_queued()


async def commit(service: Service) -> None:
    """Run the committer."""
    with noting_storage_faults(service):
        await service.committer.run()


async def take_in(service: Service) -> None:
    """Read what the connections send."""
    with noting_storage_faults(service):
        await service.intake.run()


@contextlib.contextmanager
def noting_storage_faults(service: Service) -> Iterator[None]:
    """Note a fault of the storage for the next start."""
    try:
        yield
    except StorageFault as fault:
        logger.critical("the storage failed", exc_info=fault)
        service.instance.record_storage_failure(now_us())
        raise


async def watch_processes(service: Service, endpoints: Sequence[Endpoint]) -> None:
    """Declare the runs of those orphaned who die from now on."""
    await service.liveness.run(service.committer.submit, functools.partial(all_accepted, endpoints))


async def watch_files(service: Service) -> None:
    """Look again at the settings and the spool when their directories change."""

    def directories() -> set[Path]:
        service.spools.directory.mkdir(mode=0o700, exist_ok=True)
        return {*directories_of(service.reload.path), service.spools.directory}

    def changed() -> None:
        service.reload.look()
        service.spools.wake()

    await watching.watch(directories, changed)
