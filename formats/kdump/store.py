"""The pages of a kdump-compressed dump: which there are is in the bitmaps, where they are in the descriptors."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.bitmap import PageBitmap
from dumpxlate.pages import CodecId, PageState, PageTable, lost_pages
from dumpxlate.pageset import EMPTY, PageRuns
from dumpxlate.stores import fetch_from

if TYPE_CHECKING:
    from dumpxlate.arrays import Int64s, UInt64s
    from dumpxlate.formats.kdump.header import Part
    from dumpxlate.formats.kdump.table import DescriptorTable
    from dumpxlate.pages import PageBatch, ReadAt
    from dumpxlate.pageset import PageSet

__all__ = ["KdumpStore", "ShiftedStore", "ram_bitmap", "stored_bitmap"]

_CHUNK = 1 << 17


def stored_bitmap(part: Part) -> PageBitmap:
    """View the bitmap of the pages that have a descriptor."""
    return PageBitmap.from_bytes(part.source.view(part.stored_bitmap_at, part.bitmap_bytes), part.max_mapnr)


def ram_bitmap(part: Part, stored: PageBitmap) -> PageBitmap:
    """View the bitmap of RAM; a file that has a page outside of its RAM gets one that is made of both."""
    if part.single_bitmap:
        return stored
    ram = PageBitmap.from_bytes(part.source.view(part.bitmap_at, part.bitmap_bytes), part.max_mapnr)
    pieces = [slice(at, at + _CHUNK) for at in range(0, len(ram.words), _CHUNK)]
    if any((stored.words[piece] & ~ram.words[piece]).any() for piece in pieces):
        return PageBitmap(ram.words | stored.words, part.max_mapnr)
    return ram


class KdumpStore:
    """Pages found by the rank of their bit.

    Args:
        part: the file, or any part of a split dump: all have the same bitmaps.
        bitmap: pages that have a descriptor.
        table: the descriptors.
        damaged: descriptors are known to lead nowhere, so that all must be looked at to know what is stored.
    """

    def __init__(self, part: Part, bitmap: PageBitmap, table: DescriptorTable, *, damaged: bool = False) -> None:
        self.page_size = part.block_size
        self._part = part
        self._bitmap = bitmap
        self._table = table
        self._damaged = damaged
        self.read_at: ReadAt = table.source.read

    @cached_property
    def ram(self) -> PageBitmap:
        """Every RAM page that the dump knows of."""
        return ram_bitmap(self._part, self._bitmap)

    @cached_property
    def stored(self) -> PageBitmap:
        """Those of them that it has content for."""
        if not self._damaged:
            return self._bitmap
        table = self._table
        words: UInt64s = np.zeros(len(self._bitmap.words), np.uint64)
        for first, count in zip(table.first.tolist(), table.count.tolist(), strict=True):
            self._copy_bits(words, first, first + count)
        for rank in table.missing():
            self._clear_bits(words, rank)
        return PageBitmap(words, self._part.max_mapnr)

    @cached_property
    def lost(self) -> PageSet:
        """Those that have a descriptor, and no bytes."""
        if not self._damaged:
            return EMPTY
        return PageBitmap(self._bitmap.words & ~self.stored.words, self._part.max_mapnr)

    def _copy_bits(self, words: UInt64s, first: int, last: int) -> None:
        """Take the pages of a range of ranks over."""
        low, high = int(self._bitmap.select(first, first + 1)[0]), int(self._bitmap.select(last - 1, last)[0]) + 1
        inside = PageBitmap.from_runs(np.array([low & 63]), np.array([high - low]), high - (low & ~63)).words
        piece = slice(low >> 6, (low >> 6) + len(inside))
        words[piece] |= self._bitmap.words[piece] & inside

    def _clear_bits(self, words: UInt64s, rank: Int64s) -> None:
        """Drop the pages of some ranks, ascending."""
        if len(rank):
            low = int(rank[0])
            pfn = self._bitmap.select(low, int(rank[-1]) + 1)[rank - low]
            np.bitwise_and.at(words, pfn >> 6, ~(np.uint64(1) << (pfn & 63).astype(np.uint64)))

    @cached_property
    def _zero_pages(self) -> Int64s:
        return self._table.zero_pages(self._bitmap.count)

    def locate(self, pfn: Int64s) -> PageTable:
        """Say for each pfn what is known and where."""
        has = self.stored.contains(pfn)
        if has.all():
            return self._located(pfn)
        rest = np.flatnonzero(~has)
        state = np.zeros(len(pfn), np.uint8)
        state[rest[self.ram.contains(pfn[rest])]] = PageState.EXCLUDED
        table = PageTable(
            pfn, state, np.zeros(len(pfn), np.uint8), np.full(len(pfn), -1, np.int64), np.zeros(len(pfn), np.int32)
        )
        found = self._located(pfn[has])
        table.state[has], table.codec[has] = found.state, found.codec
        table.offset[has], table.size[has] = found.offset, found.size
        return table

    def _located(self, pfn: Int64s) -> PageTable:
        """Look up pages that the file says it has; one whose bytes it lacks nevertheless is a bad page."""
        found = self._table.find(self._bitmap.rank(pfn))
        state, offset, size = found.state, found.offset, found.size
        state[state == PageState.EXCLUDED] = PageState.BAD
        for at in self._zero_pages.tolist():
            shared = (offset == at) & (found.codec == CodecId.RAW)
            state[shared], offset[shared], size[shared] = PageState.ZERO, -1, 0
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
