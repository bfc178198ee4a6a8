"""Bitmaps on disk: those of a file, and any set of pages packed as one, a piece at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.arrays import expand
from dumpxlate.bitmap import PageBitmap, words_of_runs
from dumpxlate.io.bits import BLOCK_BITS, BLOCK_BYTES, JoinedBits, SourceBits
from dumpxlate.pageset import Picked, mask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dumpxlate.arrays import UInt64s
    from dumpxlate.formats.kdump.header import Part
    from dumpxlate.pageset import PageSet

__all__ = ["bitmaps_differ", "bits_at", "packed", "ram_bitmap", "stored_bitmap"]

_RESIDENT = 2 << 20
"""Bytes of a bitmap that is kept in memory: 64 GiB of 4 KiB pages. Of a longer one blocks are read when asked for."""
_CHUNK = 1 << 23  # pfns, 1 MiB of bitmap
_COMPARED = 1 << 10  # blocks
_LISTED = 1 << 20  # of pages that have to be listed


def bits_at(part: Part, at: int) -> SourceBits:
    """View a bitmap of a file as far as it tells of pages: what its header claims beyond may be anything."""
    needed = -(-part.max_mapnr // BLOCK_BITS) * BLOCK_BYTES
    return SourceBits(part.source, at, min(needed, part.bitmap_bytes))


def _bitmap(part: Part, at: int) -> PageBitmap:
    length = min(-(-part.max_mapnr // 8), part.bitmap_bytes)
    if length <= _RESIDENT:
        return PageBitmap.from_bytes(part.source.view(at, length), part.max_mapnr)
    return PageBitmap(bits_at(part, at), part.max_mapnr)


def stored_bitmap(part: Part) -> PageBitmap:
    """View the bitmap of the pages that have a descriptor."""
    return _bitmap(part, part.stored_bitmap_at)


def ram_bitmap(part: Part) -> PageBitmap:
    """View the bitmap of RAM, which may be the only one."""
    return _bitmap(part, part.bitmap_at)


def bitmaps_differ(one: Part, other: Part) -> bool:
    """Tell whether two parts of a dump speak of different pages; what their headers claim beyond may be anything."""
    if one.bitmap_bytes != other.bitmap_bytes or one.single_bitmap != other.single_bitmap:
        return True
    bits, its = (bits_at(part, part.stored_bitmap_at) for part in (one, other))
    start, count = JoinedBits(bits, its).used()
    block = expand(start, count)
    groups = (block[at : at + _COMPARED] for at in range(0, len(block), _COMPARED))
    return any((bits.take(group) != its.take(group)).any() for group in groups)


def packed(pages: PageSet) -> Iterator[UInt64s]:
    """Pack a set into words, LSB first, up to its last member; all pieces but the last are of one length."""
    if isinstance(pages, PageBitmap):
        return _packed_bitmap(pages)
    return _packed_members(pages) if isinstance(pages, Picked) else _packed_runs(pages)


def _packed_bitmap(pages: PageBitmap) -> Iterator[UInt64s]:
    step = _CHUNK // BLOCK_BITS
    for at in range(0, pages.stop, _CHUNK):
        block = np.arange(at // BLOCK_BITS, min(at // BLOCK_BITS + step, -(-pages.stop // BLOCK_BITS)))
        yield pages.words(block).reshape(-1)[: -(-(pages.stop - at) // 64)]


def _packed_members(pages: PageSet) -> Iterator[UInt64s]:
    for at in range(0, pages.stop, _LISTED):
        members = mask(pages, at, at + min(_LISTED, -(-(pages.stop - at) // 64) * 64))
        yield np.packbits(members, bitorder="little").view("<u8")


def _packed_runs(pages: PageSet) -> Iterator[UInt64s]:
    start, count = pages.runs()
    stop = start + count
    for at in range(0, pages.stop, _CHUNK):
        used = slice(int(np.searchsorted(stop, at, side="right")), int(np.searchsorted(start, at + _CHUNK)))
        low = np.maximum(start[used], at) - at
        yield words_of_runs(low, stop[used] - at - low, min(_CHUNK, pages.stop - at))
