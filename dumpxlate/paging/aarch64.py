"""Page tables of aarch64: granules of 4, 16 and 64 KiB, one tree for each half of the address space (Arm ARM, D8)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from dumpxlate.errors import UnsupportedFeatureError
from dumpxlate.paging.format import Entry, Level, Paging

if TYPE_CHECKING:
    from dumpxlate.arrays import Int64s, UInt8s

__all__ = ["aarch64_paging", "table_root"]

_VALID, _TABLE = 1, 2
_ADDRESS = 0x0000_FFFF_FFFF_F000
_ADDRESS_LPA2 = 0x0003_FFFF_FFFF_F000
_BLOCKS = {12: (1, 2), 14: (2,), 16: (2,)}
_BLOCKS_LPA2 = {12: (0, 1, 2), 14: (1, 2)}
_MOST_BITS = 52


def aarch64_paging(granule: int, va_bits: int, half: Literal["low", "high"]) -> Paging:
    """Make the format of one half.

    Args:
        granule: bytes of a page: 4096, 16384 or 65536 (TCR_EL1.TGx).
        va_bits: bits of an address, 64 - TCR_EL1.TxSZ. More than 48 with small pages is LPA2, which has another format.
        half: "low" for TTBR0, "high" for TTBR1.

    Raises:
        UnsupportedFeatureError: no such granule, or a size of addresses that it does not have.
    """
    page_shift = granule.bit_length() - 1
    if granule.bit_count() != 1 or page_shift not in _BLOCKS:
        raise UnsupportedFeatureError(f"granule of {granule} bytes, expected 4096, 16384 or 65536", feature="granule")
    if not 25 <= va_bits <= _MOST_BITS:
        raise UnsupportedFeatureError(
            f"virtual addresses of {va_bits} bits, expected 25 to {_MOST_BITS}", feature="size of virtual addresses"
        )
    lpa2 = va_bits > 48 and page_shift != 16
    blocks = (_BLOCKS_LPA2 if lpa2 else _BLOCKS)[page_shift]
    each = page_shift - 3
    depth = -(-(va_bits - page_shift) // each)
    levels = []
    for number in range(4 - depth, 4):
        shift = page_shift + each * (3 - number)
        bits = min(each, va_bits - shift)
        levels.append(Level(number, f"level {number}", shift, bits, number == 3, number in blocks))
    name = f"aarch64 {granule >> 10} KiB, {va_bits} bits, TTBR{int(half == 'high')}"
    return Paging(name, 8, tuple(levels), partial(_decode, page_shift=page_shift, lpa2=lpa2), va_bits, half)


def _decode(level: Level, entry: Int64s, *, page_shift: int, lpa2: bool) -> tuple[UInt8s, Int64s]:
    other = Entry.RESERVED if level.last or not level.large else Entry.PAGE
    kind = np.full(len(entry), other, np.uint8)
    kind[(entry & _TABLE) != 0] = Entry.PAGE if level.last else Entry.TABLE
    kind[(entry & _VALID) == 0] = Entry.NOT_PRESENT
    base = entry & (_ADDRESS_LPA2 if lpa2 else _ADDRESS) & -(1 << page_shift)
    if page_shift == 16:
        base |= (entry >> 12 & 0xF) << 48  # 52-bit physical addresses; zero without them
    elif lpa2:
        base |= (entry >> 8 & 3) << 50
    page = kind == Entry.PAGE
    base[page] &= -(1 << level.shift)
    return kind, base


def table_root(ttbr: int, paging: Paging) -> int:
    """Give the address of the first table: TTBRx without ASID and CnP; bits 5:2 are 51:48 of it where it has them."""
    size = max(8 << paging.levels[0].bits, 64)
    wide = paging.levels[-1].shift == 16 or paging.va_bits > 48
    return ttbr & 0x0000_FFFF_FFFF_FFFF & -size | (ttbr >> 2 & 0xF if wide else 0) << 48
