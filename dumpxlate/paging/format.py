"""What a page-table format is: levels, widths, and how an entry reads. The formats are tables in ``paging_*``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

    from dumpxlate.arrays import Bools, Int64s, UInt8s

__all__ = ["Entry", "Level", "Paging"]


class Entry(IntEnum):
    """What an entry says, or why it says nothing."""

    NOT_PRESENT = 0
    TABLE = 1
    """Leads to a table of the next level."""
    PAGE = 2
    """Leads to memory."""
    RESERVED = 3
    """A processor would refuse it."""
    NOT_HELD = 4
    """The dump has no content where it lies."""
    UNKNOWN_FRAME = 5
    """Holds a machine frame that the guest's map does not have."""

    @property
    def words(self) -> str:
        """The name for people."""
        return self.name.lower().replace("_", " ")


@dataclass(frozen=True, slots=True)
class Level:
    """One level of tables.

    Attributes:
        number: as the architecture counts.
        name: as it calls it.
        shift: lowest bit of an address that chooses the entry; an entry covers ``1 << shift`` bytes.
        bits: bits of an address that choose it.
        last: entries lead to pages, never to tables.
        large: entries may lead to pages as well as to tables.
    """

    number: int
    name: str
    shift: int
    bits: int
    last: bool = False
    large: bool = False


@dataclass(frozen=True, slots=True)
class Paging:
    """A format of page tables.

    Attributes:
        name: for people.
        entry_bytes: width of an entry.
        levels: from the root down; a walk takes each once at most, whatever the tables say.
        decode: reads entries of a level: an ``Entry`` for each, and the address it leads to.
        va_bits: bits of a virtual address.
        half: addresses it is for: zero-extended ("low"), one-extended ("high"), or sign-extended ("both").
    """

    name: str
    entry_bytes: Literal[4, 8]
    levels: tuple[Level, ...]
    decode: Callable[[Level, Int64s], tuple[UInt8s, Int64s]]
    va_bits: int
    half: Literal["low", "high", "both"]

    def accepts(self, address: Int64s) -> Bools:
        """Tell which addresses (as signed words) are canonical here."""
        if self.half == "both":
            top = address >> (self.va_bits - 1)
            canonical: Bools = (top == 0) | (top == -1)
            return canonical
        inside: Bools = address >> self.va_bits == (0 if self.half == "low" else -1)
        return inside
