"""Byte ranges to pages, against a model of one byte at a time: the first segment that has an address wins."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dumpxlate import segments
from dumpxlate.errors import TruncatedDumpError, UnsupportedFeatureError
from dumpxlate.io.joined import TailedSource
from dumpxlate.io.source import BytesSource
from dumpxlate.pages import PageState
from dumpxlate.segments import index_segments
from dumpxlate.stores import IndexedStore

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dumpxlate.arrays import Int64s
    from dumpxlate.segments import SegmentIndex

PAGE = 16
FILE = random.Random(3).randbytes(400)
Range = tuple[int, int, int]
"""start, length, offset"""

quick = settings(deadline=None, max_examples=120)
ranges_of = st.lists(
    st.tuples(st.integers(0, 300), st.integers(0, 120), st.integers(0, 280)), max_size=9
) | st.lists(  # aligned ones, which often continue each other
    st.tuples(
        *(st.integers(0, top).map(lambda page: page * PAGE) for top in (12, 5, 15)),
    ),
    max_size=9,
)


def ints(values: Iterable[int]) -> Int64s:
    return np.array(list(values), np.int64)


def index(ranges: list[Range], *, page_size: int = PAGE, file: bytes = FILE) -> SegmentIndex:
    columns = (ints(each[at] for each in ranges) for at in range(3))
    return index_segments(BytesSource(file), *columns, page_size)


def naive(ranges: list[Range], page_size: int) -> tuple[dict[int, bytes], dict[int, set[int | None]], int]:
    """Content of each page, the file offset that each of its bytes implies for the page's start, copied bytes.

    What two segments show of one place in the file is no copy.
    """
    memory: dict[int, int] = {}
    places = set()
    for start, length, offset in ranges:
        for at in range(length):
            places.add((start + at, offset + at))
            memory.setdefault(start + at, offset + at)
    repeated = len(places) - len(memory)
    pages: dict[int, bytearray] = {}
    origins: dict[int, set[int | None]] = {}
    for address, offset in memory.items():
        pfn, at = divmod(address, page_size)
        pages.setdefault(pfn, bytearray(page_size))[at] = FILE[offset]
        origins.setdefault(pfn, set()).add(offset - at)
    partial = {pfn for pfn in pages if not all(pfn * page_size + at in memory for at in range(page_size))}
    for pfn in partial:
        origins[pfn].add(None)
    return {pfn: bytes(page) for pfn, page in pages.items()}, origins, repeated


def pages_of(found: SegmentIndex, pfns: list[int], page_size: int) -> dict[int, bytes]:
    store = IndexedStore(found.source, page_size, found.extents)
    assert store.stored.select(0, 1 << 62).tolist() == pfns
    batch = store.fetch(store.locate(ints(pfns)))
    assert set(batch.table.state.tolist()) <= {PageState.STORED}
    spans = zip(batch.table.offset.tolist(), batch.table.size.tolist(), strict=True)
    return {pfn: bytes(batch.body[at : at + size]) for pfn, (at, size) in zip(pfns, spans, strict=True)}


@pytest.mark.parametrize("page_size", [PAGE, 8])
@quick
@given(ranges=ranges_of)
@example(ranges=[])
@example(ranges=[(0, 0, 5)])
@example(ranges=[(1, 1, 0)])
@example(ranges=[(3, 4, 0), (9, 4, 20), (5, 2, 50)])
@example(ranges=[(0, 100, 0), (20, 10, 200), (90, 30, 300)])
@example(ranges=[(20, 10, 200), (0, 100, 0)])
@example(ranges=[(0, 7, 0), (7, 9, 7)])
@example(ranges=[(0, 7, 0), (7, 9, 100)])
def test_every_byte_is_where_it_belongs(ranges: list[Range], page_size: int) -> None:
    check(ranges, page_size)


@pytest.mark.parametrize("seed", range(12))
def test_many_ranges_over_one_another(seed: int) -> None:
    dice = random.Random(seed)
    most = [20, 60, 150][seed % 3]
    ranges = [(dice.randrange(500), dice.randrange(most), dice.randrange(len(FILE) - most)) for _ in range(30)]
    check(ranges, [8, PAGE][seed % 2])


def check(ranges: list[Range], page_size: int) -> None:
    found = index(ranges, page_size=page_size)
    pages, origins, repeated = naive(ranges, page_size)
    assert pages_of(found, sorted(pages), page_size) == pages
    assert found.repeated == repeated
    assert found.pieces == sum(len(each) > 1 for each in origins.values())
    rows = found.extents
    assert (rows.start[1:] >= (rows.start + rows.count)[:-1]).all()
    assert (rows.count > 0).all()


def test_whole_pages_stay_in_the_file() -> None:
    source = BytesSource(FILE)
    found = index_segments(source, ints([32, 64]), ints([32, 16]), ints([7, 39]), PAGE)
    assert found.source is source
    rows = found.extents
    assert (rows.start.tolist(), rows.count.tolist(), rows.offset.tolist()) == ([2], [3], [7])


def test_pages_in_pieces_stand_behind_the_file() -> None:
    found = index([(8, 40, 100)])
    assert isinstance(found.source, TailedSource)
    assert found.source.size == len(FILE) + PAGE
    assert found.extents.start.tolist() == [0, 1]
    assert found.extents.offset.tolist() == [len(FILE), 108]
    assert bytes(found.source.view(len(FILE))) == bytes(8) + FILE[100:108]


def test_high_addresses() -> None:
    start = 1 << 61
    found = index([(start + 8, 3 * PAGE, 10)])
    assert found.extents.start.tolist() == [start // PAGE + at for at in (0, 1, 3)]
    assert found.pieces == 2
    assert bytes(found.source.view(len(FILE), PAGE)) == bytes(8) + FILE[10:18]


def test_a_piece_outside_the_file_is_an_error() -> None:
    with pytest.raises(TruncatedDumpError):
        index([(8, 8, len(FILE) - 4)])


def test_a_hostile_table_does_not_allocate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is one of bytes: the same number of 64 KiB pages takes 16 times as much."""
    monkeypatch.setattr(segments, "_PIECES_LIMIT", 10 * PAGE)
    assert index([(PAGE * at, 1, 0) for at in range(10)]).pieces == 10
    with pytest.raises(UnsupportedFeatureError, match="11 pages lie in 11 pieces: at most 10"):
        index([(PAGE * at, 1, 0) for at in range(11)])
    with pytest.raises(UnsupportedFeatureError, match="6 pages lie in 6 pieces: at most 5"):
        index([(2 * PAGE * at, 1, 0) for at in range(6)], page_size=2 * PAGE)


def test_the_limit_holds_for_large_pages() -> None:
    start = np.arange(5000, dtype=np.int64) << 16
    with pytest.raises(UnsupportedFeatureError, match="at most 4096"):
        index_segments(BytesSource(FILE), start, np.ones_like(start), np.zeros_like(start), 1 << 16)


COUNT = 30_000
NUMBERS = np.arange(COUNT, dtype=np.int64)
SHAPES = {  # start, length, pages in all
    "nested": (NUMBERS, 2 * (COUNT - NUMBERS), 2 * COUNT),
    "staircase": (NUMBERS, np.full(COUNT, COUNT), 2 * COUNT - 1),
    "same": (np.zeros_like(NUMBERS), np.full(COUNT, 64), 64),
    "apart": (NUMBERS * 3, np.ones_like(NUMBERS), COUNT),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_many_segments_take_no_quadratic_time(shape: str) -> None:
    start, length, total = SHAPES[shape]
    begun = time.process_time()
    for order in (slice(None), slice(None, None, -1)):
        found = index_segments(
            BytesSource(b""), start[order] * 4096, length[order] * 4096, np.zeros_like(NUMBERS), 4096
        )
        assert found.extents.pages().count == total
        assert found.repeated == (0 if shape in ("same", "apart") else (int(length.sum()) - total) * 4096)
    assert time.process_time() - begun < 5
