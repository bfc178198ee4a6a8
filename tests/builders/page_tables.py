"""Page tables as a plain dictionary of words at physical addresses, and the memory image that holds them."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["image", "long_tables"]


def image(words: Mapping[int, int], size: int, *, width: int = 8, byte_order: str = "<") -> bytearray:
    """Memory of ``size`` bytes, zero but for words at the given addresses."""
    memory = bytearray(size)
    for address, word in words.items():
        struct.pack_into(byte_order + {4: "I", 8: "Q"}[width], memory, address, word)
    return memory


def long_tables(
    pages: Mapping[int, int], root: int, free: int, *, levels: int = 4, flags: int = 0x67
) -> dict[int, int]:
    """x86-64 tables for 4 KiB pages: virtual page address to frame address; new tables from ``free`` on."""
    words: dict[int, int] = {}
    for virtual, physical in pages.items():
        table = root
        for level in range(levels, 0, -1):
            at = table + (virtual >> 12 + 9 * (level - 1) & 511) * 8
            if level == 1:
                words[at] = physical | flags
            elif at not in words:
                words[at] = free | flags
                free += 4096
            table = words[at] & ~0xFFF
    return words
