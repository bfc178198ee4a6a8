"""What a damaged dump should have and has not, as runs of pages with a reason: for checks and conversions alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dumpxlate.arrays import runs
from dumpxlate.pages import LAST_CODEC, RAW, STORED, CodecId, lost_pages, why_lost

if TYPE_CHECKING:
    from dumpxlate.arrays import Int64s, UInt8s
    from dumpxlate.pages import PageStore, PageTable

__all__ = ["BadRun", "BadRuns", "Missing", "MissingRun", "bad_runs", "missing_pages"]

_NO_ENTRY = 255
_LOST = "the file promises them, and ends before them or never got them"

_REASONS = {
    _NO_ENTRY: "their entries in the index make no sense",
    RAW: "their bytes are not in the file, or do not unpack",
} | {int(codec): f"do not decode ({codec.name.lower()})" for codec in CodecId if codec is not CodecId.RAW}


@dataclass(frozen=True, slots=True)
class BadRun:
    """Pages that follow each other and are bad for the same reason.

    Attributes:
        start: first frame.
        count: pages.
        offset: where in the file the first one should be; -1 if that is not known.
        reason: what is wrong with them.
    """

    start: int
    count: int
    offset: int
    reason: str


@dataclass(frozen=True, slots=True)
class MissingRun:
    """Pages that follow each other and are not to be had: first frame, number, reason."""

    start: int
    count: int
    reason: str


class Missing(NamedTuple):
    """All pages that are not to be had.

    Attributes:
        pages: how many.
        ram: pages of RAM that the dump knows of.
        runs: how many runs they make.
        first: the first of those.
    """

    pages: int = 0
    ram: int = 0
    runs: int = 0
    first: tuple[MissingRun, ...] = ()

    @property
    def share(self) -> float:
        """Their share of RAM, from 0 to 1."""
        return self.pages / self.ram if self.ram else 0.0


def bad_runs(store: PageStore, table: PageTable, bad: Int64s) -> Int64s:
    """Join bad pages that follow each other and are bad for the same reason.

    Args:
        store: where they are from.
        table: pages as the store located them.
        bad: rows of those that are bad.

    Returns:
        First frame, length, reason and place in the file of each run, shape (4, runs).
    """
    rows = table.where(bad)
    why: UInt8s = np.where((rows.state == STORED) & (rows.codec <= LAST_CODEC), rows.codec, np.uint8(_NO_ENTRY))
    reason = why.astype(np.int64)
    first, count = runs(rows.pfn, reason, step=0)
    return np.stack((rows.pfn[first], count, reason[first], store.place(rows)[first]))


@dataclass(slots=True)
class BadRuns:
    """Collects runs of bad pages, ascending; those at the seam of two batches become one.

    Attributes:
        limit: runs that are kept.
        first: the first runs.
        runs: how many there are.
        pages: how many pages they hold.
    """

    limit: int
    first: list[BadRun] = field(default_factory=list)
    runs: int = 0
    pages: int = 0
    _end: tuple[int, int] = (-1, -1)

    def add(self, bad: Int64s) -> None:
        """Take what ``bad_runs`` gave; the first run may continue the last one before."""
        if not bad.size:
            return
        self.pages += int(bad[1].sum())
        if self._end == (int(bad[0, 0]), int(bad[2, 0])):
            if self.runs <= self.limit and self.first:
                last = self.first[-1]
                self.first[-1] = BadRun(last.start, last.count + int(bad[1, 0]), last.offset, last.reason)
            rest = bad[:, 1:]
        else:
            rest = bad
        for start, count, reason, offset in rest[:, : max(self.limit - self.runs, 0)].T.tolist():
            self.first.append(BadRun(start, count, offset, _REASONS[reason]))
        self.runs += rest.shape[1]
        self._end = int(bad[0, -1] + bad[1, -1]), int(bad[2, -1])


def missing_pages(store: PageStore, bad: BadRuns) -> Missing:
    """Put together what a dump lacks: pages that the file should have, and those that do not decode."""
    lost = lost_pages(store)
    start, count = lost.runs()
    first = zip(start[: bad.limit].tolist(), count[: bad.limit].tolist(), strict=True)
    found = [MissingRun(at, pages, why_lost(store) or _LOST) for at, pages in first]
    found += [MissingRun(run.start, run.count, run.reason) for run in bad.first]
    found.sort(key=lambda run: run.start)
    return Missing(lost.count + bad.pages, store.ram.count, len(start) + bad.runs, tuple(found[: bad.limit]))
