"""A file whose bytes lie elsewhere in pieces: what a container of records holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

from dumpxlate.arrays import expand
from dumpxlate.io.source import Closing, check_range, ranges_inside
from dumpxlate.pageset import EMPTY

if TYPE_CHECKING:
    from dumpxlate.arrays import Bools, Int32s, Int64s
    from dumpxlate.extents import Extents
    from dumpxlate.io.source import Source
    from dumpxlate.pageset import PageRuns

__all__ = ["SplicedSource", "lacking"]


class SplicedSource(Closing):
    """Pieces of another source, put in order; what no piece covers is zero.

    A range inside one piece costs no more than in the outer source, and neither does one over seams without a gap
    where the outer source reads into a body of its own.

    Args:
        outer: where the bytes are; closed with this one.
        pieces: extents of bytes: place here, length, place in the outer source. They must lie inside the outer one.
        size: bytes in all; not less than the pieces reach.
        complaint: what the container lacks, where it is damaged.
        lacks: bytes that are missing, and not zero; they read as zero nevertheless.
    """

    def __init__(
        self, outer: Source, pieces: Extents, size: int, complaint: str | None = None, lacks: PageRuns = EMPTY
    ) -> None:
        self.name = outer.name
        self.size = size
        self.complaint = complaint
        self.pieces = pieces
        self.lacks = lacks
        self._outer = outer

    def view(self, offset: int = 0, length: int | None = None) -> memoryview:
        """View a range; one over a seam is copied."""
        length = check_range(self.name, self.size, offset, length)
        start, size = np.array([offset], np.int64), np.array([length], np.int64)
        inside, at = self._in_one(start, size)
        if inside[0]:
            return self._outer.view(int(at[0]), length)
        body, moved = self._across(start, size)
        return body[int(moved[0]) : int(moved[0]) + length]

    def gather(self, offset: Int64s, size: Int32s) -> tuple[memoryview, Int64s]:
        """Bring ranges: as the outer source does where each lies inside one piece."""
        used = ranges_inside(self.size, offset, size)
        inside, at = self._in_one(offset, size)
        if (inside | ~used).all():
            outside = np.where(offset < 0, np.int64(-1), np.int64(self._outer.size))
            return self._outer.gather(np.where(inside, at, outside), size)
        body, found = self._across(offset[used], size[used].astype(np.int64))
        moved = np.where(offset < 0, np.int64(-1), np.int64(len(body)))
        moved[used] = found
        return body, moved

    def data_runs(self, start: int = 0, stop: int | None = None) -> tuple[Int64s, Int64s]:
        """Give the ranges that are not known to be zero."""
        return self.pieces.start, self.pieces.count

    def close(self) -> None:
        """Close the outer source."""
        self._outer.close()

    def _in_one(self, offset: Int64s, size: Int32s | Int64s) -> tuple[Bools, Int64s]:
        """Tell which ranges lie inside one piece, and where those begin in the outer source."""
        pieces = self.pieces
        if not len(pieces.start):
            return np.zeros(len(offset), bool), offset
        piece = np.maximum(np.searchsorted(pieces.start, offset, side="right") - 1, 0)
        skip = offset - pieces.start[piece]
        inside: Bools = (skip >= 0) & (skip <= pieces.count[piece] - size)
        return inside, pieces.offset[piece] + skip

    def _across(self, offset: Int64s, size: Int64s) -> tuple[memoryview, Int64s]:
        """Bring ranges that lie inside this source, over seams and gaps."""
        owner, skip, at, length = self._cut(offset, size)
        # A piece may be longer than 2 GiB; sources count in 64 bits.
        source, moved = self._outer.gather(at, cast("Int32s", length))
        base = moved - skip
        joined = (base[1:] == base[:-1]) | (owner[1:] != owner[:-1])
        if joined.all() and length.sum() == size.sum():
            return source, np.append(base, 0)[np.searchsorted(owner, np.arange(len(offset)))]
        start = np.cumsum(size) - size
        body = np.zeros(int(size.sum()), np.uint8).data  # what is never written to takes no memory
        into = start[owner] + skip
        for to, count, begin in zip(into.tolist(), length.tolist(), moved.tolist(), strict=True):
            body[to : to + count] = source[begin : begin + count]
        return body.toreadonly(), start

    def _cut(self, offset: Int64s, size: Int64s) -> tuple[Int64s, Int64s, Int64s, Int64s]:
        """Cut ranges at the seams: which range a part is of, where in it, where in the outer source, and how long."""
        pieces = self.pieces
        first = np.maximum(np.searchsorted(pieces.start, offset, side="right") - 1, 0)
        count = np.maximum(np.searchsorted(pieces.start, offset + size, side="left") - first, 0)
        piece, owner = expand(first, count), np.repeat(np.arange(len(offset)), count)
        low = np.maximum(pieces.start[piece], offset[owner])
        length = np.minimum(pieces.start[piece] + pieces.count[piece], (offset + size)[owner]) - low
        used = length > 0
        piece, owner, low, length = piece[used], owner[used], low[used], length[used]
        return owner, low - offset[owner], pieces.offset[piece] + low - pieces.start[piece], length


def lacking(source: Source) -> PageRuns:
    """Give the bytes that a source reads as zero because they are missing."""
    lacks: PageRuns = getattr(source, "lacks", EMPTY)
    return lacks
