"""What a peer may ask: bytes in, a call or the path of the fault out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import Raw

from runhistd.daemon.control_calls import Follow, structure
from runhistd.model.errors import InvalidParameter


def fault(decode: Any, *arguments: Any) -> Any:
    with pytest.raises(InvalidParameter) as caught:
        decode(*arguments)
    return caught.value.parameters["parameter"]


@pytest.mark.parametrize(
    ("parameters", "path"),
    [
        ({"tail": "5"}, "tail"),
        ({"tail": True}, "tail"),
        ({"tail": 2**63}, "tail"),
        ({"cursor": {"position": -1}}, "cursor.position"),
        ({"cursor": {"position": 1, "seq": 2}}, "cursor.seq"),
        ({"kinds": ["note", 7]}, "kinds[1]"),
        ({"kinds": "note"}, "kinds"),
        ({"more": True}, "more"),
    ],
)
def test_a_control_call_converts_nothing(parameters: dict[str, Any], path: str) -> None:
    assert fault(structure, Raw(json.dumps(parameters).encode()), Follow) == path
