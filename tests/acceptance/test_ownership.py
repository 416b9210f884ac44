"""One writer a run, among real processes: claims, gates, takeovers, and a pipeline that is resumed elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import runhist
from runhist.protocol.errors import Conflict, LeaseHeld, NotAllowed, RunClosed, StatusChanged
from tests.client.cli.shells import run
from tests.conftest import wait_until

if TYPE_CHECKING:
    from tests.conftest import Daemon

EXAMPLES = Path(__file__).parents[2] / "client" / "examples"
RESOLVER = """
import sys, runhist
history = runhist.connect()
sys.stdin.readline()
try:
    run = history.claim_run("r", answer=sys.argv[1])
    run.complete({"by": sys.argv[1], "answer": run.answer})
    run.flush()
    print("won")
except runhist.Refusal as refusal:
    print(refusal.name)
"""


@pytest.fixture
def history(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> runhist.History:
    """The history of a daemon that runs; this process is its client too."""
    for name in [name for name in os.environ if name.startswith("RUNHIST")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RUNHIST_SOCKET", str(daemon.socket))
    daemon.start()
    return runhist.connect()


def paused(history: runhist.History, run_id: str = "r", **gate: Any) -> runhist.Run:
    begun = history.begin_run(run_id=run_id)
    begun.checkpoint({"done": 3})
    begun.output("behind the checkpoint")
    begun.pause("approve", prompt="Go on?", **gate)
    begun.flush()
    return begun


def kinds(history: runhist.History, run_id: str = "r") -> list[str]:
    return [event.kind for event in history.run(run_id).events()]


def test_a_paused_run_is_claimed_with_its_checkpoint_answer_and_what_came_after(history: runhist.History) -> None:
    paused(history, payload={"files": 3}, answer_schema={"type": "object"})
    claimed = history.claim_run("r", answer={"approved": True}, expect_status=["paused"], expect_seq=4)
    assert claimed.checkpoint_data == {"done": 3}
    assert [event.kind for event in claimed.earlier_events()] == ["output", "run.paused", "gate.answered"]
    assert (claimed.answer, claimed.from_status) == ({"approved": True}, "paused")
    with claimed:
        with claimed.step("publish"):
            pass
    assert history.run("r").get().status == "completed"
    assert kinds(history).count("run.resumed") == 1


def test_eight_processes_resolve_one_gate_and_one_wins(history: runhist.History, daemon: Daemon) -> None:
    paused(history)
    options: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": daemon.env}
    processes = [subprocess.Popen([sys.executable, "-c", RESOLVER, str(i)], **options) for i in range(8)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert said.count("won") == 1, said
    assert set(said) <= {"won", "LeaseHeld", "Conflict", "NotAllowed", "RunClosed"}
    assert (kinds(history).count("run.resumed"), kinds(history).count("gate.answered")) == (1, 1)
    output = history.run("r").get().output
    assert output is not None and output["by"] == output["answer"] == str(said.index("won"))


def test_two_threads_of_one_process_cannot_both_win(history: runhist.History) -> None:
    paused(history)
    outcomes: list[object] = []

    def claim() -> None:
        try:
            outcomes.append(history.claim_run("r"))
        except runhist.Refusal as refusal:
            outcomes.append(refusal)

    threads = [threading.Thread(target=claim) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["ClaimedRun", "LeaseHeld"]


def test_a_live_owners_run_is_taken_over_only_when_asked_and_the_owner_is_fenced_out(history: runhist.History) -> None:
    owner = history.begin_run(run_id="r")
    with pytest.raises(LeaseHeld) as held:
        history.claim_run("r")
    assert str(os.getpid()) in str(held.value)
    taken = history.claim_run("r", takeover=True)
    assert (taken.from_status, taken.answer, taken.checkpoint_data) == ("running", None, None)
    owner.output("too late")
    with pytest.raises(runhist.StaleEpoch) as stale:
        owner.flush()
    assert stale.value.epoch == taken.epoch
    assert next(history.run("r").events(kinds=["run.resumed"])).data["takeover"] is True


def test_the_owner_waits_at_its_gate_for_the_answer_and_claims_the_run_to_go_on(history: runhist.History) -> None:
    owner = paused(history)
    answers: list[object] = []
    waiting = threading.Thread(target=lambda: answers.append(owner.wait_gate()))
    waiting.start()
    history.answer_gate("r", [1, "yes"])
    waiting.join(30)
    assert answers == [[1, "yes"]]
    with pytest.raises(Conflict):
        history.answer_gate("r", "another")
    again = history.claim_run("r")
    assert again.answer == [1, "yes"]


def test_a_gate_that_is_never_answered_ends_the_wait_with_what_happened_instead(history: runhist.History) -> None:
    owner = paused(history)
    history.claim_run("r").cancel("nobody answers")
    with pytest.raises(runhist.StaleEpoch):
        owner.wait_gate()
    with pytest.raises(NotAllowed):
        history.answer_gate("r", True)


def test_leaving_the_block_of_a_paused_run_leaves_it_paused(history: runhist.History) -> None:
    with history.begin_run(run_id="r") as owner:
        owner.pause("approve")
    found = history.run("r").get()
    assert (found.status, found.lease, found.gate and found.gate.name) == ("paused", "ended", "approve")


def test_a_released_run_is_listed_as_interrupted_and_may_be_claimed(history: runhist.History) -> None:
    owner = history.begin_run(run_id="r", agent_id="a")
    owner.release()
    paused(history, "p")
    history.begin_run(run_id="live")
    found = {one.run.run_id: one for one in history.interrupted()}
    assert {run_id: one.resumable for run_id, one in found.items()} == {"r": True, "p": False}
    assert found["r"].evidence == {"reason": "released", "pid": os.getpid()}
    assert [one.run.run_id for one in history.interrupted(agent_id="a")] == ["r"]
    history.claim_run("r", expect_status=["incomplete"]).complete()


def test_a_claim_of_what_changed_or_ended_is_a_clear_refusal(history: runhist.History) -> None:
    paused(history)
    with pytest.raises(StatusChanged) as changed:
        history.claim_run("r", expect_status=["incomplete"])
    assert "paused" in str(changed.value)
    ended = history.claim_run("r")
    ended.complete()
    ended.flush()
    with pytest.raises(RunClosed):
        history.claim_run("r", takeover=True)


def test_a_lost_reply_of_a_claim_is_repeated_by_its_lease_key_over_a_restart(
    history: runhist.History, daemon: Daemon
) -> None:
    paused(history)
    claim = {"run_id": "r", "lease_key": "00000000-0000-4000-8000-000000000001", "expect_status": ["paused"]}
    with runhist.Connection.open() as connection:
        first = connection.call("ClaimRun", claim)
    daemon.kill()
    daemon.start()
    with runhist.Connection.open() as connection:
        assert connection.call("ClaimRun", claim) == first
        with pytest.raises(LeaseHeld):
            connection.call("ClaimRun", {"run_id": "r", "lease_key": "00000000-0000-4000-8000-000000000002"})


def test_a_whole_team_is_followed_in_one_order_and_its_older_members_are_refused(history: runhist.History) -> None:
    old = history.begin_run(run_id="old", team_id="t", team_run_id="T", team_epoch=1)
    history.begin_run(run_id="stranger")
    new = history.begin_run(run_id="new", team_id="t", team_run_id="T", team_epoch=2)
    new.output("first")
    new.flush()
    old.output("stale")
    with pytest.raises(runhist.StaleTeamEpoch):
        old.flush()
    assert [found.run_id for found in history.list_runs(team_run_id="T")] == ["new", "old"]
    with history.follow(cursor=0, team_run_id="T") as follower:
        assert [(next(follower).run_id) for _ in range(3)] == ["old", "new", "new"]


# the command line


def test_resume_answers_a_gate_without_owning_the_run(history: runhist.History, daemon: Daemon) -> None:
    paused(history)
    done = run("resume", "@paused", "--answer", '{"ok": true}', env=daemon.env)
    assert done.returncode == 0 and b"runhist resume r -- CMD" in done.stdout, done.stderr
    found = history.run("r").get()
    assert found.status == "paused" and found.gate is not None and found.gate.answered
    again = run("resume", "r", "--answer", "1", env=daemon.env)
    assert again.returncode == 4 and b"already" in again.stderr


def test_resume_runs_a_command_under_the_claimed_run_and_ends_it_with_its_status(
    history: runhist.History, daemon: Daemon
) -> None:
    paused(history)
    script = "import os; print(os.environ['RUNHIST_CHECKPOINT'], os.environ['RUNHIST_ANSWER'], os.environ['RUNHIST_LEASE'])"
    done = run("resume", "r", "--answer", "[7]", "--", sys.executable, "-c", script, env=daemon.env)
    found = history.run("r").get()
    assert done.returncode == 0 and done.stdout.decode().split() == ['{"done":', "3}", "[7]", str(found.epoch)], done.stderr
    assert found.status == "completed"
    assert kinds(history)[4:] == ["gate.answered", "run.resumed", "output", "run.completed"]
    late = run("resume", "r", "--", "true", env=daemon.env)
    assert late.returncode == 4 and b"completed" in late.stderr


def test_resume_refuses_a_live_run_and_says_who_owns_it(history: runhist.History, daemon: Daemon) -> None:
    history.begin_run(run_id="live")
    refused = run("resume", "live", "--", "true", env=daemon.env)
    assert refused.returncode == 4 and f"process {os.getpid()}".encode() in refused.stderr
    taken = run("resume", "live", "--takeover", "--", "false", env=daemon.env)
    assert taken.returncode == 1 and history.run("live").get().status == "failed"


@pytest.mark.parametrize(
    ("arguments", "said"), [(["r"], b"resume with what?"), (["r", "--answer", "{yes"], b"--answer is no JSON")]
)
def test_resume_teaches_its_usage(history: runhist.History, daemon: Daemon, arguments: list[str], said: bytes) -> None:
    done = run("resume", *arguments, env=daemon.env)
    assert done.returncode == 2 and said in done.stderr


def test_end_closes_a_stuck_run_with_a_takeover_only(history: runhist.History, daemon: Daemon) -> None:
    history.begin_run(run_id="stuck")
    refused = run("end", "stuck", "--cancelled", env=daemon.env)
    assert refused.returncode == 4 and b"runhist end stuck --takeover" in refused.stderr
    closed = run("end", "stuck", "--cancelled", "--error", "it hangs", "--takeover", env=daemon.env)
    assert closed.returncode == 0, closed.stderr
    found = history.run("stuck").get()
    assert (found.status, found.error) == ("cancelled", "it hangs")


def test_end_needs_no_takeover_where_nobody_owns_the_run(history: runhist.History, daemon: Daemon) -> None:
    paused(history)
    assert run("end", "@paused", "--exit-code", "3", env=daemon.env).returncode == 0
    assert history.run("r").get().status == "failed"


def test_the_pipeline_pauses_is_killed_and_is_resumed_elsewhere_from_its_checkpoint(
    history: runhist.History, daemon: Daemon, tmp_path: Path
) -> None:
    pipeline = [sys.executable, str(EXAMPLES / "pipeline.py")]
    begun = subprocess.run(pipeline, env=daemon.env, capture_output=True, text=True, check=True)
    run_id = begun.stdout.strip()
    assert history.run(run_id).get().status == "paused"
    options: dict[str, Any] = {"env": daemon.env, "stdin": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([*pipeline, run_id, "--answer", "true"], **options) as approved:
        wait_until(lambda: [step.name for step in history.run(run_id).steps()] == ["count", "format"], "the second step")
        wait_until(lambda: kinds(history, run_id)[-1] == "checkpoint", "its checkpoint")
        approved.kill()
    wait_until(lambda: history.run(run_id).get().status == "incomplete", "the death of the owner is noticed")
    done = subprocess.run([*pipeline, run_id], env=daemon.env, cwd=tmp_path, input=b"\n", capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    steps = [(step.name, step.attempt, step.status) for step in history.run(run_id).steps()]
    assert steps == [("count", 1, "completed"), ("format", 1, "completed"), ("publish", 1, "completed")]
    resumed = [event.data["from_status"] for event in history.run(run_id).events(kinds=["run.resumed"])]
    assert resumed == ["paused", "incomplete"]
