"""Writes a flattened file: what a seeking writer does becomes a stream of records."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dumpxlate.formats.flattened.layout import (
    END_FLAG_FLAT_HEADER,
    MAX_SIZE_MDF_HEADER,
    SIGNATURE,
    TYPE_FLAT_HEADER,
    VERSION_FLAT_HEADER,
    MakedumpfileDataHeader,
    MakedumpfileHeader,
)
from dumpxlate.structs import pack

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dumpxlate.io.sink import Output

__all__ = ["FlattenedSink"]

_SMALL = 32 << 10
"""Writes up to this size wait for their continuation; larger ones become a record at once, uncopied."""


class FlattenedSink:
    """A sink that seeks, on top of one that only appends.

    Args:
        outer: where the records go, at its present position.
    """

    seekable = True

    def __init__(self, outer: Output) -> None:
        self._outer = outer
        self._waiting = bytearray()
        self._waiting_at = 0
        self._end = 0
        self._complete = False
        self.position = 0
        header = pack(MakedumpfileHeader(SIGNATURE, TYPE_FLAT_HEADER, VERSION_FLAT_HEADER), ">")
        outer.append([header.ljust(MAX_SIZE_MDF_HEADER, b"\0")])

    def append(self, parts: Iterable[memoryview | bytes]) -> int:
        """Write parts one behind the other at the position; give back where they begin."""
        start = self.position
        self.position += self._put(start, parts)
        return start

    def skip(self, length: int) -> None:
        """Leave a range of zeros: a gap between records."""
        self.position += length

    def write_at(self, offset: int, data: memoryview | bytes) -> None:
        """Write over what is already there, or ahead of it; the position stays."""
        self._put(offset, [data])

    def commit(self) -> None:
        """Complete the output, unless that was done, and commit the outer sink."""
        if not self._complete:
            self.complete()
        self._outer.commit()

    def complete(self) -> None:
        """Write the end marker and complete the outer sink."""
        if self._end < self.position:
            # The size of the file inside is where its last record ends.
            self._put(self.position - 1, [b"\0"])
        self._flush()
        self._outer.append([pack(MakedumpfileDataHeader(END_FLAG_FLAT_HEADER, END_FLAG_FLAT_HEADER), ">")])
        self._outer.complete()
        self._complete = True

    def _put(self, offset: int, parts: Iterable[memoryview | bytes]) -> int:
        """Make a record, or lengthen the one that waits; records keep the order of writes, so that later ones win."""
        pieces = [memoryview(part).cast("B") for part in parts]
        size = sum(map(len, pieces))
        if offset != self._waiting_at + len(self._waiting) or len(self._waiting) + size > _SMALL:
            self._flush()
        if size > _SMALL:
            self._outer.append([pack(MakedumpfileDataHeader(offset, size), ">"), *pieces])
        elif size:
            if not self._waiting:
                self._waiting_at = offset
            self._waiting += b"".join(pieces)
        if size:
            self._end = max(self._end, offset + size)
        return size

    def _flush(self) -> None:
        if self._waiting:
            head = pack(MakedumpfileDataHeader(self._waiting_at, len(self._waiting)), ">")
            self._outer.append([head, memoryview(self._waiting)])
            self._waiting = bytearray()
