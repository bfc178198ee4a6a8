"""Extents against a dictionary: duplicates, order, what is skipped."""

from __future__ import annotations

import random
import time
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dumpxlate.errors import MapError
from dumpxlate.extents import Extents, in_runs, same_place, through_each
from dumpxlate.places import count_marked

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dumpxlate.arrays import Int64s

PAGE = 4096
TOP = 1 << 52

quick = settings(deadline=None, max_examples=80)
# Offsets that often continue one another, as those of a real file do.
pairs_of = st.lists(
    st.tuples(st.integers(-3, 30) | st.integers(0, TOP), st.integers(0, 30).map(lambda at: at * PAGE)), max_size=40
)
runs_of = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12), st.integers(0, 60)), max_size=6)


def ints(values: Iterable[int]) -> Int64s:
    return np.array(list(values), np.int64)


def columns(pairs: list[tuple[int, int]]) -> tuple[Int64s, Int64s]:
    return ints(pfn for pfn, _ in pairs), ints(offset for _, offset in pairs)


def naive(pairs: list[tuple[int, int]], *, last_wins: bool) -> dict[int, int]:
    found: dict[int, int] = {}
    for pfn, offset in pairs:
        if pfn >= 0 and (last_wins or pfn not in found):
            found[pfn] = offset
    return found


def check(extents: Extents, expected: dict[int, int]) -> None:
    assert extents.start.dtype == extents.count.dtype == extents.offset.dtype == np.int64
    rows = list(zip(extents.start.tolist(), extents.count.tolist(), extents.offset.tolist(), strict=True))
    written = {start + at: offset + at * PAGE for start, count, offset in rows for at in range(count)}
    assert written == expected
    assert list(written) == sorted(expected)
    for (start, count, offset), (after, _, its_offset) in pairwise(rows):
        assert (start + count, offset + count * PAGE) != (after, its_offset), "runs are maximal"
    near = {pfn + by for pfn in expected for by in (-1, 0, 1)}
    asked = ints([-1, 0, 1 << 62, *near])
    assert extents.offsets(asked, PAGE).tolist() == [expected.get(pfn, -1) for pfn in asked.tolist()]
    for pfn, index in zip(asked.tolist(), extents.find(asked).tolist(), strict=True):
        assert (index >= 0) == (pfn in expected)
        assert index < 0 or rows[index][0] <= pfn < sum(rows[index][:2])
    assert extents.pages().select(0, 1 << 62).tolist() == sorted(expected)


@pytest.mark.parametrize("last_wins", [True, False])
@quick
@given(pairs=pairs_of)
@example(pairs=[])
@example(pairs=[(-1, 0), (-1, PAGE)])
@example(pairs=[(1, 0), (1, PAGE), (1, 2 * PAGE)])
def test_single_pages(pairs: list[tuple[int, int]], *, last_wins: bool) -> None:
    extents, dropped = Extents.from_pairs(*columns(pairs), PAGE, last_wins=last_wins)
    expected = naive(pairs, last_wins=last_wins)
    check(extents, expected)
    assert dropped == sum(pfn >= 0 for pfn, _ in pairs) - len(expected)


@pytest.mark.parametrize("last_wins", [True, False])
@quick
@given(pieces=runs_of)
def test_pages_in_runs(pieces: list[tuple[int, int, int]], *, last_wins: bool) -> None:
    pairs = [(pfn + at, (place + at) * PAGE) for pfn, count, place in pieces for at in range(count)]
    extents, dropped = Extents.from_pairs(*columns(pairs), PAGE, last_wins=last_wins)
    check(extents, naive(pairs, last_wins=last_wins))
    assert dropped == len(pairs) - len({pfn for pfn, _ in pairs})


@pytest.mark.parametrize("last_wins", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_many_pieces_over_one_another(seed: int, *, last_wins: bool) -> None:
    dice = random.Random(seed)
    pieces = [(dice.randrange(-9, 300), dice.randrange(1, 30), dice.randrange(60)) for _ in range(40)]
    pairs = [(pfn + at, (place + at) * PAGE) for pfn, count, place in pieces for at in range(count)]
    if seed % 2:
        dice.shuffle(pairs)
    extents, dropped = Extents.from_pairs(*columns(pairs), PAGE, last_wins=last_wins)
    expected = naive(pairs, last_wins=last_wins)
    check(extents, expected)
    assert dropped == sum(pfn >= 0 for pfn, _ in pairs) - len(expected)


@pytest.mark.parametrize("last_wins", [True, False])
def test_what_was_given_stays_as_it_is(*, last_wins: bool) -> None:
    pfn, offset = ints([3, 1, 3, -1]), ints([0, PAGE, 2 * PAGE, 3 * PAGE])
    pfn.flags.writeable = offset.flags.writeable = False
    extents, dropped = Extents.from_pairs(pfn, offset, PAGE, last_wins=last_wins)
    assert (extents.start.tolist(), extents.offset.tolist(), dropped) == (
        [1, 3],
        [PAGE, 2 * PAGE if last_wins else 0],
        1,
    )


@pytest.mark.parametrize("page_size", [1, 4096, 65536])
def test_the_size_of_a_page_decides_what_continues(page_size: int) -> None:
    extents, _ = Extents.from_pairs(ints([0, 1, 2, 3]), ints([0, 4096, 8192, 8193]), page_size, last_wins=True)
    # Of four neighbours only those continue each other whose offsets differ by exactly one page.
    assert extents.start.tolist() == {1: [0, 1, 2], 4096: [0, 3], 65536: [0, 1, 2, 3]}[page_size]
    assert extents.offsets(ints([0, 1, 2, 3]), page_size).tolist() == [0, 4096, 8192, 8193]


def test_a_gap_in_pfns_or_in_the_file_ends_an_extent() -> None:
    extents, _ = Extents.from_pairs(ints([5, 6, 8, 9]), ints([0, PAGE, 2 * PAGE, 4 * PAGE]), PAGE, last_wins=True)
    assert extents.start.tolist() == [5, 8, 9]
    assert extents.count.tolist() == [2, 1, 1]


def test_a_million_shuffled_pages_are_indexed_at_once() -> None:
    order = np.random.default_rng(1).permutation(1_000_000).astype(np.int64)
    begun = time.process_time()
    extents, dropped = Extents.from_pairs(order, order * PAGE, PAGE, last_wins=False)
    assert (len(extents.start), int(extents.count[0]), dropped) == (1, 1_000_000, 0)
    assert time.process_time() - begun < 3


def test_extents_through_a_map_that_repeats_itself_do_not_fill_memory() -> None:
    """Half a megabyte of hostile runs would become four thousand million pieces."""
    count = 1 << 16
    held = Extents(2 * np.arange(count), np.ones(count, np.int64), 4096 * np.arange(count))
    every = np.full(count, 2 * count, np.int64)
    with pytest.raises(MapError, match="4,294,967,296 pieces of 65,536 runs"):
        held.through(np.arange(count) * 4 * count, every, np.zeros(count, np.int64), 4096)


lengths, numbers = st.sampled_from([1, 1, 1, 2, 3]), st.integers(0, 60)
mapped = st.lists(st.tuples(st.integers(0, 4) | st.just(30), lengths, numbers | st.just(TOP)), max_size=25)
stored = st.lists(st.tuples(st.integers(0, 4), lengths, numbers), max_size=25)


def one_after_the_other(rows: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Make runs disjoint: the first number of each row becomes the gap before it."""
    placed, at = [], 0
    for gap, count, value in rows:
        placed.append((at + gap, count, value))
        at += gap + count
    return placed


@quick
@given(mapped, stored)
@example([(0, 1, 0), (0, 1, 1)], [])
@example([(0, 1, 3), (0, 1, 4), (0, 1, 3)], [(3, 2, 7)])
@example([(0, 1, TOP)], [(0, 1, 7)])
def test_pages_seen_through_a_map(given: list[tuple[int, int, int]], held: list[tuple[int, int, int]]) -> None:
    """Each pfn shows the bytes of its frame, whether runs are followed or pages, and frames may be shared."""
    seen, there = one_after_the_other(given), one_after_the_other(held)
    frames = {pfn + at: frame + at for pfn, count, frame in seen for at in range(count)}
    places = {start + at: (place + at) * PAGE for start, count, place in there for at in range(count)}
    expected = {pfn: places[frame] for pfn, frame in frames.items() if frame in places}
    start, count, frame = (ints(row[column] for row in seen) for column in range(3))
    extents = Extents(*(ints(row[column] for row in there) for column in range(2)), ints(p * PAGE for *_, p in there))
    order = np.argsort(frame, kind="stable")
    check(extents.through(start[order], count[order], frame[order], PAGE), expected)
    each = through_each(extents, start, count, frame, PAGE)
    if each is not None:
        check(in_runs(each, PAGE), expected)
    assert each is not None or len(frames) > 2 * len(seen) or max(places) - min(places) >= 4 * len(frames)
    assert count_marked(frame, count) in (None, len(set(frames.values())))


@quick
@given(runs_of)
@example([])
def test_runs_that_agree_are_joined(given: list[tuple[int, int, int]]) -> None:
    """Against a set of (frame, offset): nothing is lost or there twice, and the order is that of the first parts."""
    start, count, offset = same_place(*(ints(column) for column in (zip(*given, strict=True) if given else ([],) * 3)))
    found = [(first + at, to + at) for first, n, to in zip(start, count, offset, strict=True) for at in range(n)]
    assert len(found) == len(set(found))
    assert set(found) == {(first + at, to + at) for first, n, to in given for at in range(n)}
    heads, tails = set(zip(start, offset, strict=True)), set(zip(start + count, offset + count, strict=True))
    assert not heads & tails
    places = [
        min(row for row, (f, n, o) in enumerate(given) if o - f == to - first and first <= f < first + size)
        for first, size, to in zip(start, count, offset, strict=True)
    ]
    assert places == sorted(places)
