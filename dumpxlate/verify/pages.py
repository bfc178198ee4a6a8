"""Pages of two dumps beside each other, a window at a time.

Pages are told apart by what both dumps say of them::

                     b: nothing    zero         bytes        bad
    a: nothing       neither       absent_zero  only_b       bad
       zero          absent_zero   equal        different    bad
       bytes         only_a        different    (compared)   bad
       bad           bad           bad          bad          bad

"Nothing" is a page that is left out, or no RAM. Zeros in the file and zeros that need none are the same. Where both
dumps hold the same encoded bytes, these are compared and nothing is decoded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Self

import numpy as np

from dumpxlate.arrays import expand
from dumpxlate.codecs import batch as batches
from dumpxlate.errors import UnsupportedFeatureError
from dumpxlate.pages import BAD, RAW, STORED, ZERO, PageState
from dumpxlate.pageset import PageRuns, union

if TYPE_CHECKING:
    from dumpxlate.arrays import Bools, Int64s, UInt8s
    from dumpxlate.pages import PageBatch, PageStore
    from dumpxlate.pageset import PageSet

__all__ = ["Outcome", "PageDifference", "PagePair", "Part", "worse"]


class Outcome(IntEnum):
    """What comparing a page gave."""

    NEITHER = 0
    """RAM, but neither dump has content."""
    EQUAL = 1
    """The same content."""
    DIFFERENT = 2
    """Other content."""
    ONLY_A = 3
    """Content that is not zero, and the second dump has none."""
    ONLY_B = 4
    """Content that is not zero, and the first dump has none."""
    ABSENT_ZERO = 5
    """Zero in one dump, no content in the other: formats that leave zero pages out make these."""
    BAD = 6
    """It does not decode in at least one dump."""


def worse(*, strict: bool) -> tuple[Outcome, ...]:
    """Give the outcomes that make dumps differ."""
    found = (Outcome.DIFFERENT, Outcome.ONLY_A, Outcome.ONLY_B, Outcome.BAD)
    return (*found, Outcome.ABSENT_ZERO) if strict else found


# What the page holds in a (row) and in b (column): nothing, zero, bytes, bad; bytes that are equal are seen before.
_JUDGED = np.array([[0, 5, 4, 6], [5, 1, 2, 6], [3, 2, 2, 6], [6, 6, 6, 6]], np.uint8)
_HOLDS = np.zeros(max(PageState) + 1, np.uint8)
_HOLDS[[ZERO, STORED, BAD]] = 1, 2, 3


@dataclass(frozen=True, slots=True)
class PageDifference:
    """One page that is not the same.

    Attributes:
        outcome: how it differs.
        pfn: frame number, counted in pages of the smaller size.
        address: of its first byte.
        byte: the first byte in the page that differs; -1 where not both have content.
        states: what each dump knows of it.
        offsets: where it is in each file, as far as it has a place of its own there; -1 otherwise. For a compressed
            page, where the compressed bytes begin.
    """

    outcome: Outcome
    pfn: int
    address: int
    byte: int
    states: tuple[PageState, PageState]
    offsets: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Part:
    """What comparing one window gave.

    Attributes:
        counts: pages by Outcome.
        differences: the first that are not the same.
        bytes: guest memory in the window.
    """

    counts: Int64s
    differences: list[PageDifference]
    bytes: int


@dataclass(frozen=True, slots=True)
class _Side:
    """One of the dumps.

    Attributes:
        store: its pages.
        page_size: what pages are compared at.
        step: how many of those make one of the store's pages.
        span: how many of those make one of the larger pages of both stores.
    """

    store: PageStore
    page_size: int
    step: int
    span: int

    def own(self, units: Int64s) -> Int64s:
        """Turn larger pages into the store's own."""
        count = self.span // self.step
        return units if count == 1 else expand(units * count, np.full(len(units), count))

    def scaled(self, pages: PageSet) -> PageSet:
        """Count the pages of a set of this store in smaller pages."""
        start, count = pages.runs()
        return pages if self.step == 1 else PageRuns(start * self.step, count * self.step)

    def units(self, pages: PageSet) -> PageSet:
        """Give the larger pages that a set of this store touches."""
        count = self.span // self.step
        start, length = pages.runs()
        low, high = start // count, -(-(start + length) // count)
        return pages if count == 1 else PageRuns.from_runs(low, high - low)

    def fetch(self, units: Int64s) -> PageBatch:
        """Bring pages as they are in the file."""
        return self.store.fetch(self.store.locate(self.own(units)))

    def raw(self, batch: PageBatch) -> PageBatch:
        """Decode pages, and cut those that are larger than what is compared."""
        size = self.store.page_size
        return batches.divide(batches.decode(batch, size), size, self.page_size)

    def place(self, pfn: Int64s) -> list[int]:
        """Tell where in the file smaller pages are."""
        table = self.store.locate(pfn // self.step)
        offset = self.store.place(table)
        inside = (offset >= 0) & (table.codec == RAW)
        at: list[int] = np.where(inside, offset + pfn % self.step * self.page_size, offset).tolist()
        return at


@dataclass(frozen=True, slots=True)
class PagePair:
    """Two stores, looked at in windows of the larger pages.

    A window is a range of ranks in ``pages``.

    Attributes:
        a: one store.
        b: the other.
        pages: larger pages of which one store has some content.
        ram: smaller pages that are RAM in one of them.
        page_size: bytes of a smaller page.
        unit: bytes of a larger page.
        listed: differing pages of a window that are told one by one.
        outcomes: which count as differing.
    """

    a: _Side
    b: _Side
    pages: PageSet
    ram: int
    page_size: int
    unit: int
    listed: int
    outcomes: tuple[Outcome, ...]

    @classmethod
    def of(cls, a: PageStore, b: PageStore, *, listed: int, strict: bool) -> Self:
        """Put two stores beside each other.

        Raises:
            UnsupportedFeatureError: neither page size is a multiple of the other.
        """
        small, large = sorted((a.page_size, b.page_size))
        if large % small:
            raise UnsupportedFeatureError(f"pages of {small:,} bytes and of {large:,}", feature="page sizes")
        left, right = (_Side(each, small, each.page_size // small, large // small) for each in (a, b))
        return cls(
            left,
            right,
            pages=union(left.units(a.stored), right.units(b.stored)),
            ram=union(left.scaled(a.ram), right.scaled(b.ram)).count,
            page_size=small,
            unit=large,
            listed=listed,
            outcomes=worse(strict=strict),
        )

    def look(self, window: tuple[int, int]) -> Part:
        """Compare a window of ranks; runs in a worker."""
        units = self.pages.select(*window)
        a, b = self.a.fetch(units), self.b.fetch(units)
        counts = np.zeros(len(Outcome), np.int64)
        part = Part(counts, [], len(units) * self.unit)
        if self.page_size == self.unit:
            other = np.flatnonzero(~_same_encoded(a, b, self.page_size))
            counts[Outcome.EQUAL] = len(units) - len(other)
            if not len(other):
                return part
            a, b = (replace(each, table=each.table.where(other)) for each in (a, b))
        a, b = self.a.raw(a), self.b.raw(b)
        outcome = _judge(a, b, self.page_size)
        counts += np.bincount(outcome, minlength=len(Outcome))
        return replace(part, differences=self._tell(a, b, outcome))

    def _tell(self, a: PageBatch, b: PageBatch, outcome: UInt8s) -> list[PageDifference]:
        """List the first pages that are not the same."""
        rows = np.flatnonzero(np.isin(outcome, self.outcomes))[: self.listed]
        if not len(rows):
            return []
        pfn = a.table.pfn[rows]
        columns = (
            map(Outcome, outcome[rows].tolist()),
            pfn.tolist(),
            (pfn * self.page_size).tolist(),
            _first_difference(a, b, rows, self.page_size),
            zip(*(map(PageState, each.table.state[rows].tolist()) for each in (a, b)), strict=True),
            zip(self.a.place(pfn), self.b.place(pfn), strict=True),
        )
        return [PageDifference(*row) for row in zip(*columns, strict=True)]


def _same_encoded(a: PageBatch, b: PageBatch, page_size: int) -> Bools:
    """Tell which pages are the same as they are encoded; none, where the bodies are not laid out alike."""
    left, right = a.table, b.table
    alike = all(np.array_equal(getattr(left, name), getattr(right, name)) for name in ("state", "codec", "size"))
    x, y = (_one_span(each) for each in (a, b)) if alike else (None, None)
    stored = left.state == STORED
    if x is None or y is None or not (left.size[stored] > 0).all():
        return np.zeros(len(left), bool)
    same: Bools = left.state == ZERO
    same[stored] = _same_rows(x, y, left.size[stored].astype(np.int64), page_size)
    return same


def _one_span(batch: PageBatch) -> UInt8s | None:
    """Give the bytes of all stored rows if they lie in one piece."""
    start, length = batch.table.spans()
    if not len(start):
        return np.empty(0, np.uint8)
    if len(start) != 1 or start[0] < 0 or start[0] + length[0] > len(batch.body):
        return None
    return np.frombuffer(batch.body, np.uint8, length[0], start[0])


def _same_rows(x: UInt8s, y: UInt8s, size: Int64s, page_size: int) -> Bools:
    """Compare bytes that are rows of some sizes, one behind the other."""
    if (size == page_size).all():
        found: Bools = ~_differ(x.reshape(-1, page_size), y.reshape(-1, page_size))
        return found
    differs = x != y
    if not differs.any():
        return np.ones(len(size), bool)
    same: Bools = ~np.logical_or.reduceat(differs, np.cumsum(size) - size)
    return same


def _differ(x: UInt8s, y: UInt8s) -> Bools:
    """Tell which rows differ."""
    words = x.view(np.uint64) != y.view(np.uint64)
    found: Bools = words.any(axis=1) if words.any() else np.zeros(len(x), bool)
    return found


def _judge(a: PageBatch, b: PageBatch, page_size: int) -> UInt8s:
    """Compare raw pages row by row; gives an Outcome each."""
    left, right = a.table.state == STORED, b.table.state == STORED
    alone = np.flatnonzero(left != right)
    holds = []
    for each in (a, b):
        state = each.table.state.copy()
        state[alone] = batches.mark_zero(replace(each, table=each.table.where(alone)), page_size).table.state
        holds.append(_HOLDS[state])
    outcome: UInt8s = _JUDGED[holds[0], holds[1]]
    both = np.flatnonzero(left & right)
    same = ~_differ(_rows(a, both, page_size), _rows(b, both, page_size))
    outcome[both[same]] = Outcome.EQUAL
    return outcome


def _rows(batch: PageBatch, rows: Int64s, page_size: int) -> UInt8s:
    """Give the bytes of some stored pages, shape (n, page size)."""
    if not len(rows):
        return np.empty((0, page_size), np.uint8)
    found = batches.gather(replace(batch, table=batch.table.where(rows)), page_size)
    return np.frombuffer(found.body, np.uint8, len(rows) * page_size, found.table.offset[0]).reshape(-1, page_size)


def _first_difference(a: PageBatch, b: PageBatch, rows: Int64s, page_size: int) -> list[int]:
    """Find the first byte that differs in each of some rows; -1 where not both have content."""
    pages = []
    content = np.ones(len(rows), bool)
    for each in (a, b):
        state = each.table.state[rows]
        stored = state == STORED
        page = np.zeros((len(rows), page_size), np.uint8)
        page[stored] = _rows(each, rows[stored], page_size)
        pages.append(page)
        content &= stored | (state == ZERO)
    at: list[int] = np.where(content, (pages[0] != pages[1]).argmax(axis=1), -1).tolist()
    return at
