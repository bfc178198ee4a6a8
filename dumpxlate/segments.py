"""From byte ranges to pages: segments that overlap, or begin and end inside a page, become extents of whole pages.

ELF segments and LiME ranges may have any address and any length. Pages that lie in the file in one piece are used in
place; the few that lie in pieces, or are there only in part, are assembled once into a tail behind the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dumpxlate.errors import CorruptDumpError, UnsupportedFeatureError
from dumpxlate.extents import Extents, first_wins, merge, same_place
from dumpxlate.io.joined import TailedSource

if TYPE_CHECKING:
    from dumpxlate.arrays import Int64s
    from dumpxlate.io.source import Source

__all__ = ["SegmentIndex", "index_segments"]

_PIECES_LIMIT = 256 << 20
"""Bytes of pages in pieces that are assembled at most, from a header however hostile: 65,536 pages of 4 KiB."""

_PIECES_EACH = 4
"""Pieces of such a page, on average."""

_SHARED_LIMIT = 1 << 30
"""Bytes of memory that ranges may make by sharing the file's; no producer is known to let them."""


class SegmentIndex(NamedTuple):
    """Where the pages of some segments are.

    Attributes:
        source: what the extents point into: the file, with the assembled pages behind its end if there are any.
        extents: whole pages.
        pieces: number of pages that were assembled.
        repeated: bytes that the file holds of memory beyond the first copy, which counts.
    """

    source: Source
    extents: Extents
    pieces: int
    repeated: int

    def remarks(self, what: str) -> list[str]:
        """Say what is odd about the pages, for info to show.

        Args:
            what: the word for the file's byte ranges ("segments").
        """
        found = []
        if self.pieces:
            found.append(f"{self.pieces:,} pages lie in the file in pieces, or are there only in part")
        if self.repeated:
            found.append(f"{what} overlap: {self.repeated:,} bytes are in the file more than once; the first counts")
        return found


def index_segments(source: Source, start: Int64s, length: Int64s, offset: Int64s, page_size: int) -> SegmentIndex:
    """Index byte ranges of memory by page.

    Args:
        source: the file; every range must lie inside it.
        start: first address of each range, bytes, not negative.
        length: bytes of each; empty ranges are skipped.
        offset: file offset of each.
        page_size: bytes a page.

    Raises:
        UnsupportedFeatureError: more pages lie in pieces than any real dump has.
        CorruptDumpError: ranges share the bytes of the file, and make much more memory than it has room for.
    """
    used = length > 0
    given = start[used], length[used], offset[used]
    # Segments that show the same bytes, each under another virtual address, are no copies of them.
    places = same_place(*given)
    start, length, offset = merge(*first_wins(*(given if _overlap(*places[:2]) else places)))
    _refuse_shared(source, length, offset)
    stop = start + length
    low, high = -(-start // page_size), stop // page_size
    whole = low < high
    first, count = low[whole], (high - low)[whole]
    at = (offset + low * page_size - start)[whole]
    tail, pfn = _assemble(source, start, stop, offset, page_size)
    order = np.argsort(np.concatenate((first, pfn)), kind="stable")
    extents = Extents(
        np.concatenate((first, pfn))[order],
        np.concatenate((count, np.ones(len(pfn), np.int64)))[order],
        np.concatenate((at, source.size + np.arange(len(pfn), dtype=np.int64) * page_size))[order],
    )
    joined = TailedSource(source, tail) if tail else source
    return SegmentIndex(joined, extents, len(pfn), int(places[1].sum() - length.sum()))


def _refuse_shared(source: Source, length: Int64s, offset: Int64s) -> None:
    """Refuse ranges that make much more memory than the file has bytes."""
    total = float(length.sum(dtype=np.float64))  # the sum of hostile lengths may exceed 64 bits
    if total > max(source.size, _SHARED_LIMIT):
        raise CorruptDumpError(
            f"ranges make {total:.4g} bytes of memory out of {source.size:,}: the same bytes many times",
            path=source.name,
            offset=int(offset.min()),
            what="ranges of memory",
        )


def _overlap(start: Int64s, length: Int64s) -> bool:
    order = np.argsort(start)
    return bool((start[order][1:] < (start + length)[order][:-1]).any())


def _assemble(source: Source, start: Int64s, stop: Int64s, offset: Int64s, page_size: int) -> tuple[bytes, Int64s]:
    """Copy the ends of ranges that do not end at a page's end; give the bytes of those pages and their pfns."""
    head_stop = np.minimum(-(-start // page_size) * page_size, stop)
    tail_start = np.maximum(stop // page_size * page_size, head_stop)
    low = np.concatenate((start, tail_start))
    high = np.concatenate((head_stop, stop))
    at = np.concatenate((offset, offset + tail_start - start))
    used = low < high
    low, high, at = low[used], high[used], at[used]
    pfn, row = np.unique(low // page_size, return_inverse=True)
    if len(pfn) * page_size > _PIECES_LIMIT or len(low) > _PIECES_EACH * (_PIECES_LIMIT // page_size):
        raise UnsupportedFeatureError(
            f"{len(pfn)} pages lie in {len(low)} pieces: at most {_PIECES_LIMIT // page_size} pages of "
            f"{_PIECES_EACH} pieces each are assembled",
            feature="unaligned segments",
        )
    body = bytearray(len(pfn) * page_size)
    into = row * page_size + low % page_size
    for position, size, begin in zip(into.tolist(), (high - low).tolist(), at.tolist(), strict=True):
        body[position : position + size] = source.view(begin, size)
    return bytes(body), pfn.astype(np.int64)
