"""The pages of a stream: from PAGE_DATA records to runs, many records at a time."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.extents import Extents, ExtentsBuilder
from dumpxlate.formats.xen_stream import layout
from dumpxlate.pageset import PageRuns
from dumpxlate.stores import IndexedStore
from dumpxlate.xen import MAX_FRAME, PAGE_SIZE

if TYPE_CHECKING:
    from dumpxlate.arrays import Bools, Int64s, UInt64s
    from dumpxlate.io.source import Source

__all__ = ["PageRecords"]

_FLUSH = 1 << 20
"""Entries that are put off, to be sorted out together: a record alone is too short for arrays to pay."""

_NO_PAGE = -(1 << 61)
_NO_CONTENT = -(1 << 62)
_CUT_OFF = -(3 << 61)
"""Where offsets begin for pfns without a page, for pages without content, and for those that the file has not any more:
below any offset in a file."""

_ENTRY = struct.Struct("<I")


def _types(*types: int) -> Bools:
    return np.isin(np.arange(16), types)


_HAS_CONTENT = _types(*layout.PAGES_WITH_CONTENT)
_IS_KNOWN = _HAS_CONTENT | _types(*layout.PAGES_WITHOUT)


@dataclass(slots=True)
class PageRecords:
    """Collects PAGE_DATA records in the order of the stream.

    Attributes:
        source: the file.
        rejected: what is wrong with records that were left out.
    """

    source: Source
    rejected: list[str] = field(default_factory=list)
    _builder: ExtentsBuilder = field(default_factory=lambda: ExtentsBuilder(PAGE_SIZE))
    _entries: list[UInt64s] = field(default_factory=list)
    _records: list[tuple[int, int, int]] = field(default_factory=list)  # body, length, entries
    _waiting: int = 0
    _copies: int = 0

    def add(self, body: int, length: int) -> None:
        """Take the next record, of which the file may lack the end."""
        room = min(length, self.source.size - body)
        (count,) = _ENTRY.unpack(self.source.view(body, 4)) if room >= 8 else (0,)
        if not 1 <= count <= layout.PAGES_LIMIT or 8 + 8 * count > length:
            self.rejected.append(f"PAGE_DATA at {body - 8:#x}: {count} entries in {length} bytes")
        elif 8 + 8 * count <= room:
            self._entries.append(np.frombuffer(self.source.view(body + 8, 8 * count), "<u8"))
            self._records.append((body, length, count))
            self._waiting += count
            if self._waiting >= _FLUSH:
                self._flush()

    def _flush(self) -> None:
        """Work out where the pages of the records that wait are."""
        if not self._records:
            return
        body, length, count = np.array(self._records, np.int64).T
        entry = np.concatenate(self._entries)
        self._entries, self._records, self._waiting = [], [], 0
        kind = (entry >> np.uint64(60)).astype(np.int64)
        pfn = (entry & np.uint64((1 << 60) - 1)).astype(np.int64)
        full = _HAS_CONTENT[kind]
        first = np.cumsum(count) - count
        unknown = ~_IS_KNOWN[kind]
        held, odd = (np.add.reduceat(each, first, dtype=np.int64) for each in (full, unknown))
        # If the record is as long as if all entries of no known type had a page, the others' pages can be told.
        fits = length == 8 + 8 * count + PAGE_SIZE * (held + odd)
        full |= unknown & np.repeat(fits, count)
        held = np.where(fits, held + odd, held)
        wrong = length != 8 + 8 * count + PAGE_SIZE * held
        absurd = unknown | (pfn >= MAX_FRAME)
        self._reject(body, length, count, held, np.add.reduceat(absurd, first, dtype=np.int64), wrong)
        start = np.repeat(body + 8 + 8 * count - (np.cumsum(held) - held) * PAGE_SIZE, count)
        offset = start + (np.cumsum(full) - 1) * PAGE_SIZE
        keep = np.repeat(~wrong, count) & ~absurd
        self._take(pfn[keep], kind[keep], np.where(full, offset, -1)[keep])

    def _reject(self, body: Int64s, length: Int64s, count: Int64s, held: Int64s, absurd: Int64s, wrong: Bools) -> None:
        """Say which records, and which entries of others, are left out."""
        for row in np.flatnonzero(wrong | (absurd > 0)).tolist():
            at, of = int(body[row]) - 8, int(count[row])
            if wrong[row]:
                told = f"{int(length[row])} bytes for {of} entries, {int(held[row])} with pages"
            else:
                told = f"{int(absurd[row])} of {of} entries are of no known type or frame"
            self.rejected.append(f"PAGE_DATA at {at:#x}: {told}")

    def _take(self, pfn: Int64s, kind: Int64s, offset: Int64s) -> None:
        """Add pages whose place is known.

        What has no place gets an offset that grows with the pfn, so that it forms runs and can be overwritten too.
        """
        cut = offset + PAGE_SIZE > self.source.size
        nowhere = np.where(kind == layout.PAGE_XTAB, _NO_PAGE, _NO_CONTENT)
        nowhere = np.where(cut & (offset >= 0), _CUT_OFF, nowhere) + pfn * PAGE_SIZE
        self._copies += int((offset >= 0).sum())
        self._builder.add(pfn, np.where((offset < 0) | cut, nowhere, offset))

    def store(self) -> IndexedStore:
        """Make the store: of several entries for a pfn the last counts."""
        self._flush()
        every, _ = self._builder.build(last_wins=True)
        stored, lost = every.offset >= 0, every.offset < _NO_CONTENT
        bare = ~lost & (every.offset < _NO_PAGE)
        extents = Extents(every.start[stored], every.count[stored], every.offset[stored])
        excluded = PageRuns.from_runs(every.start[bare], every.count[bare])
        cut = PageRuns.from_runs(every.start[lost], every.count[lost])
        repeated = self._copies - int(extents.count.sum())
        return IndexedStore(self.source, PAGE_SIZE, extents, excluded=excluded, lost=cut, repeated=repeated)
