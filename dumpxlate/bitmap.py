"""One bit for each page, as kdump-compressed files keep it: with rank, selection and runs."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Self

import numpy as np

from dumpxlate.arrays import expand
from dumpxlate.pageset import PageRuns

if TYPE_CHECKING:
    from dumpxlate.arrays import Bools, Int64s, UInt64s

__all__ = ["PageBitmap"]

_BLOCK = 8  # words: one rank entry for 512 pages, 4 MiB of them for 1 TiB of 4 KiB pages
_LONG_BLOCK = 64
_LONG = 1 << 24
"""Words from which on a bitmap has one rank entry for 64 words: 4 TiB of 4 KiB pages."""
_CHUNK = 1 << 17  # words looked at in one go by runs()


class PageBitmap:
    """A packed set of pfns: bit ``n & 63`` of word ``n >> 6`` is pfn n (LSB first, as in kdump's bitmaps).

    1 TiB of 4 KiB pages takes 32 MiB, none of it copied where the words lie in a mapped file.

    Args:
        words: little-endian 64-bit words, uint64, shape (w,).
        stop: pfns from here on are no members, whatever their bit says.
    """

    __slots__ = ("__dict__", "_limit", "words")

    def __init__(self, words: UInt64s, stop: int | None = None) -> None:
        self.words = words
        self._limit = len(words) * 64 if stop is None else min(stop, len(words) * 64)

    @classmethod
    def from_bytes(cls, packed: memoryview | bytes, stop: int | None = None) -> Self:
        """View packed bytes (bit ``n & 7`` of byte ``n >> 3``) as a bitmap; copies only to pad an odd tail."""
        whole = len(packed) // 8 * 8
        words = np.frombuffer(packed, "<u8", whole // 8)
        if whole != len(packed):
            tail = np.frombuffer(bytes(packed[whole:]).ljust(8, b"\0"), "<u8")
            words = np.concatenate((words, tail))
        return cls(words, stop)

    @classmethod
    def from_runs(cls, start: Int64s, count: Int64s, stop: int) -> Self:
        """Set the bits of runs, in any order, as far as they lie below ``stop``; negative pfns begin no run."""
        words = np.zeros(-(-stop // 64), np.uint64)
        used = (start >= 0) & (start < stop)
        start, count = start[used], count[used]
        # Disjoint from here on: however often runs overlap, each word is written once.
        start, count = PageRuns.from_runs(start, np.minimum(count, stop - start)).runs()
        last = start + count - 1
        low, high = start >> 6, last >> 6
        head = ~np.uint64(0) << (start & 63).astype(np.uint64)
        tail = ~np.uint64(0) >> (63 - (last & 63)).astype(np.uint64)
        single = low == high
        np.bitwise_or.at(words, low, np.where(single, head & tail, head))
        np.bitwise_or.at(words, high, np.where(single, head & tail, tail))
        words[expand(low + 1, np.maximum(high - low - 1, 0))] = ~np.uint64(0)
        return cls(words, stop)

    @cached_property
    def _before(self) -> Int64s:
        """Members before each block of words, and in all at the end."""
        size = self._block
        before = np.zeros(-(-len(self.words) // size) + 1, np.int64)
        for at in range(0, len(self.words), _CHUNK):
            counts = np.bitwise_count(self._masked(at, at + _CHUNK))
            blocks = np.add.reduceat(counts, np.arange(0, len(counts), size), dtype=np.int64)
            before[at // size + 1 : at // size + 1 + len(blocks)] = blocks
        return np.cumsum(before, out=before)

    @property
    def _block(self) -> int:
        """Words that a rank entry stands for."""
        return _BLOCK if len(self.words) < _LONG else _LONG_BLOCK

    def _masked(self, low: int, high: int) -> UInt64s:
        """Words ``low`` up to ``high``, without bits at or beyond the limit."""
        words = self.words[low:high]
        last = self._limit >> 6
        if low + len(words) > last:
            words = words.copy()
            words[max(last + 1 - low, 0) :] = 0
            if 0 <= last - low < len(words):
                words[last - low] &= np.uint64((1 << (self._limit & 63)) - 1)
        return words

    @property
    def count(self) -> int:
        """Number of members."""
        return int(self._before[-1])

    @cached_property
    def stop(self) -> int:
        """One past the highest member; 0 if there is none."""
        return int(self.select(self.count - 1, self.count)[0]) + 1 if self.count else 0

    def contains(self, pfn: Int64s) -> Bools:
        """Tell which pfns are members; -1 and anything beyond the bitmap never is."""
        inside = (pfn >= 0) & (pfn < self._limit)
        if not len(self.words):
            return inside
        at = np.where(inside, pfn, 0)
        bits = self.words[at >> 6] >> (at & 63).astype(np.uint64)
        found: Bools = inside & (bits & np.uint64(1)).astype(bool)
        return found

    def rank(self, pfn: Int64s) -> Int64s:
        """Count the members below each pfn."""
        if not len(self.words):
            return np.zeros(len(pfn), np.int64)
        at = np.clip(pfn, 0, self._limit)
        size = self._block
        block = at // (64 * size)
        index = block[:, None] * size + np.arange(size)
        words = self.words[np.minimum(index, len(self.words) - 1)]
        # Of each word of the block, the bits below the pfn: all, some, or none.
        bits = np.clip(at[:, None] - index * 64, 0, 64).astype(np.uint64)
        below = np.where(bits == 64, ~np.uint64(0), (np.uint64(1) << (bits & np.uint64(63))) - np.uint64(1))
        inside: Int64s = np.bitwise_count(words & below).sum(axis=1, dtype=np.int64)
        ranks: Int64s = self._before[block] + inside
        return ranks

    def select(self, first: int, last: int) -> Int64s:
        """List the members of rank ``first`` up to, not including, ``last``, ascending."""
        last = min(last, self.count)
        if first >= last:
            return np.empty(0, np.int64)
        low = int(np.searchsorted(self._before, first, side="right")) - 1
        high = int(np.searchsorted(self._before, last, side="left"))
        words = self._masked(low * self._block, high * self._block)
        used = np.flatnonzero(words)
        bits = np.unpackbits(words[used].view(np.uint8), bitorder="little")
        at = np.flatnonzero(bits)
        pfn: Int64s = (used[at >> 6] + low * self._block) * 64 + (at & 63)
        skip = first - int(self._before[low])
        return pfn[skip : skip + last - first]

    def runs(self) -> tuple[Int64s, Int64s]:
        """Give the members as maximal runs (start, count), ascending."""
        edges = [np.empty(0, np.int64)]
        previous = 0
        for at in range(0, len(self.words), _CHUNK):
            words = self._masked(at, at + _CHUNK)
            if previous == 0 and not words.any():
                continue
            bits = np.unpackbits(words.view(np.uint8), bitorder="little")
            edges.append(np.flatnonzero(np.diff(bits, prepend=np.uint8(previous))) + at * 64)
            previous = int(bits[-1])
        if previous:
            edges.append(np.array([self._limit], np.int64))
        joined = np.concatenate(edges)
        return joined[::2], joined[1::2] - joined[::2]

    def __repr__(self) -> str:
        return f"PageBitmap({self.count} of {self._limit} pages)"
