"""Short pieces of a source, in the order of the file: what costs least where a file is full of small headers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from dumpxlate.io.source import Source

__all__ = ["WindowedReader"]

_WINDOW = 256 << 10


class WindowedReader:
    """Short pieces of a source by ascending offset, brought in windows."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._body = memoryview(b"")
        self._low = self._high = 0

    def read(self, at: int, length: int) -> memoryview:
        """Give a piece; a shorter one at the end of the source."""
        if not self._low <= at <= self._high - length:
            size = np.array([max(min(_WINDOW, self._source.size - at), 0)], np.int32)
            body, moved = self._source.gather(np.array([at], np.int64), size)
            self._body = body[int(moved[0]) :][: int(size[0])]
            self._low, self._high = at, at + len(self._body)
        return self._body[at - self._low : at - self._low + length]
