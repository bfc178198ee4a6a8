"""Page tables and stores against plain dictionaries of pages: spans, states, maps, windows, batches."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dumpxlate.bitmap import PageBitmap
from dumpxlate.codecs.batch import read_pages
from dumpxlate.extents import Extents
from dumpxlate.io.joined import TailedSource
from dumpxlate.io.source import BytesSource, open_source
from dumpxlate.p2m.map import P2M
from dumpxlate.pages import CodecId, PageState, PageTable, batches, windows
from dumpxlate.pageset import EMPTY, PageRuns
from dumpxlate.stores import DeferredStore, IndexedStore, MapFit, RemappedStore, with_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from dumpxlate.arrays import Int64s
    from dumpxlate.pages import PageStore

PAGE = 64
FILE = random.Random(11).randbytes(PAGE * 40 + 7)
PLACES = 40

quick = settings(deadline=None, max_examples=60)


def ints(values: Iterable[int]) -> Int64s:
    return np.array(list(values), np.int64)


def page_set(pfns: Iterable[int]) -> PageRuns:
    return PageRuns.from_pfns(ints(sorted(pfns)))


def extents_of(places: dict[int, int]) -> Extents:
    """pfn -> offset"""
    return Extents.from_pairs(ints(places), ints(places.values()), PAGE, last_wins=True)[0]


def content(table: PageTable, body: memoryview) -> list[bytes]:
    rows = zip(table.state.tolist(), table.offset.tolist(), table.size.tolist(), strict=True)
    return [bytes(body[at : at + size]) if state == PageState.STORED else b"" for state, at, size in rows]


@st.composite
def tables(draw: st.DrawFn) -> PageTable:
    """Rows of any state whose bytes often follow one another."""
    rows, at = [], 0
    for pfn in range(draw(st.integers(0, 20))):
        state = draw(st.sampled_from([PageState.STORED] * 3 + [PageState.ZERO, PageState.ABSENT, PageState.BAD]))
        size = draw(st.sampled_from([1, 5, PAGE]))
        at = draw(st.sampled_from([at, at, at + 3, 0, 100]))
        stored = state == PageState.STORED
        rows.append((pfn, state, CodecId.RAW, at if stored else -1, size if stored else 0))
        at += size * stored
    columns = np.array(rows, np.int64).reshape(-1, 5).T
    types = (np.int64, np.uint8, np.uint8, np.int64, np.int32)
    return PageTable(*(column.astype(kind) for column, kind in zip(columns, types, strict=True)))


@quick
@given(table=tables())
def test_spans_are_maximal_and_in_row_order(table: PageTable) -> None:
    expected: list[list[int]] = []
    for state, offset, size in zip(table.state.tolist(), table.offset.tolist(), table.size.tolist(), strict=True):
        if state != PageState.STORED:
            continue
        if expected and sum(expected[-1]) == offset:
            expected[-1][1] += size
        else:
            expected.append([offset, size])
    start, length = table.spans()
    assert start.dtype == length.dtype == np.int64
    assert [list(pair) for pair in zip(start.tolist(), length.tolist(), strict=True)] == expected


def test_spans_of_more_than_two_gigabytes() -> None:
    count = 5000
    offset = np.arange(count, dtype=np.int64) << 20
    table = PageTable.raw(np.arange(count, dtype=np.int64), offset, 1 << 20)
    start, length = table.spans()
    assert (start.tolist(), length.tolist()) == ([0], [count << 20])


@quick
@given(table=tables(), data=st.data())
def test_rows_are_kept_together(table: PageTable, data: st.DataObject) -> None:
    kept = data.draw(st.lists(st.booleans(), min_size=len(table), max_size=len(table)))
    found = table.where(np.array(kept, bool))
    names = ("pfn", "state", "codec", "offset", "size")
    for name in names:
        column = getattr(table, name).tolist()
        assert getattr(found, name).tolist() == [value for value, keep in zip(column, kept, strict=True) if keep]
        assert getattr(table.where(slice(2, 5)), name).tolist() == column[2:5]
    assert len(found) == sum(kept)
    assert (table.stored().state == PageState.STORED).all()


def test_a_raw_table_is_stored_where_there_is_an_offset() -> None:
    table = PageTable.raw(ints([3, 4, 5]), ints([0, -1, 1 << 40]), PAGE)
    assert table.state.tolist() == [PageState.STORED, PageState.ABSENT, PageState.STORED]
    assert (table.offset.tolist(), table.size.tolist()) == ([0, -1, 1 << 40], [PAGE, 0, PAGE])
    assert table.codec.tolist() == [CodecId.RAW] * 3
    assert (table.state.dtype, table.codec.dtype, table.offset.dtype, table.size.dtype) == ("u1", "u1", "i8", "i4")


pfns_of = st.sets(st.integers(0, 60), max_size=40)


@quick
@given(
    places=st.dictionaries(st.integers(0, 60), st.integers(0, PLACES - 1).map(lambda at: at * PAGE + 3), max_size=30),
    zero=pfns_of,
    excluded=pfns_of,
    tail=st.integers(0, PLACES),
    data=st.data(),
)
def test_an_indexed_store_is_a_dictionary(
    places: dict[int, int], zero: set[int], excluded: set[int], tail: int, data: st.DataObject
) -> None:
    """Stored wins over zero, zero over excluded; the answers are the same over a source with a seam."""
    check_indexed(places, zero, excluded, tail, data.draw(st.lists(st.integers(-1, 70), max_size=30)))


@pytest.mark.parametrize("seed", range(6))
def test_a_larger_indexed_store(seed: int) -> None:
    dice = random.Random(seed)
    places = {pfn: dice.randrange(PLACES) * PAGE + 3 for pfn in dice.sample(range(60), 30)}
    zero, excluded = (set(dice.sample(range(61), 25)) for _ in range(2))
    check_indexed(places, zero, excluded, dice.randrange(PLACES), [dice.randrange(-1, 70) for _ in range(80)])


def check_indexed(places: dict[int, int], zero: set[int], excluded: set[int], tail: int, asked: list[int]) -> None:
    source = TailedSource(BytesSource(FILE[: tail * PAGE]), FILE[tail * PAGE :])
    store = IndexedStore(source, PAGE, extents_of(places), zero=page_set(zero), excluded=page_set(excluded))
    assert store.stored.select(0, 99).tolist() == sorted(places.keys() | zero)
    assert store.ram.select(0, 99).tolist() == sorted(places.keys() | zero | excluded)
    table = store.locate(ints(asked))
    assert table.pfn.tolist() == asked
    expected = [
        PageState.STORED if pfn in places
        else PageState.ZERO if pfn in zero
        else PageState.EXCLUDED if pfn in excluded
        else PageState.ABSENT
        for pfn in asked
    ]  # fmt: skip
    assert table.state.tolist() == expected
    assert table.offset.tolist() == [places.get(pfn, -1) for pfn in asked]
    assert table.size.tolist() == [PAGE if pfn in places else 0 for pfn in asked]
    batch = store.fetch(table)
    assert batch.table.pfn.tolist() == asked
    assert batch.table.state.tolist() == expected
    found = content(batch.table, batch.body)
    assert found == [FILE[places[pfn] : places[pfn] + PAGE] if pfn in places else b"" for pfn in asked]


def test_a_store_asks_nothing_of_the_source_before_a_page_is_wanted() -> None:
    class Untouched(BytesSource):
        def gather(self, *args: object) -> tuple[memoryview, Int64s]:
            raise AssertionError("read")

    store = IndexedStore(Untouched(FILE), PAGE, extents_of({5: 0}), zero=page_set([6]), repeated=3)
    assert store.locate(ints([5, 6, 7])).state.tolist() == [PageState.STORED, PageState.ZERO, PageState.ABSENT]
    assert not store.fetch(store.locate(ints([6, 7]))).body.nbytes
    assert store.repeated == 3


def test_sets_may_be_bitmaps() -> None:
    zero = PageBitmap.from_bytes(b"\x0c")
    store = IndexedStore(
        BytesSource(FILE), PAGE, extents_of({1: 0}), zero=zero, excluded=PageBitmap.from_bytes(b"\xf0")
    )
    assert store.ram.select(0, 99).tolist() == list(range(1, 8))
    assert store.stored.select(0, 99).tolist() == [1, 2, 3]


def test_a_deferred_store_loads_once_and_not_before() -> None:
    loaded: list[int] = []

    def load() -> PageStore:
        loaded.append(1)
        return IndexedStore(BytesSource(FILE), PAGE, extents_of({1: 0}), excluded=page_set([2]))

    store = DeferredStore(load, PAGE, 17)
    assert (store.page_size, store.entries, loaded) == (PAGE, 17, [])
    assert store.ram.count == 2
    assert store.stored.count == 1
    batch = store.fetch(store.locate(ints([1, 2])))
    assert content(batch.table, batch.body) == [FILE[:PAGE], b""]
    assert loaded == [1]


def test_a_deferred_store_that_fails_fails_again() -> None:
    def load() -> PageStore:
        raise ValueError("broken index")

    store = DeferredStore(load, PAGE, 1)
    for _ in range(2):
        with pytest.raises(ValueError, match="broken index"):
            _ = store.ram


mfns_of = st.dictionaries(st.integers(0, 50), st.integers(1, 60), max_size=40)


@quick
@given(mfns=mfns_of, held=st.sets(st.integers(0, 70), max_size=PLACES), zero=pfns_of, data=st.data())
def test_a_remapped_store_is_two_dictionaries(
    mfns: dict[int, int], held: set[int], zero: set[int], data: st.DataObject
) -> None:
    """Several pfns may share a frame, and frames may be missing on either side."""
    check_remapped(mfns, held, zero, data.draw(st.lists(st.integers(-1, 60), max_size=30)))


@pytest.mark.parametrize("seed", range(6))
def test_a_larger_remapped_store(seed: int) -> None:
    dice = random.Random(seed)
    mfns = {pfn: dice.randrange(1, 60) for pfn in dice.sample(range(50), 40)}
    asked = [dice.randrange(-1, 60) for _ in range(60)]
    check_remapped(mfns, set(dice.sample(range(70), PLACES)), set(dice.sample(range(70), 20)), asked)


def check_remapped(mfns: dict[int, int], held: set[int], zero: set[int], asked: list[int]) -> None:
    places = {mfn: at * PAGE for at, mfn in enumerate(sorted(held))}
    inner = IndexedStore(BytesSource(FILE), PAGE, extents_of(places), zero=page_set(zero))
    p2m = P2M.from_pairs(ints(mfns), ints(mfns.values()))
    store = RemappedStore(inner, p2m)
    known = places.keys() | zero
    assert store.page_size == PAGE
    assert store.ram.select(0, 99).tolist() == sorted(mfns)
    assert store.stored.select(0, 99).tolist() == sorted(pfn for pfn, mfn in mfns.items() if mfn in known)
    batch = store.fetch(store.locate(ints(asked)))
    assert batch.table.pfn.tolist() == asked
    frames = [mfns.get(pfn) for pfn in asked]
    assert batch.table.state.tolist() == [
        PageState.ABSENT if mfn is None
        else PageState.STORED if mfn in places
        else PageState.ZERO if mfn in zero
        else PageState.EXCLUDED
        for mfn in frames
    ]  # fmt: skip
    expected = [FILE[places[mfn] : places[mfn] + PAGE] if mfn in places else b"" for mfn in frames]
    assert content(batch.table, batch.body) == expected
    assert store.fit() == MapFit(
        mapped=len(mfns),
        missing=sum(mfn not in known for mfn in mfns.values()),
        aliases=len(mfns) - len(set(mfns.values())),
        held=len(known),
        unmapped=len(known - set(mfns.values())),
        invalid=max(mfns, default=-1) + 1 - len(mfns),
    )


@pytest.mark.parametrize(
    ("mapped", "missing", "held", "unmapped", "fits"),
    [
        (1000, 0, 1000, 0, True),
        (1000, 10, 1000, 10, True),
        (1000, 11, 1000, 0, False),
        (1000, 0, 1000, 11, False),
        (0, 0, 0, 0, False),
        (0, 0, 1000, 1000, False),
        (1, 1, 1000, 1000, False),
        (1000, 0, 0, 0, True),
    ],
)
def test_a_map_fits_while_misses_are_few(mapped: int, missing: int, held: int, unmapped: int, *, fits: bool) -> None:
    fit = MapFit(mapped, missing, 3, held, unmapped)
    assert fit.fits is fits


def test_a_fit_in_words() -> None:
    assert str(MapFit(4096, 1000, 2, 5000, 0)) == (
        "1,000 of 4,096 mapped pages are not in the dump, 0 of 5,000 pages in the dump are not in the map, 2 aliases"
    )


@quick
@given(count=st.integers(0, 100), size=st.integers(1, 40 * PAGE))
def test_windows_cover_every_rank_once(count: int, size: int) -> None:
    pages = page_set(range(7, 7 + 2 * count, 2))
    found = list(windows(pages, PAGE, size=size))
    assert [rank for first, last in found for rank in range(first, last)] == list(range(count))
    assert all((last - first) * PAGE <= max(size, PAGE) for first, last in found)
    assert all((last - first + 1) * PAGE > size for first, last in found[:-1])


@quick
@given(
    pfns=st.sets(st.integers(0, 300), max_size=PLACES),
    zero=st.sets(st.integers(0, 300), max_size=20),
    size=st.integers(1, 20 * PAGE),
    start=st.integers(0, 310),
    stop=st.none() | st.integers(0, 400),
)
def test_batches_bring_every_page_once(pfns: set[int], zero: set[int], size: int, start: int, stop: int | None) -> None:
    places = {pfn: at * PAGE for at, pfn in enumerate(sorted(pfns))}
    store = IndexedStore(BytesSource(FILE), PAGE, extents_of(places), zero=page_set(zero), excluded=page_set([301]))
    end = 400 if stop is None else stop
    found = list(batches(store, size=size, start=start, stop=stop))
    expected = [pfn for pfn in sorted(pfns | zero) if start <= pfn < end]
    assert [pfn for batch in found for pfn in batch.table.pfn.tolist()] == expected
    assert all(0 < len(batch.table) <= max(size // PAGE, 1) for batch in found)
    pages = [page for batch in found for page in content(batch.table, batch.body)]
    assert pages == [FILE[places[pfn] : places[pfn] + PAGE] if pfn in places else b"" for pfn in expected]


def test_an_empty_store() -> None:
    store = IndexedStore(BytesSource(b"x"), PAGE, extents_of({}))
    assert (store.ram.count, store.stored.count) == (0, 0)
    assert list(batches(store)) == []
    assert list(windows(EMPTY, PAGE)) == []
    table = store.locate(ints([0, -1]))
    assert table.state.tolist() == [PageState.ABSENT] * 2


def test_pages_beyond_the_end_of_the_file_are_bad_not_zero() -> None:
    """Extents that leave the file: in the file, in a tail, and past both, nothing is made up."""
    for source in (BytesSource(FILE), TailedSource(BytesSource(FILE[:100]), FILE[100:])):
        store = IndexedStore(source, PAGE, extents_of({0: 0, 1: len(FILE) - PAGE + 1, 2: len(FILE), 3: 1 << 60}))
        out = np.full((4, PAGE), 7, np.uint8)
        states = read_pages(store, ints(range(4)), out)
        assert states.tolist() == [PageState.STORED, PageState.BAD, PageState.BAD, PageState.BAD]
        assert out[0].tobytes() == FILE[:PAGE]
        assert not out[1:].any()
        assert with_bytes(store).count == 4


def test_pages_that_leave_a_sparse_file_are_no_holes(tmp_path: Path) -> None:
    path, block = tmp_path / "sparse", 1 << 16
    with path.open("wb") as file:
        file.truncate(10 * block)
        file.seek(3 * block)
        file.write(b"x")
    with open_source(path) as source:
        extents = Extents(ints([0, 20, 40]), ints([10, 2, 1]), ints([0, 9 * block, 1 << 60]))
        assert with_bytes(IndexedStore(source, block, extents)).select(0, 99).tolist() == [3, 21, 40]


def test_pages_in_holes_of_the_file_are_zero_without_being_read(tmp_path: Path) -> None:
    """Ten pages, of which 2 to 5 and the last two are a hole; the dump's pages lie half a page beside the file's."""
    block = 1 << 16  # file systems have holes of whole blocks, whatever their size
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.write(b"\x11" * 2 * block)
        file.seek(6 * block)
        file.write(b"\x22" * 2 * block)
        file.truncate(10 * block)
    with open_source(path) as source:
        if len(source.data_runs()[0]) == 1:
            pytest.skip("this file system has no holes")
        for shift, zero in ((0, {2, 3, 4, 5, 8, 9}), (block // 2, {2, 3, 4, 8})):
            pages = range((source.size - shift) // block)
            extents = Extents.from_pairs(ints(pages), shift + ints(pages) * block, block, last_wins=True)[0]
            store = IndexedStore(source, block, extents)
            batch = store.fetch(store.locate(ints(pages)))
            assert set(batch.table.pfn[batch.table.state == PageState.ZERO].tolist()) == zero
            assert set(with_bytes(store).select(0, 99).tolist()) == set(pages) - zero
            stored = batch.table.stored()
            found = [bytes(batch.body[at : at + block]) for at in stored.offset.tolist()]
            whole = path.read_bytes()
            assert found == [whole[shift + pfn * block :][:block] for pfn in stored.pfn.tolist()]
