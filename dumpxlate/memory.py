"""Bytes and words at physical addresses, on top of a page store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from dumpxlate.codecs.batch import read_pages
from dumpxlate.errors import PageUnavailableError
from dumpxlate.pages import BATCH_BYTES, PageState

if TYPE_CHECKING:
    from dumpxlate.arrays import Bools, Int64s, UInt8s, UInt64s
    from dumpxlate.pages import PageStore
    from dumpxlate.structs import Endian

__all__ = ["PhysicalMemory"]


class PhysicalMemory:
    """The address space that a page store is keyed by, as bytes.

    Args:
        pages: the store.
        endian: byte order of its words.
    """

    def __init__(self, pages: PageStore, endian: Endian = "<") -> None:
        self.page_size = pages.page_size
        self._pages = pages
        self._endian = endian

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
        size = self.page_size
        content = self.read_pages(np.arange(address // size, (address + length - 1) // size + 1, dtype=np.int64))
        skip = address % size
        return content.reshape(-1)[skip : skip + length].tobytes()

    def read_pages(self, pfn: Int64s) -> UInt8s:
        """Read whole pages, in any order, shape (n, page size).

        Raises:
            PageUnavailableError: one has no content.
        """
        out = np.zeros((len(pfn), self.page_size), np.uint8)
        states = read_pages(self._pages, pfn, out)
        lacking = np.flatnonzero(~_has_content(states))
        if len(lacking):
            raise PageUnavailableError(int(pfn[lacking[0]]), PageState(int(states[lacking[0]])).name.lower())
        return out

    def read_u32(self, address: Int64s) -> UInt64s:
        """Read words of 4 bytes at aligned addresses.

        Raises:
            PageUnavailableError: one lies in a page without content.
        """
        return self._words(address, 4)

    def read_u64(self, address: Int64s) -> UInt64s:
        """Read words of 8 bytes at aligned addresses.

        Raises:
            PageUnavailableError: one lies in a page without content.
        """
        return self._words(address, 8)

    def read_words(self, address: Int64s, width: Literal[4, 8]) -> tuple[UInt64s, Bools]:
        """Read words at aligned addresses wherever there is content.

        Returns:
            The words, 0 where there is none, and which there are.
        """
        if (address % width).any():
            raise ValueError(f"words of {width} bytes are read at addresses that are multiples of that")
        words, held = np.zeros(len(address), np.uint64), np.zeros(len(address), bool)
        # A page table may claim any address: only those below the end of RAM are looked up.
        inside = np.flatnonzero((address >= 0) & (address // self.page_size < self._pages.ram.stop))
        inside = inside[np.argsort(address[inside], kind="stable")]
        pfn, page = np.unique(address[inside] // self.page_size, return_inverse=True)
        step = max(BATCH_BYTES // self.page_size, 1)
        ends = np.searchsorted(page, np.arange(0, len(pfn) + step, step))
        for number, (low, high) in enumerate(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)):
            rows, first = inside[low:high], number * step
            content = np.zeros((min(step, len(pfn) - first), self.page_size), np.uint8)
            found = _has_content(read_pages(self._pages, pfn[first : first + step], content))
            row = page[low:high] - first
            at = address[rows] % self.page_size // width
            words[rows] = content.view(f"{self._endian}u{width}")[row, at]
            held[rows] = found[row]
        return words, held

    def _words(self, address: Int64s, width: Literal[4, 8]) -> UInt64s:
        words, held = self.read_words(address, width)
        if not held.all():
            pfn = address[np.flatnonzero(~held)[:1]] // self.page_size
            state = PageState(int(self._pages.locate(pfn).state[0]))
            # What looked stored, and was not read, did not decode.
            raise PageUnavailableError(int(pfn[0]), "bad" if state is PageState.STORED else state.name.lower())
        return words


def _has_content(states: UInt8s) -> Bools:
    there: Bools = (states == PageState.STORED) | (states == PageState.ZERO)
    return there
