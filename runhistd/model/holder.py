"""A process that holds a lease, named so that no other process can be taken for it."""

from __future__ import annotations

from msgspec import Struct


class Holder(Struct, frozen=True, order=True):
    """A process. `identity` tells it from an earlier or later one of the same pid (`pidfd:INODE`, `start:TICKS`), and
    `boot_id` from one before a reboot; each is empty where the kernel does not tell."""

    pid: int
    identity: str = ""
    boot_id: str = ""
