"""Which units of debug information functions are from: .debug_aranges, which gcc writes and clang leaves out.

::

    length u32 | version u16 | offset of the unit u32 | address size u8 | segment size u8 | padding
    address, length; ...; 0, 0

The table is an index: one that makes no sense is none, and what it leads to is looked for in another way.

Sources: the DWARF 5 standard, section 6.1.2.
"""

from __future__ import annotations

import contextlib
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from dumpxlate.structs import Endian

__all__ = ["units_of_addresses"]

_TABLE_LIMIT = 16 << 20
"""Bytes of a table that is looked at: QEMU's has 56,000."""
_DWARF64 = 0xFFFFFFFF
_WORDS = {4: "I", 8: "Q"}


def units_of_addresses(table: bytes, endian: Endian, addresses: Collection[int]) -> dict[int, int]:
    """Give the offset in .debug_info of the unit whose code is at each address, where the table tells.

    Args:
        table: .debug_aranges.
        endian: byte order.
        addresses: as linked.
    """
    found: dict[int, int] = {}
    if len(table) > _TABLE_LIMIT:
        return found
    with contextlib.suppress(struct.error):
        for unit, ranges in _sets(table, endian):
            for start, length in ranges:
                for address in addresses:
                    if start <= address < start + length:
                        found.setdefault(address, unit)
            if len(found) == len(addresses):
                break
    return found


def _sets(table: bytes, endian: Endian) -> Iterator[tuple[int, Iterator[tuple[int, int]]]]:
    """Give the ranges of each unit.

    Raises:
        struct.error: a set leaves the table, or has addresses of an unknown size.
    """
    at = 0
    while at < len(table):
        start, (length,) = at, struct.unpack_from(endian + "I", table, at)
        at, word = at + 4, "I"
        if length == _DWARF64:
            (length,) = struct.unpack_from(endian + "Q", table, at)
            at, word = at + 8, "Q"
        stop = at + length
        layout = struct.Struct(f"{endian}H{word}2B")
        _, unit, size, segment = layout.unpack_from(table, at)
        if stop > len(table) or size not in _WORDS or segment:
            raise struct.error("no set of ranges")
        pair = struct.Struct(f"{endian}2{_WORDS[size]}")
        # The first pair stands at a multiple of its size from the start of the set.
        first = start + -(-(at + layout.size - start) // pair.size) * pair.size
        body = table[first:stop]
        yield unit, pair.iter_unpack(body[: len(body) // pair.size * pair.size])
        at = stop
