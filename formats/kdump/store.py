"""The pages of a kdump-compressed dump: which there are is in the bitmaps, where they are in the descriptors."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.bitmap import PageBitmap, words_of_runs
from dumpxlate.formats.kdump.bitmaps import ram_bitmap
from dumpxlate.io.bits import BLOCK_BITS, InvertedBits
from dumpxlate.io.spliced import lacking
from dumpxlate.pages import BAD, EXCLUDED, RAW, ZERO, PageTable, lost_pages
from dumpxlate.pageset import EMPTY, PageRuns, Picked
from dumpxlate.stores import fetch_from

if TYPE_CHECKING:
    from dumpxlate.arrays import Int64s
    from dumpxlate.formats.kdump.header import Part
    from dumpxlate.formats.kdump.table import DescriptorTable
    from dumpxlate.pages import PageBatch, ReadAt
    from dumpxlate.pageset import PageSet

__all__ = ["KdumpStore", "ShiftedStore"]


class KdumpStore:
    """Pages found by the rank of their bit.

    Args:
        part: the file, or any part of a split dump: all have the same bitmaps.
        bitmap: pages that have a descriptor.
        table: the descriptors.
        damaged: descriptors are known to lead nowhere, so that all must be looked at to know what is stored.
        certain: every page is known to belong to its descriptor; else those that are not in the table are lost.
    """

    def __init__(
        self, part: Part, bitmap: PageBitmap, table: DescriptorTable, *, damaged: bool = False, certain: bool = True
    ) -> None:
        self.page_size = part.block_size
        self._part = part
        self._bitmap = bitmap
        self._table = table
        self._damaged = damaged
        self.lost_why = "" if certain else "nothing tells for sure which descriptors are theirs"
        self.read_at: ReadAt | None = None if lacking(table.source).count else table.source.read

    @cached_property
    def ram(self) -> PageBitmap:
        """Every RAM page that the dump knows of: those that it has a descriptor for outside of its RAM as well."""
        if self._part.single_bitmap:
            return self._bitmap
        ram = ram_bitmap(self._part)
        return ram if self._bitmap.is_within(ram) else ram.joined(self._bitmap)

    @cached_property
    def stored(self) -> PageSet:
        """Those of them that it has content for."""
        if not self._damaged:
            return self._bitmap
        return Picked(self._bitmap, PageBitmap(InvertedBits(self._lost.bits), self._bitmap.count))

    @cached_property
    def lost(self) -> PageSet:
        """Those that have a descriptor, and no bytes."""
        return Picked(self._bitmap, self._lost) if self._damaged else EMPTY

    @cached_property
    def _lost(self) -> PageBitmap:
        """Ranks of the pages in parts that were not given, and of those whose descriptors lead nowhere."""
        table, end = self._table, self._bitmap.count
        start = np.append(0, table.first + table.count)
        # Whole blocks are not copied: words without a lost page are never written to, and take no memory.
        words = words_of_runs(start, np.append(table.first, end) - start, -(-end // BLOCK_BITS) * BLOCK_BITS)
        for rank in table.missing():
            np.bitwise_or.at(words, rank >> 6, np.uint64(1) << (rank & 63).astype(np.uint64))
        return PageBitmap.from_words(words, end)

    @cached_property
    def _zero_pages(self) -> Int64s:
        return self._table.zero_pages(self._bitmap.count)

    def locate(self, pfn: Int64s) -> PageTable:
        """Say for each pfn what is known and where."""
        has, rank = self._bitmap.find(pfn)
        if self._damaged:
            has &= ~self._lost.contains(rank)
        if has.all():
            return self._located(pfn, rank)
        rest = np.flatnonzero(~has)
        state = np.zeros(len(pfn), np.uint8)
        state[rest[self.ram.contains(pfn[rest])]] = EXCLUDED
        table = PageTable(
            pfn, state, np.zeros(len(pfn), np.uint8), np.full(len(pfn), -1, np.int64), np.zeros(len(pfn), np.int32)
        )
        found = self._located(pfn[has], rank[has])
        table.state[has], table.codec[has] = found.state, found.codec
        table.offset[has], table.size[has] = found.offset, found.size
        return table

    def _located(self, pfn: Int64s, rank: Int64s) -> PageTable:
        """Look up pages that the file says it has; one whose bytes it lacks nevertheless is a bad page."""
        found = self._table.find(rank)
        state, offset, size = found.state, found.offset, found.size
        state[state == EXCLUDED] = BAD
        for at in self._zero_pages.tolist():
            shared = (offset == at) & (found.codec == RAW)
            state[shared], offset[shared], size[shared] = ZERO, -1, 0
        return PageTable(pfn, state, found.codec, offset, size)

    def fetch(self, table: PageTable) -> PageBatch:
        """Bring the bytes of located pages."""
        return fetch_from(self._table.source, table)

    def place(self, table: PageTable) -> Int64s:
        """Say where in the file the bytes of located pages are."""
        return self._table.source.place(table.offset)


class ShiftedStore:
    """A store whose file counts pfns from some physical address on: makedumpfile does so on 32-bit Arm.

    Args:
        inner: the store as the file numbers its pages.
        shift: physical pfn of the file's pfn 0.
    """

    def __init__(self, inner: KdumpStore, shift: int) -> None:
        self.page_size = inner.page_size
        self.ram: PageSet = _moved(inner.ram, shift)
        self.stored: PageSet = _moved(inner.stored, shift)
        self.read_at = inner.read_at
        self.lost: PageSet = _moved(lost_pages(inner), shift)
        self.lost_why = inner.lost_why
        self._inner = inner
        self._shift = shift

    def locate(self, pfn: Int64s) -> PageTable:
        """Say for each pfn what is known and where."""
        found = self._inner.locate(np.maximum(pfn - self._shift, -1))
        return PageTable(pfn, found.state, found.codec, found.offset, found.size)

    def fetch(self, table: PageTable) -> PageBatch:
        """Bring the bytes of located pages."""
        return self._inner.fetch(table)

    def place(self, table: PageTable) -> Int64s:
        """Say where in the file the bytes of located pages are."""
        return self._inner.place(table)


def _moved(pages: PageSet, shift: int) -> PageRuns:
    start, count = pages.runs()
    return PageRuns(start + shift, count)
