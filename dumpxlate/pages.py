"""Pages in bulk: their states, the table that locates them, the batch that holds them, the store that gives them.

Two ideas carry the program. A format never reads pages: it answers ``locate(pfns)`` with a table. And a batch is a
table plus a body, with offsets pointing into the body; the body is the mapped input file, or a buffer that a codec
made. So raw pages, compressed pages and freshly encoded pages have one shape, every stage is a function from batch to
batch, and handing a batch on untouched is the pass-through of compressed pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

import numpy as np

from dumpxlate.pageset import EMPTY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dumpxlate.arrays import Bools, Int32s, Int64s, UInt8s
    from dumpxlate.pageset import PageSet

__all__ = [
    "ABSENT",
    "BAD",
    "BATCH_BYTES",
    "EXCLUDED",
    "LAST_CODEC",
    "RAW",
    "STORED",
    "ZERO",
    "CodecId",
    "Overlay",
    "PageBatch",
    "PageState",
    "PageStore",
    "PageTable",
    "ReadAt",
    "batches",
    "damage_of",
    "lost_pages",
    "why_lost",
    "windows",
]

ReadAt: TypeAlias = "Callable[[int, int], bytes]"
"""Reads a range of a dump's bytes: offset and length."""

BATCH_BYTES = 4 << 20
"""Guest memory in one batch: batches are counted in bytes, since pages of 64 KiB exist."""


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


ABSENT, EXCLUDED, ZERO, STORED, BAD = map(int, PageState)
RAW, LAST_CODEC = int(CodecId.RAW), int(max(CodecId))
"""Plain numbers, for arrays: with an IntEnum's member numpy takes four times as long. It looks for attributes of the
member's class, which is Python code before 3.12, and forgets what is raised there: the exception of a signal, too."""


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
            np.where(stored, np.uint8(STORED), np.uint8(ABSENT)),
            np.zeros(len(pfn), np.uint8),
            offset,
            np.where(stored, np.int32(page_size), np.int32(0)),
        )

    def __len__(self) -> int:
        return len(self.pfn)

    def where(self, mask: Bools | Int64s | slice) -> PageTable:
        """Keep the rows that a mask, an index or a slice selects."""
        return PageTable(self.pfn[mask], self.state[mask], self.codec[mask], self.offset[mask], self.size[mask])

    def where_zero(self, rows: Bools) -> PageTable:
        """Say of some stored rows that they are zero, and need no bytes."""
        return PageTable(
            self.pfn,
            np.where(rows, np.uint8(ZERO), self.state),
            self.codec,
            np.where(rows, np.int64(-1), self.offset),
            np.where(rows, np.int32(0), self.size),
        )

    def stored(self) -> PageTable:
        """Keep the rows that have bytes in the body."""
        return self.where(self.state == STORED)

    def spans(self) -> tuple[Int64s, Int64s]:
        """Give the maximal contiguous byte ranges of the stored rows, in row order: offset and length."""
        stored = self.state == STORED
        offset, size = self.offset[stored], self.size[stored]
        if not len(offset):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        opens = np.append(0, np.flatnonzero(offset[1:] != offset[:-1] + size[:-1]) + 1)
        return offset[opens], np.add.reduceat(size, opens, dtype=np.int64)


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


@runtime_checkable
class Overlay(Protocol):
    """A store that changes some pages of another one on the way."""

    @property
    def inner(self) -> PageStore:
        """The other store."""
        ...

    def passes(self, pfn: Int64s) -> Bools:
        """Tell which pages are the other store's, as they are."""
        ...


def lost_pages(store: PageStore) -> PageSet:
    """Give the RAM that a dump should have content for, and has not: only stores of damaged files have any."""
    lost: PageSet = getattr(store, "lost", EMPTY)
    return lost


def why_lost(store: PageStore) -> str:
    """Say why pages are lost that a dump should have; empty if the file ends before them."""
    why: str = getattr(store, "lost_why", "")
    return why


def damage_of(store: PageStore) -> tuple[str, ...]:
    """Give what is missing or broken as an index shows that is read late, with the first page."""
    damage: tuple[str, ...] = getattr(store, "damage", ())
    return damage


def windows(pages: PageSet, page_size: int, *, size: int = BATCH_BYTES) -> Iterator[tuple[int, int]]:
    """Cut a set of pages into windows of ranks (first, last) of ``size`` bytes of guest memory each."""
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
