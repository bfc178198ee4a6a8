"""PageRuns, picked members, and the algebra of page sets, against Python's own sets and ranges."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dumpxlate.bitmap import PageBitmap
from dumpxlate.io.bits import SourceBits
from dumpxlate.io.source import BytesSource
from dumpxlate.pageset import EMPTY, PageRuns, Picked, difference, intersection, mask, union

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dumpxlate.arrays import Int64s
    from dumpxlate.pageset import PageSet

TOP = 1 << 52
STOP = 700  # universe of the small sets: no multiple of 8

quick = settings(deadline=None, max_examples=40)
small_runs = st.lists(st.tuples(st.integers(0, STOP - 1), st.integers(0, 90)), max_size=12)
huge_runs = st.lists(
    st.tuples(
        st.one_of(st.integers(0, TOP), st.integers(TOP - 200, TOP), st.integers(0, 200)),
        st.one_of(st.integers(0, 60), st.integers(0, TOP)),
    ),
    max_size=12,
)


def ints(values: Iterable[int]) -> Int64s:
    return np.array(list(values), np.int64)


def arrays(pairs: list[tuple[int, int]]) -> tuple[Int64s, Int64s]:
    return ints(start for start, _ in pairs), ints(count for _, count in pairs)


def members(pairs: list[tuple[int, int]]) -> set[int]:
    return {pfn for start, count in pairs for pfn in range(start, min(start + count, STOP))}


def page_runs(pairs: list[tuple[int, int]]) -> PageRuns:
    return PageRuns.from_runs(*arrays([(start, min(count, STOP - start)) for start, count in pairs]))


def page_bitmap(pairs: list[tuple[int, int]]) -> PageBitmap:
    return PageBitmap.from_runs(*arrays(pairs), STOP)


def packed(pairs: list[tuple[int, int]]) -> PageBitmap:
    bits = np.zeros(STOP, np.uint8)
    bits[list(members(pairs))] = 1
    return PageBitmap.from_bytes(np.packbits(bits, bitorder="little").tobytes(), STOP)


def read(pairs: list[tuple[int, int]]) -> PageBitmap:
    """The same bits in a file, behind something else and not on a boundary."""
    bits = np.ones(STOP, np.uint8)
    inside = members(pairs)
    bits[[pfn for pfn in range(STOP) if pfn not in inside]] = 0
    body = np.packbits(bits, bitorder="little").tobytes()
    return PageBitmap(SourceBits(BytesSource(b"header" + body + b"\xff" * 9), 6, len(body)), STOP)


def picked(pairs: list[tuple[int, int]]) -> Picked:
    """Every page, of which some are taken."""
    return Picked(page_runs([(0, STOP)]), page_runs(pairs))


def picked_from_file(pairs: list[tuple[int, int]]) -> Picked:
    """The members, and some more, of which the members are taken."""
    wanted = members(pairs)
    more = sorted(wanted | set(range(0, STOP, 3)))
    ranks = [rank for rank, pfn in enumerate(more) if pfn in wanted]
    return Picked(read([(pfn, 1) for pfn in more]), PageRuns.from_pfns(ints(ranks)))


def naive_runs(pages: set[int]) -> list[tuple[int, int]]:
    found: list[list[int]] = []
    for pfn in sorted(pages):
        if found and sum(found[-1]) == pfn:
            found[-1][1] += 1
        else:
            found.append([pfn, 1])
    return [(start, count) for start, count in found]


def as_pairs(pages: PageSet) -> list[tuple[int, int]]:
    start, count = pages.runs()
    assert start.dtype == count.dtype == np.int64
    return list(zip(start.tolist(), count.tolist(), strict=True))


def check_set(pages: PageSet, expected: set[int]) -> None:
    ordered = sorted(expected)
    assert pages.count == len(expected)
    assert pages.stop == max(expected, default=-1) + 1
    assert as_pairs(pages) == naive_runs(expected)
    asked = ints([-(1 << 62), -2, -1, *range(STOP + 70), 1 << 62])
    assert pages.contains(asked).tolist() == [pfn in expected for pfn in asked.tolist()]
    assert pages.contains(asked).dtype == bool
    below = np.searchsorted(ints(ordered), asked)
    assert pages.rank(asked).tolist() == below.tolist()
    assert pages.rank(asked).dtype == np.int64
    assert pages.select(0, len(expected)).tolist() == ordered
    assert pages.rank(pages.select(0, len(expected))).tolist() == list(range(len(expected)))


every_kind = pytest.mark.parametrize("make", [page_runs, page_bitmap, packed, read, picked, picked_from_file])


@every_kind
@quick
@given(pairs=small_runs)
@example(pairs=[])
@example(pairs=[(0, STOP)])
@example(pairs=[(63, 2), (127, 1), (511, 2)])
def test_a_page_set_is_a_set(make: Callable[[list[tuple[int, int]]], PageSet], pairs: list[tuple[int, int]]) -> None:
    check_set(make(pairs), members(pairs))


def scattered(seed: int, count: int) -> list[tuple[int, int]]:
    """More runs than hypothesis likes to draw."""
    dice = random.Random(seed)
    return [(dice.randrange(STOP), dice.randrange(1, 2000 // count)) for _ in range(count)]


@every_kind
@pytest.mark.parametrize("count", [10, 40, 150])
def test_a_larger_set(make: Callable[[list[tuple[int, int]]], PageSet], count: int) -> None:
    pairs = scattered(count, count)
    pages, ordered = make(pairs), sorted(members(pairs))
    check_set(pages, set(ordered))
    for first, last in [(0, 5), (17, 90), (len(ordered) // 2, len(ordered) - 1), (len(ordered) - 3, len(ordered) + 9)]:
        assert pages.select(first, last).tolist() == ordered[first:last]


@every_kind
@quick
@given(pairs=small_runs, data=st.data())
def test_select_is_a_slice(
    make: Callable[[list[tuple[int, int]]], PageSet], pairs: list[tuple[int, int]], data: st.DataObject
) -> None:
    pages, ordered = make(pairs), sorted(members(pairs))
    first = data.draw(st.integers(0, len(ordered) + 2))
    last = data.draw(st.integers(0, len(ordered) + 2))
    found = pages.select(first, last)
    assert found.tolist() == ordered[first:last]
    assert found.dtype == np.int64


@every_kind
@quick
@given(pairs=small_runs, bounds=st.tuples(st.integers(0, STOP + 50), st.integers(0, STOP + 50)))
def test_mask(
    make: Callable[[list[tuple[int, int]]], PageSet], pairs: list[tuple[int, int]], bounds: tuple[int, int]
) -> None:
    low, high = sorted(bounds)
    found, expected = mask(make(pairs), low, high), members(pairs)
    assert found.tolist() == [pfn in expected for pfn in range(low, high)]


@pytest.mark.parametrize("left", [page_runs, page_bitmap])
@pytest.mark.parametrize("right", [page_runs, page_bitmap])
@quick
@given(a=small_runs, b=small_runs)
def test_algebra(
    left: Callable[[list[tuple[int, int]]], PageSet],
    right: Callable[[list[tuple[int, int]]], PageSet],
    a: list[tuple[int, int]],
    b: list[tuple[int, int]],
) -> None:
    check_algebra(left, right, a, b)


@pytest.mark.parametrize("left", [page_runs, page_bitmap])
@pytest.mark.parametrize("right", [page_runs, page_bitmap])
@pytest.mark.parametrize("count", [10, 40, 150])
def test_algebra_of_larger_sets(
    left: Callable[[list[tuple[int, int]]], PageSet],
    right: Callable[[list[tuple[int, int]]], PageSet],
    count: int,
) -> None:
    check_algebra(left, right, scattered(count, count), scattered(count + 1, count))


def check_algebra(
    left: Callable[[list[tuple[int, int]]], PageSet],
    right: Callable[[list[tuple[int, int]]], PageSet],
    a: list[tuple[int, int]],
    b: list[tuple[int, int]],
) -> None:
    one, other = left(a), right(b)
    assert as_pairs(union(one, other)) == naive_runs(members(a) | members(b))
    assert as_pairs(intersection(one, other)) == naive_runs(members(a) & members(b))
    assert as_pairs(difference(one, other)) == naive_runs(members(a) - members(b))


def naive_merge(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for start, count in sorted(pair for pair in pairs if pair[1] > 0):
        if found and start <= sum(found[-1]):
            found[-1] = (found[-1][0], max(sum(found[-1]), start + count) - found[-1][0])
        else:
            found.append((start, count))
    return found


@quick
@given(pairs=huge_runs, asked=st.lists(st.integers(-5, 2 * TOP), max_size=20))
def test_runs_as_far_as_a_file_may_claim(pairs: list[tuple[int, int]], asked: list[int]) -> None:
    pages, expected = PageRuns.from_runs(*arrays(pairs)), naive_merge(pairs)
    ranges = [range(start, start + count) for start, count in expected]
    assert as_pairs(pages) == expected
    assert pages.count == sum(count for _, count in expected)
    assert pages.stop == (ranges[-1].stop if ranges else 0)
    edges = [pfn for each in ranges for pfn in (each.start - 1, each.start, each.stop - 1, each.stop)]
    wanted = ints(asked + edges)
    assert pages.contains(wanted).tolist() == [any(pfn in each for each in ranges) for pfn in wanted.tolist()]
    ranks = [sum(min(max(pfn - each.start, 0), len(each)) for each in ranges) for pfn in wanted.tolist()]
    assert pages.rank(wanted).tolist() == ranks


@quick
@given(pairs=huge_runs, data=st.data())
def test_select_anywhere_in_huge_sets(pairs: list[tuple[int, int]], data: st.DataObject) -> None:
    pages, expected = PageRuns.from_runs(*arrays(pairs)), naive_merge(pairs)
    first = data.draw(st.integers(0, max(pages.count, 1)))
    found = pages.select(first, first + data.draw(st.integers(0, 40)))
    before, names = 0, []
    for start, count in expected:
        names += [start + rank - before for rank in range(max(first, before), min(first + 40, before + count))]
        before += count
    assert found.tolist() == names[: len(found)]
    assert pages.rank(found).tolist() == list(range(first, first + len(found)))


@quick
@given(a=huge_runs, b=huge_runs, asked=st.lists(st.integers(0, 2 * TOP), max_size=10))
def test_algebra_of_huge_sets(a: list[tuple[int, int]], b: list[tuple[int, int]], asked: list[int]) -> None:
    one, other = PageRuns.from_runs(*arrays(a)), PageRuns.from_runs(*arrays(b))
    ends = [pfn for pages in (one, other) for pair in as_pairs(pages) for pfn in (pair[0], sum(pair))]
    edges = [pfn + by for pfn in ends for by in (-1, 0)]
    wanted = ints(asked + edges)
    inside_one, inside_other = one.contains(wanted), other.contains(wanted)
    joined, both, left = union(one, other), intersection(one, other), difference(one, other)
    assert joined.contains(wanted).tolist() == (inside_one | inside_other).tolist()
    assert both.contains(wanted).tolist() == (inside_one & inside_other).tolist()
    assert left.contains(wanted).tolist() == (inside_one & ~inside_other).tolist()
    assert joined.count == one.count + other.count - both.count
    assert left.count == one.count - both.count
    for pages in (joined, both, left):
        assert as_pairs(pages) == naive_merge(as_pairs(pages))


@quick
@given(st.sets(st.integers(0, TOP), max_size=60) | st.sets(st.integers(TOP - 70, TOP), max_size=60))
def test_from_pfns(pages: set[int]) -> None:
    found = PageRuns.from_pfns(ints(sorted(pages)))
    assert as_pairs(found) == naive_runs(pages)
    assert found.select(0, len(pages)).tolist() == sorted(pages)


def test_nothing() -> None:
    for pages in (EMPTY, PageRuns.from_pfns(ints([])), PageRuns.from_runs(ints([5]), ints([0]))):
        assert (pages.count, pages.stop) == (0, 0)
        assert pages.contains(ints([-1, 0, 5])).tolist() == [False] * 3
        assert pages.rank(ints([-1, 0, 5])).tolist() == [0] * 3
        assert pages.select(0, 5).tolist() == []
        assert as_pairs(pages) == []
        assert as_pairs(union(pages, EMPTY)) == as_pairs(difference(pages, EMPTY)) == []
        assert mask(pages, 0, 3).tolist() == [False] * 3
    assert EMPTY.contains(ints([])).tolist() == EMPTY.rank(ints([])).tolist() == []


def test_repr_says_how_much() -> None:
    assert repr(page_runs([(0, 3), (10, 2)])) == "PageRuns(5 pages in 2 runs)"


def test_what_is_given_back_is_no_way_in() -> None:
    pages = page_runs([(10, 5), (20, 5)])
    pages.select(3, 7)[:] = 0
    pages.select(0, 1)[:] = 0
    assert as_pairs(pages) == [(10, 5), (20, 5)]


def test_many_runs_take_no_step_each() -> None:
    start = np.arange(500_000, dtype=np.int64) * 3
    count = np.full(len(start), 2)
    begun = time.process_time()
    odd = PageRuns.from_runs(start[::-1] + 1, count)
    even = PageRuns.from_runs(start, count)
    assert union(odd, even).count == 1_500_000
    assert intersection(odd, even).count == 500_000
    assert difference(odd, even).count == 500_000
    assert even.select(500_001, 500_003).tolist() == [750_001, 750_003]
    assert time.process_time() - begun < 5


def test_all_runs_in_one_place() -> None:
    """Runs nested in one another collapse at once, however many."""
    start = np.zeros(200_000, np.int64)
    assert as_pairs(PageRuns.from_runs(start, np.arange(200_000))) == [(0, 199_999)]
