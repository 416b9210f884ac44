"""What a run and its steps record alike, and the handle of one step."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any, Iterator, Mapping, Optional, Tuple, Type, Union

from .encoding import Cost, as_object, plain_text, present, text_members
from .endings import CANCELLED, FAILED, cancel_reason, failure_members, outcome_of
from .protocol.errors import RunhistError

if TYPE_CHECKING:
    from .handle import RunHandle

# The steps whose blocks are being run here, outermost first. New threads begin without any, tasks with their maker's.
_open_steps: ContextVar[Tuple[Step, ...]] = ContextVar("runhist_open_steps", default=())


def innermost_step(run: RunHandle) -> Optional[Step]:
    """The step of this run whose block this thread or task is in."""
    return next((step for step in reversed(_open_steps.get()) if step.run is run and not step.ended), None)


@contextmanager
def outside(step: Step) -> Iterator[None]:
    """Leave the step's block for a while: what begins meanwhile is not within it."""
    _open_steps.set(tuple(other for other in _open_steps.get() if other is not step))
    try:
        yield
    finally:
        _open_steps.set((*_open_steps.get(), step))


class Recording:
    """What a run and its steps record alike; `_record` and `_publish` say for which of them."""

    def _record(self, type: str, data: Any = None, **members: Any) -> None:
        raise NotImplementedError

    def _publish(self, type: str, data: Any = None, **members: Any) -> None:
        raise NotImplementedError

    def delta(self, text: str) -> None:
        """A piece of a text that grows, an answer's token for instance: shown to those who watch, and not recorded.

        See `Run.publish`. Record the whole text when it is there.
        """
        self._publish("delta", {"text": plain_text(str(text))}, kind="output")

    def output(self, text: Union[str, bytes], stream: str = "stdout") -> None:
        """A piece of output, usually a line. What is no text is replaced, and kept as base64 too."""
        text = text if isinstance(text, (str, bytes)) else str(text)
        self._record("output", {"stream": stream, **text_members(text)})

    def note(self, text: str) -> None:
        """A remark for people."""
        self._record("note", {"text": plain_text(str(text))})

    def usage(
        self,
        *,
        model: Optional[str] = None,
        provider: Optional[str] = None,
        input_tokens: Optional[int] = None,
        output_tokens: Optional[int] = None,
        cache_read_input_tokens: Optional[int] = None,
        cache_creation_input_tokens: Optional[int] = None,
        reasoning_output_tokens: Optional[int] = None,
        cost_usd: Optional[Cost] = None,
        response_id: Optional[str] = None,
        cumulative: Optional[bool] = None,
    ) -> None:
        """Tokens and cost. input_tokens include the cached ones, output_tokens the reasoning.

        These are added up, unless `response_id` (all of that response so far) or `cumulative` (all of the run so far)
        says otherwise; so a response that streams may report again and again. `cost_usd` is best a string or a Decimal.
        """
        figures = {
            "model": model,
            "provider": provider,
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
            "cache_read_input_tokens": cache_read_input_tokens,
            "cache_creation_input_tokens": cache_creation_input_tokens,
            "reasoning_output_tokens": reasoning_output_tokens,
            "cost_usd": cost_usd,
            "response_id": response_id,
            "cumulative": cumulative,
        }
        self._record("usage", usage=figures)


class Step(Recording):
    """One attempt of a step of a run, made by `Run.step`.

    Leaving its block completes it, an exception fails it; what was said inside stands. `attempt` is None where the
    daemon counts, because the run was begun by another handle.
    """

    def __init__(
        self, run: RunHandle, name: str, step_id: str, attempt: Optional[int], parent_step_id: Optional[str]
    ) -> None:
        self.run = run
        self.name = name
        self.step_id = step_id
        self.attempt = attempt
        self.parent_step_id = parent_step_id
        self.ended = False

    def step(self, name: str, step_id: Optional[str] = None) -> Step:
        """Begin a step within this one, whatever thread or task this is."""
        return self.run._begin_step(name, step_id, self.step_id)

    def append(
        self,
        type: str,
        data: Any = None,
        *,
        kind: Optional[str] = None,
        key: Optional[str] = None,
        usage: Optional[Mapping[str, Any]] = None,
    ) -> None:
        """An event of the engine's own that belongs to this step; see `Run.append`."""
        self._record(type, None if data is None else as_object(data), **present(kind=kind, key=key, usage=usage))

    def publish(self, type: str, data: Any = None, *, kind: Optional[str] = None) -> None:
        """Show an event of this step to those who watch, and do not record it; see `Run.publish`."""
        self._publish(type, None if data is None else as_object(data), **present(kind=kind))

    def complete(self, output: Optional[Any] = None) -> None:
        """The step succeeded."""
        self._end("step.completed", {} if output is None else {"output": as_object(output)})

    def fail(self, error: Union[str, BaseException]) -> None:
        """The step failed."""
        self._end("step.failed", failure_members(error))

    def retrying(self, error: Union[str, BaseException]) -> None:
        """This attempt failed and another follows: `run.step(name, step_id=step.step_id)`."""
        self._end("step.retrying", failure_members(error))

    def skip(self, reason: Optional[str] = None) -> None:
        """The step was not needed."""
        self._end("step.skipped", {} if reason is None else {"reason": plain_text(str(reason))})

    def __enter__(self) -> Step:
        _open_steps.set((*_open_steps.get(), self))
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        # Not by the variable's token: a generator may be closed in another context than it was entered in.
        _open_steps.set(tuple(step for step in _open_steps.get() if step is not self))
        if self.ended or self.run._ended:
            return
        try:
            outcome = outcome_of(error)
            if error is not None and outcome == FAILED:
                self.fail(error)
            elif error is not None and outcome == CANCELLED:
                self._end("step.failed", {"error": f"cancelled by {cancel_reason(error)}"})
            else:
                self.complete()
        except RunhistError:
            if error is None:
                raise

    def _end(self, kind: str, data: Mapping[str, Any]) -> None:
        self.ended = True
        self._record(kind, data)

    def _record(self, type: str, data: Any = None, **members: Any) -> None:
        self.run._record(type, data, step_id=self.step_id, **present(attempt=self.attempt), **members)

    def _publish(self, type: str, data: Any = None, **members: Any) -> None:
        self.run._publish(type, data, step_id=self.step_id, **present(attempt=self.attempt), **members)
