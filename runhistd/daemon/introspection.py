"""What the service says of itself, whatever its history holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import runhistd
from runhist.protocol import INTERFACE, SERVICE, interface_text
from runhistd.model.errors import InvalidParameter
from runhistd.store.database import SCHEMA_VERSION

from . import control_calls
from .peer import Peer
from .write_calls import MAX_EVENTS

if TYPE_CHECKING:
    from .service import Service

FEATURES = ["publish"]
SERVICE_TEXT = """\
# What every varlink service answers, see https://varlink.org/Service
interface org.varlink.service

method GetInfo() -> (vendor: string, product: string, version: string, url: string, interfaces: []string)
method GetInterfaceDescription(interface: string) -> (description: string)

error InterfaceNotFound (interface: string)
error MethodNotFound (method: string)
error MethodNotImplemented (method: string)
error InvalidParameter (parameter: string)
error PermissionDenied ()
error ExpectedMore ()
"""


async def get_info(service: Service, peer: Peer, call: control_calls.GetInfo) -> Any:
    return {
        "vendor": "runhist",
        "product": "runhistd",
        "version": runhistd.__version__,
        "url": "https://varlink.org",
        "interfaces": [SERVICE, INTERFACE],
    }


async def get_interface_description(service: Service, peer: Peer, call: control_calls.GetInterfaceDescription) -> Any:
    if call.interface not in (INTERFACE, SERVICE):
        raise InvalidParameter("interface")
    return {"description": interface_text() if call.interface == INTERFACE else SERVICE_TEXT}


async def describe(service: Service, peer: Peer, call: control_calls.Describe) -> Any:
    return {
        "version": runhistd.__version__,
        "features": FEATURES,
        "limits": {
            "frame_bytes": service.config.frame_bytes,
            "event_bytes": service.config.event_bytes,
            "inline_limit": service.config.inline_limit,
            "events": MAX_EVENTS,
        },
        "instance_id": service.instance_id,
        "schema": SCHEMA_VERSION,
        "database": str(service.instance.database),
    }
