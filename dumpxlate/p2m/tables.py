"""Everything that a PV guest's page tables map, table after table, in machine memory.

Xen's own part of the address space is left out: its entries lead to frames of the hypervisor, and one of them back to
the first table. A table counts once on each level, however often it is entered, so a walk ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.p2m.lists import tables_of
from dumpxlate.paging.format import Entry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dumpxlate.arch.xen_vcpu import WordBits
    from dumpxlate.arrays import Bools, Int64s
    from dumpxlate.memory import PhysicalMemory
    from dumpxlate.paging.format import Level

__all__ = ["mappings"]

_BATCH = 512
"""Tables that are read in one go: a quarter of a million entries."""

_XEN_SLOTS = (256, 272)
"""Entries of a 64-bit guest's first table that are Xen's (ROOT_PAGETABLE_FIRST_XEN_SLOT in asm-x86/config.h)."""
_XEN_START_32 = 0xF5800
"""First virtual page that is Xen's in a 32-bit guest (HYPERVISOR_VIRT_START_PAE)."""


def mappings(
    memory: PhysicalMemory, roots: Sequence[int], word_bits: WordBits, *, most: int | None = None
) -> Iterator[tuple[Int64s, Int64s]]:
    """List the pages of 4 KiB that page tables map.

    Args:
        memory: machine memory.
        roots: machine addresses of first tables.
        word_bits: width of the guest.
        most: tables of the last level that are read, spread over all there are; None for all of them.

    Yields:
        Virtual page numbers (addresses as signed words, divided by 4096) and machine frames, int64, ascending by page
        but for what is mapped by several roots; up to a quarter of a million at a time.
    """
    *upper, last = tables_of(word_bits).levels
    page, table = np.zeros(len(roots), np.int64), np.array(roots, np.int64) // 4096
    for level in upper:
        page, table = _below(memory, level, page, table, word_bits)
    if most is not None:
        step = max(-(-len(table) // most), 1)
        page, table = page[::step], table[::step]
    for first in range(0, len(table), _BATCH):
        part = slice(first, first + _BATCH)
        yield _entries(memory, last, page[part], table[part], word_bits)


def _below(
    memory: PhysicalMemory, level: Level, page: Int64s, table: Int64s, word_bits: WordBits
) -> tuple[Int64s, Int64s]:
    """Give the tables that a level's tables lead to, each once, and the first virtual page of each."""
    pages, tables = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for first in range(0, len(table), _BATCH):
        part = slice(first, first + _BATCH)
        below, found = _entries(memory, level, page[part], table[part], word_bits)
        pages.append(below)
        tables.append(found)
    page, table = np.concatenate(pages), np.concatenate(tables)
    _, once = np.unique(table, return_index=True)
    once = once[np.argsort(page[once], kind="stable")]
    held = memory.holds(table[once])
    return page[once][held], table[once][held]


def _entries(
    memory: PhysicalMemory, level: Level, page: Int64s, table: Int64s, word_bits: WordBits
) -> tuple[Int64s, Int64s]:
    """Read tables: the virtual pages that their entries begin, and the frames they lead to."""
    held = memory.holds(table)
    page, table = page[held], table[held]
    count = 1 << level.bits
    words = memory.read_pages(table).view("<i8")[:, :count]
    kind, target = tables_of(word_bits).decode(level, words.reshape(-1).astype(np.int64))
    index = np.tile(np.arange(count, dtype=np.int64), len(table))
    wanted = kind == (Entry.PAGE if level.last else Entry.TABLE)
    start = np.repeat(page, count) + _offset(level, index)
    wanted &= ~_is_xen(level, index, start, word_bits)
    return start[wanted], target[wanted] // 4096


def _offset(level: Level, index: Int64s) -> Int64s:
    """Give the virtual pages before an entry; those of the upper half of four levels are negative."""
    offset = index << (level.shift - 12)
    return offset - (index >> 8 << 36) if level.number == 4 else offset


def _is_xen(level: Level, index: Int64s, page: Int64s, word_bits: WordBits) -> Bools:
    low, high = _XEN_SLOTS
    if word_bits == 32:
        return page >= _XEN_START_32
    return (index >= low) & (index < high) & (level.number == 4)
