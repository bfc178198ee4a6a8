"""Sets of page frame numbers.

Three classes answer the same questions: :class:`PageRuns` here keeps runs (start, count), for indexes made of extents,
where frame numbers are as large as a file claims; :class:`dumpxlate.bitmap.PageBitmap` keeps one bit a page, for
formats that store one; :class:`Picked` chooses among the members of either. All give the rank of a page among the
members (the row of its descriptor) and the reverse.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np

from dumpxlate.arrays import ascending, expand, runs

if TYPE_CHECKING:
    from dumpxlate.arrays import Bools, Int64s

__all__ = [
    "EMPTY",
    "PageRuns",
    "PageSet",
    "Picked",
    "between",
    "difference",
    "intersection",
    "mask",
    "pages_between",
    "union",
]

_CHUNK = 1 << 14  # members listed in one go to find runs
_CLOSE = 256


class PageSet(Protocol):
    """A set of pfns, asked and answered in int64 arrays."""

    @property
    def count(self) -> int:
        """Number of members."""
        ...

    @property
    def stop(self) -> int:
        """One past the highest member; 0 if there is none."""
        ...

    def contains(self, pfn: Int64s) -> Bools:
        """Tell which pfns are members; -1 never is."""
        ...

    def rank(self, pfn: Int64s) -> Int64s:
        """Count the members below each pfn."""
        ...

    def select(self, first: int, last: int) -> Int64s:
        """List the members of rank ``first`` up to, not including, ``last``, ascending."""
        ...

    def runs(self) -> tuple[Int64s, Int64s]:
        """Give the members as maximal runs (start, count), ascending."""
        ...


class PageRuns:
    """A set of pfns kept as runs: ascending, disjoint, not touching.

    Args:
        start: first pfn of each run, int64, ascending.
        count: length of each run, int64, positive.
    """

    __slots__ = ("__dict__", "_count", "_start")

    def __init__(self, start: Int64s, count: Int64s) -> None:
        self._start = start
        self._count = count

    @classmethod
    def from_pfns(cls, pfn: Int64s) -> Self:
        """Make a set of ascending, distinct pfns."""
        first, count = runs(pfn)
        return cls(pfn[first], count)

    @classmethod
    def from_runs(cls, start: Int64s, count: Int64s) -> Self:
        """Make a set of runs in any order, which may touch and overlap; empty ones are dropped."""
        if not (count > 0).all():
            start, count = start[count > 0], count[count > 0]
        reach = start + count
        if not (start[1:] >= reach[:-1]).all():
            order = ascending(start)
            start = start[order]
            reach = np.maximum.accumulate(reach[order])
        opens = np.ones(len(start), bool)
        np.greater(start[1:], reach[:-1], out=opens[1:])
        first = np.flatnonzero(opens)
        begins = start[first]
        return cls(begins, reach[np.append(first[1:], len(start))[: len(first)] - 1] - begins)

    @cached_property
    def _before(self) -> Int64s:
        """Members before each run, and in all at the end; shape (runs + 1,)."""
        return np.concatenate(([0], np.cumsum(self._count)))

    @property
    def count(self) -> int:
        """Number of members."""
        return int(self._before[-1])

    @property
    def stop(self) -> int:
        """One past the highest member; 0 if there is none."""
        return int(self._start[-1] + self._count[-1]) if len(self._start) else 0

    def contains(self, pfn: Int64s) -> Bools:
        """Tell which pfns are members; -1 never is."""
        if not len(self._start):
            return np.zeros(len(pfn), bool)
        run = np.searchsorted(self._start, pfn, side="right") - 1
        found: Bools = (run >= 0) & (pfn - self._start[run] < self._count[run])
        return found

    def rank(self, pfn: Int64s) -> Int64s:
        """Count the members below each pfn."""
        if not len(self._start):
            return np.zeros(len(pfn), np.int64)
        run = np.searchsorted(self._start, pfn, side="right") - 1
        inside = self._before[run] + np.minimum(pfn - self._start[run], self._count[run])
        return np.where(run >= 0, inside, 0)

    def select(self, first: int, last: int) -> Int64s:
        """List the members of rank ``first`` up to, not including, ``last``, ascending."""
        last = min(last, self.count)
        if first >= last:
            return np.empty(0, np.int64)
        low = int(np.searchsorted(self._before, first, side="right")) - 1
        high = int(np.searchsorted(self._before, last, side="left"))
        start, count = self._start[low:high].copy(), self._count[low:high].copy()
        count[-1] -= self._before[high] - last
        start[0] += first - self._before[low]
        count[0] -= first - self._before[low]
        return expand(start, count)

    def runs(self) -> tuple[Int64s, Int64s]:
        """Give the members as maximal runs (start, count), ascending."""
        return self._start, self._count

    def __repr__(self) -> str:
        return f"PageRuns({self.count} pages in {len(self._start)} runs)"


class Picked:
    """Some members of a set, chosen by their rank: nothing of it is copied, however many runs they are in.

    Args:
        pages: the set.
        ranks: which of its members; none beyond its last one.
    """

    __slots__ = ("__dict__", "_pages", "_ranks")

    def __init__(self, pages: PageSet, ranks: PageSet) -> None:
        self._pages = pages
        self._ranks = ranks

    @property
    def count(self) -> int:
        """Number of members."""
        return self._ranks.count

    @cached_property
    def stop(self) -> int:
        """One past the highest member; 0 if there is none."""
        return int(self.select(self.count - 1, self.count)[0]) + 1 if self.count else 0

    def contains(self, pfn: Int64s) -> Bools:
        """Tell which pfns are members; -1 never is."""
        found = self._pages.contains(pfn)
        found[found] = self._ranks.contains(self._pages.rank(pfn[found]))
        return found

    def rank(self, pfn: Int64s) -> Int64s:
        """Count the members below each pfn."""
        return self._ranks.rank(self._pages.rank(pfn))

    def select(self, first: int, last: int) -> Int64s:
        """List the members of rank ``first`` up to, not including, ``last``, ascending."""
        rank = self._ranks.select(first, last)
        if not len(rank):
            return rank
        # What lies between two that are close is listed as well: that costs less than to ask twice.
        edges = np.flatnonzero(rank[1:] - rank[:-1] > _CLOSE) + 1
        groups = np.split(rank, edges) if len(edges) else [rank]
        return np.concatenate([self._pages.select(int(of[0]), int(of[-1]) + 1)[of - of[0]] for of in groups])

    def runs(self) -> tuple[Int64s, Int64s]:
        """Give the members as maximal runs (start, count), ascending."""
        if len(self._ranks.runs()[0]) == 1:  # neighbours: a range of pfns
            lowest = self.select(0, 1)
            return intersection(self._pages, PageRuns(lowest, self.stop - lowest)).runs()
        found = [(np.empty(0, np.int64), np.empty(0, np.int64))]
        for first in range(0, self.count, _CHUNK):
            pfn = self.select(first, first + _CHUNK)
            at, length = runs(pfn)
            found.append((pfn[at], length))
        start, count = (np.concatenate(columns) for columns in zip(*found, strict=True))
        return PageRuns.from_runs(start, count).runs()

    def __repr__(self) -> str:
        return f"Picked({self.count} of {self._pages!r})"


EMPTY = PageRuns(np.empty(0, np.int64), np.empty(0, np.int64))
"""The set without members."""


def between(pages: PageSet, start: int, stop: int) -> PageSet:
    """Give the members from one pfn up to another."""
    if isinstance(pages, PageRuns):
        return intersection(pages, PageRuns.from_runs(np.array([start]), np.array([stop - start])))
    ranks = pages.rank(np.array([start, max(start, stop)], np.int64))
    return Picked(pages, PageRuns.from_runs(ranks[:1], np.diff(ranks)))


def pages_between(start: int, stop: int, page_size: int) -> PageRuns:
    """Give the pages that the bytes from one address up to another touch."""
    first = start // page_size
    return PageRuns.from_runs(np.array([first], np.int64), np.array([-(-stop // page_size) - first], np.int64))


def union(a: PageSet, b: PageSet) -> PageRuns:
    """Pages in either set."""
    return _sweep(a, b, (1, 2, 3))


def intersection(a: PageSet, b: PageSet) -> PageRuns:
    """Pages in both sets."""
    return _sweep(a, b, (3,))


def difference(a: PageSet, b: PageSet) -> PageRuns:
    """Pages in the first set but not in the second."""
    return _sweep(a, b, (1,))


def _sweep(a: PageSet, b: PageSet, wanted: tuple[int, ...]) -> PageRuns:
    """Walk over the ends of both sets' runs; 1 is inside a, 2 inside b, 3 inside both."""
    (a_start, a_count), (b_start, b_count) = a.runs(), b.runs()
    at = np.concatenate((a_start, a_start + a_count, b_start, b_start + b_count))
    step = np.repeat(np.array([1, -1, 2, -2], np.int8), [len(a_start), len(a_start), len(b_start), len(b_start)])
    order = np.argsort(at, kind="stable")
    is_wanted = np.zeros(4, bool)
    is_wanted[list(wanted)] = True
    inside = is_wanted[np.cumsum(step[order], dtype=np.int64)[:-1]]
    at = at[order]
    return PageRuns.from_runs(at[:-1][inside], np.diff(at)[inside])


def mask(pages: PageSet, start: int, stop: int) -> Bools:
    """Tell for each pfn from ``start`` up to ``stop`` whether it is a member, shape (stop - start,)."""
    first, last = pages.rank(np.array([start, stop], np.int64))
    found = np.zeros(stop - start, bool)
    found[pages.select(int(first), int(last)) - start] = True
    return found
