"""PageBitmap where a set of bits is special: packed bytes, odd lengths, a stop inside, chunks (sets: test_pageset)."""

from __future__ import annotations

import mmap
import time
import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dumpxlate import bitmap
from dumpxlate.bitmap import PageBitmap

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dumpxlate.arrays import Int64s

quick = settings(deadline=None, max_examples=80)


def ints(values: Iterable[int]) -> Int64s:
    return np.array(list(values), np.int64)


def bits_of(packed: bytes, stop: int | None) -> list[int]:
    """Bit n & 7 of byte n >> 3, as kdump has it."""
    every = [8 * at + bit for at, byte in enumerate(packed) for bit in range(8) if byte >> bit & 1]
    return [pfn for pfn in every if stop is None or pfn < stop]


def check(pages: PageBitmap, expected: list[int], far: int) -> None:
    assert pages.count == len(expected)
    assert pages.stop == (expected[-1] + 1 if expected else 0)
    assert pages.select(0, len(expected)).tolist() == expected
    asked = ints([-1, *range(far), 1 << 60])
    assert np.flatnonzero(pages.contains(asked)).tolist() == [pfn + 1 for pfn in expected]
    assert pages.rank(asked).tolist() == np.searchsorted(ints(expected), asked).tolist()
    start, count = pages.runs()
    assert [
        pfn for first, n in zip(start.tolist(), count.tolist(), strict=True) for pfn in range(first, first + n)
    ] == (expected)
    assert (start[1:] > (start + count)[:-1]).all()
    assert (count > 0).all()


@quick
@given(packed=st.binary(max_size=150), stop=st.none() | st.integers(0, 1300))
@example(packed=b"", stop=None)
@example(packed=b"", stop=5)
@example(packed=b"\xff", stop=0)
@example(packed=b"\xff" * 8, stop=64)
@example(packed=b"\xff" * 64, stop=512)
@example(packed=b"\xff" * 65, stop=513)
@example(packed=b"\xff" * 16, stop=63)
@example(packed=b"\xff" * 16, stop=64)
@example(packed=b"\xff" * 9, stop=1000)
def test_packed_bytes_of_any_length_and_any_stop(packed: bytes, stop: int | None) -> None:
    expected = bits_of(packed, stop)
    check(PageBitmap.from_bytes(packed, stop), expected, 8 * len(packed) + 70)
    check(PageBitmap.from_bytes(memoryview(b"x" + packed)[1:], stop), expected, 8 * len(packed) + 70)


@quick
@given(
    pairs=st.lists(st.tuples(st.integers(-200, 1400), st.integers(-3, 500)), max_size=8),
    stop=st.integers(0, 1200),
)
@example(pairs=[(0, 64)], stop=64)
@example(pairs=[(0, 65)], stop=64)
@example(pairs=[(64, 64)], stop=64)
@example(pairs=[(5, 3), (5, 3), (6, 200)], stop=190)
@example(pairs=[(3, (1 << 63) - 1)], stop=9)
def test_runs_that_overlap_and_leave_the_bitmap(pairs: list[tuple[int, int]], stop: int) -> None:
    pages = PageBitmap.from_runs(ints(start for start, _ in pairs), ints(count for _, count in pairs), stop)
    expected = {pfn for start, count in pairs if start >= 0 for pfn in range(start, min(start + count, stop))}
    check(pages, sorted(expected), stop + 70)


def test_bits_of_one_word() -> None:
    assert PageBitmap.from_words(np.array([1, 1 << 63], np.uint64)).select(0, 2).tolist() == [0, 127]


def test_a_mapped_bitmap_is_not_copied() -> None:
    with mmap.mmap(-1, 1 << 16) as mapped:
        view = memoryview(mapped)
        pages = PageBitmap.from_bytes(view)
        assert np.shares_memory(pages.bits.words, np.frombuffer(view, np.uint8))
        mapped[5] = 2
        assert pages.contains(ints([41])).tolist() == [True]
        del pages
        view.release()


@pytest.mark.parametrize("stop", [None, 63, 64, 100, 511, 512, 4 * 64 * 8])
@pytest.mark.parametrize("fill", [0x00, 0x80, 0xFF])
def test_chunks_join(monkeypatch: pytest.MonkeyPatch, stop: int | None, fill: int) -> None:
    """runs() and the rank table look at a chunk at a time; a run may go on in the next."""
    monkeypatch.setattr(bitmap, "_TAKEN", 1)
    packed = bytes([fill]) * 200 + bytes(130) + bytes([fill]) * 64 + b"\x01"
    check(PageBitmap.from_bytes(packed, stop), bits_of(packed, stop), 8 * len(packed) + 70)


def test_a_tebibyte_of_guest() -> None:
    """2**28 pages: 32 MiB of bits, and the answers take little beside them."""
    stop = 1 << 28
    start = np.arange(0, stop, 1 << 16, dtype=np.int64) + 100
    begun = time.process_time()
    tracemalloc.start()
    try:
        pages = PageBitmap.from_runs(start, np.full(len(start), 1000), stop)
        assert pages.count == 1000 * len(start)
        assert pages.stop == stop - (1 << 16) + 1100
        assert pages.select(1999, 2001).tolist() == [(1 << 16) + 1099, (2 << 16) + 100]
        assert pages.rank(ints([stop, (1 << 16) + 600])).tolist() == [pages.count, 1500]
        assert [part.tolist() for part in pages.runs()] == [start.tolist(), [1000] * len(start)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 128 << 20
    assert time.process_time() - begun < 10


def test_runs_on_top_of_one_another_are_written_once() -> None:
    """A table that names the same huge run again and again costs no more than one that names it once."""
    stop = 1 << 26
    count = np.full(20_000, stop)
    tracemalloc.start()
    try:
        assert PageBitmap.from_runs(np.zeros(20_000, np.int64), count, stop).count == stop
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


def test_repr_says_how_much() -> None:
    assert repr(PageBitmap.from_bytes(b"\x07", 6)) == "PageBitmap(3 of 6 pages)"
