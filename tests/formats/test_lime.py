"""LiME files: ranges of any address and length, read and written."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dumpxlate
from dumpxlate import errors
from dumpxlate.format import Confidence, OpenOptions, WriteOptions
from dumpxlate.formats.lime import FORMAT
from dumpxlate.io.sink import PipeSink
from dumpxlate.io.source import BytesSource
from dumpxlate.pages import PageState
from tests.builders import elf_cores, lime
from tests.builders.guest import far_guest, page, small_guest, stored_runs
from tests.peers import peers

if TYPE_CHECKING:
    from pathlib import Path

    from dumpxlate.dump import Dump
    from tests.builders.guest import Guest

PAGE = 4096


def read(data: bytes) -> Dump:
    source = BytesSource(data, "file")
    assert FORMAT.detect(source)
    return FORMAT.open([source], OpenOptions())


def assert_pages(dump: Dump, expected: dict[int, bytes]) -> None:
    pfns = sorted(expected)
    found = dump.read_pages(pfns)
    assert [pfn for pfn, row in zip(pfns, found, strict=True) if row.tobytes() != expected[pfn]] == []


def runs(pages: Any) -> list[tuple[int, int]]:
    return list(zip(*(column.tolist() for column in pages.runs()), strict=True))


@pytest.fixture
def guest() -> Guest:
    return small_guest()


def test_every_page(guest: Guest) -> None:
    with read(lime.build(guest)) as dump:
        assert (dump.format, dump.variant, dump.damage) == ("lime", "version 1", ())
        assert runs(dump.pages.ram) == runs(dump.pages.stored) == stored_runs(guest)
        assert_pages(dump, guest.pages)
        assert dump.attributes["ranges"] == len(stored_runs(guest))
        assert any("x86-64, little-endian" in remark for remark in dump.remarks)


def test_recognised_by_its_magic_only() -> None:
    match = FORMAT.detect(BytesSource(b"EMiL"))
    assert match
    assert match.confidence is Confidence.SIGNATURE
    for head in (b"", b"EMi", b"LiME", b"AVML"):
        assert FORMAT.detect(BytesSource(head)) is None


def test_avml_without_compression() -> None:
    """Several records for one range of RAM, without those that are zero."""
    pages = {pfn: page(pfn) for pfn in range(12)} | {pfn: bytes(PAGE) for pfn in range(4, 8)}
    with read(lime.build(pages, most=4 * PAGE, skip_zero=True)) as dump:
        assert runs(dump.pages.ram) == [(0, 4), (8, 4)]
        assert_pages(dump, {pfn: page(pfn) for pfn in (*range(4), *range(8, 12))})


def test_ranges_that_do_not_end_at_pages(guest: Guest) -> None:
    """Linux: 0x1000 to 0x9fbff; what a page lacks is zero."""
    memory = guest.run(0, 16)
    ranges = [(0x1000, memory[0x1000:0x4C00]), (0x5800, memory[0x5800:0x6000]), (0x6000, memory[0x6000:0x9000])]
    with read(lime.build(ranges)) as dump:
        expected = {pfn: guest.run(pfn, 1) for pfn in (1, 2, 3, 6, 7, 8)}
        expected |= {4: memory[0x4000:0x4C00].ljust(PAGE, b"\0"), 5: memory[0x5800:0x6000].rjust(PAGE, b"\0")}
        assert runs(dump.pages.ram) == [(1, 8)]
        assert_pages(dump, expected)
        assert any(remark.startswith("2 pages lie in the file in pieces") for remark in dump.remarks)


def test_ranges_that_meet_inside_a_page_make_it_whole() -> None:
    memory = page(1) + page(2)
    with read(lime.build([(0x1000, memory[:5000]), (0x1000 + 5000, memory[5000:])])) as dump:
        assert_pages(dump, {1: page(1), 2: page(2)})


def test_of_overlapping_ranges_the_first_counts() -> None:
    with read(lime.build([(0x2000, page(2) + page(3)), (0x1000, page(1) + b"\xee" * PAGE + b"\xdd" * PAGE)])) as dump:
        assert_pages(dump, {1: page(1), 2: page(2), 3: page(3)})
        assert any("ranges overlap: 8,192 bytes" in remark for remark in dump.remarks)


def test_ranges_in_any_order(guest: Guest) -> None:
    with read(lime.build(lime.ranges(guest)[::-1])) as dump:
        assert_pages(dump, guest.pages)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 20_000), st.integers(1, 9000)), min_size=1, max_size=6))
def test_any_ranges(ranges: list[tuple[int, int]]) -> None:
    contents = [(start, np.random.default_rng(number).bytes(size)) for number, (start, size) in enumerate(ranges)]
    model = bytearray(32_768)
    for start, data in reversed(contents):
        model[start : start + len(data)] = data
    touched = {pfn for start, size in ranges for pfn in range(start // PAGE, (start + size - 1) // PAGE + 1)}
    with read(lime.build(contents)) as dump:
        assert dump.pages.ram.select(0, 99).tolist() == sorted(touched)
        assert_pages(dump, {pfn: bytes(model[pfn * PAGE : (pfn + 1) * PAGE]) for pfn in touched})


# Wrong files.


def test_a_range_cut_at_the_end_of_the_file_is_kept() -> None:
    data = lime.build([(0, page(0)), (0x10000, page(16) + page(17) + page(18))], truncate=-PAGE - 100)
    with read(data) as dump:
        assert dump.damage == ("truncated: the last range, from 0x10000, has 12,288 bytes, 8,092 are there",)
        assert_pages(dump, {0: page(0), 16: page(16), 17: page(17)[:-100].ljust(PAGE, b"\0")})
        assert dump.states([18, 19]) == [PageState.EXCLUDED, PageState.ABSENT]  # its header says that it is RAM


def test_truncated_everywhere() -> None:
    whole = lime.build([(0, page(0)), (0x10000, page(16))])
    for length in (*range(4, 32), *range(32 + PAGE + 1, 64 + PAGE), 33, 64, 64 + PAGE + 1, len(whole) - 1):
        if length < 32:
            with pytest.raises(errors.TruncatedDumpError, match="range header"):
                read(whole[:length])
        else:
            with read(whole[:length]) as dump:
                assert "truncated" in dump.damage[0], length
    with read(whole[: 32 + PAGE]) as dump:
        assert dump.damage == ()  # nothing tells that more was to come


def test_a_range_cut_short_makes_the_next_header_come_early() -> None:
    """LiME after a failed read; searching for the magic would find any copy of one in memory."""
    data = lime.build([(0, page(0)), (0x10000, page(16) + page(17)), (0x20000, page(32))], cut_data={1: PAGE})
    with read(data) as dump:
        assert_pages(dump, {0: page(0), 16: page(16)})
        assert len(dump.damage) == 1
        assert "what follows is left out" in dump.damage[0] or "truncated" in dump.damage[0]


WRONG = [
    ({"magic": 0x4C694D46}, errors.CorruptDumpError, "begins with 46 4d 69 4c, expected 45 4d 69 4c"),
    ({"version": 2}, errors.UnsupportedFeatureError, "version 2, expected 1"),
    ({"version": 0}, errors.UnsupportedFeatureError, "version 0, expected 1"),
    ({"s_addr": 0x30000}, errors.CorruptDumpError, "addresses 0x30000 to 0x"),
    ({"e_addr": 0xFFFF_FFFF_FFFF_FFFF}, errors.CorruptDumpError, "to 0xffffffffffffffff"),
    ({"s_addr": 1 << 63, "e_addr": (1 << 63) + 5}, errors.CorruptDumpError, "addresses 0x8000000000000000"),
]


@pytest.mark.parametrize(("fields", "error", "words"), WRONG)
def test_a_wrong_header_is_refused_or_passed_over(
    fields: dict[str, int], error: type[errors.FormatError], words: str
) -> None:
    pieces = [(0x10000, page(16)), (0x20000, page(32)), (0x40000, page(64))]
    with pytest.raises(error) as caught:
        FORMAT.open([BytesSource(lime.build(pieces, headers={0: fields}))], OpenOptions())
    assert words in str(caught.value)
    with read(lime.build(pieces, headers={1: fields})) as dump:
        assert words in dump.damage[0]
        assert f"range 1 at {32 + PAGE:#x}" in dump.damage[0]
        assert len(dump.damage) == 1
        assert runs(dump.pages.ram) == [(16, 1), (64, 1)]
        assert dump.read(64 * PAGE, PAGE) == page(64)


def test_what_looks_like_a_header_behind_a_defect(guest: Guest) -> None:
    """Memory may hold a LiME file: only what leads to the end of this one, upwards, is a header of it."""
    inside = lime.build([(0x90000, page(1)), (0xA0000, page(2))]).ljust(4 * PAGE, b"\0")
    pieces = [(0x10000, page(16)), (0x20000, inside), (0x40000, page(64)), (0x30000, page(3))]
    with read(lime.build(pieces[:3], headers={1: {"magic": 0}})) as dump:
        assert runs(dump.pages.ram) == [(16, 1), (64, 1)]
    with read(lime.build(pieces, headers={1: {"magic": 0}})) as dump:
        assert runs(dump.pages.ram) == [(16, 1), (48, 1)]  # the last one alone leads on upwards to the end
    with read(lime.build(pieces[:2], headers={1: {"magic": 0}})) as dump:
        assert runs(dump.pages.ram) == [(16, 1)]
        assert "what follows is left out" in dump.damage[0]


def test_one_file_only(guest: Guest) -> None:
    source = BytesSource(lime.build(guest))
    with pytest.raises(errors.UnsupportedFeatureError, match="one file"):
        FORMAT.open([source, source], OpenOptions())


# Writing.


@pytest.fixture
def vmcore(tmp_path: Path, guest: Guest) -> Path:
    path = tmp_path / "vmcore"
    path.write_bytes(elf_cores.core(guest.but(vmcoreinfo="")))
    return path


def test_one_range_for_each_run(vmcore: Path, tmp_path: Path, guest: Guest) -> None:
    """Byte by byte what the builder writes."""
    with dumpxlate.open(vmcore) as dump:
        assert runs(dump.pages.stored) == stored_runs(guest)
        report = dumpxlate.convert(dump, tmp_path / "out", "lime", allow_loss=True)
    assert (tmp_path / "out").read_bytes() == lime.build(guest)
    assert [loss.what for loss in report.losses] == ["registers of 2 vcpus", "ELF notes"]


def test_left_out_pages_are_a_loss(tmp_path: Path, guest: Guest) -> None:
    path = tmp_path / "vmcore"
    path.write_bytes(elf_cores.core(guest.but(vmcoreinfo=""), "makedumpfile"))
    with dumpxlate.open(path) as dump:
        missing = dump.pages.ram.count - dump.pages.stored.count
        with pytest.raises(errors.LossyConversionError, match=f"that {missing} pages are RAM"):
            dumpxlate.convert(dump, tmp_path / "out", "lime")
        dumpxlate.convert(dump, tmp_path / "out", "lime", allow_loss=True)
        stored = runs(dump.pages.stored)
    with dumpxlate.open(tmp_path / "out") as dump:
        assert runs(dump.pages.ram) == stored


def test_the_machine_is_a_loss_where_it_is_not_the_one_assumed(tmp_path: Path) -> None:
    path = tmp_path / "vmcore"
    path.write_bytes(elf_cores.core(small_guest(vcpus=0), arch="aarch64"))
    with dumpxlate.open(path) as dump, pytest.raises(errors.LossyConversionError, match="aarch64 with pages of 4,096"):
        dumpxlate.convert(dump, tmp_path / "out", "lime")


def test_zero_pages_are_holes_of_the_file(tmp_path: Path) -> None:
    pages = {pfn: bytes(PAGE) for pfn in range(4096)} | {0: page(0), 4095: page(4095)}
    (tmp_path / "in").write_bytes(lime.build(pages))
    with dumpxlate.open(tmp_path / "in") as dump:
        dumpxlate.convert(dump, tmp_path / "out", "lime")
    assert (tmp_path / "out").read_bytes() == (tmp_path / "in").read_bytes()
    assert (tmp_path / "out").stat().st_blocks * 512 < 1 << 20


def test_to_a_pipe(vmcore: Path, tmp_path: Path, guest: Guest) -> None:
    with dumpxlate.open(vmcore) as dump, (tmp_path / "out").open("wb") as file:
        report = dumpxlate.convert(dump, PipeSink(file.fileno()), "lime", allow_loss=True)
    assert (tmp_path / "out").read_bytes() == lime.build(guest)
    assert report.container is None


def test_a_window(vmcore: Path, tmp_path: Path, guest: Guest) -> None:
    options = WriteOptions(begin=2 * PAGE, length=9 * PAGE)
    with dumpxlate.open(vmcore) as dump:
        dumpxlate.convert(dump, tmp_path / "out", "lime", options, allow_loss=True)
        with pytest.raises(errors.UnsupportedFeatureError, match="compress"):
            dumpxlate.convert(dump, tmp_path / "x", "lime", WriteOptions(compress="zlib"), allow_loss=True)
    inside = {pfn: data for pfn, data in guest.pages.items() if 2 <= pfn < 11}
    assert (tmp_path / "out").read_bytes() == lime.build(inside)


def test_many_runs_cross_batches(tmp_path: Path) -> None:
    """More pages than a batch holds, with runs that begin and end anywhere in it."""
    guest = far_guest(pfn for pfn in range(3000) if pfn % 700 not in (0, 5))
    (tmp_path / "in").write_bytes(lime.build(guest))
    with dumpxlate.open(tmp_path / "in") as dump:
        dumpxlate.convert(dump, tmp_path / "out", "lime", threads=2)
    assert (tmp_path / "out").read_bytes() == (tmp_path / "in").read_bytes()


@pytest.mark.peer
def test_volatility_reads_ours(vmcore: Path, tmp_path: Path, guest: Guest) -> None:
    peers.require("volatility3")
    with dumpxlate.open(vmcore) as dump:
        dumpxlate.convert(dump, tmp_path / "out", "lime", allow_loss=True)
    seen = peers.volatility(tmp_path / "out", guest.stored)
    assert seen.layers == ("FileLayer", "LimeLayer")
    assert dict(seen.pages) == {pfn: zlib.crc32(data) for pfn, data in guest.pages.items()}
