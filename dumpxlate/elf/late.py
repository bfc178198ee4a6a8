"""A section that is read as far as somebody looks: of hundreds of MB of debug information a few units are wanted."""

from __future__ import annotations

import mmap
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from dumpxlate.io.source import Source

__all__ = ["LateSection", "Octets", "whole"]

Octets: TypeAlias = "bytes | mmap.mmap"
"""What is indexed and sliced alike. A mapping is searched byte by byte before CPython 3.12: search bytes."""


def whole(source: Source, offset: int, length: int) -> bytes:
    """Copy a range once; a view of a file that becomes bytes is two copies.

    Raises:
        TruncatedDumpError: the source ends inside it.
    """
    data = source.read(offset, length)
    return data if len(data) == length else bytes(source.view(offset, length))


class LateSection:
    """Bytes of a source, which must stay open; what was not brought yet reads as zero, and takes no memory.

    Args:
        source: where they are.
        offset: where they begin in it.
        size: how many, one at least; they lie inside it.
    """

    def __init__(self, source: Source, offset: int, size: int) -> None:
        self.data: Octets = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._room = memoryview(self.data)
        self._source, self._offset, self._size = source, offset, size

    def bring(self, start: int, stop: int) -> None:
        """Have a range of them there; what leaves the section is passed over.

        Raises:
            TruncatedDumpError: the source has become shorter.
        """
        stop = min(stop, self._size)
        if start < stop:
            self._room[start:stop] = whole(self._source, self._offset + start, stop - start)

    @cached_property
    def everything(self) -> bytes:
        """All of them, read at once when they are first wanted.

        Raises:
            TruncatedDumpError: the source has become shorter.
        """
        return whole(self._source, self._offset, self._size)
