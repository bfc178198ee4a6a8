"""Where the words of a bitmap are: in memory, in a file, or made of other bitmaps; brought a block at a time."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np

from dumpxlate.arrays import runs
from dumpxlate.io.source import check_range
from dumpxlate.pageset import PageRuns

if TYPE_CHECKING:
    from dumpxlate.arrays import Int64s, UInt16s, UInt64s
    from dumpxlate.io.source import Source

__all__ = [
    "BLOCK",
    "BLOCK_BITS",
    "BLOCK_BYTES",
    "ArrayBits",
    "Bits",
    "CommonBits",
    "InvertedBits",
    "JoinedBits",
    "SourceBits",
    "counted_before",
]

BLOCK = 128
"""Words of a block: to know how many bits are set in each takes 256 KiB for 1 TiB of 4 KiB pages."""
BLOCK_BITS = BLOCK * 64
BLOCK_BYTES = BLOCK * 8

_NEAR = 64
"""Blocks of zeros that are not worth to be passed over: a file may be full of small holes."""


class Bits(Protocol):
    """Blocks of words, of which bit ``n & 63`` of word ``n >> 6`` is number n (LSB first)."""

    name: str
    """The file that they are in, empty where it is none."""
    blocks: int
    """How many there are."""

    def used(self) -> tuple[Int64s, Int64s]:
        """Give runs (start, count) of blocks, ascending, outside which all are known to be zero without a look."""
        ...

    def take(self, block: Int64s) -> UInt64s:
        """Bring one block or more, in the order given, shape (n, BLOCK); the result is not to be written to.

        Raises:
            TruncatedDumpError: the file has become shorter.
        """
        ...


class ArrayBits:
    """Words in memory, which are copied only where they are no whole blocks.

    Args:
        words: little-endian words, uint64, shape (w,).
    """

    name = ""

    def __init__(self, words: UInt64s) -> None:
        missing = -len(words) % BLOCK
        if missing:
            words = np.concatenate((words, np.zeros(missing, np.uint64)))
        self.words = words
        self.blocks = len(words) // BLOCK

    @cached_property
    def before(self) -> UInt16s:
        """Bits that are set before each word in its block."""
        return counted_before(self.words)

    def used(self) -> tuple[Int64s, Int64s]:
        """Give all blocks as one run."""
        return _everything(self.blocks)

    def take(self, block: Int64s) -> UInt64s:
        """Bring blocks."""
        return self.words.reshape(-1, BLOCK)[block]


class SourceBits:
    """Packed bytes in a file, which are read when they are asked for; holes of a sparse file are not.

    Args:
        source: the file.
        at: where they begin in it.
        length: how many there are; what follows up to a whole block is zero.

    Raises:
        TruncatedDumpError: they reach beyond the end of the file.
    """

    def __init__(self, source: Source, at: int, length: int) -> None:
        check_range(source.name, source.size, at, length)
        self.name = source.name
        self.blocks = -(-length // BLOCK_BYTES)
        self._source = source
        self._at = at
        self._length = length

    def used(self) -> tuple[Int64s, Int64s]:
        """Give the blocks that are not in holes from their first byte to their last, and what small holes have."""
        stop = self._at + self._length
        start, length = self._source.data_runs(self._at, stop)
        low = np.maximum(start, self._at) - self._at
        high = np.minimum(start + length, stop) - self._at
        low, high = low[low < high] // BLOCK_BYTES, -(-high[low < high] // BLOCK_BYTES)
        start, count = PageRuns.from_runs(low, high - low + _NEAR).runs()
        return start, count - _NEAR

    def take(self, block: Int64s) -> UInt64s:
        """Read blocks, those that follow each other at once."""
        first, count = runs(block)
        begin = block[first] * BLOCK_BYTES
        size = np.minimum(count * BLOCK_BYTES, self._length - begin)
        body, place = self._source.gather(self._at + begin, size.astype(np.int32))
        if (place[1:] - place[:-1] == size[:-1]).all() and size.sum() == len(block) * BLOCK_BYTES:
            return np.frombuffer(body, "<u8", len(block) * BLOCK, int(place[0])).reshape(-1, BLOCK)
        words = np.zeros((len(block), BLOCK), np.uint64)
        for row, length, at in zip(first.tolist(), size.tolist(), place.tolist(), strict=True):
            words[row:].reshape(-1).view(np.uint8)[:length] = np.frombuffer(body, np.uint8, length, at)
        return words


class InvertedBits:
    """The bits that others are not: nothing is copied.

    Args:
        other: the others.
    """

    def __init__(self, other: Bits) -> None:
        self.name = other.name
        self.blocks = other.blocks
        self._other = other

    def used(self) -> tuple[Int64s, Int64s]:
        """Give all blocks as one run."""
        return _everything(self.blocks)

    def take(self, block: Int64s) -> UInt64s:
        """Bring blocks of the others."""
        return ~self._other.take(block)


class _BothBits:
    """The bits of two, of which nothing is copied.

    Args:
        one: bits.
        other: as many bits.
    """

    def __init__(self, one: Bits, other: Bits) -> None:
        self.name = one.name or other.name
        self.blocks = one.blocks
        self._one = one
        self._other = other


class JoinedBits(_BothBits):
    """The bits that are set in one or the other."""

    def used(self) -> tuple[Int64s, Int64s]:
        """Give the blocks that either uses."""
        (start, count), (other_start, other_count) = self._one.used(), self._other.used()
        return PageRuns.from_runs(np.append(start, other_start), np.append(count, other_count)).runs()

    def take(self, block: Int64s) -> UInt64s:
        """Bring blocks of both."""
        return self._one.take(block) | self._other.take(block)


class CommonBits(_BothBits):
    """The bits that are set in both."""

    def used(self) -> tuple[Int64s, Int64s]:
        """Give the blocks that the first uses."""
        return self._one.used()

    def take(self, block: Int64s) -> UInt64s:
        """Bring blocks of both."""
        return self._one.take(block) & self._other.take(block)


def counted_before(words: UInt64s) -> UInt16s:
    """Count the bits that are set before each word in its block, for the words of whole blocks, shape (w,)."""
    counts = np.bitwise_count(words).reshape(-1, BLOCK)
    found: UInt16s = np.cumsum(counts, axis=1, dtype=np.uint16) - counts
    return found.reshape(-1)


def _everything(blocks: int) -> tuple[Int64s, Int64s]:
    """Give one run of all blocks, none if there are none."""
    some = min(blocks, 1)
    return np.zeros(some, np.int64), np.full(some, blocks, np.int64)
