"""Frame maps against dictionaries and loops: entries with flags, both ways, shared frames, the array back."""

from __future__ import annotations

import random
import time
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dumpxlate.arrays import PIECE, slices
from dumpxlate.bitmap import PageBitmap
from dumpxlate.p2m import map as module
from dumpxlate.p2m.map import P2M, FrameRuns
from dumpxlate.pageset import PageRuns
from tests.builders import p2m as builder

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dumpxlate.arrays import Int64s

ALL_ONES = (1 << 64) - 1
quick = settings(deadline=None, max_examples=50)


def ints(values: Iterable[int]) -> Int64s:
    return np.array(list(values), np.int64)


def written(runs: FrameRuns) -> dict[int, int]:
    """Runs as a dictionary; they must be ascending and disjoint."""
    rows = list(zip(runs.pfn.tolist(), runs.frame.tolist(), runs.count.tolist(), strict=True))
    found = {pfn + at: frame + at for pfn, frame, count in rows for at in range(count)}
    assert list(found) == sorted(found)
    assert len(found) == runs.total == sum(row[2] for row in rows)
    assert all(row[2] > 0 for row in rows)
    return found


def naive(entries: list[int], width: int) -> tuple[dict[int, int], dict[int, int], dict[int, int]]:
    """Pages, foreign and identity frames, as Linux's p2m.c has the entries."""
    pages, foreign, identity = {}, {}, {}
    top, next_top = 1 << 8 * width - 1, 1 << 8 * width - 2
    for pfn, entry in enumerate(entries):
        frame = entry % next_top
        if entry == 2 * top - 1 or entry == 0:
            continue
        if entry & top:
            foreign[pfn] = frame
        elif entry & next_top:
            identity[pfn] = frame
        else:
            pages[pfn] = frame
    return pages, foreign, identity


def entries_of(width: int) -> st.SearchStrategy[list[int]]:
    bits = 8 * width
    high = (1 << bits - 2) - 1
    one = st.one_of(
        st.integers(0, 20),  # neighbours, so that runs arise
        st.integers(0, high),
        st.sampled_from([0, (1 << bits) - 1, 1 << bits - 1, 1 << bits - 2, 3 << bits - 2, high, (1 << bits) - 2]),
        st.tuples(st.sampled_from([1, 2, 3]), st.integers(0, 20)).map(lambda pair: pair[0] << bits - 2 | pair[1]),
    )
    runs = st.tuples(one, st.integers(1, 6)).map(lambda pair: [(pair[0] + at) % (1 << bits) for at in range(pair[1])])
    return st.lists(runs, max_size=15).map(lambda pieces: [entry for piece in pieces for entry in piece])


@pytest.mark.parametrize("width", [8, 4])
@pytest.mark.parametrize("chunk", [PIECE, 5])
def test_a_guests_array_is_read_as_linux_reads_it(
    monkeypatch: pytest.MonkeyPatch, width: Literal[4, 8], chunk: int
) -> None:
    monkeypatch.setattr(module, "slices", partial(slices, size=chunk))

    @quick
    @given(entries=entries_of(width))
    @example(entries=[])
    @example(entries=[(1 << 8 * width) - 1])
    def check(entries: list[int]) -> None:
        p2m = P2M.from_entries(np.array(entries, f"<u{width}"), width)
        pages, foreign, identity = naive(entries, width)
        assert written(p2m.runs) == pages
        assert written(p2m.foreign) == foreign
        assert written(p2m.identity) == identity
        for part in (p2m.runs, p2m.foreign, p2m.identity):
            ends = zip(part.pfn + part.count, part.frame + part.count, strict=True)
            assert not set(ends) & set(zip(part.pfn, part.frame, strict=True)), "runs are maximal, over pieces too"
        assert p2m.size == len(entries)
        assert p2m.invalid == sum(entry in (0, (1 << 8 * width) - 1) for entry in entries)
        asked = ints([-1, *range(len(entries) + 2), 1 << 60])
        assert p2m.mfn(asked).tolist() == [pages.get(pfn, -1) for pfn in asked.tolist()]
        assert p2m.pages().select(0, 1 << 60).tolist() == sorted(pages)
        # The array comes back, without what no reader has a use for: a second flag, and frames of the hypervisor.
        expected = [ALL_ONES] * len(entries)
        for found, flag in ((pages, 0), (foreign, 1 << 63), (identity, 1 << 62)):
            for pfn, frame in found.items():
                expected[pfn] = frame | flag
        assert p2m.entries(0, len(entries)).tolist() == expected
        beyond = [*expected, *[ALL_ONES] * 3]
        assert p2m.entries(2, len(beyond)).tolist() == beyond[2:]

    check()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("width", [8, 4])
def test_entries_of_any_byte_order_and_of_a_mapped_file(order: str, width: Literal[4, 8]) -> None:
    mfns = {0: 100, 1: 101, 5: 7}
    table = builder.entries(mfns, foreign={2: 9}, identity=[3], size=7, width=width)
    body = builder.flat(table, width=width, byte_order=order)
    p2m = P2M.from_entries(np.frombuffer(body, f"{order}u{width}"), width)
    assert written(p2m.runs) == mfns
    assert (written(p2m.foreign), written(p2m.identity)) == ({2: 9}, {3: 3})
    assert p2m.invalid == 2
    assert repr(p2m) == "P2M(3 pages in 2 runs, 7 entries)"


pairs_of = st.lists(st.tuples(st.integers(-2, 40), st.integers(-2, 40) | st.integers(0, 1 << 52)), max_size=40)


@quick
@given(pairs=pairs_of, size=st.none() | st.integers(0, 60))
@example(pairs=[], size=None)
@example(pairs=[(-1, 5)], size=None)
@example(pairs=[(3, -1), (3, 9)], size=None)
def test_single_pairs_in_any_order(pairs: list[tuple[int, int]], size: int | None) -> None:
    first: dict[int, int] = {}
    for pfn, mfn in pairs:
        first.setdefault(pfn, mfn)
    expected = {pfn: mfn for pfn, mfn in first.items() if pfn >= 0 and mfn >= 0}
    p2m = P2M.from_pairs(ints(pair[0] for pair in pairs), ints(pair[1] for pair in pairs), size=size)
    assert written(p2m.runs) == expected
    assert p2m.size == max([size or 0, *(pfn + 1 for pfn in expected)])
    assert p2m.invalid == p2m.size - len(expected)


# Runs over a small range of frames: many share some, in every way.
shared_of = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12), st.integers(0, 3)), max_size=8)


def shared(pieces: list[tuple[int, int, int]]) -> dict[int, int]:
    mfns, pfn = {}, 0
    for frame, count, gap in pieces:
        pfn += gap
        mfns |= {pfn + at: frame + at for at in range(count)}
        pfn += count
    return mfns


def p2m_of(mfns: dict[int, int]) -> P2M:
    return P2M.from_pairs(ints(mfns), ints(mfns.values()))


@quick
@given(pieces=shared_of)
@example(pieces=[(0, 10, 0), (3, 1, 1)])
@example(pieces=[(3, 1, 0), (0, 10, 1)])
@example(pieces=[(0, 12, 0), (2, 3, 1), (4, 12, 1), (4, 1, 0)])
def test_the_way_back_where_pfns_share_frames(pieces: list[tuple[int, int, int]]) -> None:
    check_way_back(shared(pieces))


@pytest.mark.parametrize("seed", range(8))
def test_the_way_back_of_larger_maps(seed: int) -> None:
    dice = random.Random(seed)
    check_way_back(shared([(dice.randrange(300), dice.randrange(1, 40), dice.randrange(3)) for _ in range(40)]))


def check_way_back(mfns: dict[int, int]) -> None:
    p2m = p2m_of(mfns)
    owners: dict[int, set[int]] = {}
    for pfn, mfn in mfns.items():
        owners.setdefault(mfn, set()).add(pfn)
    asked = ints([-1, *range(400), 1 << 60])
    for mfn, pfn in zip(asked.tolist(), p2m.pfn(asked).tolist(), strict=True):
        assert pfn in owners.get(mfn, {-1})
    assert p2m.aliases == len(mfns) - len(owners)
    assert p2m.frames().select(0, 999).tolist() == sorted(owners)
    # Asked again, the answer is the same.
    assert p2m.pfn(asked).tolist() == p2m_of(mfns).pfn(asked).tolist()


@quick
@given(pieces=shared_of, held=st.sets(st.integers(0, 45)), chunk=st.sampled_from([1, 3, 1 << 20]))
def test_preimage(pieces: list[tuple[int, int, int]], held: set[int], chunk: int) -> None:
    mfns = shared(pieces)
    bits = np.zeros(64, np.uint8)
    bits[list(held)] = 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK", chunk)
        for frames in (
            PageRuns.from_pfns(ints(sorted(held))),
            PageBitmap.from_bytes(np.packbits(bits, bitorder="little").tobytes()),
        ):
            found = p2m_of(mfns).preimage(frames)
            assert found.select(0, 999).tolist() == sorted(pfn for pfn, mfn in mfns.items() if mfn in held)


@pytest.mark.parametrize("chunk", [1, 4, 1 << 20])
def test_chunks_are_the_map(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(module, "_CHUNK", chunk)
    mfns = {0: 5, 1: 6, 2: 9, 7: 1, 8: 2, 9: 3}
    pairs = list(p2m_of(mfns).chunks())
    assert {pfn: mfn for pfns, found in pairs for pfn, mfn in zip(pfns.tolist(), found.tolist(), strict=True)} == mfns
    assert all(0 < len(pfns) <= chunk for pfns, _ in pairs)


def test_nothing() -> None:
    for p2m in (P2M.from_entries(np.empty(0, "<u8"), 8), P2M.from_pairs(ints([]), ints([]))):
        asked = ints([-1, 0, 5])
        assert p2m.mfn(asked).tolist() == p2m.pfn(asked).tolist() == [-1] * 3
        assert (p2m.size, p2m.aliases, p2m.invalid, p2m.runs.total) == (0, 0, 0, 0)
        assert p2m.entries(0, 2).tolist() == [ALL_ONES] * 2
        assert list(p2m.chunks()) == []
        assert p2m.preimage(PageRuns.from_pfns(asked[1:])).count == 0
    assert FrameRuns.join([]).find(ints([0])).tolist() == [-1]


def test_a_fragmented_guest_is_read_at_once() -> None:
    """Many pages, no two of them neighbours on the machine, with a few shared."""
    frames = random.Random(4).sample(range(1, 4_000_000, 2), 200_000)
    frames[-1] = frames[0]
    entries = np.array(frames, "<u8")
    begun = time.process_time()
    p2m = P2M.from_entries(entries, 8)
    assert (len(p2m.runs.pfn), p2m.aliases) == (200_000, 1)
    assert (p2m.pfn(p2m.mfn(np.arange(1, 199_999))) == np.arange(1, 199_999)).all()
    assert p2m.preimage(PageRuns.from_runs(ints([0]), ints([4_000_000]))).count == 200_000
    assert time.process_time() - begun < 5


def test_inverted() -> None:
    """Each frame has the pfn that the map gives for it, also where several pfns share one."""
    pfn, mfn = ints([0, 1, 2, 7, 8, 9]), ints([40, 41, 42, 41, 90, 7])
    p2m = P2M.from_pairs(pfn, mfn)
    frames = ints([7, 40, 41, 42, 90])
    back = p2m.inverted()
    assert (back.mfn(frames) == p2m.pfn(frames)).all()
    assert (back.size, back.runs.total) == (91, 5)
    assert P2M.from_pairs(ints([]), ints([])).inverted().size == 0


def test_trimmed() -> None:
    entries = np.array([5, ALL_ONES, ALL_ONES, 1 << 62 | 3, ALL_ONES, ALL_ONES], np.uint64)
    assert P2M.from_entries(entries, 8).trimmed().size == 4
    assert P2M.from_entries(entries[:3], 8).trimmed().size == 1
    assert P2M.from_entries(entries[1:3], 8).trimmed().size == 0
