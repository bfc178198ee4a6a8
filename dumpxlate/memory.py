"""Bytes and words at physical addresses, on top of a page store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from dumpxlate.codecs import codec_for
from dumpxlate.codecs.batch import read_pages
from dumpxlate.errors import CorruptPageError, PageUnavailableError
from dumpxlate.pages import BATCH_BYTES, CodecId, PageState

if TYPE_CHECKING:
    from dumpxlate.arrays import Bools, Int64s, UInt8s, UInt64s
    from dumpxlate.pages import PageStore
    from dumpxlate.pageset import PageSet
    from dumpxlate.structs import Endian

__all__ = ["PhysicalMemory"]

_FEW = 8
"""Up to so many pages are read one by one."""
_GROUP = 1024
_GROUPS = 1024
"""Pages that are looked up at once, and groups of them to be remembered: 14 bytes a page, 14 MiB at most."""

# Plain numbers: Python takes long to compare with an IntEnum's member.
_STORED, _ZERO, _RAW = int(PageState.STORED), int(PageState.ZERO), int(CodecId.RAW)


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
        self._groups: dict[int, tuple[memoryview, ...]] = {}

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
        if address < 0 or length < 0:
            raise ValueError(f"cannot read {length} bytes at {address}")
        if not length:
            return b""
        first, skip = divmod(address, self.page_size)
        end = -(-(skip + length) // self.page_size)
        if end == 1:
            page = self.page(first)
            return page if length == len(page) else page[skip : skip + length]
        if end <= _FEW:
            return b"".join([self.page(first + number) for number in range(end)])[skip : skip + length]
        content = self.read_pages(np.arange(first, first + end, dtype=np.int64))
        return content.reshape(-1)[skip : skip + length].tobytes()

    def page(self, pfn: int) -> bytes:
        """Read one page: at a twentieth of what it costs to ask for a batch of one.

        Raises:
            PageUnavailableError: it has no content.
        """
        read_at = self._pages.read_at
        if read_at is None or pfn >= self._pages.ram.stop:
            return self.read_pages(np.array([pfn], np.int64)).tobytes()
        group, row = divmod(pfn, _GROUP)
        states, codecs, offsets, sizes = self._groups.get(group) or self._locate(group)
        state = states[row]
        if state == _STORED:
            size = sizes[row]
            data = read_at(offsets[row], size)
            page = data if codecs[row] == _RAW else self._decoded(codecs[row], data)
            if len(data) == size and len(page) == self.page_size:
                return page
            state = PageState.BAD
        elif state == _ZERO:
            return bytes(self.page_size)
        raise PageUnavailableError(pfn, PageState(state).name.lower())

    def _locate(self, group: int) -> tuple[memoryview, ...]:
        """Look up the pages of a group at once, and keep what is known of the groups asked for last."""
        while len(self._groups) >= _GROUPS:
            self._groups.pop(next(iter(self._groups)), None)
        table = self._pages.locate(np.arange(group * _GROUP, (group + 1) * _GROUP, dtype=np.int64))
        columns = tuple(
            np.ascontiguousarray(column).data for column in (table.state, table.codec, table.offset, table.size)
        )
        self._groups[group] = columns
        return columns

    def _decoded(self, codec: int, data: bytes) -> bytes:
        """Decode a page; nothing where that fails."""
        page = bytearray(self.page_size)
        try:
            codec_for(CodecId(codec)).decode_into(memoryview(data), memoryview(page))
        except (CorruptPageError, ValueError):
            return b""
        return bytes(page)

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
    there: Bools = (states == PageState.STORED) | (states == PageState.ZERO)
    return there
