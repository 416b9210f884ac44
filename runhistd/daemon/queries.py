"""The methods that read, one reply each.

Each reads a page with one of a few read-only connections, and answers with the wire's own types.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from runhistd.model.errors import InvalidParameter, PermissionDenied
from runhistd.model.events import KINDS, MAX_COUNT, STATUSES
from runhistd.model.ids import check_name
from runhistd.model.views import RunFilter
from runhistd.store import blobs, event_reader, run_reader

from . import control_calls
from .follow import PAGE_BYTES, PAGE_EVENTS
from .peer import Peer
from .users import whose

if TYPE_CHECKING:
    from .service import Service

Read = Callable[..., Awaitable[Any]]

LIST_LIMIT = 50
MAX_LIST_LIMIT = 1000


async def get_artifacts(service: Service, peer: Peer, call: control_calls.GetArtifacts) -> Any:
    page = whole_page(call.page)
    arguments = (call.name, int(page or 0), limit_of(call.limit, MAX_LIST_LIMIT))
    rows, next_after_seq = await service.read_page(blobs.artifacts, whose(peer, call.uid), *name_of(call), *arguments)
    next_page = None if next_after_seq is None else str(next_after_seq)
    return {"artifacts": rows, "next_page": next_page}


async def get_run(service: Service, peer: Peer, call: control_calls.GetRun) -> Any:
    run, detail = await service.read_page(run_reader.get_run, whose(peer, call.uid), *name_of(call))
    return {"run": run, "detail": detail}


async def list_runs(service: Service, peer: Peer, call: control_calls.ListRuns) -> Any:
    for i, wanted_status in enumerate(call.status or ()):
        if wanted_status not in STATUSES:
            raise InvalidParameter(f"status[{i}]")
    if call.name is not None:
        check_name("name", call.name)
    status = None if call.status is None else tuple(call.status)
    wanted = RunFilter(
        namespace=call.namespace,
        status=status,
        agent_id=call.agent_id,
        workflow=call.workflow,
        team_id=call.team_id,
        team_run_id=call.team_run_id,
        parent_run_id=call.parent_run_id,
        since_us=call.since_us,
        name=call.name,
    )
    uid = whose(peer, call.uid)
    if call.all_users:
        if not peer.is_admin:
            raise PermissionDenied
        for member in ("uid", "name", "team_run_id", "parent_run_id"):
            if getattr(call, member) is not None:
                raise InvalidParameter(member)  # they name within one user's runs
    everyone = None if call.all_users else uid
    page = await service.read_page(run_reader.list_runs, everyone, wanted, whole_page(call.page), limit_of(call.limit))
    return {"runs": page.runs, "next_page": page.next_page, "total": page.total}


async def list_interrupted(service: Service, peer: Peer, call: control_calls.ListInterrupted) -> Any:
    wanted = RunFilter(namespace=call.namespace, agent_id=call.agent_id, workflow=call.workflow)
    arguments = (whose(peer, call.uid), wanted, whole_page(call.page), limit_of(call.limit))
    runs, next_page = await service.read_page(run_reader.list_interrupted, *arguments)
    return {"runs": runs, "next_page": next_page}


async def get_steps(service: Service, peer: Peer, call: control_calls.GetSteps) -> Any:
    arguments = (whose(peer, call.uid), *name_of(call), whole_page(call.page), limit_of(call.limit, MAX_LIST_LIMIT))
    steps, next_page = await service.read_page(run_reader.get_steps, *arguments)
    return {"steps": steps, "next_page": next_page}


async def get_usage(service: Service, peer: Peer, call: control_calls.GetUsage) -> Any:
    if call.page is not None:
        check_usage_page(call.page)
    arguments = (whose(peer, call.uid), *name_of(call), call.page, limit_of(call.limit, MAX_LIST_LIMIT))
    total, rows, next_page = await service.read_page(run_reader.get_usage, *arguments)
    return {"total": total, "rows": rows, "next_page": next_page}


async def get_events(service: Service, peer: Peer, call: control_calls.GetEvents) -> Any:
    return await read_events(service.read_page, peer, call, call.after_seq or 0)


async def read_events(read: Read, peer: Peer, call: control_calls.GetEvents, after_seq: int) -> dict[str, Any]:
    """The reply with one page of a run's events behind that seq, read in one of the service's ways."""
    check_kinds(call.kinds)
    events, next_after_seq, gaps = await read(
        event_reader.get_events,
        whose(peer, call.uid),
        *name_of(call),
        after_seq=after_seq,
        from_checkpoint=bool(call.from_checkpoint),
        types=None if call.types is None else frozenset(call.types),
        kinds=None if call.kinds is None else frozenset(call.kinds),
        limit=limit_of(call.limit, PAGE_EVENTS),
        limit_bytes=PAGE_BYTES,
    )
    return {"events": events, "next_after_seq": next_after_seq, "gaps": gaps}


def name_of(call: Any) -> tuple[str, str]:
    """The namespace and run_id of a call about one run."""
    namespace = "default" if call.namespace is None else check_name("namespace", call.namespace)
    return namespace, check_name("run_id", call.run_id)


def check_kinds(kinds: list[str] | None) -> None:
    """An unknown kind is a fault: it would match nothing, for ever."""
    for i, kind in enumerate(kinds or ()):
        if kind not in KINDS:
            raise InvalidParameter(f"kinds[{i}]")


def limit_of(limit: int | None, default: int = LIST_LIMIT) -> int:
    """How many to give: what was asked for, within reason."""
    return min(default if limit is None else max(limit, 1), MAX_LIST_LIMIT)


def whole_page(page: str | None) -> str | None:
    """A page token that is a number."""
    if page is not None and not (page.isascii() and page.isdigit() and len(page) < 19):
        raise InvalidParameter("page")
    return page


UsagePage = tuple[str, Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)], str, str]


def check_usage_page(page: str) -> None:
    """A page token of GetUsage: the key of the last row."""
    try:
        msgspec.json.decode(page, type=UsagePage)
    except (msgspec.DecodeError, ValueError) as error:
        raise InvalidParameter("page") from error
