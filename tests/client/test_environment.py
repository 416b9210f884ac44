"""The variables that hand a run on: what is found in them, and whose child a run is that is begun under them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import runhist
from runhist import environment
from runhist.connection import Connection
from runhist.protocol.errors import InvalidParameter
from tests.client.cli.shells import RUNHIST
from tests.client.cli.shells import run as run_command

if TYPE_CHECKING:
    from tests.client.conftest import SmallHistory
    from tests.conftest import Daemon

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
OTHER_TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
IDS = TRACE[2:]
MALFORMED = [
    *("", "x", TRACE + "-x", TRACE + "\n", TRACE[:-1], TRACE.upper(), "ff" + IDS, "0" + TRACE, f"01{IDS}-" + "x" * 300),
    *(TRACE.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32), TRACE.replace("00f067aa0ba902b7", "0" * 16)),
    *(TRACE.replace("-", "_"), f"01{IDS}x", f"01{IDS}-é"),
]


@pytest.fixture
def history(daemon: Daemon, lead_to: Callable[[Daemon], Daemon]) -> runhist.History:
    """The history of a daemon that runs."""
    lead_to(daemon).start()
    return runhist.connect(deadline=30)


def spec_of(small: SmallHistory) -> dict[str, Any]:
    """The RunSpec of the newest BeginRun."""
    return [dict(parameters["run"]) for method, parameters in small.calls if method == "BeginRun"][-1]


# what is found


def test_a_lease_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for lease in ("x", "-1", "1.0", "9" * 19, "9" * 5000):
        monkeypatch.setenv(environment.LEASE, lease)
        with pytest.raises(environment.BadLease, match="RUNHIST_LEASE is '"):
            environment.own_lease()
    monkeypatch.setenv(environment.LEASE, "")
    assert environment.own_lease() is None


def test_an_empty_variable_is_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (environment.RUN, environment.NAMESPACE, environment.LEASE, environment.TRACEPARENT):
        monkeypatch.setenv(name, "")
    assert environment.own_run() is None and environment.own_namespace() is None
    assert environment.own_lease() is None and environment.own_traceparent() is None


@pytest.mark.parametrize("trace", [TRACE, f"01{IDS}", f"fe{IDS}-more.of-it"])
def test_a_traceparent_of_this_or_a_later_version_is_taken(trace: str, daemon: Daemon, history: runhist.History) -> None:
    assert environment.well_formed(trace) == trace
    run = history.begin_run(traceparent=trace)
    assert history.run(run.run_id).get().traceparent == trace


@pytest.mark.parametrize("trace", MALFORMED)
def test_a_malformed_traceparent_is_ignored(trace: str, small: SmallHistory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(environment.TRACEPARENT, trace)
    run = runhist.connect().begin_run()
    assert "traceparent" not in spec_of(small) and run.faults == 0
    monkeypatch.setenv(environment.TRACEPARENT, TRACE)
    run = runhist.connect().begin_run(traceparent=trace)
    assert "traceparent" not in spec_of(small) and environment.TRACEPARENT not in run.environ()


def test_the_daemon_refuses_a_malformed_traceparent_by_name(history: runhist.History) -> None:
    with Connection.open() as connection:
        for i, trace in enumerate(MALFORMED):
            spec = {"run_id": f"r{i}", "traceparent": trace}
            with pytest.raises(InvalidParameter, match=re.escape("run.traceparent")):
                connection.call("BeginRun", {"run": spec, "lease_key": f"00000000-0000-4000-8000-{i:012}"})


# handing on


def test_a_run_hands_on_itself_its_lease_its_daemon_and_its_trace(small: SmallHistory) -> None:
    run = runhist.connect(namespace="ours").begin_run(run_id="r", traceparent=TRACE)
    assert run.environ() == {
        "RUNHIST_RUN": "r",
        "RUNHIST_NAMESPACE": "ours",
        "RUNHIST_LEASE": "1",
        "RUNHIST_SOCKET": str(small.path),
        "TRACEPARENT": TRACE,
    }


def test_a_run_that_has_not_begun_lends_no_lease(small: SmallHistory) -> None:
    small.close()
    lent = runhist.connect(deadline=0.1).begin_run(run_id="r").environ()
    assert lent == {"RUNHIST_RUN": "r", "RUNHIST_NAMESPACE": "default", "RUNHIST_LEASE": ""}


def test_nothing_is_handed_on_where_nothing_is_recorded(small: SmallHistory, monkeypatch: pytest.MonkeyPatch) -> None:
    history = runhist.connect()
    history.begin_run(run_id="r")
    assert history.begin_run(run_id="r").environ() == {}  # RunExists
    monkeypatch.setenv("RUNHIST", "off")
    assert runhist.connect().begin_run().environ() == {}


def test_a_command_finds_what_exec_hands_on(small: SmallHistory) -> None:
    code = f"import os, json; print(json.dumps([os.environ.get(n) for n in {[*lent_names()]!r}]))"
    done = run_command("exec", "--", sys.executable, "-c", code, env={**os.environ, "TRACEPARENT": TRACE})
    assert json.loads(done.stdout) == [spec_of(small)["run_id"], "default", "1", str(small.path), TRACE]
    assert spec_of(small)["traceparent"] == TRACE


def test_a_command_that_begins_unrecorded_finds_its_run_without_a_lease(small: SmallHistory) -> None:
    small.close()
    code = "import os; print(os.environ['RUNHIST_RUN'] != 'outer', repr(os.environ['RUNHIST_LEASE']))"
    outer = {"RUNHIST_RUN": "outer", "RUNHIST_LEASE": "7"}
    done = run_command("exec", "--", sys.executable, "-c", code, env={**os.environ, **outer})
    assert done.stdout == b"True ''\n"


def lent_names() -> tuple[str, ...]:
    return environment.RUN, environment.NAMESPACE, environment.LEASE, environment.SOCKET, environment.TRACEPARENT


# whose child


def begun_in_python(env: dict[str, str], namespace: str | None) -> None:
    code = f"import runhist; runhist.connect().begin_run(namespace={namespace!r})"
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=30)


def begun_by_exec(env: dict[str, str], namespace: str | None) -> None:
    option = [] if namespace is None else ["--namespace", namespace]
    subprocess.run([*RUNHIST, "exec", *option, "--", "true"], env=env, check=True, timeout=30)


def begun_by_begin(env: dict[str, str], namespace: str | None) -> None:
    option = [] if namespace is None else ["--namespace", namespace]
    owner = ["--owner-pid", str(os.getppid())]
    subprocess.run([*RUNHIST, "begin", *owner, *option], env=env, check=True, timeout=30, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("begin", [begun_in_python, begun_by_exec, begun_by_begin])
def test_one_rule_says_whose_child_a_run_is(begin: Any, daemon: Daemon, history: runhist.History) -> None:
    outer = history.begin_run(namespace="ours", traceparent=TRACE)
    env = {**daemon.env, **outer.environ()}
    begin(env, None)
    begin(env, "theirs")
    begin({**env, "RUNHIST_RUN": ""}, "ours")
    lone, stranger, child = list(history.list_runs())[:3]
    assert (child.namespace, child.parent_run_id) == ("ours", outer.run_id)
    assert (stranger.namespace, stranger.parent_run_id) == ("theirs", None)
    assert (lone.namespace, lone.parent_run_id) == ("ours", None)
    assert history.run(child.run_id, "ours").get().traceparent == TRACE


def test_a_parent_and_a_trace_that_are_named_win(small: SmallHistory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(environment.RUN, "outer")
    monkeypatch.setenv(environment.TRACEPARENT, TRACE)
    runhist.connect().begin_run()
    assert (spec_of(small)["parent_run_id"], spec_of(small)["traceparent"]) == ("outer", TRACE)
    runhist.connect().begin_run(parent_run_id="other", traceparent=OTHER_TRACE)
    assert (spec_of(small)["parent_run_id"], spec_of(small)["traceparent"]) == ("other", OTHER_TRACE)


def test_the_namespace_that_is_lent_is_where_one_run_is_meant(
    history: runhist.History, monkeypatch: pytest.MonkeyPatch
) -> None:
    history.begin_run(run_id="r")
    monkeypatch.setenv(environment.NAMESPACE, "ours")
    history.begin_run(run_id="r").release()
    assert history.run("r").get().namespace == "ours"
    assert history.claim_run("r").namespace == "ours"
    assert {found.namespace for found in history.list_runs()} == {"default", "ours"}


def test_no_name_of_a_variable_is_written_anywhere_else() -> None:
    package = Path(runhist.__file__).parent
    pattern = re.compile(r"""["'](RUNHIST_(RUN|NAMESPACE|LEASE|SOCKET)|TRACEPARENT)["']""")
    files = {path.name for path in package.rglob("*.py") if pattern.search(path.read_text("utf-8"))}
    assert files == {"environment.py"}
