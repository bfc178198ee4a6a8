"""Array types and the few run-length operations that everything else is built on.

Inside the program every pfn, mfn, address and file offset is int64, and -1 is "none". Widths and byte orders end
where a file is parsed: mixing uint64 and int64 arrays gives float64 in numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "DENSE",
    "PIECE",
    "Bools",
    "Columns",
    "Int32s",
    "Int64s",
    "UInt8s",
    "UInt16s",
    "UInt64s",
    "ascending",
    "distinct",
    "expand",
    "lengths",
    "runs",
    "slices",
]

Bools: TypeAlias = NDArray[np.bool_]
UInt8s: TypeAlias = NDArray[np.uint8]
Int32s: TypeAlias = NDArray[np.int32]
Int64s: TypeAlias = NDArray[np.int64]
UInt16s: TypeAlias = NDArray[np.uint16]
UInt64s: TypeAlias = NDArray[np.uint64]

PIECE = 1 << 13
"""Numbers that are worked on in one go where there are many: what that takes stays in the processor's caches, and is
used again for the next ones. An array of so many is smaller than what glibc maps anew for each, which costs as much as
the work."""


def slices(total: int, size: int = PIECE) -> Iterator[slice]:
    """Cut a row of numbers into pieces."""
    for first in range(0, total, size):
        yield slice(first, min(first + size, total))


_ROOM = 1 << 20
"""Rows that there soon is room for: to copy rows is dear, while room takes no memory before it is written to."""


class Columns:
    """Parallel int64 columns that are filled piece by piece.

    Args:
        width: number of columns.
    """

    __slots__ = ("_count", "_rows")

    def __init__(self, width: int) -> None:
        self._rows = np.empty((width, 0), np.int64)
        self._count = 0

    def add(self, *parts: Int64s) -> None:
        """Append to each column; the parts are of one length."""
        begin, self._count = self._count, self._count + len(parts[0])
        if self._count > self._rows.shape[1]:
            room = max(2 * self._count, min(32 * self._count, _ROOM))
            grown = np.empty((len(self._rows), room), np.int64)
            grown[:, :begin] = self._rows[:, :begin]
            self._rows = grown
        for row, part in zip(self._rows, parts, strict=True):
            row[begin : self._count] = part

    @property
    def filled(self) -> Int64s:
        """The columns as they are so far, shape (width, n): a view."""
        return self._rows[:, : self._count]


def runs(values: Int64s, *parallel: Int64s, step: int = 1) -> tuple[Int64s, Int64s]:
    """Find the maximal runs in which values grow by one.

    Args:
        values: any int64 array, usually ascending pfns, shape (n,).
        parallel: arrays of the same length that must grow in step with ``values``, each by ``step``
            (file offsets grow by the page size where pfns grow by one).
        step: what each parallel array grows by.

    Returns:
        Index of each run's first element and the length of each run, both int64, shape (r,).
    """
    if not len(values):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    opens = np.ones(len(values), bool)
    grown = values[1:] - values[:-1]
    np.not_equal(grown, 1, out=opens[1:])
    for other in parallel:
        np.subtract(other[1:], other[:-1], out=grown)  # fresh memory costs as much as the work
        opens[1:] |= grown != step
    first = np.flatnonzero(opens)
    return first, lengths(first, len(values))


def lengths(first: Int64s, total: int) -> Int64s:
    """Give the length of each of the runs that begin at ``first``, ascending, the last of which ends at ``total``."""
    count = np.empty(len(first), np.int64)
    np.subtract(first[1:], first[:-1], out=count[:-1])
    count[-1:] = total - first[-1:]
    return count


def distinct(values: Int64s) -> tuple[Int64s, Int64s]:
    """Give the values that occur, ascending, and how often each does: ``np.unique`` for short commands.

    The first call of ``np.unique`` imports numpy's masked arrays, which takes longer than to open a dump.
    """
    ordered = np.sort(values)
    first = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)])
    return ordered[first], np.diff(first, append=len(ordered))


def expand(start: Int64s, count: Int64s, *, step: int = 1) -> Int64s:
    """Write runs out: ``start[i], start[i] + step, ...``, ``count[i]`` of them, for each run in turn.

    Where each is of one, this is ``start`` itself.
    """
    if (count == 1).all():
        return start
    ends = np.cumsum(count)
    out = np.arange(int(ends[-1]), dtype=np.int64)
    if step != 1:
        out *= step
    out += np.repeat(start - (ends - count) * step, count)
    return out


DENSE = 4
"""Numbers that are counted for each value at most."""


def ascending(values: Int64s) -> Int64s:
    """Give the index that sorts values; equal ones stay as they stand.

    Frames are mostly distinct and close together. Then counting them takes a quarter of the time that numpy's stable
    sort does: measured 9 against 40 ms for half a million in random order.
    """
    low = int(values.min()) if len(values) else 0
    span = int(values.max()) - low + 1 if len(values) else 0
    if span <= DENSE * len(values):
        place = np.full(span, -1, np.int64)
        place[values - low] = np.arange(len(values))
        found = place[place >= 0]
        if len(found) == len(values):
            return found
    return np.argsort(values, kind="stable")
