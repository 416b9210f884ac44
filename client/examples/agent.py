"""An agent that calls three tools at once, gives up the one that takes too long, and streams its answer.

    python agent.py                 in asyncio
    python agent.py --loop trio
    runhist logs -f @last           in another terminal: the answer grows while it is produced

Needs the async client: pip install 'runhist[async]'
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import List

import anyio
import anyio.to_thread

import runhist
from runhist import aio


def main() -> int:
    """Run the agent in the event loop that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loop", choices=["asyncio", "trio"], default="asyncio")
    anyio.run(agent, backend=parser.parse_args().loop)
    return 0


async def agent() -> None:
    """One run. Its block waits, also when it is cancelled, until all of it is stored."""
    found: List[str] = []
    async with aio.connect(require=True) as history:
        async with history.begin_run(workflow="agent", agent_id="docs-bot", title="What is here?") as run:
            async with anyio.create_task_group() as tools:
                tools.start_soon(count_files, found)
                tools.start_soon(count_lines, found)
                tools.start_soon(search, found)
            run.checkpoint({"found": sorted(found)})
            await answer(run, sorted(found))
        sys.stdout.write(f"{run.run_id}\n")


@runhist.step("count_files")
async def count_files(found: List[str]) -> None:
    """A tool. It was not given the run: its step belongs to the run of the block that it was started in."""
    found.append(f"{len(list(Path(__file__).parent.iterdir()))} files")


@runhist.step("count_lines")
async def count_lines(found: List[str]) -> None:
    """A tool that works in a thread, which may record too."""

    def count() -> int:
        runhist.current_run().append("reading", {"path": __file__})
        return len(Path(__file__).read_text().splitlines())

    found.append(f"{await anyio.to_thread.run_sync(count)} lines")


async def search(found: List[str]) -> None:
    """A tool that would never end: its step is recorded as cancelled, and the run goes on."""
    with anyio.move_on_after(0.1), runhist.current_run().step("search"):
        await anyio.sleep_forever()
    found.append("no answer")


async def answer(run: aio.Run, found: List[str]) -> None:
    """The model's part. Its tokens are shown to whoever watches, and the whole answer is recorded."""
    with run.step("answer") as step:
        tokens = [f"{word} " for word in " and ".join(found).split()]
        for token in tokens:
            step.delta(token)
            await anyio.sleep(0.01)
        step.usage(model="m-small", input_tokens=20, output_tokens=len(tokens), cost_usd="0.0001")
        step.output("".join(tokens).strip())


if __name__ == "__main__":
    sys.exit(main())
