"""Raw pages onto a sink, one behind the other: what the writers of uncompressed formats share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.arrays import runs
from dumpxlate.io.sink import SHORTEST_HOLE, FileSink
from dumpxlate.pages import STORED, PageBatch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dumpxlate.io.sink import Sink

__all__ = ["append_pages", "by_run"]

_ZEROS = memoryview(bytes(SHORTEST_HOLE))


def append_pages(sink: Sink, batch: PageBatch, page_size: int) -> None:
    """Append every row of a raw batch as a full page; rows without content as zeros.

    Long runs of zeros become holes where the sink has any.
    """
    table = batch.table
    rows = np.flatnonzero(table.state == STORED)
    offset = table.offset[rows]
    first, count = runs(rows, offset, step=page_size)
    at, place, length = offset[first], rows[first] * page_size, count * page_size
    if isinstance(sink, FileSink):
        sink.append_sparse(np.frombuffer(batch.body, np.uint8), at, length, place, len(table) * page_size)
        return
    parts: list[memoryview] = []
    done = 0
    for start, size, to in zip(at.tolist(), length.tolist(), place.tolist(), strict=True):
        parts = _append_zeros(sink, parts, to - done)
        parts.append(batch.body[start : start + size])
        done = to + size
    sink.append(_append_zeros(sink, parts, len(table) * page_size - done))


def _append_zeros(sink: Sink, parts: list[memoryview], length: int) -> list[memoryview]:
    """Let zeros follow some parts; give what is still to be written."""
    if length < SHORTEST_HOLE:
        if length:
            parts.append(_ZEROS[:length])
        return parts
    sink.append(parts)
    sink.skip(length)
    return []


def by_run(batch: PageBatch) -> Iterator[PageBatch]:
    """Cut a batch where its pfns jump."""
    for first, count in zip(*(column.tolist() for column in runs(batch.table.pfn)), strict=True):
        yield PageBatch(batch.table.where(slice(first, first + count)), batch.body)


class TrimmedSink:
    """A sink that lets the first bytes of what is appended fall away, and everything beyond a length.

    Args:
        sink: where the rest goes.
        skip: bytes to drop first.
        length: bytes to let through then.
    """

    seekable = False

    def __init__(self, sink: Sink, skip: int, length: int) -> None:
        self._sink = sink
        self._skip = skip
        self._left = length

    @property
    def position(self) -> int:
        """Where the next byte goes in the sink."""
        return self._sink.position

    def append(self, parts: Iterable[memoryview | bytes]) -> int:
        """Append what is not trimmed."""
        kept = []
        for part in parts:
            start, stop = self._take(len(part))
            kept.append(memoryview(part)[start:stop])
        return self._sink.append(kept)

    def skip(self, length: int) -> None:
        """Leave zeros for what is not trimmed."""
        start, stop = self._take(length)
        self._sink.skip(stop - start)

    def write_at(self, offset: int, data: memoryview | bytes) -> None:
        """Write at an offset of the sink itself."""
        self._sink.write_at(offset, data)

    def pass_over(self, length: int) -> None:
        """Take bytes as appended that are in the sink already."""
        self._take(length)

    def _take(self, length: int) -> tuple[int, int]:
        start = min(self._skip, length)
        stop = min(length, start + self._left)
        self._skip -= start
        self._left -= stop - start
        return start, stop
