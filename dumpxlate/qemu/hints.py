"""What a user may say of a core of a QEMU process."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["QemuHints", "RamHint"]


@dataclass(frozen=True, slots=True)
class RamHint:
    """A piece of guest memory.

    Attributes:
        start: guest-physical address.
        length: bytes.
        host: address in the process.
    """

    start: int
    length: int
    host: int


@dataclass(frozen=True, slots=True)
class QemuHints:
    """Where the knowledge of a build of QEMU is, or what to take instead of it.

    Attributes:
        binary: the program; it has debug information itself, or names by its build id the file that has.
        debug_file: the file with its debug information.
        profile: a profile made of it.
        ram: guest memory by hand; nothing else is looked up then.
    """

    binary: str | None = None
    debug_file: str | None = None
    profile: str | None = None
    ram: tuple[RamHint, ...] = ()
