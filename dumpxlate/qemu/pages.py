"""The store over what a stream's records say: the last copy of each page counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from dumpxlate.errors import CorruptPageError
from dumpxlate.extents import Extents, first_wins, merge
from dumpxlate.pages import ABSENT, EXCLUDED, RAW, STORED, ZERO, CodecId, PageBatch, PageTable
from dumpxlate.pageset import EMPTY, PageRuns, difference, union
from dumpxlate.qemu.records import Kind
from dumpxlate.qemu.xbzrle import apply_delta

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dumpxlate.arrays import Bools, Int32s, Int64s
    from dumpxlate.io.source import Source
    from dumpxlate.pages import ReadAt
    from dumpxlate.pageset import PageSet
    from dumpxlate.qemu.layout import Placement
    from dumpxlate.qemu.records import RecordLog
    from dumpxlate.qemu.resync import Gap

__all__ = ["StreamStore", "Winners", "winners", "without_end"]

_MADE = 1 << 60
"""Offsets from here on are those of pages that are made when they are asked for."""

_NOWHERE = np.iinfo(np.int32).max * 2
"""An offset that no body has."""

_COLUMNS = ("start", "count", "row", "skip")
_SHORTEST_RECORD = 9
_MOST_WORK = 1 << 25
"""Runs that are looked at for what a damaged part may have held."""

_GAP = 64
"""Bytes between two pages that are read with them: there is a record's head between most."""


@dataclass(frozen=True, slots=True)
class Winners:
    """The copies that count, as runs of pages; pages are counted through all RAM blocks.

    Attributes:
        start: first page of each run, ascending, disjoint.
        count: pages in each.
        row: the run of the log that each is a part of.
        skip: pages of that run before it.
        repeated: copies that do not count.
    """

    start: Int64s
    count: Int64s
    row: Int64s
    skip: Int64s
    repeated: int

    def clipped(self, low: int, high: int, shift: int) -> Winners:
        """Keep a range of pages, under other numbers."""
        first = int(np.searchsorted(self.start + self.count, low, side="right"))
        last = int(np.searchsorted(self.start, high, side="left"))
        start, skip = self.start[first:last].copy(), self.skip[first:last].copy()
        stop = np.minimum(start + self.count[first:last], high)
        before = np.maximum(low - start, 0)
        start += before
        return Winners(start + shift, stop - start, self.row[first:last], skip + before, 0)

    def older(self, row: int) -> Winners:
        """Keep those that stand before a run of the log."""
        used = self.row < row
        return Winners(self.start[used], self.count[used], self.row[used], self.skip[used], 0)


def winners(log: RecordLog, *, without: Kind | None = None) -> Winners:
    """Find the last copy of each page.

    Args:
        log: what the records say.
        without: a kind of runs that does not count.
    """
    kind, page, count, _ = log.columns()
    count = np.where(kind >= Kind.ZLIB, 1, count)  # of these it is their length
    rows = np.flatnonzero(kind != without)[::-1] if without is not None else np.arange(len(kind))[::-1]
    start, length, row = first_wins(page[rows], count[rows], rows, step=0)
    return Winners(start, length, row, start - page[row], int(count[rows].sum() - length.sum()))


def without_end(log: RecordLog, pages: int, *, past_ram: bool) -> tuple[list[str], list[str]]:
    """Say what it means that the section is not there with which RAM ends.

    A background snapshot has none, since QEMU writes each page once and then what it saved of the devices before.

    Args:
        log: what the records say.
        pages: of all RAM blocks.
        past_ram: whether states of devices follow.

    Returns:
        Damage and remarks.
    """
    if not past_ram:
        return ["the stream ends before its RAM does: pages are missing"], []
    found = winners(log)
    if unsent := pages - int(found.count.sum()):
        return [f"RAM has no end in the stream, and {unsent:,} pages are not in it"], []
    if found.repeated:
        return ["RAM has no end in the stream: newer pages may be missing"], []
    return [], ["RAM has no end in the stream, but each page once: it is a background snapshot"]


def _before_gaps(every: Winners, log: RecordLog, gaps: Sequence[Gap], pages: int) -> tuple[Winners, int]:
    """Find the pages of which a damaged part of the stream may have held a newer copy.

    QEMU goes through memory in its order, and from its end to its beginning again, so that a damaged part has pages
    between the one before and the one behind it. No newer copies than it has room for can be lost.

    Returns:
        The pages, under their numbers through all RAM blocks; and how many of them can be older.
    """
    parts, newer, work = [], 0, _MOST_WORK
    for gap in gaps:
        if gap.row in (0, len(log)):
            continue
        low, high = log.last(gap.row) + 1, log.first(gap.row)
        ranges = ((low, high),) if low <= high else ((0, high), (low, pages))
        work -= len(every.start) if low > high else 0
        if work < 0:  # no real stream: say of all pages that they may be older
            return every.older(gaps[-1].row), sum(gap.bytes // _SHORTEST_RECORD for gap in gaps)
        before = [every.clipped(*each, 0).older(gap.row) for each in ranges]
        newer += min(gap.bytes // _SHORTEST_RECORD, sum(int(part.count.sum()) for part in before))
        parts += before
    found = PageRuns.from_runs(_joined([part.start for part in parts]), _joined([part.count for part in parts]))
    start, count = found.runs()
    return Winners(start, count, np.zeros_like(start), np.zeros_like(start), 0), newer


def _joined(columns: list[Int64s]) -> Int64s:
    return np.concatenate([np.empty(0, np.int64), *columns])


def _placed(found: Winners, placements: Sequence[Placement], base: Sequence[int], page_size: int) -> Winners:
    """Put what counts where it is seen in guest-physical memory."""
    parts = []
    for piece in placements:
        pfn = -(-piece.start // page_size)
        low = base[piece.block] + -(-piece.offset // page_size)
        count = (piece.start + piece.length) // page_size - pfn
        if count > 0:
            parts.append(found.clipped(low, low + count, pfn - low))
    start, length, row, skip = (_joined([getattr(part, name) for part in parts]) for name in _COLUMNS)
    order = np.argsort(start, kind="stable")
    return Winners(start[order], length[order], row[order], skip[order], found.repeated)


class StreamStore:
    """The pages of a stream where the guest sees them.

    Args:
        source: the file.
        page_size: bytes a page.
        step: bytes from one page to the next in a run of raw ones: a record's head lies between them.
        log: what the records say.
        placements: where the RAM blocks are seen.
        base: number of each block's first page in the log.
        cut: the stream is known not to hold all that was sent, so that pages without a record are lost.
        gaps: damaged parts that were passed over.
        lacks: bytes of the file that are missing, and read as zero: pages with such bytes are bad.

    Attributes:
        older: pages of which a damaged part may have held a newer copy.
        newer: how many newer copies the damaged parts had room for.
    """

    def __init__(
        self,
        source: Source,
        page_size: int,
        step: int,
        log: RecordLog,
        placements: Sequence[Placement],
        base: Sequence[int],
        *,
        cut: bool = False,
        gaps: Sequence[Gap] = (),
        lacks: PageRuns = EMPTY,
    ) -> None:
        self.page_size = page_size
        self._source, self._step, self._lacks = source, step, lacks
        self._kind, self._page, self._count, self._offset = log.columns()
        every = winners(log)
        self.repeated = every.repeated
        self._patches = _Patches(log, every, np.array([gap.row for gap in gaps], np.int64))
        placed = _placed(every, placements, base, page_size)
        kind = self._kind[placed.row]
        zero = (kind == Kind.ZERO) | ((kind == Kind.FILL) & (self._offset[placed.row] == 0))
        self._zero = PageRuns.from_runs(placed.start[zero], placed.count[zero])
        self._raw = _extents(placed, kind == Kind.RAW, self._offset[placed.row] + placed.skip * step, step)
        self._made = _extents(placed, ~zero & (kind != Kind.RAW), placed.row, 0)
        self._all_there = not lacks.count and not np.isin(kind[~zero], (Kind.FILL, Kind.DELTA)).any()
        self.stored: PageSet = union(union(self._raw.pages(), self._zero), self._made.pages())
        self.ram: PageSet = PageRuns.from_runs(
            np.array([-(-piece.start // page_size) for piece in placements], np.int64),
            np.array([piece.length // page_size for piece in placements], np.int64),
        )
        self.lost: PageSet = difference(self.ram, self.stored) if cut else EMPTY
        self.lost_why = "no record of them is there that can be read"
        older, newer = _before_gaps(every, log, gaps, base[-1])
        behind = _placed(older, placements, base, page_size)
        self.older = PageRuns.from_runs(behind.start, behind.count)
        self.newer = min(newer, self.older.count)

    @property
    def unsent(self) -> int:
        """Pages of RAM that no record speaks of."""
        return self.ram.count - self.stored.count

    def locate(self, pfn: Int64s) -> PageTable:
        """Say for each pfn what is known and where."""
        table = PageTable.raw(pfn, self._raw.offsets(pfn, self._step), self.page_size)
        rest = np.flatnonzero(table.state == ABSENT)
        if not len(rest):
            return table
        table.state[rest[self.ram.contains(pfn[rest])]] = EXCLUDED
        table.state[rest[self._zero.contains(pfn[rest])]] = ZERO
        row = self._made.offsets(pfn[rest], 0)
        rest, row = rest[row >= 0], row[row >= 0]
        packed = self._kind[row] == Kind.ZLIB
        table.state[rest] = STORED
        table.codec[rest] = np.where(packed, np.uint8(int(CodecId.ZLIB)), np.uint8(RAW))
        table.offset[rest] = np.where(packed, self._offset[row], _MADE + row)
        table.size[rest] = np.where(packed, self._count[row], self.page_size)
        return table

    @property
    def read_at(self) -> ReadAt | None:
        """What reads the bytes of one located page: None where some are made."""
        return self._source.read if self._all_there else None

    def fetch(self, table: PageTable) -> PageBatch:
        """Bring the bytes of located pages; those between which only a record's head lies come with one read."""
        rows = np.flatnonzero(table.state == STORED)
        made = table.offset[rows] >= _MADE
        there = rows[~made]
        offset = table.offset.copy()
        if self._lacks.count:
            gone = self._gone(offset[there], table.size[there])
            offset[there[gone]], there = _NOWHERE, there[~gone]
        body, offset[there] = self._gather(table.offset[there], table.size[there].astype(np.int64))
        if made.any():
            body, offset[rows[made]] = self._make(body, table.offset[rows[made]] - _MADE)
        return PageBatch(PageTable(table.pfn, table.state, table.codec, offset, table.size), body)

    def _gone(self, offset: Int64s, size: Int32s | Int64s) -> Bools:
        """Tell which ranges have bytes that are missing in the file."""
        gone: Bools = self._lacks.rank(offset + size) > self._lacks.rank(offset)
        return gone

    def _gather(self, offset: Int64s, size: Int64s) -> tuple[memoryview, Int64s]:
        """Read pages; give a body, and where in it they are."""
        if not len(offset):
            return memoryview(b""), offset
        gap = offset[1:] - (offset + size)[:-1]
        beyond = offset + size > self._source.size  # what a file that is cut lacks must not take others with it
        opens = np.append(True, (gap < 0) | (gap > _GAP) | beyond[1:] | beyond[:-1])
        first = np.flatnonzero(opens)
        last = np.append(first[1:], len(offset)) - 1
        start, stop = offset[first], (offset + size)[last]
        body, moved = self._source.gather(start, cast("Int32s", stop - start))  # sources count in 64 bits
        span = np.cumsum(opens) - 1
        return body, moved[span] + offset - start[span]

    def _make(self, body: memoryview, rows: Int64s) -> tuple[memoryview, Int64s]:
        """Make pages that are in the file only as changes, or as one byte; those that cannot be made lie nowhere."""
        made = bytearray(body)
        at = np.empty(len(rows), np.int64)
        for index, row in enumerate(rows.tolist()):
            try:
                page = self._content(row)
            except CorruptPageError:
                at[index] = _NOWHERE
                continue
            at[index] = len(made)
            made += page
        return memoryview(made).toreadonly(), at

    def _content(self, row: int) -> bytearray:
        """Make one page."""
        kind, offset = int(self._kind[row]), int(self._offset[row])
        if kind == Kind.FILL:
            return bytearray([offset]) * self.page_size
        page = self._base(row)
        for delta in self._patches.deltas(row):
            start = int(self._offset[delta])
            self._need(start, int(self._count[delta]))
            apply_delta(page, self._source.view(start, int(self._count[delta])))
        return page

    def _base(self, row: int) -> bytearray:
        """Give a page as it was before its changes."""
        base, skip = self._patches.base(row)
        if base < 0:
            raise CorruptPageError(
                "changes to a page that was not sent, or that a damaged part may have changed", codec="xbzrle"
            )
        kind, offset = int(self._kind[base]), int(self._offset[base])
        if kind == Kind.RAW:
            self._need(offset + skip * self._step, self.page_size)
            return bytearray(self._source.view(offset + skip * self._step, self.page_size))
        if kind == Kind.ZLIB:
            from dumpxlate.codecs import codec_for

            self._need(offset, int(self._count[base]))
            page = bytearray(self.page_size)
            view = self._source.view(offset, int(self._count[base]))
            codec_for(CodecId.ZLIB).decode_into(view, memoryview(page))
            return page
        return bytearray([offset if kind == Kind.FILL else 0]) * self.page_size

    def _need(self, offset: int, size: int) -> None:
        """Make sure that bytes are there."""
        if self._gone(np.array([offset], np.int64), np.array([size], np.int64))[0]:
            raise CorruptPageError("changes to a page that is not in the file", codec="xbzrle")

    def place(self, table: PageTable) -> Int64s:
        """Say where in the dump's file the bytes of located pages are; pages that are made are nowhere."""
        return self._source.place(np.where(table.offset < _MADE, table.offset, np.int64(-1)))


class _Patches:
    """For pages whose last record is a change: what it changes, and all changes since."""

    def __init__(self, log: RecordLog, every: Winners, gaps: Int64s) -> None:
        kind, page, _, _ = log.columns()
        self._gaps = gaps
        row = every.row[kind[every.row] == Kind.DELTA]
        self._row = np.sort(row)
        if not len(row):
            return
        full = winners(log, without=Kind.DELTA)
        self._base = np.full(len(row), -1, np.int64)
        self._skip = np.zeros(len(row), np.int64)
        at = Extents(full.start, full.count, full.row).find(page[self._row])
        there = at >= 0  # none is where all records are changes
        self._base[there] = full.row[at[there]]
        self._skip[there] = page[self._row[there]] - page[self._base[there]]
        deltas = np.flatnonzero(kind == Kind.DELTA)
        deltas = deltas[np.argsort(page[deltas], kind="stable")]
        self._deltas = deltas
        self._first = np.searchsorted(page[deltas], page[self._row], side="left")
        self._last = np.searchsorted(page[deltas], page[self._row], side="right")

    def base(self, row: int) -> tuple[int, int]:
        """Give the run that holds the page before its changes, -1 where there is none, and the pages before it.

        Behind a damaged part, which may have held other changes or another copy, a page is not what it was before it.
        """
        index = int(np.searchsorted(self._row, row))
        passed = np.searchsorted(self._gaps, (self._base[index], row), side="right")
        if passed[0] != passed[1]:
            return -1, 0
        return int(self._base[index]), int(self._skip[index])

    def deltas(self, row: int) -> list[int]:
        """Give the changes in their order."""
        index = int(np.searchsorted(self._row, row))
        found = self._deltas[self._first[index] : self._last[index]]
        later: list[int] = found[found > self._base[index]].tolist()
        return later


def _extents(placed: Winners, used: Bools, offset: Int64s, step: int) -> Extents:
    """Index the runs of a kind."""
    if step:
        return Extents(*merge(placed.start[used], placed.count[used], offset[used], step=step))
    # Rows of the log are no offsets: a run of filled pages is one row, and nothing continues another.
    return Extents(placed.start[used], placed.count[used], offset[used])
