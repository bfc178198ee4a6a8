"""Numbers of strings: in DWARF 5 each unit may have a table of the strings that its entries name by their place in it.

clang writes it so, gcc does not. The tables of all units lie in .debug_str_offsets; where that of a unit begins says
its first entry.

Sources: the DWARF 5 standard, section 7.26.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import cached_property
from typing import TYPE_CHECKING

from dumpxlate.elf.search import places

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dumpxlate.elf.dies import Dies
    from dumpxlate.elf.units import Unit

__all__ = ["StringNumbers"]


class StringNumbers:
    """Which units number a string, and how.

    Args:
        dies: the entries of a file.
    """

    def __init__(self, dies: Dies) -> None:
        self._dies = dies

    @cached_property
    def _tables(self) -> dict[int, list[Unit]]:
        """Units by where their tables begin; type units may share that of another unit."""
        found: dict[int, list[Unit]] = {}
        for unit in self._dies.units:
            base = self._dies.base(unit, "string") if unit.version >= 5 else -1
            if base >= 0:
                found.setdefault(base, []).append(unit)
        return dict(sorted(found.items()))

    def of(self, offset: int) -> Iterator[tuple[Unit, int]]:
        """Give the units that use a string, each with the number that it has there.

        Args:
            offset: of the string in .debug_str.

        Raises:
            CorruptDumpError: the first entry of a unit does not decode.
        """
        data, order = self._dies.sections.string_offsets, self._dies.order
        starts = list(self._tables) if data else []
        for at in places(data, offset.to_bytes(4, order)):
            row = bisect_right(starts, at) - 1
            for unit in self._tables[starts[row]] if row >= 0 else ():
                low = unit.offset_size - 4 if order == "big" else 0  # the half of a wide number that is searched for
                number, rest = divmod(at - low - starts[row], unit.offset_size)
                if not rest:
                    yield unit, number
