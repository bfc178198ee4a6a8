"""Bitmaps of any set of pages, a piece at a time, whatever the set is kept as."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.bitmap import PageBitmap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dumpxlate.arrays import UInt64s
    from dumpxlate.pageset import PageSet

__all__ = ["packed"]

_CHUNK = 1 << 26  # pfns, 8 MiB of bitmap


def packed(pages: PageSet) -> Iterator[UInt64s]:
    """Pack a set into words, LSB first, up to its last member; all pieces but the last are of one length."""
    if isinstance(pages, PageBitmap):
        yield from _packed_bitmap(pages)
        return
    start, count = pages.runs()
    stop = start + count
    for at in range(0, pages.stop, _CHUNK):
        used = slice(int(np.searchsorted(stop, at, side="right")), int(np.searchsorted(start, at + _CHUNK)))
        low = np.maximum(start[used], at) - at
        yield PageBitmap.from_runs(low, stop[used] - at - low, min(_CHUNK, pages.stop - at)).words


def _packed_bitmap(pages: PageBitmap) -> Iterator[UInt64s]:
    stop = pages.stop
    step = _CHUNK >> 6
    for at in range(0, -(-stop // 64), step):
        words = pages.words[at : min(at + step, -(-stop // 64))]
        if stop & 63 and at + len(words) == -(-stop // 64):
            words = words.copy()
            words[-1] &= np.uint64((1 << (stop & 63)) - 1)
        yield words
