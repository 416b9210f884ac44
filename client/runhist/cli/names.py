"""Which run a person means: an id, a unique beginning or ending of one, or @last, @last~2, @failed, @running, @paused."""

from __future__ import annotations

from typing import Any, Dict, Optional

from .. import environment
from ..connection import Connection
from .main import NO_SUCH_RUN, USAGE, Complaint, run_name
from .render import moment

SHORTEST = 4
ASKED = "asked_by_user"  # in a run that was looked for among a certain user's
STATUS_NAMES = {"failed": ["failed"], "running": ["running"], "paused": ["paused"]}


def find(
    connection: Connection, name: Optional[str], namespace: Optional[str], user: Optional[str] = None
) -> Dict[str, Any]:
    """The Run of the wire that the name means, one's own or that user's. Raises Complaint."""
    found = _find(connection, name, namespace, {} if user is None else {"uid": uid_of(user)})
    return found if user is None else {**found, ASKED: True}


def _find(
    connection: Connection, name: Optional[str], namespace: Optional[str], uid: Dict[str, int]
) -> Dict[str, Any]:
    own = environment.own_run()
    namespace = namespace or environment.own_namespace()
    name = name or ("@last" if own is None else own.run_id)
    if name.startswith("@"):
        return _newest(connection, name, namespace, uid)
    asked = {"name": name, "limit": 11, **uid, **({"namespace": namespace} if namespace else {})}
    runs = connection.call("ListRuns", asked)["runs"]
    exact = [run for run in runs if run["run_id"] == name]
    if len(exact) == 1:
        return dict(exact[0])
    if not runs or (not exact and len(name) < SHORTEST):
        where = f" in namespace {namespace}" if namespace else ""
        hint = f"; an abbreviation needs {SHORTEST} characters" if len(name) < SHORTEST else "; see: runhist list"
        raise Complaint(f"there is no run {name!r}{where}{hint}", NO_SUCH_RUN)
    if len(runs) == 1:
        return dict(runs[0])
    members = ("run_id", "namespace", "status")
    lines = ["  ".join((*(run[member] for member in members), moment(run["started_us"]))) for run in (exact or runs)[:10]]
    more = ["…"] if len(runs) > 10 else []
    raise Ambiguous(f"{name} may mean:", USAGE, lines + more)


class Ambiguous(Complaint):
    """Several runs have that name."""


def uid_of(user: str) -> int:
    """The number of a user of this machine, by name or number. Raises Complaint."""
    import pwd

    try:
        return int(user) if user.isdecimal() else pwd.getpwnam(user).pw_uid
    except (KeyError, ValueError):
        raise Complaint(f"--user {user!r} is no user of this machine", USAGE) from None


def _newest(connection: Connection, name: str, namespace: Optional[str], uid: Dict[str, int]) -> Dict[str, Any]:
    word, tilde, count = name[1:].partition("~")
    if (word != "last" and word not in STATUS_NAMES) or (tilde and not count.isdecimal()):
        raise Complaint(f"{name!r} is no name; there are @last, @last~2, @failed, @running, @paused", USAGE)
    back = int(count or 0) if tilde else 0
    asked: Dict[str, Any] = {"limit": min(back + 1, 1000), **uid}
    if namespace:
        asked["namespace"] = namespace
    if word in STATUS_NAMES:
        asked["status"] = STATUS_NAMES[word]
    runs = connection.call("ListRuns", asked)["runs"]
    if len(runs) <= back:
        raise Complaint(f"there is no run {name}; see: runhist list", NO_SUCH_RUN)
    return dict(runs[back])


def add_run_argument(parser: Any, nargs: str = "?", *, reads: bool = False) -> None:
    """RUN and --namespace, for every command about runs; --user for those that only read them."""
    text = "id, beginning, ending, or @last … (default: $RUNHIST_RUN or @last)"
    parser.add_argument("name", metavar="RUN", nargs=nargs, type=run_name, help=text)
    parser.add_argument("--namespace", help="only look here (default: $RUNHIST_NAMESPACE, else everywhere)")
    if reads:
        parser.add_argument("--user", help="among this user's runs, for root and the admin group")


def address(run: Dict[str, Any]) -> Dict[str, Any]:
    """What names the run on the wire, its user too when that was asked for by --user."""
    name = {"namespace": run["namespace"], "run_id": run["run_id"]}
    return {**name, "uid": run["uid"]} if run.get(ASKED) else name
