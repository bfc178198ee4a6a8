"""Extents of pages that come piece by piece, in any order, again and again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dumpxlate.extents import Extents, ExtentsBuilder, first_wins, merge
from dumpxlate.places import Places

Run = tuple[int, int, int]
runs = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 15), st.integers(0, 1 << 20)), max_size=14)


def columns(rows: list[Run]) -> list[np.ndarray]:
    return [np.array(column, np.int64) for column in zip(*rows, strict=True)] if rows else [np.empty(0, np.int64)] * 3


def spread(rows: list[Run], step: int) -> dict[int, int]:
    """Offset of each frame, the first run winning."""
    found: dict[int, int] = {}
    for start, count, offset in rows:
        for at in range(count):
            found.setdefault(start + at, offset + at * step)
    return found


def collected(start: np.ndarray, count: np.ndarray, offset: np.ndarray, step: int) -> dict[int, int]:
    """The same of a result, which must be ascending and disjoint."""
    assert (count > 0).all()
    assert (start[1:] >= (start + count)[:-1]).all()
    return spread(list(zip(start.tolist(), count.tolist(), offset.tolist(), strict=True)), step)


@given(runs, st.sampled_from([1, 4096]))
def test_first_wins(rows: list[Run], step: int) -> None:
    assert collected(*first_wins(*columns(rows), step=step), step) == spread(rows, step)


@given(runs, st.sampled_from([1, 4096]), st.booleans())
def test_builder_of_runs(rows: list[Run], step: int, last_wins: bool) -> None:
    builder = ExtentsBuilder(step)
    for row in rows:
        builder.add_runs(*columns([row]))
    extents, dropped = builder.build(last_wins=last_wins)
    expected = spread(rows[::-1] if last_wins else rows, step)
    assert collected(extents.start, extents.count, extents.offset, step) == expected
    assert dropped == sum(count for _, count, _ in rows) - len(expected)


@given(
    st.lists(st.lists(st.tuples(st.integers(-2, 30), st.integers(0, 40)), max_size=20), max_size=5),
    st.sampled_from([1, 16]),
    st.booleans(),
)
def test_builder_of_pages(pieces: list[list[tuple[int, int]]], step: int, last_wins: bool) -> None:
    builder = ExtentsBuilder(step)
    for piece in pieces:
        builder.add(*(np.array([pair[column] for pair in piece], np.int64) for column in (0, 1)))
    pairs = [pair for piece in pieces for pair in piece if pair[0] >= 0]
    expected = dict(pairs if last_wins else pairs[::-1])
    extents, dropped = builder.build(last_wins=last_wins)
    assert collected(extents.start, extents.count, extents.offset, step) == expected
    assert dropped == len(pairs) - len(expected)


def test_pieces_are_joined() -> None:
    builder = ExtentsBuilder(4096)
    for first in range(0, 5000, 1000):
        frame = np.arange(first, first + 1000)
        builder.add(frame, 64 + frame * 4096)
    assert [column.tolist() for column in builder.runs] == [[0], [5000], [64]]
    extents, _ = builder.build()
    assert (extents.start.tolist(), extents.count.tolist(), extents.offset.tolist()) == ([0], [5000], [64])


def test_runs_in_the_order_they_came() -> None:
    builder = ExtentsBuilder(10)
    for rows in ([(5, 2, 0)], [], [(7, 1, 20), (8, 1, 31)], [(9, 1, 31)], [(10, 1, 41), (0, 3, 51)]):
        builder.add_runs(*columns(rows))
    assert list(zip(*(column.tolist() for column in builder.runs), strict=True)) == [
        (5, 3, 0),
        (8, 1, 31),
        (9, 2, 31),
        (0, 3, 51),
    ]


def test_short_runs_become_places() -> None:
    builder = ExtentsBuilder(10)
    builder.add(np.array([7, 4, 5]), np.array([0, 10, 20]))
    index, dropped = builder.index()
    assert isinstance(index, Places)
    assert (index.offsets(np.arange(3, 9)).tolist(), dropped) == ([-1, 10, 20, -1, 0, -1], 0)
    builder.add(np.array([5]), np.array([30]))
    index, dropped = builder.index()
    assert isinstance(index, Extents)
    assert (collected(index.start, index.count, index.offset, 10), dropped) == ({4: 10, 5: 20, 7: 0}, 1)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(0, 2, 0), (2, 2, 20)], [(0, 4, 0)]),
        ([(0, 2, 0), (2, 2, 30)], [(0, 2, 0), (2, 2, 30)]),
        ([(0, 2, 0), (3, 2, 20)], [(0, 2, 0), (3, 2, 20)]),
        ([], []),
    ],
)
def test_merge(rows: list[Run], expected: list[Run]) -> None:
    found = merge(*columns(rows), step=10)
    assert list(zip(*(column.tolist() for column in found), strict=True)) == expected
