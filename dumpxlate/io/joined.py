"""Sources made of others: several files one behind the other, and a file with more bytes behind its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.io.source import BytesSource, Closing, check_range, ranges_inside
from dumpxlate.io.spliced import lacking
from dumpxlate.pageset import EMPTY, PageRuns, union

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dumpxlate.arrays import Int32s, Int64s
    from dumpxlate.io.source import Source

__all__ = ["ConcatenatedSource", "TailedSource"]


class TailedSource(Closing):
    """A source with more bytes behind its end: the pages that a reader had to assemble.

    Args:
        inner: the source; closed with this one.
        tail: what follows it.
    """

    def __init__(self, inner: Source, tail: bytes) -> None:
        self._inner = inner
        self._tail = BytesSource(tail, inner.name)
        self.name = inner.name
        self.size = inner.size + len(tail)

    def view(self, offset: int = 0, length: int | None = None) -> memoryview:
        """View a range; one over the seam is copied."""
        length = check_range(self.name, self.size, offset, length)
        seam = self._inner.size
        if offset + length <= seam:
            return self._inner.view(offset, length)
        if offset >= seam:
            return self._tail.view(offset - seam, length)
        joined = bytes(self._inner.view(offset, seam - offset)) + bytes(self._tail.view(0, offset + length - seam))
        return memoryview(joined)

    def gather(self, offset: Int64s, size: Int32s) -> tuple[memoryview, Int64s]:
        """Bring ranges; where some are in the tail, all are copied into a body of their own."""
        if not (offset > self._inner.size - size.astype(np.int64)).any():
            return self._inner.gather(offset, size)
        return _copied(self, offset, size)

    def data_runs(self, start: int = 0, stop: int | None = None) -> tuple[Int64s, Int64s]:
        """Give the ranges that are not known to be zero: the source's, and the tail."""
        begin, length = self._inner.data_runs(start, stop)
        if len(begin) and begin[-1] + length[-1] == self._inner.size:
            return begin, np.append(length[:-1], length[-1] + self._tail.size)
        return np.append(begin, np.int64(self._inner.size)), np.append(length, np.int64(self._tail.size))

    def place(self, offset: Int64s) -> Int64s:
        """Say where in the file bytes are; those of the tail are nowhere."""
        return np.where(offset < self._inner.size, self._inner.place(offset), np.int64(-1))

    def close(self) -> None:
        """Close the source."""
        self._inner.close()


def _lacks(parts: Sequence[Source]) -> PageRuns:
    """Give the bytes that some of several sources read as zero because they are missing."""
    found, at = EMPTY, 0
    for part in parts:
        start, count = lacking(part).runs()
        found = union(found, PageRuns(start + at, count)) if len(start) else found
        at += part.size
    return found


class ConcatenatedSource(Closing):
    """Several sources one behind the other: the files of a split dump.

    Args:
        parts: the sources, at least one; closed with this one.

    Attributes:
        lacks: bytes that are missing in containers around them, and read as zero.
    """

    def __init__(self, parts: Sequence[Source]) -> None:
        self._parts = tuple(parts)
        self._ends = np.cumsum([part.size for part in parts], dtype=np.int64)
        self.name = parts[0].name
        self.size = int(self._ends[-1])
        self.lacks = _lacks(self._parts)

    def view(self, offset: int = 0, length: int | None = None) -> memoryview:
        """View a range; one over a seam is copied."""
        length = check_range(self.name, self.size, offset, length)
        pieces = []
        for part, end in zip(self._parts, self._ends.tolist(), strict=True):
            start = end - part.size
            low, high = max(offset, start), min(offset + length, end)
            if low < high:
                pieces.append(part.view(low - start, high - low))
        return pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))

    def gather(self, offset: Int64s, size: Int32s) -> tuple[memoryview, Int64s]:
        """Bring ranges; where they are in several parts, all are copied into a body of their own."""
        used = offset[offset >= 0]
        which = np.searchsorted(self._ends, used, side="right")
        if not len(used) or which.min() != which.max() or which[0] == len(self._parts):
            return _copied(self, offset, size)
        part = self._parts[int(which[0])]
        start = int(self._ends[which[0]]) - part.size
        if (used > start + part.size - size[offset >= 0].astype(np.int64)).any():
            return _copied(self, offset, size)
        return part.gather(np.where(offset >= 0, offset - start, np.int64(-1)), size)

    def place(self, offset: Int64s) -> Int64s:
        """Say nothing: an offset alone does not tell in which of the files."""
        return np.full(len(offset), -1, np.int64)

    def close(self) -> None:
        """Close the parts."""
        for part in self._parts:
            part.close()


def _copied(source: Source, offset: Int64s, size: Int32s) -> tuple[memoryview, Int64s]:
    """Bring ranges into a body of their own, one by one."""
    used = ranges_inside(source.size, offset, size)
    length = size[used].astype(np.int64)
    at = np.cumsum(length) - length
    body = bytearray(int(length.sum()))
    for position, begin, count in zip(at.tolist(), offset[used].tolist(), length.tolist(), strict=True):
        body[position : position + count] = source.view(begin, count)
    moved = np.where(offset >= 0, np.int64(len(body)), np.int64(-1))
    moved[used] = at
    return memoryview(body).toreadonly(), moved
