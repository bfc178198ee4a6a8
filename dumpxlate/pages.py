"""Pages in bulk: their states, the table that locates them, the batch that holds them, the store that gives them.

Two ideas carry the program. A format never reads pages: it answers ``locate(pfns)`` with a table. And a batch is a
table plus a body, with offsets pointing into the body; the body is the mapped input file, or a buffer that a codec
made. So raw pages, compressed pages and freshly encoded pages have one shape, every stage is a function from batch to
batch, and handing a batch on untouched is the pass-through of compressed pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np

from dumpxlate.pageset import EMPTY, PageSet, intersection, union

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dumpxlate.arrays import Bools, Int32s, Int64s, UInt8s
    from dumpxlate.extents import Extents
    from dumpxlate.io.source import Source
    from dumpxlate.p2m.map import P2M

ReadAt: TypeAlias = "Callable[[int, int], bytes]"

__all__ = [
    "BATCH_BYTES",
    "MISS_LIMIT",
    "CodecId",
    "DeferredStore",
    "IndexedStore",
    "MapFit",
    "PageBatch",
    "PageState",
    "PageStore",
    "PageTable",
    "ReadAt",
    "RemappedStore",
    "batches",
    "windows",
]

BATCH_BYTES = 4 << 20
"""Guest memory in one batch: batches are counted in bytes, since pages of 64 KiB exist."""


MISS_LIMIT = 0.01
"""Share of a map's pages that a dump may lack (and of a dump's pages that the map may lack) before it does not fit."""


class PageState(IntEnum):
    """What a dump knows of a page."""

    ABSENT = 0
    """Not RAM, or this dump does not know it."""
    EXCLUDED = 1
    """RAM, left out of the file."""
    ZERO = 2
    """RAM, all zero, no bytes needed."""
    STORED = 3
    """RAM, bytes in the body, encoded as the codec says."""
    BAD = 4
    """RAM, bytes in the file, but they do not decode."""


class CodecId(IntEnum):
    """How the bytes of a stored page are encoded."""

    RAW = 0
    ZLIB = 1
    LZO = 2
    SNAPPY = 3
    ZSTD = 4
    RLE = 5


@dataclass(frozen=True, slots=True)
class PageTable:
    """Where pages are: five parallel arrays, one row a page, ascending pfn.

    Attributes:
        pfn: frame number, int64.
        state: a PageState, uint8.
        codec: a CodecId, uint8; meaningful for stored pages.
        offset: first byte in the body, int64; -1 unless stored.
        size: bytes in the body, int32; 0 unless stored.
    """

    pfn: Int64s
    state: UInt8s
    codec: UInt8s
    offset: Int64s
    size: Int32s

    @classmethod
    def raw(cls, pfn: Int64s, offset: Int64s, page_size: int) -> PageTable:
        """Make a table of raw pages: stored where an offset is given, absent where it is -1."""
        stored = offset >= 0
        return cls(
            pfn,
            np.where(stored, np.uint8(PageState.STORED), np.uint8(PageState.ABSENT)),
            np.zeros(len(pfn), np.uint8),
            offset,
            np.where(stored, np.int32(page_size), np.int32(0)),
        )

    def __len__(self) -> int:
        return len(self.pfn)

    def where(self, mask: Bools | Int64s | slice) -> PageTable:
        """Keep the rows that a mask, an index or a slice selects."""
        return PageTable(self.pfn[mask], self.state[mask], self.codec[mask], self.offset[mask], self.size[mask])

    def stored(self) -> PageTable:
        """Keep the rows that have bytes in the body."""
        return self.where(self.state == PageState.STORED)

    def spans(self) -> tuple[Int64s, Int64s]:
        """Give the maximal contiguous byte ranges of the stored rows, in row order: offset and length."""
        rows = self.stored()
        if not len(rows):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        opens = np.append(True, rows.offset[1:] != rows.offset[:-1] + rows.size[:-1])
        start = rows.offset[opens]
        return start, np.add.reduceat(rows.size, np.flatnonzero(opens), dtype=np.int64)


@dataclass(frozen=True, slots=True)
class PageBatch:
    """A table and the body that its offsets point into."""

    table: PageTable
    body: memoryview


class PageStore(Protocol):
    """All pages of a dump, keyed by frame number."""

    @property
    def page_size(self) -> int:
        """Bytes a page."""
        ...

    @property
    def ram(self) -> PageSet:
        """Every RAM page that the dump knows of."""
        ...

    @property
    def stored(self) -> PageSet:
        """Those of them that it has content for, zero pages included."""
        ...

    def locate(self, pfn: Int64s) -> PageTable:
        """Say for each pfn what is known and where; pure arithmetic, no page is read."""
        ...

    def fetch(self, table: PageTable) -> PageBatch:
        """Bring the bytes of located pages: free where the file is mapped."""
        ...

    @property
    def read_at(self) -> ReadAt | None:
        """What reads the bytes of one located page by offset and size; None where only ``fetch`` brings pages."""
        ...

    def place(self, table: PageTable) -> Int64s:
        """Say where in the dump's file the bytes of located pages are: -1 where nowhere as they are."""
        ...


class IndexedStore:
    """A store of raw pages over extents of one source.

    Args:
        source: the file.
        page_size: bytes a page.
        extents: where stored pages lie.
        zero: RAM known to be zero without bytes in the file (holes of a sparse image).
        excluded: RAM that the file leaves out.
        repeated: pages of which the file has further copies, which do not count.
    """

    def __init__(
        self,
        source: Source,
        page_size: int,
        extents: Extents,
        *,
        zero: PageSet = EMPTY,
        excluded: PageSet = EMPTY,
        repeated: int = 0,
    ) -> None:
        self.page_size = page_size
        self.repeated = repeated
        self.extents = extents
        self._source = source
        self._zero = zero
        self.read_at: ReadAt = source.read
        self.stored: PageSet = union(extents.pages(), zero) if zero.count else extents.pages()
        self.ram: PageSet = union(self.stored, excluded) if excluded.count else self.stored

    def locate(self, pfn: Int64s) -> PageTable:
        """Say for each pfn what is known and where."""
        table = PageTable.raw(pfn, self.extents.offsets(pfn, self.page_size), self.page_size)
        rest = table.state == PageState.ABSENT
        if rest.any():
            known = self.ram.contains(pfn)
            zero = self._zero.contains(pfn)
            table.state[rest & known] = PageState.EXCLUDED
            table.state[rest & zero] = PageState.ZERO
        return table

    def seen_through(self, frames: P2M) -> IndexedStore:
        """Key the same pages by the pfns of a map; one whose frame is not here is excluded."""
        extents = frames.seen(self.extents, self.page_size)
        zero = frames.preimage(self._zero) if self._zero.count else EMPTY
        return IndexedStore(self._source, self.page_size, extents, zero=zero, excluded=frames.pages())

    def fetch(self, table: PageTable) -> PageBatch:
        """Bring the bytes of located pages."""
        return fetch_from(self._source, table)

    def place(self, table: PageTable) -> Int64s:
        """Say where in the file the bytes of located pages are."""
        return self._source.place(table.offset)


def fetch_from(source: Source, table: PageTable) -> PageBatch:
    """Bring the bytes of located pages from a source, which may move them into a body of its own."""
    if not (table.state == PageState.STORED).any():
        return PageBatch(table, memoryview(b""))
    body, offset = source.gather(table.offset, table.size)
    return PageBatch(PageTable(table.pfn, table.state, table.codec, offset, table.size), body)


class DeferredStore:
    """A store whose index is read when it is first needed, so that opening a dump takes no longer for a larger one.

    Args:
        load: reads the index and makes the store.
        page_size: bytes a page.
        entries: rows that the index has, as the header says.
    """

    def __init__(self, load: Callable[[], PageStore], page_size: int, entries: int) -> None:
        self._load = load
        self.page_size = page_size
        self.entries = entries

    @cached_property
    def loaded(self) -> PageStore:
        """The store itself; the first access reads the index."""
        return self._load()

    @property
    def ram(self) -> PageSet:
        """Every RAM page that the dump knows of."""
        return self.loaded.ram

    @property
    def stored(self) -> PageSet:
        """Those of them that it has content for."""
        return self.loaded.stored

    def locate(self, pfn: Int64s) -> PageTable:
        """Say for each pfn what is known and where."""
        return self.loaded.locate(pfn)

    def fetch(self, table: PageTable) -> PageBatch:
        """Bring the bytes of located pages."""
        return self.loaded.fetch(table)

    @property
    def read_at(self) -> ReadAt | None:
        """What reads the bytes of one located page."""
        return self.loaded.read_at

    def place(self, table: PageTable) -> Int64s:
        """Say where in the file the bytes of located pages are."""
        return self.loaded.place(table)


@dataclass(frozen=True, slots=True)
class MapFit:
    """How well a map and a dump fit.

    Attributes:
        mapped: pfns that the map gives a page.
        missing: those whose machine frame the dump lacks.
        aliases: pfns beyond the first on one machine frame.
        held: machine frames in the dump.
        unmapped: those that no pfn maps to.
    """

    mapped: int
    missing: int
    aliases: int
    held: int
    unmapped: int

    @property
    def fits(self) -> bool:
        """Whether both shares of misses stay within MISS_LIMIT."""
        return (
            self.mapped > self.missing
            and self.missing <= MISS_LIMIT * self.mapped
            and self.unmapped <= MISS_LIMIT * self.held
        )

    def __str__(self) -> str:
        return (
            f"{self.missing:,} of {self.mapped:,} mapped pages are not in the dump, "
            f"{self.unmapped:,} of {self.held:,} pages in the dump are not in the map, {self.aliases:,} aliases"
        )


class RemappedStore:
    """A store seen through a frame map: the same pages under the pfns that map to them. Nothing is read or copied.

    Args:
        inner: store keyed by the frames that the map leads to.
        frames: the map; a pfn whose frame the inner store lacks is excluded.
    """

    def __init__(self, inner: PageStore, frames: P2M) -> None:
        self.page_size = inner.page_size
        self._inner = inner.loaded if isinstance(inner, DeferredStore) else inner
        self._frames = frames
        self.ram: PageSet = frames.pages()
        self._direct = self._inner.seen_through(frames) if isinstance(self._inner, IndexedStore) else None
        self.stored: PageSet = self._direct.stored if self._direct else frames.preimage(self._inner.stored)

    def locate(self, pfn: Int64s) -> PageTable:
        """Say for each pfn what is known and where."""
        if self._direct:
            return self._direct.locate(pfn)
        frame = self._frames.mfn(pfn)
        order = np.argsort(frame)  # an ascending search is several times faster than one at random
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        found = self._inner.locate(frame[order]).where(back)
        state = found.state.copy()
        state[(state == PageState.ABSENT) & (frame >= 0)] = PageState.EXCLUDED
        return PageTable(pfn, state, found.codec, found.offset, found.size)

    def fit(self) -> MapFit:
        """Compare the map with the frames that the inner store holds."""
        held, aliases = self._inner.stored, self._frames.aliases
        found = intersection(self._frames.frames(), held).count if aliases else self.stored.count
        return MapFit(
            mapped=self.ram.count,
            missing=self.ram.count - self.stored.count,
            aliases=aliases,
            held=held.count,
            unmapped=held.count - found,
        )

    def fetch(self, table: PageTable) -> PageBatch:
        """Bring the bytes of located pages."""
        return self._inner.fetch(table)

    @property
    def read_at(self) -> ReadAt | None:
        """What reads the bytes of one located page."""
        return self._inner.read_at

    def place(self, table: PageTable) -> Int64s:
        """Say where in the file the bytes of located pages are."""
        return self._inner.place(table)


def windows(pages: PageSet, page_size: int, *, size: int = BATCH_BYTES) -> Iterator[tuple[int, int]]:
    """Cut a set of pages into windows of rank (first, last) that hold ``size`` bytes of guest memory each."""
    step = max(size // page_size, 1)
    for first in range(0, pages.count, step):
        yield first, min(first + step, pages.count)


def batches(
    store: PageStore, *, size: int = BATCH_BYTES, start: int = 0, stop: int | None = None
) -> Iterator[PageBatch]:
    """Fetch all pages with content, ascending, as they are encoded in the file.

    Args:
        store: where from.
        size: bytes of guest memory a batch.
        start: first pfn.
        stop: end of the pfns, exclusive; None for all.
    """
    ends = np.array([start, store.stored.stop if stop is None else stop], np.int64)
    low, high = (int(rank) for rank in store.stored.rank(ends))
    step = max(size // store.page_size, 1)
    for first in range(low, high, step):
        yield store.fetch(store.locate(store.stored.select(first, min(first + step, high))))
