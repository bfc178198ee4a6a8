"""Places of single pages, against dictionaries."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dumpxlate import places as module
from dumpxlate.arrays import PIECE, slices
from dumpxlate.extents import Extents
from dumpxlate.places import Places, count_marked

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dumpxlate.arrays import Int64s

STEP = 16
Run = tuple[int, int, int]
runs_of = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 3), st.integers(0, 99)), max_size=20)


def ints(values: Iterable[int]) -> Int64s:
    return np.array(list(values), np.int64)


@pytest.mark.parametrize("size", [PIECE, 3])
def test_runs_are_written_out(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(module, "slices", partial(slices, size=size))

    @given(runs_of, st.integers(1, 80))
    @example([], 1)
    @example([(0, 1, 0), (1, 1, STEP - 1)], 2)
    @example([(4, 2, 0), (5, 1, 9)], 80)
    def check(rows: list[Run], room: int) -> None:
        start, count, offset = (ints(row[column] for row in rows) for column in range(3))
        pairs = [(first + at, place + at * STEP) for first, length, place in rows for at in range(length)]
        expected = dict(pairs)
        span = max(expected) - min(expected) + 1 if expected else 0
        places = Places.of_runs(start, count, offset, step=STEP, room=room)
        assert (places is None) == (len(expected) < len(pairs) or span > room)
        assert count_marked(start, count) in (None, len(expected))
        if places is not None:
            agrees(places, expected)

    check()


def agrees(places: Places, expected: dict[int, int]) -> None:
    asked = ints([-(1 << 63), -1, *range(70), 1 << 40, (1 << 63) - 1])
    assert places.offsets(asked).tolist() == [expected.get(frame, -1) for frame in asked.tolist()]
    pages = places.pages()
    assert pages.select(0, 1 << 60).tolist() == sorted(expected)
    start, count = pages.runs()
    assert (start[1:] > (start + count)[:-1]).all()
    found = Extents(*places.runs(STEP))
    assert found.offsets(asked, STEP).tolist() == places.offsets(asked).tolist()
    ends = set(zip(found.start + found.count, found.offset + found.count * STEP, strict=True))
    assert not ends & set(zip(found.start, found.offset, strict=True)), "runs are maximal"
