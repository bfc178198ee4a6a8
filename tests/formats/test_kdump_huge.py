"""kdump-compressed files of guests of 16 TiB: bitmaps of 512 MiB each, which are read by blocks and never kept."""

from __future__ import annotations

import tracemalloc
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

import dumpxlate
from dumpxlate import errors
from dumpxlate.describe import page_map
from dumpxlate.format import WriteOptions
from dumpxlate.formats.kdump.store import KdumpStore
from dumpxlate.pages import PageState
from dumpxlate.pipeline import convert
from tests.builders import kdump
from tests.builders.guest import page
from tests.builders.packing import runs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dumpxlate.arrays import Int64s
    from dumpxlate.pages import PageTable
    from dumpxlate.pageset import PageSet

TOP = (1 << 32) + 77
BLOCK = 8192  # pages of a block of a bitmap, 1 KiB
HOLE = 1 << 20  # pages of 32 KiB of a bitmap: more than a hole takes
HELD = [
    0, 1, 63, 64, BLOCK - 1, BLOCK, 2 * BLOCK + 5, *range(HOLE - 3, HOLE + BLOCK + 3), 5 * HOLE, (1 << 31) - 1, 1 << 31,
    (1 << 32) - 1, 1 << 32, TOP - 1,
]  # fmt: skip
RAM = [(0, 3 * BLOCK), (HOLE - 3, BLOCK + 100), (5 * HOLE, 1), ((1 << 31) - 1, BLOCK), ((1 << 32) - 50, 127)]
PAGES = {pfn: page(pfn, kind="zero" if pfn % 3 == 1 else "named") for pfn in HELD}
LEFT_OUT = [2, BLOCK - 2, BLOCK + 1, HOLE + BLOCK + 3, (1 << 31) + 5, (1 << 32) - 50, TOP - 2]
NO_RAM = [3 * BLOCK, HOLE - 4, 5 * HOLE - 1, 5 * HOLE + 1, 1 << 30, (1 << 31) - 2, (1 << 32) - 51, TOP, 1 << 40]


@contextmanager
def little_memory() -> Iterator[None]:
    """As much as two directories of 4 MiB and some copies of one take, where the bitmaps have 1 GiB."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20


def as_pairs(pages: PageSet) -> list[tuple[int, int]]:
    return list(zip(*(column.tolist() for column in pages.runs()), strict=True))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "holes").write_bytes(b"")
    with (tmp_path / "holes").open("r+b") as file:
        file.truncate(1 << 30)
    if (tmp_path / "holes").stat().st_blocks:
        pytest.skip("the file system has no holes")
    return tmp_path


def assert_whole(dump: dumpxlate.Dump, *, lost: frozenset[int] = frozenset()) -> None:
    held = [pfn for pfn in HELD if pfn not in lost]
    stored, ram = dump.pages.stored, dump.pages.ram
    assert (stored.count, ram.count) == (len(held), sum(count for _, count in RAM))
    assert as_pairs(ram) == RAM
    assert as_pairs(stored) == runs(held)
    assert stored.stop == (max(held) + 1 if held else 0)
    assert ram.stop == TOP
    assert stored.select(0, len(HELD)).tolist() == held
    found = dump.read_pages(held)
    assert [pfn for pfn, row in zip(held, found, strict=True) if row.tobytes() != PAGES[pfn]] == []
    assert set(dump.states([*LEFT_OUT, *lost])) == {PageState.EXCLUDED}
    assert set(dump.states(NO_RAM)) == {PageState.ABSENT}


def bits_at(path: Path, first: int, pfns: list[int]) -> list[int]:
    """The bits of some pages of a bitmap that begins at a byte of a file."""
    found = []
    with path.open("rb") as file:
        for pfn in pfns:
            file.seek(first + pfn // 8)
            found.append(file.read(1)[0] >> pfn % 8 & 1)
    return found


def test_every_page(folder: Path) -> None:
    path = kdump.far(folder / "in", PAGES, top=TOP, ram=RAM)
    with little_memory(), dumpxlate.open(path) as dump:
        assert not dump.damage
        assert_whole(dump)


def test_converted_to_another(folder: Path) -> None:
    """The bitmaps of the output are those of the input, bit by bit where something begins or ends."""
    path, out = kdump.far(folder / "in", PAGES, top=TOP, ram=RAM), folder / "out"
    with little_memory(), dumpxlate.open(path) as dump:
        convert(dump, out, "kdump")
    assert out.stat().st_blocks * 512 < 64 << 20
    half = -(-TOP // (8 * 4096)) * 4096
    edges = sorted({near for pfn in (*HELD, *LEFT_OUT, *NO_RAM[:-2]) for near in (pfn, pfn + 1, pfn - 1)} - {-1, TOP})
    ram = [any(first <= pfn < first + count for first, count in RAM) for pfn in edges]
    with out.open("rb") as file:
        first = (1 + int.from_bytes(file.read(436)[432:], "little")) * 4096  # sub_hdr_size
    assert bits_at(out, first, edges) == ram
    assert bits_at(out, first + half, edges) == [pfn in PAGES for pfn in edges]
    with dumpxlate.open(out) as dump:
        assert_whole(dump)


def test_parts_of_a_set(folder: Path) -> None:
    edges = [0, HOLE + 100, 1 << 31, TOP]
    paths = [
        kdump.far(folder / f"part{part}", PAGES, top=TOP, ram=RAM, split=(edges[part], edges[part + 1]))
        for part in range(3)
    ]
    with little_memory(), dumpxlate.open(*paths[::-1]) as dump:
        assert not dump.damage
        assert_whole(dump)
    with little_memory(), dumpxlate.open(paths[2], paths[0]) as dump:
        lost = frozenset(pfn for pfn in HELD if HOLE + 100 <= pfn < 1 << 31)
        assert f"the {len(lost):,} pages of pfns {HOLE + 100:#x} to {(1 << 31) - 1:#x}" in dump.damage[0]
        assert_whole(dump, lost=lost)


def test_written_as_a_set(folder: Path) -> None:
    """Each part has both bitmaps whole, and as many pages as the others."""
    path = kdump.far(folder / "in", PAGES, top=TOP, ram=RAM)
    outs = [folder / f"out{part}" for part in (1, 2, 3)]
    with little_memory(), dumpxlate.open(path) as dump:
        for number, out in enumerate(outs, 1):
            convert(dump, out, "kdump", WriteOptions(part=(number, 3)))
    with dumpxlate.open(*outs) as dump:
        assert not dump.damage
        assert_whole(dump)


def test_a_part_of_another_dump(folder: Path) -> None:
    """One bit differs, in the last byte of bitmaps of 512 MiB."""
    other = {pfn: data for pfn, data in PAGES.items() if pfn != TOP - 1}
    one = kdump.far(folder / "one", PAGES, top=TOP, ram=RAM, split=(0, HOLE))
    two = kdump.far(folder / "two", other, top=TOP, ram=RAM, split=(HOLE, TOP))
    with little_memory(), pytest.raises(errors.CorruptDumpError, match="bitmap differs"):
        dumpxlate.open(one, two)


def test_a_file_that_was_cut_off(folder: Path) -> None:
    path = kdump.far(folder / "in", PAGES, top=TOP, ram=RAM, keep=20)
    with little_memory(), dumpxlate.open(path) as dump:
        lost = frozenset(HELD[20:])
        assert dump.damage == (
            f"truncated or incomplete: {len(lost):,} of the {len(HELD):,} pages that it promises are not in the file",
        )
        assert_whole(dump, lost=lost)
        convert(dump, folder / "out", "kdump", salvage=True)
    with dumpxlate.open(folder / "out") as dump:
        assert_whole(dump, lost=lost)


def test_a_map_asks_for_pages_that_are_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was left out is known by its ranges: a guest may have billions of such pages."""
    asked, locate = [], KdumpStore.locate

    def counted(store: KdumpStore, pfn: Int64s) -> PageTable:
        asked.append(len(pfn))
        return locate(store, pfn)

    monkeypatch.setattr(KdumpStore, "locate", counted)
    monkeypatch.setattr(page_map, "_ROWS", 5)
    path = kdump.far(folder / "in", PAGES, top=TOP, ram=RAM)
    with dumpxlate.open(path) as dump:
        found = page_map.map_pages(dump, cells=7)
        assert sum(asked) == len(HELD)
        total = sum(count for _, count in RAM)
        assert found.pages["excluded"] == total - len(HELD)
        assert found.pages["stored"] + found.pages["zero"] == len(HELD)
        states = [PageState(state) for state in found.ranges.state.tolist()]
        ranges = list(zip(found.ranges.start.tolist(), found.ranges.count.tolist(), states, strict=True))
        left_out = [(first, count) for first, count, state in ranges if state is PageState.EXCLUDED]
        ram = {pfn for first, count in RAM for pfn in range(first, first + count)}
        assert left_out == runs(ram - set(HELD))
        assert [first for first, _, _ in ranges] == sorted(first for first, _, _ in ranges)
        assert sum(count for _, count, _ in ranges) == TOP
        assert found.cells.sum() == TOP


def test_a_page_outside_of_ram(folder: Path) -> None:
    """It is RAM as well, as far away as it is; and then the two bitmaps are asked as one."""
    far = (3 << 30) + 11
    path = kdump.far(folder / "in", PAGES | {far: page(far)}, top=TOP, ram=RAM)
    with little_memory(), dumpxlate.open(path) as dump:
        assert as_pairs(dump.pages.ram) == sorted([*RAM, (far, 1)])
        assert dump.pages.ram.count == sum(count for _, count in RAM) + 1
        assert dump.states([far, far + 1, 2]) == [PageState.STORED, PageState.ABSENT, PageState.EXCLUDED]
        assert dump.read_pages([far])[0].tobytes() == page(far)


def test_bitmaps_that_claim_half_a_terabyte(folder: Path) -> None:
    """What the header gives room for beyond the pages of the guest is not looked at, in parts of a set either."""
    paths = [
        kdump.far(folder / f"part{at}", PAGES, top=TOP, ram=RAM, split=edges, bitmap_blocks=1 << 27)
        for at, edges in enumerate([(0, HOLE), (HOLE, TOP)])
    ]
    assert paths[0].stat().st_size > 1 << 39
    with little_memory(), dumpxlate.open(*paths) as dump:
        assert_whole(dump)
