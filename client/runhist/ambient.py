"""The run of the context, for code that gets no handle passed down: `current_run`, `step`, `LogHandler`.

Theory of operation. The blocks of runs (`with run:`, `with run.use():`) are kept in a context variable, innermost last. So
tasks of asyncio and trio, and the threads that their to_thread starts, inherit what was current where they were started,
and cannot change it for anybody else; a new thread of `threading` begins without, and `with run.use():` lends it a run.

Where no block is open it is the run that the environment lends (see `environment`): this process then adds to it under
the same lease, by a handle with a writer and a connection of its own, of which there is one a process; a forked child gets
its own. At the interpreter's end it waits for what it sent, as leaving a block does, and leaves the run open: it is its
owner's to end.

Where there is neither it is a run that does nothing, so that a library can record without knowing whether anybody wants it.

The current run is also the parent of the runs that are begun, in either client.
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
import threading
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, Mapping, Optional, Set, Tuple, TypeVar, Union

from . import environment
from .encoding import describe_exception, present, text_members
from .steps import innermost_step, outside

if TYPE_CHECKING:
    from .handle import RunHandle
    from .run import Run

_F = TypeVar("_F", bound=Callable[..., Any])
_R = TypeVar("_R", bound="RunHandle")

_current: ContextVar[Tuple[RunHandle, ...]] = ContextVar("runhist_current_runs", default=())


# the context


def enter(run: RunHandle) -> None:
    """Make it the current run of this context."""
    _current.set((*_current.get(), run))


def leave(run: RunHandle) -> None:
    """Make the one before the current one again. Not by the variable's token: see `Step.__exit__`."""
    runs = _current.get()
    if run in runs:
        innermost = len(runs) - 1 - runs[::-1].index(run)
        _current.set((*runs[:innermost], *runs[innermost + 1 :]))


@contextmanager
def use(run: _R) -> Iterator[_R]:
    """A block in which it is the current run, and at whose end nothing happens to it."""
    enter(run)
    try:
        yield run
    finally:
        leave(run)


def context_run() -> Optional[RunHandle]:
    """The run whose block this thread or task is in."""
    runs = _current.get()
    return runs[-1] if runs else None


def current_run() -> RunHandle:
    """The run of this context, else the one that the environment lends, else one that does nothing. Raises nothing."""
    return _recorded_run() or _nothing()


def variables() -> Mapping[str, str]:
    """The environment as a process would find it that was started here by the current run."""
    run = context_run()
    return os.environ if run is None else {**os.environ, **run.environ()}


def _recorded_run() -> Optional[RunHandle]:
    return context_run() or _lent_run()


# the environment

_lent: Dict[Tuple[object, ...], Run] = {}  # by process and all that is lent; only ever added to, so no lock is needed
_bad_leases: Set[str] = set()  # those that were told of


def _lent_run() -> Optional[RunHandle]:
    name = environment.own_run()
    if name is None:
        return None
    try:
        lease = environment.own_lease()
    except environment.BadLease as error:
        _tell_once(str(error))
        return None
    if lease is None:
        return None
    key = (os.getpid(), os.environ.get(environment.SOCKET), name, lease)
    return _lent.get(key) or _borrow(key, name, lease)


def _borrow(key: Tuple[object, ...], name: environment.RunName, lease: Union[int, str]) -> Run:
    from .client import connect
    from .run import Run

    made = Run.attach(connect(namespace=name.namespace or "default"), name.namespace, name.run_id, lease)
    run = _lent.setdefault(key, made)
    if run is made:
        atexit.register(_settle, run, os.getpid())
    return run


def _settle(run: Run, pid: int) -> None:
    if os.getpid() == pid:
        with suppress(Exception):  # it was logged; there is nobody left to raise it to
            run._settle_last()


def _tell_once(text: str) -> None:
    from .faults import logger

    if text not in _bad_leases:
        _bad_leases.add(text)
        logger.warning("%s; nothing is recorded into the run that %s names", text, environment.RUN)


@functools.lru_cache(maxsize=None)
def _nothing() -> RunHandle:
    from .client import History
    from .faults import Journal
    from .recorder import DEADLINE_S, WINDOW_EVENTS, Setting
    from .run import Run

    history = History(None, Setting(None, None, False, Journal()), None, False, DEADLINE_S, WINDOW_EVENTS)
    return Run(history, None, history._new_faults(), "", fresh=True)


# steps


def step(name: str) -> Callable[[_F], _F]:
    """Decorate a function: each call of it is a step of what is then the current run, which an exception fails.

    A coroutine's step ends when it does. A generator's begins with its first item and ends when it is exhausted or closed
    (closed early, as cancelled); what its consumer records between the items is not within it.
    """
    if not isinstance(name, str):
        raise TypeError(f"step takes the step's name: @runhist.step('fetch'), not {name!r}")

    def decorate(function: _F) -> _F:
        wrapped: Any = functools.wraps(function)(_wrapper(name, function))
        decorated: _F = wrapped
        return decorated

    return decorate


def _wrapper(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """What stands in for the function; of the same kind, so that others who look at it treat it alike."""
    import inspect

    if inspect.iscoroutinefunction(function):
        return _around_coroutine(name, function)
    if inspect.isgeneratorfunction(function):
        return _around_generator(name, function)
    return (_around_async_generator if inspect.isasyncgenfunction(function) else _around_function)(name, function)


def _around_function(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with current_run().step(name):
            return function(*args, **kwargs)

    return call


def _around_coroutine(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    async def call(*args: Any, **kwargs: Any) -> Any:
        with current_run().step(name):
            return await function(*args, **kwargs)

    return call


def _around_generator(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def generate(*args: Any, **kwargs: Any) -> Any:
        generator = function(*args, **kwargs)
        with current_run().step(name) as step:
            resume = functools.partial(next, generator)
            while True:
                try:
                    item = resume()
                except StopIteration as stop:
                    return stop.value
                try:
                    with outside(step):
                        sent = yield item
                except GeneratorExit:
                    generator.close()
                    raise
                except BaseException as error:  # noqa: BLE001 - the generator's to deal with
                    resume = functools.partial(generator.throw, error)
                else:
                    resume = functools.partial(generator.send, sent)

    return generate


def _around_async_generator(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    async def generate(*args: Any, **kwargs: Any) -> Any:
        generator = function(*args, **kwargs)
        with current_run().step(name) as step:
            resume = generator.__anext__
            while True:
                try:
                    item = await resume()
                except StopAsyncIteration:
                    return
                try:
                    with outside(step):
                        sent = yield item
                except GeneratorExit:
                    await generator.aclose()
                    raise
                except BaseException as error:  # noqa: BLE001 - the generator's to deal with
                    resume = functools.partial(generator.athrow, error)
                else:
                    resume = functools.partial(generator.asend, sent)

    return generate


# log records

_OWN_LOGGER = "runhist"
_emitting = threading.local()


class LogHandler(logging.Handler):
    """Turns log records into output events (stream `log`, with level and logger) of the current run and its step.

    Records of our own logger are left alone, and so are those that come up while one is being recorded. It raises nothing
    into the program: what an engine wants raised waits for its next call. Without a current run it does nothing.
    """

    def handle(self, record: logging.LogRecord) -> bool:
        """As the logging module does, but without the handler's lock: a thread that holds the recording's may log."""
        found: Any = self.filter(record)
        if found:
            self.emit(found if isinstance(found, logging.LogRecord) else record)
        return bool(found)

    def emit(self, record: logging.LogRecord) -> None:
        """Record it."""
        if record.name.partition(".")[0] == _OWN_LOGGER or getattr(_emitting, "now", False):
            return
        _emitting.now = True
        try:
            run = _recorded_run()
            if run is not None:
                self._record(run, record)
        except Exception:  # noqa: BLE001 - a log call must not fail because it is recorded
            with suppress(Exception):
                self.handleError(record)
        finally:
            _emitting.now = False

    def _record(self, run: RunHandle, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception as error:  # noqa: BLE001 - the caller's arguments do not fit, or cannot be shown
            where = f"{record.pathname}:{record.lineno}"
            text = f"a log record of {where} cannot be formatted: {describe_exception(error)}"
        members = {"stream": "log", "level": record.levelname, "logger": record.name, **text_members(text)}
        step = innermost_step(run)
        place = {} if step is None else present(step_id=step.step_id, attempt=step.attempt)
        run._record_quietly("output", members, **place)
