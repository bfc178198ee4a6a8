"""Pages of a dump with a mark: one bit for each page that has content, set as a walk goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.bitmap import PageBitmap
from dumpxlate.io.bits import BLOCK, BLOCK_BITS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dumpxlate.arrays import Bools, Int64s
    from dumpxlate.pageset import PageSet

__all__ = ["Marks"]

_WINDOW = 1 << 18
"""Pages whose bits are looked at in one go."""


class Marks:
    """A set of pages that grows, within a set that does not: 32 MiB for 1 TiB of 4 KiB pages, wherever they lie.

    Args:
        pages: the pages that can be marked.
    """

    def __init__(self, pages: PageSet) -> None:
        self._pages = pages
        self._words = np.zeros(-(-pages.count // BLOCK_BITS) * BLOCK, np.uint64)  # whole blocks: they are not copied

    def add(self, pfn: Int64s) -> int:
        """Mark pages, in any order and any number of times; give how many of the pfns are no page here."""
        known = self._pages.contains(pfn)
        rank = self._pages.rank(pfn[known])
        np.bitwise_or.at(self._words, rank >> 6, np.uint64(1) << (rank & 63).astype(np.uint64))
        return len(pfn) - int(known.sum())

    def contains(self, pfn: Int64s) -> Bools:
        """Tell which pages are marked."""
        found = self._pages.contains(pfn)
        rank = self._pages.rank(pfn[found])
        found[found] = self._words[rank >> 6] >> (rank & 63).astype(np.uint64) & np.uint64(1) != 0
        return found

    @property
    def count(self) -> int:
        """Number of marked pages."""
        return int(np.bitwise_count(self._words).sum(dtype=np.int64))

    def parts(self, most: int) -> Iterator[Int64s]:
        """Give the marked pages, ascending, at most so many at a time; none may be added meanwhile."""
        bits = PageBitmap.from_words(self._words)
        for first in range(0, self._pages.count, _WINDOW):
            low, high = (int(at) for at in bits.rank(np.array([first, first + _WINDOW], np.int64)))
            if low == high:
                continue
            pfn = self._pages.select(first, first + _WINDOW)[bits.select(low, high) - first]
            for at in range(0, len(pfn), most):
                yield pfn[at : at + most]
