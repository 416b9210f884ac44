"""What is only shown goes through the log as well, so that it is judged, and shown, in its place among what is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from ..model.lease import check_team
from ..model.publish import Publish, Published, decide_publish

if TYPE_CHECKING:
    from .log import EventLog


class Shown(Struct, frozen=True):
    """Those who follow the run get it."""


class Live(Struct, frozen=True):
    """An event that is only shown, with what followers are chosen by. `position` is that of the newest event before it."""

    uid: int
    agent_id: str | None
    team_run_id: str | None
    position: int
    published: Published


def publish(log: EventLog, request: Publish, now_us: int) -> list[Live]:
    """What the request shows. Changes nothing. Raises a Refusal."""
    run = log.find(request.uid, request.namespace, request.run_id)
    head, position = run.head, log.pending_position
    shown = decide_publish(head, run.lease, request, now_us)
    check_team(head, log.heads.team_epoch(request.uid, head.team_run_id))
    return [Live(request.uid, head.agent_id, head.team_run_id, position, published) for published in shown]
