"""The daemon while the database is damaged: the files are closed and kept byte for byte, and everybody is told so.

What SQLite cannot make sense of must not be written to: a checkpoint or a repair in passing would take away what could
still be saved. So the connections are closed without one, the damage is noted beside the database for the next start, and
the lock is given up, so that `runhistd recover` and `runhistd restore` can take the directory. The sockets stay, since a
client that finds nobody takes the daemon for stopped: every call is answered with Damaged and the command to run, but
those that tell how the daemon is.

Once another database is in the place and nobody holds the directory, it is served anew. A daemon that somebody else has
started meanwhile binds the sockets itself; then we are done.
"""

from __future__ import annotations

import logging

import trio

from runhistd.store.database import DamagedDatabase

from .accept import accept_all
from .commit import Bounds, Committer
from .follow import Tail
from .instance import Instance, inode_at, is_held
from .listen import Doors
from .liveness import Liveness, descriptors_to_spare
from .notify import Answers
from .reload import Reload
from .service import Service
from .space import Space
from .status import status_of

logger = logging.getLogger("runhistd.damage")

LOOK_AGAIN_S = 1.0


def damage_in(group: BaseExceptionGroup[DamagedDatabase]) -> DamagedDatabase:
    """The first of a group."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, DamagedDatabase)
    return found


async def answer_damaged(
    instance: Instance,
    reload: Reload,
    damage: DamagedDatabase,
    stop: trio.Event,
    answers: Answers,
    doors: Doors,
) -> None:
    """Give the directory up and tell everybody why, until `stop` or until another database is there to be served."""
    logger.critical("the database is damaged; run: runhistd recover", extra={"fields": {"damage": damage}})
    service = make_service(instance, reload, damage, answers, doors)
    instance.record_damage(damage)
    damaged_inode = inode_at(instance.database)
    instance.release()
    try:
        async with doors.open(keep=False) as endpoints:
            service.sockets = [str(endpoint.path) for endpoint in endpoints]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(service.committer.run)  # it has nothing to commit, but tells the service manager
                nursery.start_soon(service.intake.run)
                nursery.start_soon(accept_all, service, endpoints, nursery, trio.CancelScope())
                answers.ready(status_of(service))
                while not stop.is_set() and not instance.replaced:
                    with trio.move_on_after(LOOK_AGAIN_S):
                        await stop.wait()
                    found = inode_at(instance.database)
                    instance.replaced = found not in (None, damaged_inode) and not is_held(instance.lock_file)
                    if not any(endpoint.is_bound() for endpoint in endpoints):
                        logger.warning("another daemon serves now; this one ends")
                        break
                nursery.cancel_scope.cancel()
    finally:
        service.close()
        service.liveness.close()
    if instance.replaced:
        logger.info("another database is in the place of the damaged one", extra={"fields": {"path": instance.database}})


def make_service(
    instance: Instance, reload: Reload, damage: DamagedDatabase, answers: Answers, doors: Doors
) -> Service:
    """A service that knows nothing but how the daemon is."""
    config, notifier = reload.current, answers.notifier

    def beat() -> None:
        notifier.beat(status_of(service))

    space = Space(instance.state_dir)
    committer = Committer(None, instance, space, Bounds.of(config), lambda batch: None, notifier.beat_s, beat)
    liveness = Liveness(grace_s=config.disconnect_grace_s, max_pidfds=descriptors_to_spare(config.connections))
    service = Service(instance, reload, "", committer, Tail(0), liveness, doors.serves_all)
    service.state, service.damage = "damaged", damage
    reload.applied = lambda config: committer.configure(Bounds.of(config))
    return service
