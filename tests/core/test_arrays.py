"""Operations on arrays, against plain Python."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dumpxlate.arrays import ascending, distinct


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
