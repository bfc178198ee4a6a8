"""Extents: where runs of pages lie in a file. The index of every format that stores raw pages."""

from __future__ import annotations

import heapq
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import numpy as np

from dumpxlate.arrays import DENSE, Columns, ascending, expand, runs
from dumpxlate.errors import MapError
from dumpxlate.pageset import PageRuns
from dumpxlate.places import SHORT, Places, page_by_page

if TYPE_CHECKING:
    from dumpxlate.arrays import Int64s

__all__ = ["Extents", "ExtentsBuilder", "first_wins", "in_runs", "merge", "same_place", "through_each"]

_ALIASES = 4
_FEW = 1 << 20
"""Where no two runs of a map share frames, there are no more pieces than runs on both sides; this many more may be."""


@dataclass(frozen=True, slots=True)
class Extents:
    """Runs of pages that are consecutive in the file too; ascending by pfn, disjoint.

    Attributes:
        start: first pfn of each extent, int64.
        count: pages in each, int64.
        offset: file offset of the first page, bytes, int64.
    """

    start: Int64s
    count: Int64s
    offset: Int64s

    @classmethod
    def from_pairs(cls, pfn: Int64s, offset: Int64s, page_size: int, *, last_wins: bool) -> tuple[Self, int]:
        """Index single pages, in any order.

        Args:
            pfn: frame numbers, shape (n,); negative ones are skipped.
            offset: file offset of each page, shape (n,).
            page_size: bytes a page.
            last_wins: of several copies of a page keep the last one, else the first.

        Returns:
            The extents, and how many copies were dropped.
        """
        valid = pfn >= 0
        if not valid.all():
            pfn, offset = pfn[valid], offset[valid]
        total = len(pfn)
        if total and not (pfn[1:] > pfn[:-1]).all():
            order = ascending(pfn)
            pfn, offset = pfn[order], offset[order]
            differs = pfn[1:] != pfn[:-1]
            keep = np.append(differs, True) if last_wins else np.append(True, differs)
            pfn, offset = pfn[keep], offset[keep]
        first, count = runs(pfn, offset, step=page_size)
        return cls(pfn[first], count, offset[first]), total - len(pfn)

    def find(self, pfn: Int64s) -> Int64s:
        """Give the index of the extent that holds each pfn, -1 where none does."""
        if not len(self.start):
            return np.full(len(pfn), -1, np.int64)
        index = np.searchsorted(self.start, pfn, side="right") - 1
        inside = (index >= 0) & (pfn - self.start[index] < self.count[index])
        return np.where(inside, index, -1)

    def offsets(self, pfn: Int64s, page_size: int) -> Int64s:
        """Give the file offset of each pfn, -1 where no extent holds it."""
        index = self.find(pfn)
        if not len(self.start):
            return index
        return np.where(index >= 0, self.offset[index] + (pfn - self.start[index]) * page_size, -1)

    def pages(self) -> PageRuns:
        """Give the set of pages in these extents."""
        return PageRuns.from_runs(self.start, self.count)

    def through(self, start: Int64s, count: Int64s, frame: Int64s, page_size: int) -> Extents:
        """See these extents through a map: the same bytes under the pages that lead to theirs.

        Args:
            start: first page of each run of the map, disjoint, int64, shape (n,).
            count: its length.
            frame: what its first page leads to, a page of these extents or none; the following ones to the following.
                An ascending order makes this several times faster.
            page_size: bytes a page.

        Returns:
            One extent for each piece of a run that lies in one extent here, joined where they continue each other.

        Raises:
            MapError: runs lead to the same frames so often that the pieces would fill memory.
        """
        end = self.start + self.count
        first = np.searchsorted(end, frame, side="right")
        pieces = np.maximum(np.searchsorted(self.start, frame + count, side="left") - first, 0)
        total = int(pieces.sum())
        if total > _ALIASES * (len(start) + len(self.start)) + _FEW:
            raise MapError(f"the map leads to the same frames again and again: {total:,} pieces of {len(start):,} runs")
        run, inner = np.repeat(np.arange(len(start)), pieces), expand(first, pieces)
        low = np.maximum(frame[run], self.start[inner])
        length = np.minimum((frame + count)[run], end[inner]) - low
        offset = self.offset[inner] + (low - self.start[inner]) * page_size
        page = start[run] + low - frame[run]
        order = ascending(page)
        return Extents(*merge(page[order], length[order], offset[order], step=page_size))


@dataclass(slots=True)
class ExtentsBuilder:
    """Collects pages in the order of a file, piece by piece, and keeps them as runs.

    Attributes:
        step: what an offset grows by from one page to the next.
    """

    step: int
    _columns: Columns = field(default_factory=lambda: Columns(3))

    def add(self, frame: Int64s, offset: Int64s) -> None:
        """Take the next pages; those with a negative frame are skipped."""
        valid = frame >= 0
        if not valid.all():
            frame, offset = frame[valid], offset[valid]
        first, count = runs(frame, offset, step=self.step)
        self.add_runs(frame[first], count, offset[first])

    def add_runs(self, start: Int64s, count: Int64s, offset: Int64s) -> None:
        """Take the next runs; the first of them may continue the last one taken."""
        taken = self._columns.filled
        if taken.shape[1] and len(start):
            begin, length, at = taken[:, -1].tolist()
            if start[0] == begin + length and offset[0] == at + length * self.step:
                taken[1, -1] += count[0]
                start, count, offset = start[1:], count[1:], offset[1:]
        self._columns.add(start, count, offset)

    @property
    def runs(self) -> tuple[Int64s, Int64s, Int64s]:
        """The runs (start, count, offset) as they came, those joined that continue each other."""
        start, count, offset = self._columns.filled
        return start, count, offset

    def build(self, *, last_wins: bool = False) -> tuple[Extents, int]:
        """Give the extents, and how many copies of pages were dropped: of several the first counts, or the last."""
        index, dropped = self.index(last_wins=last_wins)
        return in_runs(index, self.step), dropped

    def index(self, *, last_wins: bool = False) -> tuple[Extents | Places, int]:
        """Give what ``build`` does, or places where runs are short."""
        order = slice(None, None, -1 if last_wins else None)
        start, count, offset = (column[order] for column in self.runs)
        total = int(count.sum())
        if total <= SHORT * len(start):
            places = Places.of_runs(start, count, offset, step=self.step, room=DENSE * total)
            if places is not None:
                return places, 0
        start, count, offset = merge(*first_wins(start, count, offset, step=self.step), step=self.step)
        return Extents(start, count, offset), total - int(count.sum())


def in_runs(index: Extents | Places, page_size: int) -> Extents:
    """Give places as extents, and extents as they are."""
    return Extents(*index.runs(page_size)) if isinstance(index, Places) else index


def through_each(
    index: Extents | Places, start: Int64s, count: Int64s, frame: Int64s, page_size: int
) -> Extents | Places | None:
    """See pages through a map as ``Extents.through`` does, one after the other.

    Where runs have a page or two, as the memory of a guest that has lived for long, this takes a quarter of the time,
    and no order but that of pages.

    Args:
        index: the pages.
        start: as for ``through``, ascending.
        count: as for ``through``.
        frame: as for ``through``, in any order.
        page_size: bytes a page.

    Returns:
        The pages seen; None where runs are long, or the frames far apart.
    """
    pages = int(count.sum())
    if pages > SHORT * len(start):
        return None
    if isinstance(index, Extents):
        written = Places.of_runs(index.start, index.count, index.offset, step=page_size, room=DENSE * pages)
        if written is None:
            return None
        index = written
    low, high = (int(start[0]), int(start[-1] + count[-1])) if pages else (0, 0)
    seen = Places.over(low, high) if high - low <= DENSE * pages else ExtentsBuilder(page_size)
    for page, at in page_by_page(start, frame, count):
        offset = index.offsets(at)
        there = offset >= 0
        if not there.all():
            page, offset = page[there], offset[there]
        seen.add(page, offset)
    return seen if isinstance(seen, Places) else Extents(*seen.runs)


def first_wins(start: Int64s, count: Int64s, offset: Int64s, *, step: int = 1) -> tuple[Int64s, Int64s, Int64s]:
    """Sort runs and cut overlaps away; of several runs over a frame the first of those given keeps it.

    Args:
        start: first frame of each run.
        count: its length, positive.
        offset: what its first frame leads to.
        step: what the offset grows by from one frame to the next.
    """
    order = ascending(start)
    begins, ends = start[order], (start + count)[order]
    twin = np.append(False, (begins[1:] == begins[:-1]) & (ends[1:] == ends[:-1]))[: len(order)]
    if twin.any():
        order, begins, ends = order[~twin], begins[~twin], ends[~twin]
    if not len(start) or (begins[1:] >= ends[:-1]).all():
        return begins, count[order], offset[order]
    opens = np.append(True, begins[1:] >= np.maximum.accumulate(ends)[:-1])
    group = np.cumsum(opens) - 1
    alone = np.bincount(group)[group] == 1
    owner, low, high = _sweep(order[~alone].tolist(), start, start + count)
    owner = np.concatenate((order[alone], owner))
    low, high = np.concatenate((begins[alone], low)), np.concatenate((ends[alone], high))
    order = ascending(low)
    owner, low, high = owner[order], low[order], high[order]
    return low, high - low, offset[owner] + (low - start[owner]) * step


def merge(start: Int64s, count: Int64s, offset: Int64s, *, step: int = 1) -> tuple[Int64s, Int64s, Int64s]:
    """Join ascending, disjoint runs that continue each other, their offsets too."""
    if not len(start):
        return start, count, offset
    apart = (start[1:] != (start + count)[:-1]) | (offset[1:] != (offset + count * step)[:-1])
    first = np.flatnonzero(np.append(True, apart))
    begins = start[first]
    last = np.append(first[1:], len(start)) - 1
    return begins, start[last] + count[last] - begins, offset[first]


def same_place(start: Int64s, count: Int64s, offset: Int64s) -> tuple[Int64s, Int64s, Int64s]:
    """Join runs, in any order, that overlap or touch and agree about what each frame leads to.

    Returns:
        The runs, each where the first of its parts stood; two that disagree about a frame are both there.
    """
    delta = offset - start  # may wrap: it is only compared
    order = np.lexsort((start, delta))
    place = np.cumsum(np.append(False, np.diff(delta[order]) != 0)[: len(order)])
    # Ranks instead of frames leave room for the place in front, so that one maximum runs over all places.
    ends, rank = np.unique(np.concatenate((start[order], (start + count)[order])), return_inverse=True)
    low, high = (part + place * (len(ends) + 1) for part in np.split(rank, 2))
    reach = np.maximum.accumulate(high) if len(high) else high
    first = np.flatnonzero(np.append(True, low[1:] > reach[:-1])[: len(order)])
    last = np.append(first[1:], len(order))[: len(first)] - 1
    begin = start[order][first]
    stop = ends[reach[last] - place[last] * (len(ends) + 1)]
    back = np.argsort(np.minimum.reduceat(order, first), kind="stable") if len(first) else first
    return begin[back], (stop - begin)[back], (begin + delta[order][first])[back]


def _sweep(order: list[int], start: Int64s, stop: Int64s) -> tuple[Int64s, Int64s, Int64s]:
    """Walk over runs by frame, the earliest of those open always on top of a heap; gives (run, from, up to)."""
    begins, ends = start[order].tolist(), stop.tolist()
    pieces = array("q")  # a tuple for each would take seven times as much
    open_runs: list[int] = []
    at = 0
    for until, run in zip([*begins, None], [*order, None], strict=True):
        while open_runs and (until is None or at < until):
            top = open_runs[0]
            if ends[top] <= at:
                heapq.heappop(open_runs)
                continue
            end = ends[top] if until is None else min(ends[top], until)
            pieces.extend((top, at, end))
            at = end
        if run is not None and until is not None:
            at = until
            heapq.heappush(open_runs, run)
    columns = np.frombuffer(pieces, np.int64).reshape(-1, 3)
    return columns[:, 0], columns[:, 1], columns[:, 2]
