"""The page index of a domain core: from rows of the file to runs, a million at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.errors import CorruptDumpError
from dumpxlate.extents import ExtentsBuilder
from dumpxlate.p2m.map import P2M, FrameRuns
from dumpxlate.stores import IndexedStore
from dumpxlate.xen import MAX_FRAME

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dumpxlate.arrays import Int64s
    from dumpxlate.io.source import Source
    from dumpxlate.structs import Endian

__all__ = ["PageIndex"]

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class PageIndex:
    """Where index and pages are.

    Attributes:
        source: the file.
        endian: byte order of the entries.
        offset: where the index begins.
        pages: where the first page begins.
        count: rows that have an entry and a page.
        page_size: bytes a page.
        words: 2 for .xen_p2m (pfn, gmfn), 1 for .xen_pfn.
    """

    source: Source
    endian: Endian
    offset: int
    pages: int
    count: int
    page_size: int
    words: int

    def by_pfn(self) -> IndexedStore:
        """Key the pages by pfn; the first of several rows counts, as in crash."""
        builder = ExtentsBuilder(self.page_size)
        for row, entry in self._chunks():
            builder.add(entry[0], self._place(row, entry))
        return self._store(builder)

    def by_mfn(self) -> IndexedStore:
        """Key the pages by machine frame."""
        builder = ExtentsBuilder(self.page_size)
        for row, entry in self._chunks():
            builder.add(entry[1], self._place(row, entry))
        return self._store(builder)

    def p2m(self) -> P2M:
        """Read the map that the index is."""
        builder = ExtentsBuilder(1)
        for _, (pfn, mfn) in self._chunks():
            builder.add(np.where(mfn >= 0, pfn, -1), mfn)
        found, _ = builder.build()
        return P2M(FrameRuns(found.start, found.offset, found.count), found.pages().stop)

    def _store(self, builder: ExtentsBuilder) -> IndexedStore:
        extents, repeated = builder.build()
        return IndexedStore(self.source, self.page_size, extents, repeated=repeated)

    def _place(self, row: int, entry: Int64s) -> Int64s:
        return self.pages + (row + np.arange(entry.shape[1], dtype=np.int64)) * self.page_size

    def _chunks(self) -> Iterator[tuple[int, Int64s]]:
        """Give the first row and the columns of each piece of the index, -1 for what is none; shape (words, rows)."""
        entry_size = 8 * self.words
        for row in range(0, self.count, _CHUNK):
            count = min(_CHUNK, self.count - row)
            start, size = np.array([self.offset + row * entry_size]), np.array([count * entry_size], np.int32)
            body, at = self.source.gather(start, size)
            raw = np.frombuffer(body, f"{self.endian}u8", count * self.words, int(at[0]))
            entry = raw.reshape(count, self.words).T.astype(np.int64)
            self._check(row, entry[0])
            if self.words == 2:
                entry[1][(entry[0] < 0) | (entry[1] < 0) | (entry[1] >= MAX_FRAME)] = -1
            yield row, entry

    def _check(self, row: int, pfn: Int64s) -> None:
        wrong = np.flatnonzero((pfn < -1) | (pfn >= MAX_FRAME))
        if len(wrong):
            at = int(wrong[0])
            raise CorruptDumpError(
                f"pfn {int(pfn[at]) & (1 << 64) - 1:#x}: expected one below {MAX_FRAME:#x}, or all ones",
                path=self.source.name,
                offset=self.offset + (row + at) * 8 * self.words,
                what=f"page index, entry {row + at}",
            )
