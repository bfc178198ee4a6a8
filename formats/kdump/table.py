"""Page descriptors: the table stays in the file, rows are brought for a batch at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from dumpxlate.arrays import distinct
from dumpxlate.formats.kdump.layout import INVALID_CODEC, PageDesc, codecs_of_flags
from dumpxlate.pages import BAD, EXCLUDED, RAW, STORED
from dumpxlate.structs import dtype_of, size_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from dumpxlate.arrays import Int32s, Int64s, UInt8s
    from dumpxlate.formats.kdump.fit import Stretch
    from dumpxlate.formats.kdump.header import Part
    from dumpxlate.io.source import Source
    from dumpxlate.pageset import PageSet
    from dumpxlate.structs import Endian

__all__ = ["ROW", "DescriptorTable", "Found"]

ROW = size_of(PageDesc)

_STORED, _BAD, _MISSING = np.uint8(STORED), np.uint8(BAD), np.uint8(EXCLUDED)
_RAW = np.uint8(RAW)
_CHUNK = 1 << 16
_SAMPLE = 1 << 12
_MOST_ZERO_PAGES = 4


@dataclass(frozen=True, slots=True)
class Found:
    """What descriptors say, one row for each.

    Attributes:
        state: STORED; EXCLUDED where the bytes were never written or lie beyond the end; BAD where the row is absurd.
        codec: a CodecId.
        offset: where the bytes are in the table's source, -1 unless stored.
        size: how many, 0 unless stored.
    """

    state: UInt8s
    codec: UInt8s
    offset: Int64s
    size: Int32s


@dataclass(frozen=True, slots=True)
class DescriptorTable:
    """The descriptors of a dump, numbered through all parts of a split one by the rank of their page.

    Attributes:
        source: the file, or the parts one behind the other.
        endian: byte order of the rows.
        page_size: bytes a page.
        first: rank of each part's first descriptor, ascending; parts without pages are left out.
        count: descriptors of each part.
        base: where each part begins in the source; offsets in its rows count from there.
        at: where its table begins in the source.
        end: where it ends.
    """

    source: Source
    endian: Endian
    page_size: int
    first: Int64s
    count: Int64s
    base: Int64s
    at: Int64s
    end: Int64s

    @classmethod
    def of_parts(cls, source: Source, parts: Sequence[Part], stored: PageSet) -> Self:
        """Number the descriptors of parts, which are in the order of their pfns and as they lie in the source."""
        base = np.cumsum([0, *(part.source.size for part in parts)])
        ranks = stored.rank(np.array([part.pfns for part in parts], np.int64).reshape(-1)).reshape(-1, 2)
        used = ranks[:, 1] > ranks[:, 0]
        at = base[:-1] + np.array([part.table_at for part in parts], np.int64)
        return cls(
            source,
            parts[0].endian,
            parts[0].block_size,
            first=ranks[used, 0],
            count=(ranks[:, 1] - ranks[:, 0])[used],
            base=base[:-1][used],
            at=at[used],
            end=base[1:][used],
        )

    @classmethod
    def of_stretches(cls, part: Part, stretches: Sequence[Stretch]) -> Self:
        """Number the descriptors of one file of which only some belong to their pages for sure."""
        first, count, more = np.array(stretches, np.int64).reshape(-1, 3).T
        base = np.zeros_like(first)
        at = part.table_at + (first + more) * ROW
        return cls(part.source, part.endian, part.block_size, first, count, base, at, base + part.source.size)

    def find(self, rank: Int64s) -> Found:
        """Look descriptors up by the rank of their page, in any order."""
        if not len(self.first):
            return _nothing(len(rank))
        if len(rank) and rank[-1] - rank[0] == len(rank) - 1 and (rank[1:] > rank[:-1]).all():
            run = self._find_run(int(rank[0]), len(rank))
            if run:
                return run
        part = np.maximum(np.searchsorted(self.first, rank, side="right") - 1, 0)
        row = rank - self.first[part]
        at = self.at[part] + row * ROW
        inside = (row >= 0) & (row < self.count[part]) & (at <= self.end[part] - ROW)
        if inside.all():
            return self._judge(part, *self._read(at))
        found = _nothing(len(rank))
        there = self._judge(part[inside], *self._read(at[inside]))
        found.state[inside], found.codec[inside] = there.state, there.codec
        found.offset[inside], found.size[inside] = there.offset, there.size
        return found

    def _find_run(self, first: int, count: int) -> Found | None:
        """Look up descriptors that follow each other, if they lie in one part: they are read and judged as one."""
        part = int(np.searchsorted(self.first, first, side="right")) - 1
        if part < 0 or first + count > self.first[part] + self.count[part]:
            return None
        at = int(self.at[part]) + (first - int(self.first[part])) * ROW
        if at + count * ROW > self.end[part]:
            return None
        rows = np.frombuffer(self.source.view(at, count * ROW), dtype_of(PageDesc, self.endian))
        return self._judge(part, *_columns(rows))

    def _read(self, at: Int64s) -> tuple[Int64s, Int64s, Int64s]:
        """Read rows at offsets of the source: offset, size and flags."""
        body, place = self.source.gather(at, np.full(len(at), ROW, np.int32))
        rows = np.frombuffer(body, np.uint8)[place[:, None] + np.arange(ROW)]
        return _columns(rows.view(dtype_of(PageDesc, self.endian))[:, 0])

    def _judge(self, part: Int64s | int, offset: Int64s, size: Int64s, flags: Int64s) -> Found:
        """Tell good rows, of one part or of several, from absurd ones, and from those whose bytes are not there."""
        codec = codecs_of_flags(flags)
        base, end = self.base[part], self.end[part]
        good = (codec != INVALID_CODEC) & (size > 0) & (size <= self.page_size)
        good &= (codec != _RAW) | (size == self.page_size)
        # Read as signed: an offset beyond 2**63 is negative, and lies before the table like any other absurd one.
        good &= offset >= (self.at[part] + self.count[part] * ROW) - base
        beyond = good & (offset > end - base - size)
        if good.all() and not beyond.any():
            return Found(np.full(len(codec), _STORED), codec, offset + base, size.astype(np.int32))
        missing = beyond | ((offset == 0) & (size == 0) & (flags == 0))
        state = np.where(missing, _MISSING, np.where(good, _STORED, _BAD))
        stored = state == _STORED
        return Found(
            state,
            np.where(stored, codec, np.uint8(0)),
            np.where(stored, offset + base, np.int64(-1)),
            np.where(stored, size, 0).astype(np.int32),
        )

    def zero_pages(self, total: int) -> Int64s:
        """Find the blocks of zeros that the descriptors of zero pages share, as offsets in the source.

        Where one lies is no field of the file: producers put it first of all data, behind the descriptors (in a split
        dump: as many as the whole has). Any other block is found when many of the first rows point to it. Its bytes
        are looked at in any case.

        Args:
            total: descriptors of the whole dump.
        """
        behind = np.concatenate([self.at + self.count * ROW, self.at + total * ROW])
        sample = self.find(np.arange(self.first[0], self.first[0] + _SAMPLE)) if len(self.first) else _nothing(0)
        raw = sample.offset[(sample.state == _STORED) & (sample.codec == RAW)]
        value, times = distinct(raw)
        shared = value[np.argsort(-times, kind="stable")][:_MOST_ZERO_PAGES][: np.count_nonzero(times > 1)]
        found = [at for at in distinct(np.concatenate([behind, shared]))[0].tolist() if self._is_zero(at)]
        return np.array(found, np.int64)

    def _is_zero(self, at: int) -> bool:
        if at + self.page_size > self.source.size:
            return False
        return not np.frombuffer(self.source.view(at, self.page_size), np.uint64).any()

    def missing(self) -> Iterator[Int64s]:
        """Find the ranks of all descriptors whose bytes are not in the file; reads the whole table."""
        for first, count in zip(self.first.tolist(), self.count.tolist(), strict=True):
            for low in range(first, first + count, _CHUNK):
                rank = np.arange(low, min(low + _CHUNK, first + count), dtype=np.int64)
                yield rank[self.find(rank).state == _MISSING]

    def looks_cut(self) -> bool:
        """Tell whether data are missing at the end of a part, by the last descriptors that do not share their bytes."""
        return any(
            self._is_cut(first, count) for first, count in zip(self.first.tolist(), self.count.tolist(), strict=True)
        )

    def _is_cut(self, first: int, count: int) -> bool:
        """Look backwards, in strides that grow: guests end in long stretches of zero pages, which share one block."""
        back = 0
        while back < count:
            stop = first + count - back
            found = self.find(np.arange(max(stop - _SAMPLE, first), stop, dtype=np.int64))
            if (found.state == _MISSING).any():
                return True
            if (found.offset != found.offset[0]).any():
                return False
            back = max(2 * back, _SAMPLE)
        return False


def _columns(rows: NDArray[np.void]) -> tuple[Int64s, Int64s, Int64s]:
    """Give offset, size and flags of rows."""
    return tuple(rows[name].astype(np.int64) for name in ("offset", "size", "flags"))  # type: ignore[return-value]


def _nothing(count: int) -> Found:
    """Rows that no part has."""
    return Found(
        np.full(count, _MISSING),
        np.zeros(count, np.uint8),
        np.full(count, -1, np.int64),
        np.zeros(count, np.int32),
    )
