"""The examples of async code do what is said of them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import runhist

if TYPE_CHECKING:
    from tests.conftest import Daemon

ROOT = Path(__file__).parents[3]


@pytest.fixture
def history(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> runhist.History:
    """The history of a running daemon."""
    daemon.start()
    monkeypatch.setenv("RUNHIST_SOCKET", str(daemon.socket))
    return runhist.connect()


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_the_agent_records_its_tools_and_its_answer(history: runhist.History, daemon: Daemon, loop: str) -> None:
    agent = [sys.executable, "-W", "error", str(ROOT / "client" / "examples" / "agent.py"), "--loop", loop]
    follower = history.follow(published=True)
    done = subprocess.run(agent, env=daemon.env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    reader = history.run(done.stdout.strip())
    assert (reader.get().status, reader.get().title) == ("completed", "What is here?")
    steps = {step.name: (step.status, step.parent_step_id) for step in reader.steps()}
    assert steps == {
        **{"count_files": ("completed", None), "count_lines": ("completed", None)},
        **{"search": ("failed", None), "answer": ("completed", None)},
    }
    events = [event for event in reader.events() if isinstance(event, runhist.Event)]
    (reading,) = [event for event in events if event.type == "reading"]
    assert Path(reading.data["path"]).name == "agent.py"
    (whole,) = [event.data["text"] for event in events if event.type == "output"]
    shown = []
    for item in follower:
        if isinstance(item, runhist.Published):
            shown.append(item.data["text"])
        elif isinstance(item, runhist.Event) and item.kind == "run.completed":
            break
    follower.close()
    assert "".join(shown).strip() == whole and re.search(r"\d+ files and \d+ lines and no answer", whole)


def test_what_the_readme_shows_is_so(history: runhist.History, daemon: Daemon, tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    shown = r"```python\n(import anyio.*?)```.*?```console\n\$ python nightly_async.py\n(.*?)```"
    ((program, printed),) = re.findall(shown, readme, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", program], env=daemon.env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", printed)
    assert [run.status for run in history.list_runs()] == ["completed"]
