"""The part of memory that ``--begin`` and ``--length`` choose."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dumpxlate.errors import UnsupportedFeatureError
from dumpxlate.pageset import between

if TYPE_CHECKING:
    from dumpxlate.arrays import Int64s
    from dumpxlate.format import WriteOptions
    from dumpxlate.pages import PageStore
    from dumpxlate.pageset import PageSet

__all__ = ["Window"]


class Window(NamedTuple):
    """Addresses from ``begin`` up to ``end``, in pages of ``page_size`` bytes."""

    begin: int
    end: int
    page_size: int

    @classmethod
    def of(cls, pages: PageStore, options: WriteOptions) -> Window:
        """Give the window that was asked for, all of RAM if none was.

        Raises:
            ValueError: a negative address, or no length.
            UnsupportedFeatureError: no RAM lies in it.
        """
        top = pages.ram.stop * pages.page_size
        if options.begin < 0 or (options.length is not None and options.length <= 0):
            raise ValueError(f"cannot write {options.length} bytes from {options.begin:#x}")
        end = top if options.length is None else min(options.begin + options.length, top)
        window = cls(options.begin, max(end, options.begin), pages.page_size)
        if options.cuts and not window.cut(pages.ram).count:
            raise UnsupportedFeatureError(
                f"no RAM in the range asked for, from {options.begin:#x} up to {window.end:#x}", feature="begin, length"
            )
        return window

    def cut(self, pages: PageSet) -> PageSet:
        """Give the members that the window touches; the set itself where it touches them all."""
        first, stop = self.begin // self.page_size, -(-self.end // self.page_size)
        if not first and stop >= pages.stop:
            return pages
        return between(pages, first, stop)

    def clip(self, pages: PageSet) -> tuple[Int64s, Int64s]:
        """Cut the runs of a set to the window, to the byte; gives addresses and lengths."""
        start, count = pages.runs()
        low = np.maximum(start * self.page_size, self.begin)
        return low, np.minimum((start + count) * self.page_size, self.end) - low
