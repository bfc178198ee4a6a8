"""The page index of a domain core: from rows of the file to runs, a million at a time.

Entries that cannot be right are left out and counted: numbers that are none, zero again and again, and what does not
ascend as all others do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.extents import ExtentsBuilder
from dumpxlate.formats.xen_core.layout import XEN_P2M, XEN_PFN
from dumpxlate.formats.xen_core.order import out_of_order
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
        builder, wrong = ExtentsBuilder(self.page_size), _Wrong()
        for row, entry in self._chunks(wrong):
            builder.add(entry[0], self._place(row, entry))
        return self._store(builder, wrong)

    def by_mfn(self) -> IndexedStore:
        """Key the pages by machine frame."""
        builder, wrong = ExtentsBuilder(self.page_size), _Wrong()
        for row, entry in self._chunks(wrong):
            builder.add(entry[1], self._place(row, entry))
        return self._store(builder, wrong)

    def p2m(self) -> P2M:
        """Read the map that the index is."""
        builder = ExtentsBuilder(1)
        for _, (pfn, mfn) in self._chunks(_Wrong()):
            builder.add(np.where(mfn >= 0, pfn, -1), mfn)
        found, _ = builder.build()
        return P2M(FrameRuns(found.start, found.offset, found.count), found.pages().stop)

    def _store(self, builder: ExtentsBuilder, wrong: _Wrong) -> IndexedStore:
        index, repeated = builder.index()
        store = IndexedStore(self.source, self.page_size, index, repeated=repeated + wrong.repeated)
        if wrong.count:
            name, place = XEN_P2M if self.words == 2 else XEN_PFN, self.offset + wrong.first * 8 * self.words
            what = f"{name}, entry {wrong.first:,} at {place:#x}: {wrong.count:,} entries cannot be right"
            store.damage = (f"{what}: the pages that belong to them have no address",)
        return store

    def _place(self, row: int, entry: Int64s) -> Int64s:
        return self.pages + (row + np.arange(entry.shape[1], dtype=np.int64)) * self.page_size

    def _chunks(self, wrong: _Wrong) -> Iterator[tuple[int, Int64s]]:
        """Give the first row and the columns of each piece of the index, -1 for what is none; shape (words, rows)."""
        entry_size = 8 * self.words
        for row in range(0, self.count, _CHUNK):
            count = min(_CHUNK, self.count - row)
            start, size = np.array([self.offset + row * entry_size]), np.array([count * entry_size], np.int32)
            body, at = self.source.gather(start, size)
            raw = np.frombuffer(body, f"{self.endian}u8", count * self.words, int(at[0]))
            entry = raw.reshape(count, self.words).T.astype(np.int64)
            wrong.drop(row, entry[0])
            if self.words == 2:
                entry[1][(entry[0] < 0) | (entry[1] < 0) | (entry[1] >= MAX_FRAME)] = -1
            yield row, entry


@dataclass(slots=True)
class _Wrong:
    """Counts entries that are left out.

    Attributes:
        count: those whose pages have no address.
        first: row of the first of them.
        repeated: those of them whose pfn another entry has, where it belongs.
    """

    count: int = 0
    first: int = -1
    repeated: int = 0
    _before: Int64s = field(default_factory=lambda: np.empty(0, np.int64))

    def drop(self, row: int, pfn: Int64s) -> None:
        """Put -1 for the entries of a piece, from a row on, that cannot be right."""
        wrong = (pfn < -1) | (pfn >= MAX_FRAME)
        zeros = np.flatnonzero(pfn == 0)
        if len(zeros) > 1:
            wrong[zeros[1:] if row == zeros[0] == 0 else zeros] = True
        rows = np.flatnonzero((pfn >= 0) & ~wrong)
        moved = rows[out_of_order(np.append(self._before, pfn[rows]))[len(self._before) :]]
        wrong[moved] = True
        again = int(np.isin(pfn[moved], pfn[~wrong]).sum()) if len(moved) else 0
        found = np.flatnonzero(wrong)
        if len(found) and self.first < 0:
            self.first = row + int(found[0])
        self.repeated += again
        self.count += len(found)
        pfn[found] = -1
        self._before = pfn[pfn >= 0][-1:]
