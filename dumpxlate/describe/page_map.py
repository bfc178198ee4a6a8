"""What lies where: the address space of a dump as ranges of pages in one state.

Only indexes are read, never pages, and of an index that is made of extents not even a row a page: a range comes from
an extent as it is. Ranges come in pieces, so that memory does not grow with the index.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

import numpy as np

from dumpxlate.dump import Space
from dumpxlate.extents import in_runs, merge
from dumpxlate.p2m.map import FrameRuns
from dumpxlate.pages import LAST_CODEC, RAW, STORED, CodecId, PageState, PageTable, windows
from dumpxlate.pageset import EMPTY, PageRuns, difference, intersection
from dumpxlate.stores import DeferredStore, IndexedStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dumpxlate.arrays import Bools, Int64s, UInt8s
    from dumpxlate.dump import Dump
    from dumpxlate.p2m.map import P2M
    from dumpxlate.pages import PageStore

__all__ = ["PageMap", "Ranges", "map_pages", "page_ranges"]

_ROWS = 1 << 16
"""Pages that are located, or extents that are looked at, in one go."""

_ORDER = (PageState.STORED, PageState.ZERO, PageState.EXCLUDED, PageState.BAD, PageState.ABSENT)


@dataclass(frozen=True, slots=True)
class Ranges:
    """Ranges of pages that are alike: parallel arrays, ascending, disjoint.

    Attributes:
        start: first frame of each.
        count: pages in each.
        state: a PageState, uint8. ABSENT is a hole between RAM.
        codec: a CodecId, uint8; meaningful for stored pages.
        offset: where in the file its first page is; -1 if nowhere or not known. Raw pages follow each other there.
        mfn: machine frame of its first page, the others following; -1 if they do not follow, or are not known.
    """

    start: Int64s
    count: Int64s
    state: UInt8s
    codec: UInt8s
    offset: Int64s
    mfn: Int64s

    @classmethod
    def of_table(cls, table: PageTable, offset: Int64s, count: Int64s | None = None) -> Self:
        """Make ranges of located pages, one for each, or each the first of ``count``."""
        codec = np.where(table.state == STORED, table.codec, np.uint8(RAW))
        count = np.ones(len(table), np.int64) if count is None else count
        return cls(table.pfn, count, table.state, codec, offset, np.full(len(table), -1, np.int64))

    @classmethod
    def join(cls, *parts: Ranges) -> Self:
        """Put ranges behind one another."""
        none = PageTable.raw(np.empty(0, np.int64), np.empty(0, np.int64), 0)
        parts = (cls.of_table(none, none.offset), *parts)
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__slots__))

    def __len__(self) -> int:
        return len(self.start)

    def where(self, rows: Bools | Int64s | slice) -> Ranges:
        """Keep the rows that a mask, an index or a slice selects."""
        return Ranges(*(getattr(self, name)[rows] for name in Ranges.__slots__))


@dataclass(frozen=True, slots=True)
class PageMap:
    """The ranges of a dump, as many as were asked for, and what all of them add up to.

    Attributes:
        ranges: the first of them.
        total: how many there are.
        pages: pages by state.
        codecs: stored pages by codec.
        cells: pages of each state (columns as PageState) in equal parts of the address space, from 0 to the end of
            RAM, shape (cells, states); for bars.
        cell: pages of each of those parts.
    """

    ranges: Ranges
    total: int = 0
    pages: Mapping[str, int] = field(default_factory=dict)
    codecs: Mapping[str, int] = field(default_factory=dict)
    cells: Int64s = field(default_factory=lambda: np.zeros((0, len(PageState)), np.int64))
    cell: int = 0


def map_pages(dump: Dump, *, limit: int | None = None, cells: int = 0) -> PageMap:
    """Map a dump.

    Args:
        dump: what to map.
        limit: ranges that are kept; None for all.
        cells: parts that the address space is cut into for a bar, at most.
    """
    kept: list[Ranges] = []
    total = 0
    pages, codecs = np.zeros(len(PageState), np.int64), np.zeros(LAST_CODEC + 1, np.int64)
    end = dump.pages.ram.stop
    step = max(-(-end // cells), 1) if cells else 0
    edges = np.arange(0, end + step, step, dtype=np.int64) if cells else np.zeros(1, np.int64)
    bar = np.zeros((len(edges) - 1, len(PageState)), np.int64)
    for found in page_ranges(dump):
        if limit is None or total < limit:
            kept.append(found.where(slice(None if limit is None else limit - total)))
        total += len(found)
        np.add.at(pages, found.state, found.count)
        stored = found.state == STORED
        np.add.at(codecs, found.codec[stored], found.count[stored])
        for state in PageState if cells else ():
            alike = found.where(found.state == state)
            bar[:, state] += np.diff(PageRuns(alike.start, alike.count).rank(edges))
    return PageMap(
        Ranges.join(*kept),
        total,
        {state.name.lower(): int(pages[state]) for state in _ORDER},
        {codec.name.lower(): int(codecs[codec]) for codec in CodecId if codecs[codec]},
        bar,
        step,
    )


def page_ranges(dump: Dump) -> Iterator[Ranges]:
    """Give the ranges of a dump in ascending pieces: no two neighbours could be one, over pieces neither.

    Pages are joined that follow each other in the same state and codec; raw ones only if they do so in the file too.
    """
    store = dump.pages.loaded if isinstance(dump.pages, DeferredStore) else dump.pages
    pieces = _of_extents(store) if isinstance(store, IndexedStore) else _of_pages(store)
    frames = _frames(dump.p2m) if dump.p2m and dump.space is Space.PHYSICAL else None
    for piece in _joined(pieces, store.page_size):
        yield replace(piece, mfn=_first_frame(frames, piece)) if frames else piece


def _of_extents(store: IndexedStore) -> Iterator[Ranges]:
    """Take the ranges from an index that is made of extents."""
    extents, size = in_runs(store.index, store.page_size), store.page_size
    held = extents.pages()
    rest = [_bare(difference(store.stored, held), PageState.ZERO), _bare(difference(store.ram, store.stored))]
    table = PageTable.raw(extents.start, extents.offset, size)
    stored = Ranges.of_table(table, store.place(table), extents.count)
    if any(map(len, rest)):
        stored = Ranges.join(stored, *rest)
        stored = stored.where(np.argsort(stored.start, kind="stable"))
    for first in range(0, len(stored), _ROWS):
        yield stored.where(slice(first, first + _ROWS))


def _bare(pages: PageRuns, state: PageState = PageState.EXCLUDED) -> Ranges:
    """Make ranges of pages without bytes."""
    start, count = pages.runs()
    none = np.full(len(start), -1, np.int64)
    table = PageTable.raw(start, none, 0)
    table.state[:] = int(state)
    return Ranges.of_table(table, none, count)


def _of_pages(store: PageStore) -> Iterator[Ranges]:
    """Locate every page that there is; what was left out between them is put in without a look at each page of it."""
    stored = store.stored
    ram = PageRuns(*store.ram.runs()) if store.ram.count > stored.count else EMPTY
    done = 0
    for first, last in windows(stored, store.page_size, size=_ROWS * store.page_size):
        table = store.locate(stored.select(first, last))
        found = Ranges.of_table(table, store.place(table))
        left_out = _bare(_left_out(ram, done, table.pfn))
        if len(left_out):
            found = Ranges.join(found, left_out)
            found = found.where(np.argsort(found.start, kind="stable"))
        yield found
        done = int(table.pfn[-1]) + 1
    if ram.stop > done:
        yield _bare(_left_out(ram, done, np.array([ram.stop], np.int64)))


def _left_out(ram: PageRuns, first: int, stored: Int64s) -> PageRuns:
    """Give the pages of RAM, from one pfn on, that lie before and between ascending pages."""
    start, count = ram.runs()
    near = slice(
        int(np.searchsorted(start + count, first, side="right")), int(np.searchsorted(start, stored[-1], side="left"))
    )
    low = np.append(first, stored[:-1] + 1)
    return intersection(PageRuns(start[near], count[near]), PageRuns.from_runs(low, stored - low))


def _joined(pieces: Iterator[Ranges], page_size: int) -> Iterator[Ranges]:
    """Join neighbours, and put holes between ranges; the last one of a piece stays open for the next."""
    last = Ranges.join()
    for piece in pieces:
        ranges = _with_holes(_merged(Ranges.join(last, piece), page_size))
        last = ranges.where(slice(len(ranges) - 1, None))
        yield ranges.where(slice(len(ranges) - 1))
    yield last


def _merged(ranges: Ranges, page_size: int) -> Ranges:
    """Join neighbours that are alike."""
    if not len(ranges):
        return ranges
    raw = (ranges.state == STORED) & (ranges.codec == RAW) & (ranges.offset >= 0)
    begins = np.where(raw, ranges.offset, -1)
    ends = np.where(raw, ranges.offset + ranges.count * page_size, -1)
    apart = ranges.start[1:] != (ranges.start + ranges.count)[:-1]
    apart |= (ranges.state[1:] != ranges.state[:-1]) | (ranges.codec[1:] != ranges.codec[:-1])
    apart |= begins[1:] != ends[:-1]
    first = np.flatnonzero(np.append(True, apart))
    return replace(ranges.where(first), count=np.add.reduceat(ranges.count, first))


def _with_holes(ranges: Ranges) -> Ranges:
    """Put ranges of absent pages where frames are missing between two."""
    ends = (ranges.start + ranges.count)[:-1]
    gaps = np.flatnonzero(ranges.start[1:] > ends)
    if not len(gaps):
        return ranges
    holes = _bare(PageRuns(ends[gaps], ranges.start[1:][gaps] - ends[gaps]), PageState.ABSENT)
    names = Ranges.__slots__
    return Ranges(*(np.insert(getattr(ranges, name), gaps + 1, getattr(holes, name)) for name in names))


def _frames(p2m: P2M) -> FrameRuns:
    """Join the runs of a map that are cut where it was read in pieces, as those in a file may be."""
    start, count, frame = merge(p2m.runs.pfn, p2m.runs.count, p2m.runs.frame)
    return FrameRuns(start, frame, count)


def _first_frame(frames: FrameRuns, ranges: Ranges) -> Int64s:
    """Give the machine frame of the first page of each range whose frames all follow it."""
    if not len(frames.pfn):
        return ranges.mfn
    run = np.searchsorted(frames.pfn, ranges.start, side="right") - 1
    skip = ranges.start - frames.pfn[run]
    inside = (run >= 0) & (skip + ranges.count <= frames.count[run])
    return np.where(inside, frames.frame[run] + skip, -1)
