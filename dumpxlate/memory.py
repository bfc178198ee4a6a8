"""Bytes and words at physical addresses, on top of a page store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.codecs.batch import read_pages
from dumpxlate.errors import PageUnavailableError
from dumpxlate.pages import PageState

if TYPE_CHECKING:
    from dumpxlate.pages import PageStore

__all__ = ["PhysicalMemory"]


class PhysicalMemory:
    """The address space that a page store is keyed by, as bytes."""

    def __init__(self, pages: PageStore) -> None:
        self._pages = pages

    def read(self, address: int, length: int) -> bytes:
        """Read bytes.

        Args:
            address: first byte, not negative.
            length: bytes to read; the range may cross pages.

        Raises:
            PageUnavailableError: a page in the range has no content.
        """
        if address < 0 or length < 0:
            raise ValueError(f"cannot read {length} bytes at {address}")
        if not length:
            return b""
        size = self._pages.page_size
        pfn = np.arange(address // size, (address + length - 1) // size + 1, dtype=np.int64)
        out = np.zeros((len(pfn), size), np.uint8)
        states = read_pages(self._pages, pfn, out)
        lacking = np.flatnonzero((states != PageState.STORED) & (states != PageState.ZERO))
        if len(lacking):
            raise PageUnavailableError(int(pfn[lacking[0]]), PageState(int(states[lacking[0]])).name.lower())
        skip = address % size
        return out.reshape(-1)[skip : skip + length].tobytes()
