"""What a user may say of a core of a QEMU process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

_LIMIT = 1 << 62

__all__ = ["QemuHints", "RamHint"]


@dataclass(frozen=True, slots=True)
class RamHint:
    """A piece of guest memory.

    Attributes:
        start: guest-physical address.
        length: bytes.
        host: address in the process.

    Raises:
        ValueError: it is empty, or leaves any address space.
    """

    start: int
    length: int
    host: int

    def __post_init__(self) -> None:
        if self.length <= 0 or min(self.start, self.host) < 0 or max(self.start, self.host) + self.length > _LIMIT:
            raise ValueError(f"{self.length:#x} bytes at {self.start:#x}, in QEMU at {self.host:#x}: cannot be")


class QemuHints(NamedTuple):
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

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that the knowledge comes from."""
        return tuple(each for each in (self.binary, self.debug_file, self.profile) if each)
