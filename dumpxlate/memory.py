"""Bytes and words at physical addresses, on top of a page store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from dumpxlate.codecs.batch import read_pages
from dumpxlate.errors import PageUnavailableError
from dumpxlate.pages import BATCH_BYTES, STORED, ZERO, PageState
from dumpxlate.single import SinglePages

if TYPE_CHECKING:
    from dumpxlate.arrays import Bools, Int64s, UInt8s, UInt64s
    from dumpxlate.pages import PageStore
    from dumpxlate.pageset import PageSet
    from dumpxlate.structs import Endian

__all__ = ["PhysicalMemory"]

_FEW = 8
"""Up to so many pages are read one by one."""


class PhysicalMemory:
    """The address space that a page store is keyed by, as bytes.

    Args:
        pages: the store.
        endian: byte order of its words.
    """

    def __init__(self, pages: PageStore, endian: Endian = "<") -> None:
        self.page_size = pages.page_size
        self.endian = endian
        self._pages = pages
        self._single = SinglePages(pages)

    @property
    def held(self) -> PageSet:
        """Pages that have content, as far as the index tells."""
        return self._pages.stored

    def read(self, address: int, length: int) -> bytes:
        """Read bytes.

        Args:
            address: first byte, not negative.
            length: bytes to read; the range may cross pages.

        Raises:
            PageUnavailableError: a page in the range has no content.
        """
        first, skip = divmod(address, self.page_size)
        if 0 < length <= self.page_size - skip and first >= 0:
            page = self._single.read(first)
            return page if length == self.page_size else page[skip : skip + length]
        if address < 0 or length < 0:
            raise ValueError(f"cannot read {length} bytes at {address}")
        if not length:
            return b""
        end = -(-(skip + length) // self.page_size)
        if end <= _FEW:
            return b"".join([self.page(first + number) for number in range(end)])[skip : skip + length]
        if first + end > self._pages.ram.stop:
            self.page(max(first, self._pages.ram.stop))  # which has no content: nothing is allocated for such a range
        content = self.read_pages(np.arange(first, first + end, dtype=np.int64))
        return content.reshape(-1)[skip : skip + length].tobytes()

    def page(self, pfn: int) -> bytes:
        """Read one page: at a thirtieth of what it costs to ask for a batch of one.

        Raises:
            PageUnavailableError: it has no content.
        """
        return self._single.read(pfn)

    def holds(self, pfn: Int64s) -> Bools:
        """Tell which pages have content, without reading them; frames that cannot be have none."""
        # What a guest claims may be any number: only what is below the end of RAM is looked up.
        held = (pfn >= 0) & (pfn < self._pages.ram.stop)
        held[held] = _has_content(self._pages.locate(pfn[held]).state)
        return held

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
            words[rows] = content.view(f"{self.endian}u{width}")[row, at]
            held[rows] = found[row]
        return words, held

    def read_blocks(self, address: Int64s, size: int) -> tuple[UInt8s, Bools]:
        """Read blocks of bytes that cross no page wherever there is content.

        Args:
            address: multiples of ``size``; few enough that as many pages fit into memory.
            size: bytes of each, a power of two, at most a page.

        Returns:
            The bytes, shape (n, size), 0 where there are none, and which blocks there are.
        """
        if size > self.page_size or (address % size).any():
            raise ValueError(f"blocks of {size} bytes are read at addresses that are multiples of that")
        blocks, held = np.zeros((len(address), size), np.uint8), np.zeros(len(address), bool)
        inside = np.flatnonzero((address >= 0) & (address // self.page_size < self._pages.ram.stop))
        content = np.zeros((len(inside), self.page_size), np.uint8)
        held[inside] = _has_content(read_pages(self._pages, address[inside] // self.page_size, content))
        if size == self.page_size and len(inside) == len(address):
            return content, held
        at = address[inside] % self.page_size // size
        blocks[inside] = content.reshape(len(inside), -1, size)[np.arange(len(inside)), at]
        return blocks, held

    def _words(self, address: Int64s, width: Literal[4, 8]) -> UInt64s:
        words, held = self.read_words(address, width)
        if not held.all():
            pfn = address[np.flatnonzero(~held)[:1]] // self.page_size
            state = PageState(int(self._pages.locate(pfn).state[0]))
            # What looked stored, and was not read, did not decode.
            raise PageUnavailableError(int(pfn[0]), "bad" if state is PageState.STORED else state.name.lower())
        return words


def _has_content(states: UInt8s) -> Bools:
    there: Bools = (states == STORED) | (states == ZERO)
    return there
