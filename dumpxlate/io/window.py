"""A window that slides over a source: for one pass over a file whose records must be looked at everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dumpxlate.errors import TruncatedDumpError

if TYPE_CHECKING:
    from dumpxlate.io.source import Source

__all__ = ["SlidingWindow"]

_SIZE = 16 << 20


class SlidingWindow:
    """Views of a source, some MiB at a time; what is behind is given back, so that memory does not grow.

    Args:
        source: the file; it stays open.
        size: bytes of the window.
    """

    def __init__(self, source: Source, *, size: int = _SIZE) -> None:
        self._source = source
        self._size = size
        self._start = 0
        self._view = memoryview(b"")

    def at(self, offset: int, length: int, *, what: str = "stream") -> tuple[memoryview, int]:
        """Give the window, and where in it a place of the file is, with so many bytes behind it at least.

        Raises:
            TruncatedDumpError: the file has fewer there.
        """
        begin = offset - self._start
        if begin >= 0 and begin + length <= len(self._view):
            return self._view, begin
        available = self._source.size - offset
        if offset < 0 or length > available:
            raise TruncatedDumpError(what, offset=offset, wanted=length, available=available)
        self._view = memoryview(b"")
        self._view = self._source.view(offset, min(max(self._size, length), available))
        self._start = offset
        return self._view, 0

    def close(self) -> None:
        """Let the view go, so that the source can be closed."""
        self._view = memoryview(b"")
