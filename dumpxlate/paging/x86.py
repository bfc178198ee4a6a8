"""Page tables of x86: 32-bit with and without 4 MiB pages, PAE, 4 and 5 levels (Intel SDM volume 3, chapter 4)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.paging.format import Entry, Level, Paging

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dumpxlate.arrays import Int64s, UInt8s

__all__ = ["LEGACY", "LEGACY_PSE", "LEVEL_4", "LEVEL_5", "PAE", "has_paging", "ignoring", "table_root", "x86_paging"]

_CR0_PG = 1 << 31
_CR4_PSE, _CR4_PAE, _CR4_LA57 = 1 << 4, 1 << 5, 1 << 12

_PRESENT, _LARGE = 1, 1 << 7
_PAT_LARGE = 1 << 12
_FRAME = 0x000F_FFFF_FFFF_F000  # bits 51:12; above are keys, software bits and NX


def _kinds(level: Level, entry: Int64s) -> UInt8s:
    """Sort entries by their present and size bits."""
    kind = np.full(len(entry), Entry.PAGE if level.last else Entry.TABLE, np.uint8)
    if not level.last:
        kind[(entry & _LARGE) != 0] = Entry.PAGE if level.large else Entry.RESERVED
    kind[(entry & _PRESENT) == 0] = Entry.NOT_PRESENT
    return kind


def _decode(level: Level, entry: Int64s) -> tuple[UInt8s, Int64s]:
    """Read entries of 8 bytes."""
    kind, base = _kinds(level, entry), entry & _FRAME
    if level.large:
        page = kind == Entry.PAGE
        below = (1 << level.shift) - 1
        kind[page & ((base & below & ~_PAT_LARGE) != 0)] = Entry.RESERVED
        base[page] &= ~below
    return kind, base


def _decode_legacy(level: Level, entry: Int64s) -> tuple[UInt8s, Int64s]:
    """Read entries of 4 bytes, whose size bit does not count."""
    kind = np.full(len(entry), Entry.PAGE if level.last else Entry.TABLE, np.uint8)
    kind[(entry & _PRESENT) == 0] = Entry.NOT_PRESENT
    return kind, entry & 0xFFFF_F000


def _decode_pse(level: Level, entry: Int64s) -> tuple[UInt8s, Int64s]:
    """Read entries of 4 bytes; 4 MiB pages carry bits 39:32 of their address in bits 20:13 (PSE-36)."""
    kind, base = _kinds(level, entry) if level.large else _decode_legacy(level, entry)[0], entry & 0xFFFF_F000
    if level.large:
        page = kind == Entry.PAGE
        kind[page & ((entry & 1 << 21) != 0)] = Entry.RESERVED
        base[page] = entry[page] & 0xFFC0_0000 | (entry[page] >> 13 & 0xFF) << 32
    return kind, base


_PT = Level(1, "PT", 12, 9, last=True)
_PD = Level(2, "PD", 21, 9, large=True)
_PDPT = Level(3, "PDPT", 30, 9, large=True)
_PML4 = Level(4, "PML4", 39, 9)
_PML5 = Level(5, "PML5", 48, 9)
_PT_LEGACY = Level(1, "PT", 12, 10, last=True)

LEGACY = Paging("x86 32-bit", 4, (Level(2, "PD", 22, 10), _PT_LEGACY), _decode_legacy, 32, "low")
LEGACY_PSE = Paging("x86 32-bit PSE", 4, (Level(2, "PD", 22, 10, large=True), _PT_LEGACY), _decode_pse, 32, "low")
PAE = Paging("x86 PAE", 8, (Level(3, "PDPT", 30, 2), _PD, _PT), _decode, 32, "low")
LEVEL_4 = Paging("x86 4-level", 8, (_PML4, _PDPT, _PD, _PT), _decode, 48, "both")
LEVEL_5 = Paging("x86 5-level", 8, (_PML5, _PML4, _PDPT, _PD, _PT), _decode, 57, "both")


def has_paging(registers: Mapping[str, int]) -> bool:
    """Say whether a processor translates addresses; one whose cr0 is not known does."""
    return bool(registers.get("cr0", _CR0_PG) & _CR0_PG)


def x86_paging(cr4: int, *, long_mode: bool) -> Paging:
    """Choose the format by cr4.

    Args:
        cr4: the register.
        long_mode: the processor can be in long mode. No note keeps EFER; a 64-bit machine with PAE is taken to be.
    """
    if not cr4 & _CR4_PAE:
        return LEGACY_PSE if cr4 & _CR4_PSE else LEGACY
    if not long_mode:
        return PAE
    return LEVEL_5 if cr4 & _CR4_LA57 else LEVEL_4


def ignoring(paging: Paging, bits: int) -> Paging:
    """Give a format whose entries have marks among their address bits: AMD's of encrypted memory."""

    def decode(level: Level, entry: Int64s) -> tuple[UInt8s, Int64s]:
        return paging.decode(level, entry & ~bits)

    return replace(paging, decode=decode) if bits else paging


def table_root(cr3: int, paging: Paging) -> int:
    """Give the address of the first table: cr3 without flags and PCID."""
    if paging is PAE:
        return cr3 & 0xFFFF_FFE0
    return cr3 & (0xFFFF_F000 if paging.entry_bytes == 4 else _FRAME)
