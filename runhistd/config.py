"""The daemon's settings: one TOML file, every fault reported at once with its dotted key.

cattrs builds the object, with hooks of our own in place of its conversions: it would take the string "false" for True and
1.9 for 1, and a daemon must not guess what an operator meant. Attrs validators are not used, because the first that fails
hides the others. A key that nothing knows is a fault: a misspelled setting would otherwise be a setting without effect.
"""

from __future__ import annotations

import difflib
import grp
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import attrs
import cattrs

KIB = 1024
MIB = 1024 * 1024


@attrs.frozen
class Whole:
    """A whole number within these bounds, both included."""

    least: int
    most: int

    def read(self, value: object) -> int:
        """The value, or ValueError with what it must be."""
        if type(value) is not int:  # not isinstance: a TOML boolean is an int to Python
            raise ValueError(f"must be a whole number, not {show(value)}")
        if not self.least <= value <= self.most:
            raise ValueError(f"must be from {self.least} to {self.most}, not {value}")
        return value


@attrs.frozen
class Number:
    """A finite number within these bounds, both included."""

    least: float
    most: float

    def read(self, value: object) -> float:
        """The value, or ValueError with what it must be."""
        if type(value) not in (int, float):
            raise ValueError(f"must be a number, not {show(value)}")
        number = float(value)  # type: ignore[arg-type]  # the line above
        if not self.least <= number <= self.most:  # which nothing is to nan
            raise ValueError(f"must be from {self.least:g} to {self.most:g}, not {value}")
        return number


@attrs.frozen
class Word:
    """One of these words."""

    words: tuple[str, ...]

    def read(self, value: object) -> str:
        """The value, or ValueError with what it must be."""
        if not isinstance(value, str) or value not in self.words:
            raise ValueError(f"must be one of {', '.join(self.words)}, not {show(value)}")
        return value


@attrs.frozen
class Group:
    """The name of a group of this machine, or an empty text for none."""

    def read(self, value: object) -> str:
        """The value, or ValueError with what it must be."""
        if not isinstance(value, str):
            raise ValueError(f"must be the name of a group, not {show(value)}")
        if value:
            try:
                grp.getgrnam(value)
            except KeyError:
                raise ValueError(f"must be a group of this machine, and {show(value)} is none") from None
        return value


class InnerFaults(ValueError):
    """What is wrong inside one value: pairs of the way to it, behind the value's own key, and a sentence."""

    def __init__(self, faults: list[tuple[str, str]]) -> None:
        super().__init__(faults)
        self.faults = faults


@attrs.frozen
class Cap:
    """A whole number from 1, or the word off, which is None. Nothing may ask for "keep none" by a slip."""

    def read(self, value: object) -> int | None:
        """The value, or ValueError with what it must be."""
        if value == "off":
            return None
        if type(value) is not int or value < 1:
            raise ValueError(f'must be a whole number from 1, or "off", not {show(value)}')
        return value


@attrs.frozen
class Override:
    """Other caps for the runs that match; an absent member matches all, an absent cap stays as it is."""

    namespace: str | None
    agent: str | None
    workflow: str | None
    caps: Mapping[str, int | None]


@attrs.frozen
class Overrides:
    """An array of tables, each with what it is about and at least one cap."""

    about: tuple[str, ...] = ("namespace", "agent", "workflow")
    caps: tuple[str, ...] = ("max_runs_per_agent", "max_age_days")

    def read(self, value: object) -> tuple[Override, ...]:
        """The value, or InnerFaults."""
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            raise ValueError(f"must be an array of tables, [[retention.override]], not {show(value)}")
        faults = [fault for i, entry in enumerate(value) for fault in self._faults(f"[{i}]", entry)]
        if faults:
            raise InnerFaults(faults)
        return tuple(
            Override(
                entry.get("namespace"),
                entry.get("agent"),
                entry.get("workflow"),
                {cap: Cap().read(entry[cap]) for cap in self.caps if cap in entry},
            )
            for entry in value
        )

    def _faults(self, at: str, entry: Mapping[str, Any]) -> list[tuple[str, str]]:
        faults = []
        for name, value in entry.items():
            if name in self.caps:
                try:
                    Cap().read(value)
                except ValueError as fault:
                    faults.append((f"{at}.{name}", str(fault)))
            elif name not in self.about:
                faults.append((f"{at}.{name}", f"is not known here; there is {', '.join((*self.about, *self.caps))}"))
            elif not isinstance(value, str) or not value:
                faults.append((f"{at}.{name}", f"must be a name, not {show(value)}"))
        if not set(entry) & set(self.about):
            faults.append((at, f"must say what it is about: {', '.join(self.about)}"))
        if not set(entry) & set(self.caps):
            faults.append((at, f"must set a cap: {', '.join(self.caps)}"))
        return faults


@attrs.frozen
class EventDays:
    """A table of kinds of events, each with after how many days it may be dropped."""

    kinds: tuple[str, ...]

    def read(self, value: object) -> Mapping[str, int | None]:
        """The value, or InnerFaults."""
        if not isinstance(value, dict):
            raise ValueError(f"must be a table, [retention.events], not {show(value)}")
        days, faults = {}, []
        for kind, after in value.items():
            try:
                if kind not in self.kinds:
                    raise ValueError(f"cannot be dropped; runs are what their events say. Only: {', '.join(self.kinds)}")
                days[kind] = Cap().read(after)
            except ValueError as fault:
                faults.append((f".{kind}", str(fault)))
        if faults:
            raise InnerFaults(faults)
        return days


@attrs.frozen
class Config:
    """What an operator can set. The defaults are what a user's own daemon runs with."""

    # The longest message of a client; one event and its envelope must fit.
    frame_bytes: Annotated[int, Whole(64 * KIB, 1024 * MIB)] = 16 * MIB
    # The longest `data` that one event may be sent with; what is longer is given in chunks before it.
    event_bytes: Annotated[int, Whole(KIB, 1024 * MIB)] = 1 * MIB
    # Data of one event that is longer than this is kept in a file beside the database.
    inline_limit: Annotated[int, Whole(KIB, 1024 * MIB)] = 64 * KIB
    # What all clients together may have waiting in the daemon's memory. One half is for what is not stored yet: while it is
    # full nobody is read from. One half is for unfinished messages and replies that are not taken: when it is full, the
    # client that has been stuck longest is let go.
    queue_bytes: Annotated[int, Whole(MIB, 16 * 1024 * MIB)] = 64 * MIB
    # What the clients of one user may have waiting in the daemon's memory; then it stops reading from them.
    queue_bytes_per_user: Annotated[int, Whole(MIB, 16 * 1024 * MIB)] = 16 * MIB
    # How long the write-ahead log may get while something reads; then the reading is cut off.
    wal_bytes: Annotated[int, Whole(MIB, 1024 * 1024 * MIB)] = 1024 * MIB
    # How many clients may be connected at the same time.
    connections: Annotated[int, Whole(1, 100_000)] = 1000
    # How many of them may be one user's.
    connections_per_user: Annotated[int, Whole(1, 100_000)] = 500
    # How many runs a user may have; then no other begins until some are deleted.
    runs_per_user: Annotated[int | None, Cap()] = None
    # How many bytes of events and of content a user may have; then nothing is taken but the ends of runs.
    bytes_per_user: Annotated[int | None, Cap()] = None
    # The group whose members see the runs of all users of the system's daemon, and change none; none: only root does.
    admin_group: Annotated[str, Group()] = ""
    # After how long without a connection a process counts as dead of which the kernel tells nothing, in seconds.
    disconnect_grace_s: Annotated[float, Number(1, 30 * 86400)] = 900.0
    # How long a stop waits for the answers that are still due, in seconds.
    stop_s: Annotated[float, Number(0, 3600)] = 10.0
    # Log lines below this level are not written.
    log_level: Annotated[str, Word(("debug", "info", "warning", "error"))] = "info"
    # How many closed runs of an agent in a namespace are kept; runs without an agent count by their workflow.
    max_runs_per_agent: Annotated[int | None, Cap()] = 50
    # How many days after its end a run is kept.
    max_age_days: Annotated[int | None, Cap()] = 30
    # What the history may take on the disk; then the oldest closed runs go.
    max_bytes: Annotated[int | None, Cap()] = 2048 * MIB
    # How many days a run may be incomplete before it counts as closed.
    incomplete_grace_days: Annotated[int, Whole(0, 10_000)] = 7
    # Between two passes, in seconds; a tenth more or less at random.
    interval_s: Annotated[float, Number(1, 30 * 86400)] = 3600.0
    # After how many days events of these kinds are dropped from closed runs, those with a key or usage excepted.
    events: Annotated[Mapping[str, int | None], EventDays(("output", "note"))] = attrs.field(factory=dict)
    # Other caps for some runs.
    override: Annotated[tuple[Override, ...], Overrides()] = ()


TABLES: Mapping[str, tuple[str, ...]] = {
    "limits": (
        *("frame_bytes", "event_bytes", "inline_limit", "queue_bytes", "queue_bytes_per_user", "wal_bytes", "connections"),
        *("connections_per_user", "runs_per_user", "bytes_per_user"),
    ),
    "retention": (
        *("max_runs_per_agent", "max_age_days", "max_bytes", "incomplete_grace_days", "interval_s"),
        *("events", "override"),
    ),
    "daemon": ("admin_group", "disconnect_grace_s", "stop_s", "log_level"),
}
_TABLE_OF = {key: table for table, keys in TABLES.items() for key in keys}


class ConfigFaults(Exception):
    """Everything that is wrong with the settings: `faults` holds pairs of a dotted key (or "") and a sentence."""

    def __init__(self, path: Path, faults: list[tuple[str, str]]) -> None:
        super().__init__(path, faults)
        self.path = path
        self.faults = faults

    def __str__(self) -> str:
        lines = "".join(f"\n  {key}: {text}" if key else f"\n  {text}" for key, text in self.faults)
        return f"the settings in {self.path} are not usable; mend them:{lines}"


def load(path: Path, *, required: bool = False) -> Config:
    """The settings in that file; the defaults when there is none, unless it is `required`. Raises ConfigFaults."""
    try:
        document = tomllib.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        if required:
            raise ConfigFaults(path, [("", "there is no such file")]) from None
        return Config()
    except OSError as error:
        raise ConfigFaults(path, [("", f"cannot be read: {error.strerror}")]) from error
    except UnicodeDecodeError as error:
        raise ConfigFaults(path, [("", f"is not UTF-8 text, at byte {error.start}")]) from error
    except RecursionError as error:
        raise ConfigFaults(path, [("", "is nested too deep")]) from error
    except ValueError as error:  # TOMLDecodeError, and a number of thousands of digits
        raise ConfigFaults(path, [("", f"is not TOML: {error}")]) from error
    return parse(document, path)


def parse(document: Mapping[str, Any], path: Path) -> Config:
    """The settings of a parsed document; `path` is named in the faults. Raises ConfigFaults."""
    values, faults = flatten(document)
    try:
        config = _converter.structure(values, Config)
    except cattrs.ClassValidationError as error:
        members, _ = error.group_exceptions()
        for fault, note in members:
            inner = fault.faults if isinstance(fault, InnerFaults) else [("", str(fault))]
            faults += [(f"{dotted(note.name)}{at}", text) for at, text in inner]
        raise ConfigFaults(path, faults) from None
    faults += contradictions(config)
    if faults:
        raise ConfigFaults(path, faults)
    return config


def flatten(document: Mapping[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The known keys of all tables, and a fault for everything else."""
    values: dict[str, Any] = {}
    faults = []
    for table, members in document.items():
        if table not in TABLES:
            faults.append((table, f"is not known here{guess(table, (*TABLES, *_TABLE_OF))}"))
        elif not isinstance(members, dict):
            faults.append((table, f"must be a table, [{table}], not {show(members)}"))
        else:
            for key, value in members.items():
                if key in TABLES[table]:
                    values[key] = value
                else:
                    faults.append((f"{table}.{key}", f"is not known here{guess(key, _TABLE_OF)}"))
    return values, faults


def guess(key: str, known: Any) -> str:
    """What the writer of an unknown key may have meant, as the end of the sentence."""
    close = difflib.get_close_matches(key, known, n=1)
    if close:
        table = _TABLE_OF.get(close[0])
        return f"; did you mean {table}.{close[0]}?" if table else f"; did you mean {close[0]}?"
    return "; there is " + ", ".join(f"[{table}] with {', '.join(keys)}" for table, keys in TABLES.items())


def contradictions(config: Config) -> list[tuple[str, str]]:
    """Settings that are right one by one and cannot hold together."""
    faults = []
    if config.event_bytes > config.frame_bytes // 2:
        faults.append(("limits.event_bytes", f"must be at most half of limits.frame_bytes ({config.frame_bytes})"))
    if config.queue_bytes < config.frame_bytes:
        faults.append(("limits.queue_bytes", f"must be at least limits.frame_bytes ({config.frame_bytes})"))
    return faults


def dotted(name: str) -> str:
    """The key of a member of Config as it stands in faults: its table and its name."""
    return f"{_TABLE_OF[name]}.{name}"


def value_of(config: Config, key: str) -> Any:
    """The value of a dotted key, as the file would have it."""
    value = getattr(config, key.partition(".")[2])
    return _in_file(value)


def _in_file(value: Any) -> Any:
    if value is None:
        return "off"
    if isinstance(value, dict):
        return {kind: _in_file(days) for kind, days in value.items()}
    if isinstance(value, tuple):
        return [_in_file(entry) for entry in value]
    if isinstance(value, Override):
        about = {name: getattr(value, name) for name in Overrides().about if getattr(value, name) is not None}
        return {**about, **{cap: _in_file(limit) for cap, limit in value.caps.items()}}
    return value


def origins(path: Path) -> dict[str, str]:
    """Where each value comes from, by dotted key: "default", or the file, which must have been loaded without faults."""
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        document = {}
    return {
        dotted(key): str(path) if key in document.get(table, {}) else "default"
        for table, keys in TABLES.items()
        for key in keys
    }


def show(value: object) -> str:
    """A value of the file in a message: short, and on one line."""
    text = repr(value) if not isinstance(value, bool) else str(value).lower()
    return text if len(text) <= 60 else text[:57] + "..."


def describe() -> str:
    """The default settings as TOML, for the help."""
    default = Config()
    lines = []
    for table, keys in TABLES.items():
        lines.append(f"  [{table}]")
        for key in keys:
            lines.append(f"  {key} = {json.dumps(value_of(default, dotted(key)))}")
    return "\n".join(lines)


def make_converter() -> cattrs.Converter:
    """A converter whose only rules are the ones that the annotations above name."""

    def annotated(cls: Any) -> bool:
        return get_origin(cls) is Annotated

    def hook_for(cls: Any) -> Any:
        rule: Whole | Number | Word | Cap | Overrides | EventDays = get_args(cls)[1]
        return lambda value, _: rule.read(value)

    converter = cattrs.Converter(detailed_validation=True, forbid_extra_keys=True)
    converter.register_structure_hook_factory(annotated, hook_for)
    return converter


_converter = make_converter()
