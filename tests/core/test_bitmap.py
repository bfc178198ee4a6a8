"""PageBitmap where a set of bits is special: packed bytes, odd lengths, a stop inside, chunks (sets: test_pageset)."""

from __future__ import annotations

import mmap
import time
import tracemalloc
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dumpxlate import bitmap
from dumpxlate.bitmap import PageBitmap
from dumpxlate.errors import UnsupportedFeatureError
from dumpxlate.io.bits import BLOCK_BITS, SourceBits
from dumpxlate.io.source import BytesSource, open_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from dumpxlate.arrays import Bools, Int32s, Int64s

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
    assert np.flatnonzero(pages.find(asked)[0]).tolist() == [pfn + 1 for pfn in expected]
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


FILLS: dict[str, Callable[[int], Bools]] = {
    "empty": lambda seed: np.zeros(BLOCK_BITS, bool),
    "full": lambda seed: np.ones(BLOCK_BITS, bool),
    "first": lambda seed: np.arange(BLOCK_BITS) == 0,
    "last": lambda seed: np.arange(BLOCK_BITS) == BLOCK_BITS - 1,
    "all but the last": lambda seed: np.arange(BLOCK_BITS) != BLOCK_BITS - 1,
    "begins full": lambda seed: np.arange(BLOCK_BITS) < 777,
    "ends full": lambda seed: np.arange(BLOCK_BITS) >= 64 * 100,
    "alternating": lambda seed: np.arange(BLOCK_BITS) % 2 == 0,
    "any": lambda seed: np.random.default_rng(seed).random(BLOCK_BITS) < 0.3,
    "runs": lambda seed: np.repeat(np.random.default_rng(seed).random(BLOCK_BITS // 128) < 0.5, 128),
}


def in_memory(packed: bytes, stop: int | None) -> PageBitmap:
    return PageBitmap.from_bytes(packed, stop)


def in_a_file(packed: bytes, stop: int | None) -> PageBitmap:
    return PageBitmap(SourceBits(BytesSource(b"before" + packed + b"behind"), 6, len(packed)), stop)


@pytest.mark.parametrize("make", [in_memory, in_a_file])
@pytest.mark.parametrize("taken", [1, 3, 1024])
@settings(deadline=None, max_examples=25)
@given(fills=st.lists(st.sampled_from(sorted(FILLS)), max_size=6), cut=st.integers(0, 2 * BLOCK_BITS), data=st.data())
@example(fills=["full"] * 4, cut=0, data=None)
@example(fills=["full"] * 4, cut=BLOCK_BITS, data=None)
@example(fills=["full"] * 4, cut=1, data=None)
@example(fills=["last", "first", "empty", "last", "full", "first"], cut=0, data=None)
@example(fills=["ends full", "full", "begins full", "empty", "alternating"], cut=BLOCK_BITS + 1, data=None)
def test_blocks_of_every_kind(
    make: Callable[[bytes, int | None], PageBitmap], taken: int, fills: list[str], cut: int, data: st.DataObject | None
) -> None:
    """Against an array of bools: empty, full and mixed blocks beside each other, runs over their edges."""
    member = np.concatenate([np.zeros(0, bool), *(FILLS[fill](seed) for seed, fill in enumerate(fills))])
    packed = np.packbits(member, bitorder="little").tobytes()
    stop = max(len(member) - cut, 0)
    member[stop:] = False
    with mock.patch.object(bitmap, "_TAKEN", taken), mock.patch.object(bitmap, "_ASKED", 100 * taken):
        pages = make(packed, stop)
        held = np.flatnonzero(member)
        assert pages.count == len(held)
        assert pages.stop == (held[-1] + 1 if len(held) else 0)
        asked = np.arange(-2, len(member) + 70)
        inside = np.concatenate((np.zeros(2, bool), member, np.zeros(70, bool)))
        assert np.array_equal(pages.contains(asked), inside)
        assert np.array_equal(pages.rank(asked), np.cumsum(inside) - inside)
        assert np.array_equal(pages.contains(asked[::-7]), inside[::-7])
        assert np.array_equal(pages.select(0, len(held) + 5), held)
        edges = np.flatnonzero(np.diff(inside)) - 1
        start, count = pages.runs()
        assert np.array_equal(start, edges[::2])
        assert np.array_equal(start + count, edges[1::2])
        for _ in range(8 if data else 0):
            first, last = sorted((data.draw(st.integers(0, len(held))), data.draw(st.integers(0, len(held)))))
            assert np.array_equal(pages.select(first, last), held[first:last])


@pytest.mark.parametrize("make", [in_memory, in_a_file])
@pytest.mark.parametrize("one", sorted(FILLS))
@pytest.mark.parametrize("other", sorted(FILLS))
def test_one_bitmap_and_another(make: Callable[[bytes, int | None], PageBitmap], one: str, other: str) -> None:
    left = np.concatenate([FILLS[fill](at) for at, fill in enumerate(("empty", one, one, "full"))])
    right = np.concatenate([FILLS[fill](at) for at, fill in enumerate(("empty", other, one, "full"))])
    stop = len(left) - 1000
    a, b = (make(np.packbits(bits, bitorder="little").tobytes(), stop) for bits in (left, right))
    assert a.is_within(b) == (not (left & ~right)[:stop].any())
    assert np.array_equal(a.joined(b).select(0, stop), np.flatnonzero((left | right)[:stop]))
    assert np.array_equal(a.common(b).select(0, stop), np.flatnonzero((left & right)[:stop]))


class Counting(BytesSource):
    """Says what is read of it."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.read_bytes = 0

    def gather(self, offset: Int64s, size: Int32s) -> tuple[memoryview, Int64s]:
        self.read_bytes += int(size.sum())
        return super().gather(offset, size)


def test_blocks_without_a_question_are_not_read_again() -> None:
    fills = ["full"] * 20 + ["empty"] * 20 + ["any"] + ["empty"] * 20
    member = np.concatenate([FILLS[fill](1) for fill in fills])
    source = Counting(np.packbits(member, bitorder="little").tobytes())
    pages = PageBitmap(SourceBits(source, 0, source.size))
    assert pages.count == member.sum()
    assert source.read_bytes == source.size
    source.read_bytes = 0
    assert pages.select(5, 10 * BLOCK_BITS)[-1] == 10 * BLOCK_BITS - 1
    assert pages.contains(ints([7, 25 * BLOCK_BITS])).tolist() == [True, False]
    assert pages.rank(ints([30 * BLOCK_BITS, 7])).tolist() == [20 * BLOCK_BITS, 7]
    assert source.read_bytes == 0
    assert len(pages.runs()[0]) == 1 + np.count_nonzero(np.diff(member[40 * BLOCK_BITS :].view(np.uint8)) == 1)
    assert source.read_bytes == BLOCK_BITS // 8


def test_sixteen_tebibytes(tmp_path: Path) -> None:
    """A bitmap of 512 MiB of which 3 MiB are data: what is asked of it is answered within some MiB."""
    path, stop = tmp_path / "bits", 1 << 32
    with path.open("wb") as file:
        file.truncate(stop // 8)
        for at in (0, 200 << 20, (512 << 20) - (1 << 20)):
            file.seek(at)
            file.write(b"\xff" * (1 << 20))
    if path.stat().st_blocks * 512 > 64 << 20:
        pytest.skip("the file system has no holes")
    million = 1 << 23  # pages
    with open_source(path) as source:
        tracemalloc.start()
        try:
            pages = PageBitmap(SourceBits(source, 0, stop // 8), stop - 5)
            assert pages.count == 3 * million - 5
            assert pages.stop == stop - 5
            second = (200 << 20) * 8
            assert [part.tolist() for part in pages.runs()] == [
                [0, second, stop - million], [million, million, million - 5]
            ]  # fmt: skip
            assert pages.select(million - 1, million + 1).tolist() == [million - 1, second]
            assert pages.rank(ints([second, stop, second + 3])).tolist() == [million, 3 * million - 5, million + 3]
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 20 << 20


def test_more_runs_than_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bitmap, "_MOST_RUNS", 1000)
    pages = PageBitmap.from_bytes(b"\x55" * 300)
    assert pages.count == 1200
    with pytest.raises(UnsupportedFeatureError, match="more than 1,000 runs of pages"):
        pages.runs()
    assert len(PageBitmap.from_bytes(b"\x55" * 250).runs()[0]) == 1000


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
