"""Memory that comes in one pass, cut into pieces: whole pages, with their bytes in a buffer of the piece's own."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.errors import UnsupportedFeatureError
from dumpxlate.io.source import BytesSource
from dumpxlate.pages import BATCH_BYTES
from dumpxlate.segments import index_segments

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dumpxlate.io.pipe import Pipe
    from dumpxlate.segments import SegmentIndex

__all__ = ["Gathering"]

_SEGMENTS = 1 << 16
"""Ranges in one piece at most."""


class Gathering:
    """Gathers ranges of memory, by ascending address, until they fill a piece.

    No page is in two pieces: where a piece ends inside a page, what there is of that page waits for the next one.

    Args:
        pipe: where the bytes come from.
        page_size: bytes a page.
    """

    def __init__(self, pipe: Pipe, page_size: int) -> None:
        self.end = 0
        """The address behind the last byte so far."""
        self._pipe = pipe
        self._page_size = page_size
        self._begin()

    def _begin(self) -> None:
        self._buffer = np.empty(BATCH_BYTES, np.uint8).data
        self._segments = array("q")
        self._used = 0

    def take(self, address: int, length: int) -> Iterator[SegmentIndex]:
        """Take a range from the pipe, and give each piece that is full; where the pipe ends first, ``end`` tells.

        Raises:
            UnsupportedFeatureError: memory at or behind that address has been taken before.
        """
        if address < self.end:
            raise UnsupportedFeatureError(
                f"memory from {address:#x} on comes behind memory up to {self.end:#x}: one pass takes ascending ranges "
                "(--spool takes any)",
                path=self._pipe.name,
                feature="order of ranges",
            )
        self._segments.extend((address, 0, self._used))
        self.end = address
        while length:
            room = self._buffer[self._used :][:length]
            got = self._pipe.fill(room)
            self._grow(got)
            if self._used == len(self._buffer) or len(self._segments) >= 3 * _SEGMENTS:
                yield self._cut(self.end // self._page_size * self._page_size)
            if got < len(room):
                return
            length -= got

    def rest(self) -> SegmentIndex:
        """Give what is left as a piece; it may be empty."""
        return self._cut(self.end)

    def _grow(self, length: int) -> None:
        """Lengthen the last segment by what stands behind it in the buffer."""
        self._segments[-2] += length
        self._used += length
        self.end += length

    def _cut(self, stop: int) -> SegmentIndex:
        """Make a piece of what lies below an address; the rest begins the next one."""
        start, length, offset = np.array(self._segments, np.int64).reshape(-1, 3).T
        waits = np.clip(start + length - stop, 0, length)
        source = BytesSource(self._buffer[: self._used], self._pipe.name)
        found = index_segments(source, start, length - waits, offset, self._page_size)
        ends = offset + length
        self._begin()
        for address, size, end in zip((start + length).tolist(), waits.tolist(), ends.tolist(), strict=True):
            # The last one stays open, empty or not: more may follow it.
            if size or end == source.size:
                self._segments.extend((address - size, 0, self._used))
                self._buffer[self._used : self._used + size] = source.view(end - size, size)
                self._segments[-2] = size
                self._used += size
        return found
