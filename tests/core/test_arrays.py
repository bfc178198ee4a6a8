"""Operations on arrays, against plain Python."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dumpxlate.arrays import Columns, ascending, distinct, expand, slices


@pytest.mark.parametrize(
    "values",
    [[], [5], [3, 1, 2], [-7, 4, -1, 0], [2, 1, 2, 1, 2], [1 << 62, -(1 << 62), 0], [10, 30, 20, 12, 11]],
    ids=["none", "one", "close", "negative", "twins", "far", "gaps"],
)
def test_ascending_is_a_stable_sort(values: list[int]) -> None:
    expected = [index for _, index in sorted((value, index) for index, value in enumerate(values))]
    assert ascending(np.array(values, np.int64)).tolist() == expected


def test_many_values_in_random_order() -> None:
    values = np.random.default_rng(3).permutation(10_000).astype(np.int64) * 3 - 5000
    assert (np.diff(values[ascending(values)]) > 0).all()


@given(st.lists(st.integers(-3, 9) | st.integers(-(1 << 63), (1 << 63) - 1), max_size=30))
def test_distinct_values_are_counted(values: list[int]) -> None:
    found, times = distinct(np.array(values, np.int64))
    assert found.dtype == np.int64
    assert list(zip(found.tolist(), times.tolist(), strict=True)) == sorted(Counter(values).items())


@given(
    st.lists(st.tuples(st.integers(-5, 1 << 40), st.integers(0, 4) | st.just(1)), max_size=12),
    st.sampled_from([1, 0, 4096]),
)
def test_runs_are_written_out(rows: list[tuple[int, int]], step: int) -> None:
    start, count = (np.array([row[column] for row in rows], np.int64) for column in (0, 1))
    written = expand(start, count, step=step)
    assert written.dtype == np.int64
    assert written.tolist() == [first + at * step for first, length in rows for at in range(length)]


@pytest.mark.parametrize("total", [0, 1, 9, 10, 11])
def test_pieces_of_a_row(total: int) -> None:
    pieces = list(slices(total, 5))
    assert [at for piece in pieces for at in range(total)[piece]] == list(range(total))
    assert all(0 < piece.stop - piece.start <= 5 for piece in pieces)


def test_columns_grow() -> None:
    columns, expected = Columns(2), [[], []]
    for count in [0, 1, 0, 31, 3, 4000, 200_000, 1_000_000]:
        parts = np.arange(count), np.arange(count) * 7
        columns.add(*parts)
        expected = [np.concatenate((have, part)) for have, part in zip(expected, parts, strict=True)]
        assert np.array_equal(columns.filled, np.array(expected))
