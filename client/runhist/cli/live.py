"""The line at the end of a terminal that shows the text a step is producing right now."""

from __future__ import annotations

import sys
from typing import Any, Dict, Optional

from . import render

DELTA = "delta"  # the type of what `Run.delta` shows
ERASE = "\r\x1b[K"  # to the line's beginning, and what is there (ECMA-48 EL)
MAX_CHARS = 4096  # of a text, more than any terminal's line
_WHOLE = frozenset({"output", "step.completed", "step.failed", "step.retrying", "step.skipped"})


class LiveLine:
    """The newest text of a run's steps, in one line that is rewritten in place; nothing of it stays."""

    def __init__(self) -> None:
        self._texts: Dict[Optional[str], str] = {}  # by step_id, the newest last
        self._is_there = False

    def grow(self, published: Dict[str, Any]) -> None:
        """Show a piece of a text; other things that are only shown are left out."""
        text = published["data"].get("text")
        if published["type"] != DELTA or not isinstance(text, str):
            return
        step_id = published.get("step_id")
        self._texts[step_id] = (self._texts.pop(step_id, "") + text)[-MAX_CHARS:]
        self._draw()

    def pass_by(self, event: Dict[str, Any]) -> None:
        """An event was printed: with its whole output, or its end, a step's text is over."""
        if event["kind"] in _WHOLE:
            self._texts.pop(event.get("step_id"), None)
        if self._texts:
            self._draw()

    def clear(self) -> None:
        """Leave the line empty for something else."""
        if self._is_there:
            sys.stdout.write(ERASE)
            self._is_there = False

    def _draw(self) -> None:
        step_id, text = next(reversed(self._texts.items()))
        last = text.rstrip("\n").rpartition("\n")[2]
        head = f"{render.escaped(step_id or ''):<10}… "
        room = max(10, render.columns() - 1 - render.width(head))
        sys.stdout.write(f"{ERASE}{head}{render.ending(render.escaped(last), room)}")
        sys.stdout.flush()
        self._is_there = True
