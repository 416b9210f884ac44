"""The interface file is the single source of truth: what the daemon takes and gives has its members, no others."""

from __future__ import annotations

import re
from typing import Any

import attrs
import msgspec
import pytest
from varlink.scanner import Interface  # type: ignore[import-untyped]

from runhist.protocol import INTERFACE, SERVICE, interface_text
from runhist.protocol.errors import ERRORS
from runhistd.daemon import control_calls, methods, write_calls
from runhistd.model import artifacts, errors, events, importing, publish, views
from runhistd.store.imports import Imported
from runhistd.store.leases import Begun, Claimed, Released
from runhistd.store.live import Shown
from runhistd.store.log import Appended

interface = Interface(interface_text())
METHODS = [name for name, member in interface.members.items() if type(member).__name__ == "_Method"]
WIRE_ERRORS = [name for name, member in interface.members.items() if type(member).__name__ == "_Error"]


WRITES = {
    "BeginRun": write_calls.BeginCall,
    "Append": write_calls.AppendCall,
    "ClaimRun": write_calls.ClaimCall,
    "ReleaseRun": write_calls.ReleaseCall,
    "ImportEvents": write_calls.ImportCall,
    "Publish": write_calls.PublishCall,
}


def members(cls: Any) -> set[str]:
    """The members of a class of ours."""
    return {field.name for field in attrs.fields(cls)} if attrs.has(cls) else set(cls.__struct_fields__)


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        *((cls.__name__, cls) for cls in (views.Run, views.RunDetail, views.Step, views.UsageRow, views.UsageTotals)),
        *((cls.__name__, cls) for cls in (views.Gate, views.StatusCount, views.Delayed, events.Event, events.StoredEvent)),
        *((cls.__name__, cls) for cls in (artifacts.DataBlob, importing.ImportedEvent, publish.Published)),
        *((cls.__name__, cls) for cls in (views.ConfigStatus, views.ConfigFault, views.Gap, views.Trouble, views.Share)),
        *((cls.__name__, cls) for cls in (views.Retained, views.RetentionStatus, views.ArtifactRow)),
        *((cls.__name__, cls) for cls in (views.Interrupted, events.Usage, events.RunSpec, control_calls.Cursor)),
    ],
)
def test_a_type_has_the_members_of_the_interface(name: str, cls: Any) -> None:
    assert members(cls) == set(interface.members[name].type.fields)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_takes_the_members_of_the_interface(method: str) -> None:
    cls = WRITES.get(method) or getattr(control_calls, method)
    assert members(cls) == set(interface.members[method].in_type.fields)


def test_what_the_writes_answer_is_in_the_interface() -> None:
    assert members(Appended) == set(interface.members["Append"].out_type.fields)
    assert members(Begun) == set(interface.members["BeginRun"].out_type.fields)
    assert members(Claimed) == set(interface.members["ClaimRun"].out_type.fields)
    assert members(Shown) == set(interface.members["Publish"].out_type.fields)
    assert members(Released) == set(interface.members["ReleaseRun"].out_type.fields)
    assert members(Imported) == set(interface.members["ImportEvents"].out_type.fields)


def test_every_method_of_the_interface_is_served_and_no_other() -> None:
    served = {name.removeprefix(f"{INTERFACE}.") for name in methods.METHODS if name.startswith(INTERFACE)}
    written = {name.removeprefix(f"{INTERFACE}.") for name in methods.WRITES}
    assert written == set(WRITES)
    assert served | written == set(METHODS)


def test_every_refusal_is_an_error_of_the_interface_with_its_members() -> None:
    ours = {cls.__name__ for cls in errors.Refusal.__subclasses__()} - {"InvalidParameter"}
    assert ours == set(WIRE_ERRORS)
    assert {f"{INTERFACE}.{name}" for name in WIRE_ERRORS} == {name for name in ERRORS if name.startswith(INTERFACE)}
    assert f"{SERVICE}.InvalidParameter" in ERRORS


def listed(word: str) -> set[str]:
    """The words behind `word:` in the interface's opening comment."""
    found = re.search(rf"# {word}:(.*\n(?:#  .*\n)*)", interface_text())
    assert found is not None
    return set(found[1].replace("#", " ").split())


def test_kinds_and_statuses_are_the_ones_that_the_interface_lists() -> None:
    assert listed("Kinds") == events.KINDS
    assert listed("Statuses") == set(events.STATUSES)


def test_events_leave_out_what_is_not_set() -> None:
    assert msgspec.json.encode(events.Event(type="x")) == b'{"type":"x"}'
