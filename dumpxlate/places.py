"""Places: where single pages lie, one offset for each frame. The index of memory whose runs have a page or two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from dumpxlate.arrays import DENSE, expand, runs, slices
from dumpxlate.pageset import PageRuns

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dumpxlate.arrays import Int64s

__all__ = ["SHORT", "Places", "count_marked", "page_by_page"]

SHORT = 2
"""Pages of a run, on average, up to which it takes less to write runs out page by page than to sort them."""


@dataclass(frozen=True, slots=True)
class Places:
    """An offset for each frame of a range, -1 where no page is.

    Pages in any order are put in by one pass over them, while extents have to be sorted; and a frame is found without
    a search.

    Attributes:
        low: frame that the first row is of.
        offset: file offset of each frame's page, int64; the first and the last are -1, and stand for what lies outside.
    """

    low: int
    offset: Int64s

    @classmethod
    def over(cls, low: int, high: int) -> Self:
        """Make room for the frames from one up to another."""
        return cls(low - 1, np.full(high - low + 2, -1, np.int64))

    @classmethod
    def of_runs(cls, start: Int64s, count: Int64s, offset: Int64s, *, step: int, room: int) -> Self | None:
        """Write runs out that are in any order.

        Args:
            start: first frame of each run, int64, shape (n,).
            count: its length, positive.
            offset: file offset of its first page.
            step: what the offset grows by from one page to the next.
            room: frames to have a row at most.

        Returns:
            The places; None where the frames are too far apart for them, or runs overlap.
        """
        if not len(start):
            return cls.over(0, 0)
        total = int(count.sum())
        low, high = _ends(start, count, total)
        if not total <= high - low <= room:
            return None
        made = cls.over(low, high)
        for frame, at in page_by_page(start, offset, count, step=step):
            made.add(frame, at)
        return made if int(np.count_nonzero(made.offset >= 0)) == total else None

    def add(self, frame: Int64s, offset: Int64s) -> None:
        """Put pages in, none of them outside the range."""
        self.offset[frame - self.low] = offset

    def offsets(self, frame: Int64s) -> Int64s:
        """Give the file offset of each frame, -1 where no page is."""
        return np.take(self.offset, frame - self.low, mode="clip")

    def pages(self) -> PageRuns:
        """Give the set of frames that have a page."""
        there = self.offset >= 0
        ends = np.flatnonzero(there[1:] != there[:-1])
        ends += self.low + 1
        return PageRuns(ends[::2], ends[1::2] - ends[::2])

    def runs(self, step: int) -> tuple[Int64s, Int64s, Int64s]:
        """Give runs (start, count, offset) of pages that follow each other in the file, ascending."""
        frame = np.flatnonzero(self.offset >= 0)
        offset = self.offset[frame]
        frame += self.low
        first, count = runs(frame, offset, step=step)
        return frame[first], count, offset[first]


def page_by_page(start: Int64s, offset: Int64s, count: Int64s, *, step: int = 1) -> Iterator[tuple[Int64s, Int64s]]:
    """Write runs out, some thousands at a time: the frames, and the offsets that they lead to."""
    for piece in slices(len(start)):
        yield expand(start[piece], count[piece]), expand(offset[piece], count[piece], step=step)


def count_marked(start: Int64s, count: Int64s) -> int | None:
    """Count the frames in runs that may overlap, by marking each; None where runs are long, or the frames far apart."""
    total = int(count.sum())
    if not total or total > SHORT * len(start):
        return None
    low, high = _ends(start, count, total)
    if not 0 < high - low <= DENSE * total:
        return None
    marks = np.zeros(high - low, bool)
    for piece in slices(len(start)):
        marks[expand(start[piece], count[piece]) - low] = True
    return int(np.count_nonzero(marks))


def _ends(start: Int64s, count: Int64s, total: int) -> tuple[int, int]:
    """Give the lowest frame of some runs, and one past the highest."""
    single = total == len(start)
    return int(start.min()), int(start.max()) + 1 if single else int((start + count).max())
