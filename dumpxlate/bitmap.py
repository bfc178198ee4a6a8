"""One bit for each page, as kdump-compressed files keep it: with rank, selection and runs.

A directory says how many bits are set in each block of words. Blocks without any, and full ones, are never looked at
again; of the others those that a question needs are brought, so that a bitmap can stay in its file.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Self

import numpy as np

from dumpxlate.arrays import expand
from dumpxlate.errors import CorruptDumpError, UnsupportedFeatureError
from dumpxlate.io.bits import BLOCK, BLOCK_BITS, ArrayBits, CommonBits, JoinedBits, counted_before
from dumpxlate.pageset import PageRuns

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dumpxlate.arrays import Bools, Int64s, UInt64s
    from dumpxlate.io.bits import Bits

__all__ = ["PageBitmap", "words_of_runs"]

_TAKEN = 1 << 10
"""Blocks that are brought in one go: 1 MiB."""
_ASKED = 1 << 14
"""Pages that are looked up in one go, each of them maybe in a block of its own."""
_KEPT = 64
"""Blocks that are kept until others are brought: who lists pages asks for them again at once."""
_MOST_RUNS = 1 << 26
"""Runs that are listed: 1 GiB of them. What a machine has are some hundreds, but bits may alternate."""


class PageBitmap:
    """A packed set of pfns: bit ``n & 63`` of word ``n >> 6`` is pfn n (LSB first, as in kdump's bitmaps).

    Args:
        bits: where the words are.
        stop: pfns from here on are no members, whatever their bit says.
    """

    __slots__ = ("__dict__", "_last", "_limit", "bits")

    def __init__(self, bits: Bits, stop: int | None = None) -> None:
        self.bits = bits
        self._last: tuple[Int64s, UInt64s] = np.zeros(0, np.int64), np.zeros((0, BLOCK), np.uint64)
        self._limit = bits.blocks * BLOCK_BITS if stop is None else min(stop, bits.blocks * BLOCK_BITS)

    @classmethod
    def from_words(cls, words: UInt64s, stop: int | None = None) -> Self:
        """View little-endian words, uint64, shape (w,), as a bitmap."""
        return cls(ArrayBits(words), len(words) * 64 if stop is None else min(stop, len(words) * 64))

    @classmethod
    def from_bytes(cls, packed: memoryview | bytes, stop: int | None = None) -> Self:
        """View packed bytes (bit ``n & 7`` of byte ``n >> 3``) as a bitmap; copies only to pad an odd tail."""
        whole = len(packed) // 8 * 8
        words = np.frombuffer(packed, "<u8", whole // 8)
        if whole != len(packed):
            tail = np.frombuffer(bytes(packed[whole:]).ljust(8, b"\0"), "<u8")
            words = np.concatenate((words, tail))
        return cls.from_words(words, stop)

    @classmethod
    def from_runs(cls, start: Int64s, count: Int64s, stop: int) -> Self:
        """Set the bits of runs, in any order, as far as they lie below ``stop``; negative pfns begin no run."""
        return cls.from_words(words_of_runs(start, count, stop), stop)

    @cached_property
    def _before(self) -> Int64s:
        """Members before each block, and in all at the end."""
        before = np.zeros(self._blocks + 1, np.int64)
        for first, count in zip(*(column.tolist() for column in self.bits.used()), strict=True):
            for low in range(first, min(first + count, self._blocks), _TAKEN):
                block = np.arange(low, min(low + _TAKEN, first + count, self._blocks))
                before[block + 1] = np.bitwise_count(self._masked(block)).sum(axis=1, dtype=np.int64)
        return np.cumsum(before, out=before)

    @property
    def _blocks(self) -> int:
        """Blocks up to the limit."""
        return -(-self._limit // BLOCK_BITS)

    def _masked(self, block: Int64s) -> UInt64s:
        """Bring blocks without bits at or beyond the limit."""
        words = self.bits.take(block)
        cut = np.flatnonzero(block == self._limit // BLOCK_BITS)
        if len(cut):
            words = words.copy()
            words[cut] &= _below(self._limit % BLOCK_BITS - np.arange(BLOCK) * 64)
        return words

    def words(self, block: Int64s) -> UInt64s:
        """Give blocks of words, shape (n, BLOCK): of a file, only those that are neither empty nor full are read.

        Raises:
            CorruptDumpError: their bits are not those that were counted.
        """
        if isinstance(self.bits, ArrayBits):
            return self._masked(block)
        last, words = self._last
        if len(last) == len(block) and (last == block).all():
            return words
        words = self._brought(block)
        if len(block) <= _KEPT:
            self._last = block, words
        return words

    def _brought(self, block: Int64s) -> UInt64s:
        count = self._before[block + 1] - self._before[block]
        mixed = (count > 0) & (count < BLOCK_BITS)
        if mixed.all() and len(block):
            return self._unchanged(block, count)
        words = np.zeros((len(block), BLOCK), np.uint64)
        words[count == BLOCK_BITS] = ~np.uint64(0)
        if mixed.any():
            words[mixed] = self._unchanged(block[mixed], count[mixed])
        return words

    def _unchanged(self, block: Int64s, count: Int64s) -> UInt64s:
        words = self._masked(block)
        changed = np.bitwise_count(words).sum(axis=1, dtype=np.int64) != count
        if changed.any():
            first = int(block[changed][0]) * BLOCK_BITS
            raise CorruptDumpError(
                f"the bitmap changed while it was read, at the pages from {first:#x} on", path=self.bits.name or None
            )
        return words

    def _words_of(self, pfn: Int64s) -> tuple[UInt64s, Int64s]:
        """Give words, shape (w,), and which of them is that of each pfn.

        Words in memory are all there. Of others blocks are brought, one for neighbours that share it.
        """
        if isinstance(self.bits, ArrayBits):
            return self.bits.words, pfn >> 6
        block = pfn // BLOCK_BITS
        opens = np.append(True, block[1:] != block[:-1])
        row = np.cumsum(opens) - 1
        return self.words(block[opens]).reshape(-1), row * BLOCK + pfn // 64 % BLOCK

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
        found = np.zeros(len(pfn), bool)
        for piece in self._pieces(len(pfn)):
            inside = (pfn[piece] >= 0) & (pfn[piece] < self._limit)
            at = np.where(inside, pfn[piece], 0)
            words, index = self._words_of(at)
            bits = words[index] >> (at & 63).astype(np.uint64)
            found[piece] = inside & (bits & np.uint64(1)).astype(bool)
        return found

    def rank(self, pfn: Int64s) -> Int64s:
        """Count the members below each pfn."""
        return self.find(pfn)[1]

    def find(self, pfn: Int64s) -> tuple[Bools, Int64s]:
        """Tell which pfns are members, and count the members below each: for less than both cost apart."""
        found, ranks = np.zeros(len(pfn), bool), np.zeros(len(pfn), np.int64)
        for piece in self._pieces(len(pfn)):
            at = np.minimum(np.maximum(pfn[piece], 0), self._limit - 1)
            words, index = self._words_of(at)
            before = self.bits.before if isinstance(self.bits, ArrayBits) else counted_before(words)
            word, bit = words[index], np.uint64(1) << (at & 63).astype(np.uint64)
            found[piece] = (word & bit) != 0
            ranks[piece] = (
                self._before[at // BLOCK_BITS] + before[index] + np.bitwise_count(word & (bit - np.uint64(1)))
            )
        beyond = pfn >= self._limit
        found &= ~beyond & (pfn >= 0)
        ranks[beyond] = self.count
        return found, ranks

    def _pieces(self, length: int) -> Iterator[slice]:
        """Cut a row of questions, which has no answer where there are no bits."""
        return (slice(at, at + _ASKED) for at in range(0, length if self._limit > 0 else 0, _ASKED))

    def select(self, first: int, last: int) -> Int64s:
        """List the members of rank ``first`` up to, not including, ``last``, ascending."""
        last = min(last, self.count)
        if first >= last:
            return np.empty(0, np.int64)
        low = int(np.searchsorted(self._before, first, side="right")) - 1
        high = int(np.searchsorted(self._before, last, side="left"))
        block = low + np.flatnonzero(self._before[low + 1 : high + 1] > self._before[low:high])
        found = [self._select(block[at : at + _TAKEN], first, last) for at in range(0, len(block), _TAKEN)]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _select(self, block: Int64s, first: int, last: int) -> Int64s:
        """List those members of some blocks, each of which has any, whose rank is in a range."""
        words = self.words(block).reshape(-1)
        ends = np.cumsum(np.bitwise_count(words), dtype=np.int64) + self._before[block[0]]
        # The words that hold the first and the last of them.
        low, high = (int(np.searchsorted(ends, rank, side="right")) for rank in (first, last - 1))
        at = _positions(words[low : high + 1]) + low * 64
        before = int(ends[low - 1] if low else self._before[block[0]])
        at = at[max(first - before, 0) : last - before]
        if block[-1] - block[0] == len(block) - 1:
            at += block[0] * BLOCK_BITS
            return at
        return block[at // BLOCK_BITS] * BLOCK_BITS + at % BLOCK_BITS

    def runs(self) -> tuple[Int64s, Int64s]:
        """Give the members as maximal runs (start, count), ascending.

        Raises:
            UnsupportedFeatureError: there are more than fit into memory.
        """
        count = np.diff(self._before)
        mixed = np.flatnonzero((count > 0) & (count < BLOCK_BITS))
        full = np.flatnonzero(np.diff(count == BLOCK_BITS, prepend=False, append=False)) * BLOCK_BITS
        found, total = [(full[::2], full[1::2] - full[::2])], 0
        for at in range(0, len(mixed), _TAKEN):
            found.append(self._runs(mixed[at : at + _TAKEN]))
            total += len(found[-1][0])
            if total > _MOST_RUNS:
                raise UnsupportedFeatureError(
                    f"a bitmap of more than {_MOST_RUNS:,} runs of pages",
                    path=self.bits.name or None,
                    feature="runs of pages",
                )
        start, count = (np.concatenate(columns) for columns in zip(*found, strict=True))
        return PageRuns.from_runs(start, count).runs()

    def _runs(self, block: Int64s) -> tuple[Int64s, Int64s]:
        """Give the runs inside each of some blocks."""
        words = np.zeros((len(block), BLOCK + 1), np.uint64)  # the last one is where a run ends that reaches so far
        words[:, :BLOCK] = self.words(block)
        shifted = words << np.uint64(1)
        shifted[:, 1:] |= words[:, :-1] >> np.uint64(63)
        row, bit = np.divmod(_positions((words ^ shifted).reshape(-1)), BLOCK_BITS + 64)
        edge = block[row] * BLOCK_BITS + bit
        return edge[::2], edge[1::2] - edge[::2]

    def is_within(self, other: PageBitmap) -> bool:
        """Tell whether all members are members of another bitmap, of the same length, as well."""
        own, its = np.diff(self._before), np.diff(other._before)
        block = np.flatnonzero((own > 0) & (its < BLOCK_BITS))
        groups = (block[at : at + _TAKEN] for at in range(0, len(block), _TAKEN))
        return not any((self.words(group) & ~other.words(group)).any() for group in groups)

    def joined(self, other: PageBitmap) -> PageBitmap:
        """Give the members of this or another bitmap, of the same length; neither is copied."""
        return PageBitmap(JoinedBits(self.bits, other.bits), max(self._limit, other._limit))

    def common(self, other: PageBitmap) -> PageBitmap:
        """Give the members of both this and another bitmap, of the same length; neither is copied."""
        return PageBitmap(CommonBits(self.bits, other.bits), min(self._limit, other._limit))

    def __repr__(self) -> str:
        return f"PageBitmap({self.count} of {self._limit} pages)"


def words_of_runs(start: Int64s, count: Int64s, stop: int) -> UInt64s:
    """Pack runs, in any order, as far as they lie below ``stop``; negative pfns begin no run.

    Returns:
        Words, uint64, shape (stop / 64 rounded up,).
    """
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
    return words


def _below(bits: Int64s) -> UInt64s:
    """Make words of which as many low bits are set: none from 0 downwards, all from 64 on."""
    count = np.clip(bits, 0, 64).astype(np.uint64)
    some = (np.uint64(1) << (count & np.uint64(63))) - np.uint64(1)
    return np.where(count == 64, ~np.uint64(0), some)


def _positions(words: UInt64s) -> Int64s:
    """List the bits that are set."""
    used = np.flatnonzero(words)
    at = np.flatnonzero(np.unpackbits(words[used].view(np.uint8), bitorder="little"))
    found: Int64s = used[at >> 6] * 64 + (at & 63)
    return found
