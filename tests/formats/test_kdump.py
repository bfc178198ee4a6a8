"""Reading kdump-compressed dumps: every variant, split sets, incomplete and broken files, and real ones."""

from __future__ import annotations

import hashlib
import itertools
import json
import lzma
import os
import random
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dumpxlate
from dumpxlate import errors
from dumpxlate.codecs.batch import read_pages
from dumpxlate.format import OpenOptions
from dumpxlate.formats.kdump import FORMAT, bitmaps
from dumpxlate.io.joined import ConcatenatedSource
from dumpxlate.io.source import BytesSource, PreadFile
from dumpxlate.pages import PageState
from dumpxlate.pipeline import convert
from dumpxlate.stores import DeferredStore
from tests.builders import elf_cores, kdump
from tests.builders.elf_notes import cpu_notes
from tests.builders.guest import Guest, far_guest, page, register, small_guest
from tests.builders.packing import align, write_sparse
from tests.peers import peers
from tests.readers import vmcore_missing, vmcore_pages

if TYPE_CHECKING:
    from pathlib import Path

    from dumpxlate.arrays import Int32s, Int64s
    from dumpxlate.pageset import PageSet

MACHINES = {  # uname -m, and what dumpxlate calls it
    ("64", "<"): (b"x86_64", "x86_64"),
    ("64", ">"): (b"ppc64", "ppc64"),
    ("packed", "<"): (b"i686", "i386"),
    ("packed", ">"): (b"ppc", "ppc"),
    ("natural", "<"): (b"armv7l", "arm"),
    ("natural", ">"): (b"ppc", "ppc"),
}
SMALL = small_guest(ranges=[(0, 0x30), (0x100, 0x40)])


@pytest.fixture(scope="module")
def guest() -> Guest:
    return small_guest()


@pytest.fixture(params=["kept", "read"])
def bitmaps_kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bitmaps in memory, as those of small dumps are; and read by blocks, as those of huge ones are."""
    if request.param == "read":
        monkeypatch.setattr(bitmaps, "_RESIDENT", 0)


either_way = pytest.mark.usefixtures("bitmaps_kept")


def opened(*files: bytes) -> dumpxlate.Dump:
    return FORMAT.open([BytesSource(data, f"file{at}") for at, data in enumerate(files)], OpenOptions())


def members(pages: PageSet) -> list[int]:
    return [pfn for first, count in zip(*pages.runs(), strict=True) for pfn in range(first, first + count)]


def assert_pages(dump: dumpxlate.Dump, guest: Guest, *, lost: frozenset[int] = frozenset()) -> None:
    """Every page of the guest but the lost ones is there, the rest of its RAM is known to be missing."""
    held = [pfn for pfn in guest.stored if pfn not in lost]
    assert dump.pages.page_size == guest.page_size
    assert members(dump.pages.ram) == guest.ram
    assert members(dump.pages.stored) == held
    found = dump.read_pages(held)
    wrong = [pfn for pfn, row in zip(held, found, strict=True) if row.tobytes() != guest.pages[pfn]]
    assert not wrong
    missing = sorted(guest.excluded | lost)
    assert set(dump.states(missing)) <= {PageState.EXCLUDED}
    assert set(dump.states([guest.end_pfn, 1 << 40, -1])) == {PageState.ABSENT}


def build(guest: Guest, *, layout: str = "64", byte_order: str = "<", **options: Any) -> bytes:
    options = {"utsname": {"machine": MACHINES[layout, byte_order][0]}} | options
    return kdump.build(guest, layout=layout, byte_order=byte_order, **options)


@either_way
@pytest.mark.parametrize("version", range(7))
@pytest.mark.parametrize(("layout", "byte_order"), MACHINES)
def test_every_header(guest: Guest, version: int, layout: str, byte_order: str) -> None:
    dump = opened(build(guest, version=version, layout=layout, byte_order=byte_order, notes=[]))
    assert_pages(dump, guest)
    assert dump.machine.endian == byte_order
    assert dump.machine.arch.name == MACHINES[layout, byte_order][1]
    assert dump.machine.word_bits == (64 if layout == "64" else 32)
    assert dump.machine.release == "6.1.0-model"
    assert dump.attributes["max_mapnr"] == guest.end_pfn
    assert dump.attributes["header_version"] == version
    assert dump.attributes["nodename"] == "model"
    assert (dump.vmcoreinfo.text if dump.vmcoreinfo else None) == (guest.vmcoreinfo if version >= 3 else None)
    assert dump.attributes.get("dump_level") == (31 if version >= 1 else None)
    if layout != "64" and version >= 3:
        assert dump.attributes["sub_header"] == layout
    assert not dump.damage
    assert not dump.remarks


@pytest.mark.parametrize("page_size", [4096, 16384, 65536])
@pytest.mark.parametrize("codec", ["raw", "zlib", "lzo", "snappy", "zstd", ("zlib", "raw", "zstd", "lzo", "snappy")])
def test_every_codec_and_page_size(codec: str, page_size: int) -> None:
    guest = small_guest(page_size=page_size)
    dump = opened(kdump.build(guest, codec=codec))
    assert_pages(dump, guest)
    assert {dump.states([pfn])[0] for pfn in guest.zeros} == {PageState.ZERO}
    assert dump.machine.page_size == page_size


def test_words_that_fit_both_widths(guest: Guest) -> None:
    """max_mapnr of a 32-bit header lies where a 64-bit one has block_size, tv_usec the other way round."""
    guest = small_guest(ranges=[(0, 0x20), (0x7FF0, 0x10)], excluded=())
    assert guest.end_pfn == 0x8000
    dump = opened(build(guest, layout="packed"))
    assert_pages(dump, guest)
    assert dump.machine.word_bits == 32
    dump = opened(build(guest, header={"tv_usec": 8192}))
    assert_pages(dump, guest)
    assert dump.machine.word_bits == 64


def test_registers_and_notes(guest: Guest) -> None:
    dump = opened(kdump.build(guest))
    assert [cpu.registers["rip"] for cpu in dump.cpus] == [register("rip", 0), register("rip", 1)]
    assert [item.name for item in dump.notes] == ["CORE", "CORE", "VMCOREINFO"]


@pytest.mark.parametrize(
    ("machine", "layout", "byte_order", "arch"),
    [
        (b"x86_64", "64", "<", "i386"),  # QEMU's target outside of long mode, firmware ending at 4 GiB
        (b"x86_64", "packed", "<", "i386"),
        (b"Unknown", "packed", "<", "arm"),  # QEMU on 32-bit Arm
        (b"Unknown", "64", "<", "aarch64"),
        (b"Unknown", "64", ">", "ppc64"),
        (b"S390X", "64", ">", "s390x"),
    ],
)
def test_registers_tell_the_machine(guest: Guest, machine: bytes, layout: str, byte_order: str, arch: str) -> None:
    notes = cpu_notes(guest, arch, byte_order)
    names = {"sysname": b"", "release": b"", "machine": machine}
    dump = opened(kdump.build(guest, layout=layout, byte_order=byte_order, notes=notes, utsname=names))
    assert dump.machine.arch.name == arch
    assert dump.cpus[1].registers[dump.machine.arch.pc] & 0xFF
    assert dump.variant.startswith("QEMU, ")
    assert dump.machine.release == "6.1.0-model"  # VMCOREINFO's
    assert_pages(dump, guest)


def test_machine_that_nothing_tells(guest: Guest) -> None:
    for layout, bits in (("64", 64), ("packed", 32)):
        dump = opened(kdump.build(guest, layout=layout, notes=[], utsname={"machine": b"vax"}))
        assert_pages(dump, guest)
        assert dump.machine.word_bits == bits
    dump = opened(kdump.build(guest, layout="packed", notes=[], utsname={"machine": b"aarch64"}))
    assert dump.machine.arch.name == "arm"


@pytest.mark.parametrize("style", ["note", "bare", "hidden"])
def test_vmcoreinfo_wherever_it_is(guest: Guest, style: str) -> None:
    dump = opened(kdump.build(guest, vmcoreinfo=style))
    assert dump.vmcoreinfo is not None
    assert dump.vmcoreinfo.text == guest.vmcoreinfo
    assert ("VMCOREINFO" in {item.name for item in dump.notes}) == (style != "bare")


def test_no_vmcoreinfo(guest: Guest) -> None:
    assert opened(kdump.build(guest, vmcoreinfo=None)).vmcoreinfo is None


def test_phys_base_of_qemu_is_doubted(guest: Guest) -> None:
    wrong = -0x90177536 & (1 << 64) - 1  # NUMBER(phys_base)=-90177536, which QEMU takes for hexadecimal
    dump = opened(kdump.build(guest, sub={"phys_base": wrong}))
    assert dump.vmcoreinfo is not None
    assert dump.vmcoreinfo.phys_base == -90177536
    assert "VMCOREINFO, which counts" in dump.remarks[0]
    right = -90177536 & (1 << 64) - 1
    assert not opened(kdump.build(guest, sub={"phys_base": right})).remarks


def test_eraseinfo_becomes_a_note(guest: Guest) -> None:
    text = b"erase saved_command_line size 28\n"
    dump = opened(kdump.build(guest, eraseinfo=text))
    assert (dump.notes[-1].name, dump.notes[-1].desc) == ("ERASEINFO", text)
    cut = opened(kdump.build(guest, eraseinfo=text, truncate=-1))
    assert "ERASEINFO" not in {item.name for item in cut.notes}
    assert "eraseinfo" in cut.remarks[0]
    assert_pages(cut, guest)


def test_every_zero_page_by_itself(guest: Guest) -> None:
    """makedumpfile -d 0: nothing is shared, and nothing is taken for zero without being read."""
    dump = opened(kdump.build(guest, shared_zero=False))
    assert {dump.states([pfn])[0] for pfn in guest.zeros} == {PageState.STORED}
    assert_pages(dump, guest)


def test_shared_page_that_is_not_zero() -> None:
    """Many descriptors with one offset mean nothing before the bytes have been looked at."""
    guest = Guest(pages={pfn: page(7) for pfn in range(64)})
    dump = opened(kdump.build(guest, codec="raw", shared_zero=False, descriptors=same_offset(guest)))
    assert set(dump.states(guest.stored)) == {PageState.STORED}
    assert_pages(dump, guest)


def same_offset(guest: Guest) -> dict[int, dict[str, int]]:
    plain = kdump.parts(guest, codec="raw", shared_zero=False)
    return {pfn: {"offset": plain[-1][0]} for pfn in guest.stored}


@pytest.mark.parametrize("options", [{"gap": 8192 * 3 + 5}, {"reverse": True}, {"gap": 24, "reverse": True}])
def test_data_lie_where_the_descriptors_say(guest: Guest, options: dict[str, Any]) -> None:
    dump = opened(kdump.build(guest, **options))
    assert_pages(dump, guest)
    assert set(dump.states(guest.zeros)) == {PageState.ZERO}


def test_pages_in_any_order_and_twice(guest: Guest) -> None:
    dump = opened(kdump.build(guest))
    pfns = guest.stored * 2
    random.Random(3).shuffle(pfns)
    assert b"".join(map(bytes, dump.read_pages(pfns))) == b"".join(guest.pages[pfn] for pfn in pfns)


def test_pages_are_located_alike_in_any_company(guest: Guest) -> None:
    """Pages that follow each other are looked up by the first and the last; repetitions and gaps may look like it."""
    store = opened(kdump.build(guest)).pages
    pfns = [*guest.stored[2:6], guest.stored[-1], guest.end_pfn]
    alone = {pfn: store.locate(np.array([pfn])) for pfn in pfns}
    for asked in itertools.product(pfns, repeat=3):
        found = store.locate(np.array(asked))
        for column in ("pfn", "state", "codec", "offset", "size"):
            assert getattr(found, column).tolist() == [getattr(alone[pfn], column)[0] for pfn in asked], asked


def test_file_that_cannot_be_mapped(tmp_path: Path, guest: Guest) -> None:
    path = tmp_path / "kdump"
    path.write_bytes(kdump.build(guest, codec=["zlib", "raw", "lzo"]))
    with FORMAT.open([PreadFile(os.open(path, os.O_RDONLY), str(path), path.stat().st_size)], OpenOptions()) as dump:
        assert_pages(dump, guest)


# Bitmaps


@either_way
@pytest.mark.parametrize("version", [0, 1, 3])
def test_diskdump(guest: Guest, version: int) -> None:
    """One bitmap, a status that means something else, and registers where kdump has its sub header."""
    plain = Guest(pages=guest.pages)
    options: dict[str, Any] = {"signature": b"DISKDUMP", "version": version, "vmcoreinfo": None}
    lies = {"phys_base": 0x1234567} | ({"split": 1, "start_pfn": 5} if version >= 2 else {})
    dump = opened(kdump.build(plain, single_bitmap=True, header={"status": 8}, sub=lies, **options))
    assert_pages(dump, plain)
    assert not dump.damage
    assert dump.variant.startswith("diskdump, ")
    two = opened(kdump.build(guest, header={"total_ram_blocks": 0x4000, "device_blocks": 77}, **options))
    assert_pages(two, guest)


@either_way
def test_bits_beyond_max_mapnr_are_ignored() -> None:
    guest = Guest(pages={pfn: page(pfn) for pfn in range(100)})
    data = bytearray(kdump.build(guest))
    at = kdump.parts(guest)[3][0]
    for start in (at, at + 4096):
        data[start + 13 : start + 4096] = b"\xff" * (4096 - 13)
        data[start + 12] |= 0xF0
    assert_pages(opened(bytes(data)), guest)


@either_way
def test_page_outside_of_ram_is_ram() -> None:
    guest = Guest(pages={pfn: page(pfn) for pfn in (1, 2, 3, 70)})
    assert_pages(opened(kdump.build(guest, ram=[(1, 2)])), guest)


def test_max_mapnr_64_counts_from_version_6_on(guest: Guest) -> None:
    dump = opened(kdump.build(guest, header={"max_mapnr": 50}))
    assert_pages(dump, guest)
    assert opened(kdump.build(guest, version=5, header={"max_mapnr": 0x120})).attributes["max_mapnr"] == 0x120


@either_way
def test_pfns_beyond_32_bits(tmp_path: Path) -> None:
    low, high = 5, (1 << 32) + 77
    half = align(align(high + 1, 8) // 8, 4096)
    lies: dict[str, Any] = {"header": {"bitmap_blocks": half // 2048, "max_mapnr": 0xFFFFFFFF}}
    guest = Guest(pages={low: page(low), low + 1: page(high)})
    parts = kdump.parts(guest, codec="raw", shared_zero=False, sub={"max_mapnr_64": high + 1}, **lies)
    (bits_at, _), (table_at, _), (_, data) = parts[3:]
    table_at = bits_at + 2 * half
    table = b"".join(struct.pack("<QIIQ", table_at + 48 + at, 4096, 0, 0) for at in (0, 4096))
    places = [(at + (pfn >> 3), 1 << (pfn & 7)) for pfn in (low, high) for at in (bits_at, bits_at + half)]
    rest = [*((at, struct.pack("<Q", bits)) for at, bits in places), (table_at, table), (table_at + 48, data)]
    path = write_sparse(tmp_path / "far", table_at + 48 + 8192, [*parts[:3], *rest])
    with dumpxlate.open(path) as dump:
        assert dump.attributes["max_mapnr"] == high + 1
        assert_pages(dump, far_guest([low, high]))


def test_truncated_max_mapnr_of_older_versions(guest: Guest) -> None:
    """Before version 6 there are 32 bits: the size of the bitmap tells more."""
    dump = opened(kdump.build(guest, version=5, header={"max_mapnr": 0xFFFFFFFF}))
    assert dump.attributes["max_mapnr"] == align(guest.end_pfn, 8 * 4096)
    assert [bytes(row) for row in dump.read_pages(guest.stored)] == list(map(guest.pages.get, guest.stored))
    assert dump.pages.ram.count == len(guest.ram)


@either_way
def test_more_bitmap_than_needed(guest: Guest) -> None:
    assert_pages(opened(kdump.build(guest, bitmap_blocks=80)), guest)


def test_newer_version_is_read_with_a_remark(guest: Guest) -> None:
    dump = opened(kdump.build(guest, header={"header_version": 7}))
    assert "header version 7" in dump.remarks[0]
    assert_pages(dump, guest)


@pytest.mark.parametrize("lowest", [0, 3])
def test_arm_pfns_count_from_phys_base(lowest: int) -> None:
    """makedumpfile on 32-bit Arm numbers pages from phys_base on."""
    base = 0x80000
    guest = Guest(pages={lowest + pfn: page(base + lowest + pfn) for pfn in range(64)}, excluded=frozenset({70}))
    notes = cpu_notes(guest, "arm")
    dump = opened(build(guest, layout="natural", notes=notes, vmcoreinfo=None, sub={"phys_base": base << 12}))
    physical = {base + pfn: data for pfn, data in guest.pages.items()}
    assert_pages(dump, Guest(pages=physical, excluded=frozenset({base + 70})))
    assert set(dump.states([lowest, lowest + 1])) == {PageState.ABSENT}


def test_arm_pfns_of_qemu_are_physical() -> None:
    guest = Guest(pages={0x80000 + pfn: page(0x80000 + pfn) for pfn in range(64)})
    notes = cpu_notes(guest, "arm")
    assert_pages(opened(build(guest, layout="packed", notes=notes, sub={"phys_base": 0x80000000})), guest)


# Split sets


@either_way
@pytest.mark.parametrize("version", [2, 5, 6])
@pytest.mark.parametrize(("layout", "byte_order"), [("64", "<"), ("packed", "<"), ("natural", ">")])
def test_parts_in_any_order(guest: Guest, version: int, layout: str, byte_order: str) -> None:
    plain = Guest(pages={pfn: data for pfn, data in guest.pages.items() if pfn < 1 << 16})
    machine = {"machine": MACHINES[layout, byte_order][0]}
    files = kdump.split_set(
        plain, 3, version=version, layout=layout, byte_order=byte_order, notes=[], utsname=machine, gap=64
    )
    for order in itertools.permutations(files):
        dump = opened(*order)
        assert not dump.damage
        assert_pages(dump, plain)
        assert set(dump.states(plain.zeros)) == {PageState.ZERO}
        assert [source.size for source in dump.sources] == [len(data) for data in files]


def test_files_one_behind_the_other() -> None:
    """Ranges inside one part are handed out as they are, others are copied; nothing outside gets an offset inside."""
    whole = bytes(range(100))
    source = ConcatenatedSource([BytesSource(whole[:40]), BytesSource(whole[40:70]), BytesSource(whole[70:])])
    assert (source.size, bytes(source.view())) == (100, whole)
    assert bytes(source.view(38, 4)) == whole[38:42]
    with pytest.raises(errors.TruncatedDumpError):
        source.view(99, 2)
    for rows in ([(41, 5), (-1, 0), (60, 10)], [(5, 3), (45, 3)], [(38, 4)], [(69, 1), (70, 1)], [(0, 40)]):
        offset, size = (np.array(column, kind) for column, kind in zip(zip(*rows, strict=True), "qi", strict=True))
        body, moved = source.gather(offset, size)
        found = [bytes(body[at : at + length]) if at >= 0 else b"" for at, length in zip(moved, size, strict=True)]
        assert found == [whole[at : at + length] if at >= 0 else b"" for at, length in rows]
    for at, length in ((95, 6), (100, 1), (1 << 62, 4096)):
        body, moved = source.gather(np.array([3, at]), np.array([2, length], np.int32))
        assert moved[1] + length > len(body)
        body, moved = source.gather(np.array([at]), np.array([length], np.int32))
        assert moved[0] + length > len(body)


def test_zero_page_of_a_later_part() -> None:
    """Every part has its own, behind as many descriptors as the whole dump has; the parts' first rows are not alike."""
    guest = Guest(pages=dict.fromkeys(range(12000), bytes(4096)) | {0: page(0), 6000: page(6000)})
    dump = opened(*kdump.split_set(guest, 2))
    assert dump.states([0, 1, 5999, 6000, 6001, 11999]) == [
        PageState.STORED, PageState.ZERO, PageState.ZERO, PageState.STORED, PageState.ZERO, PageState.ZERO,
    ]  # fmt: skip
    assert_pages(dump, guest)


@either_way
def test_part_without_pages(guest: Guest) -> None:
    files = [kdump.build(guest, split=edge) for edge in ((0, 0x180), (0x180, 0x180), (0x180, guest.end_pfn))]
    assert_pages(opened(*files[::-1]), guest)
    empty = opened(files[1])
    assert empty.pages.stored.count == 0
    assert empty.damage


@either_way
def test_missing_part_is_told(guest: Guest) -> None:
    edges = [(0, 0x20), (0x20, 0x120), (0x120, guest.end_pfn)]
    files = [kdump.build(guest, split=edge) for edge in edges]
    for gone, (start, stop) in enumerate(edges):
        dump = opened(*(data for at, data in enumerate(files) if at != gone))
        lost = frozenset(pfn for pfn in guest.stored if start <= pfn < stop)
        assert f"the {len(lost):,} pages of pfns {start:#x} to {stop - 1:#x} are in a file" in dump.damage[0]
        assert_pages(dump, guest, lost=lost)
    alone = opened(files[1])
    assert len(alone.damage) == 2
    assert_pages(alone, guest, lost=frozenset(pfn for pfn in guest.stored if not 0x20 <= pfn < 0x120))


def test_gap_without_pages_is_no_damage() -> None:
    guest = Guest(pages={pfn: page(pfn) for pfn in (*range(10), *range(900, 910))})
    files = [kdump.build(guest, split=edge) for edge in ((0, 100), (800, 910))]
    dump = opened(*files)
    assert not dump.damage
    assert_pages(dump, guest)


def test_converting_across_parts(tmp_path: Path, guest: Guest) -> None:
    files = []
    for at, data in enumerate(kdump.split_set(guest, 5, codec=["zlib", "lzo"])):
        files.append(tmp_path / f"part{at}")
        files[-1].write_bytes(data)
    with dumpxlate.open(*files[::-1]) as dump:
        convert(dump, tmp_path / "vmcore", "elf")
    assert vmcore_pages(tmp_path / "vmcore") == guest.pages
    assert vmcore_missing(tmp_path / "vmcore") == guest.excluded


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"header": {"tv_sec": 5}}, "tv_sec"),
        ({"utsname": {"nodename": b"other"}}, "nodename"),
        ({"max_mapnr": 0x100044}, "max_mapnr"),
        ({"bitmap_blocks": 82}, "bitmap_blocks"),
    ],
)
def test_parts_of_different_dumps(guest: Guest, other: dict[str, Any], what: str) -> None:
    one = kdump.build(guest, split=(0, 0x120))
    two = kdump.build(guest, split=(0x120, guest.end_pfn), **other)
    with pytest.raises(errors.CorruptDumpError, match=f"file1: a part of another dump than file0: {what} differs"):
        opened(one, two)


@either_way
def test_parts_with_other_bitmaps(guest: Guest) -> None:
    fewer = guest.but(pages={pfn: data for pfn, data in guest.pages.items() if pfn != 0x130})
    with pytest.raises(errors.CorruptDumpError, match="bitmap differs"):
        opened(kdump.build(guest, split=(0, 0x120)), kdump.build(fewer, split=(0x120, guest.end_pfn)))


def test_parts_that_overlap(guest: Guest) -> None:
    one, two = kdump.build(guest, split=(0, 0x120)), kdump.build(guest, split=(0x11F, guest.end_pfn))
    with pytest.raises(errors.CorruptDumpError, match="file1: begins at pfn 0x11f, but file0 reaches to 0x120"):
        opened(one, two)
    with pytest.raises(errors.CorruptDumpError, match="begins at pfn 0x0"):
        opened(one, one)


def test_whole_dump_among_parts(guest: Guest) -> None:
    with pytest.raises(errors.UnsupportedFeatureError, match="file1: 2 files were given, but this one is a whole"):
        opened(kdump.build(guest, split=(0, 0x120)), kdump.build(guest))


def test_part_beyond_the_dump(guest: Guest) -> None:
    with pytest.raises(errors.CorruptDumpError, match="part from pfn 0x20 to 0x100041"):
        opened(kdump.build(guest, split=(0x20, guest.end_pfn + 1)))


# Incomplete and truncated files


@either_way
@pytest.mark.parametrize("written", [0, 1, 100])
def test_incomplete(guest: Guest, written: int) -> None:
    lost = guest.stored[written:]
    dump = opened(kdump.build(guest, written=written))
    (damage,) = dump.damage
    assert damage.startswith("the writer ran out of space and marked the file incomplete: ")
    assert damage.endswith(f" {len(lost):,} of the {len(guest.stored):,} pages that it promises are not in the file")
    assert_pages(dump, guest, lost=frozenset(lost))


def test_descriptor_of_zeros_nobody_told_of() -> None:
    """Far from the end it is found when the page is asked for: the file says that it has it, so it is bad."""
    guest = Guest(pages=dict.fromkeys(range(5000), bytes(4096)) | {5000: page(5000)})
    hole = {"offset": 0, "size": 0, "flags": 0}
    dump = opened(kdump.build(guest, descriptors={20: hole}))
    assert dump.states([19, 20]) == [PageState.ZERO, PageState.BAD]
    assert not dump.damage
    near = opened(kdump.build(guest, descriptors={4990: hole}))
    assert "1 of the 5,001 pages" in near.damage[0]
    assert_pages(near, guest, lost=frozenset({4990}))


@either_way
@pytest.mark.parametrize("codec", ["zlib", "raw"])
def test_truncated_data(codec: str) -> None:
    guest = small_guest(high=False)
    data = kdump.build(guest, codec=codec)
    at, size = kdump.parts(guest, codec=codec)[4]
    rows = {pfn: struct.unpack_from("<QI", size, 24 * row) for row, pfn in enumerate(guest.stored)}
    for keep in (at + len(size) + 4096, len(data) - 9000, len(data) - 3000, len(data) - 1):
        lost = frozenset(pfn for pfn, (offset, length) in rows.items() if offset + length > keep)
        dump = opened(data[:keep])
        assert dump.damage == (
            f"truncated or incomplete: {len(lost):,} of the {len(rows):,} pages that it promises are not in the file",
        )
        assert_pages(dump, guest, lost=lost)


@either_way
def test_truncated_behind_zero_pages() -> None:
    """The last descriptors share one block at the front of the data, which is still there."""
    pages = {pfn: page(pfn, kind="noise") for pfn in range(20)} | {pfn: bytes(4096) for pfn in range(20, 20000)}
    guest = Guest(pages=pages)
    dump = opened(kdump.build(guest, truncate=-4096))
    assert dump.damage == ("truncated or incomplete: 1 of the 20,000 pages that it promises are not in the file",)
    assert_pages(dump, guest, lost=frozenset({19}))


@either_way
def test_truncated_descriptors(guest: Guest) -> None:
    at = kdump.parts(guest)[4][0]
    dump = opened(kdump.build(guest, truncate=at + 24 * 9 + 23))
    assert f"truncated or incomplete: {len(guest.stored):,} of" in dump.damage[0]
    assert_pages(dump, guest, lost=frozenset(guest.stored))


@either_way
def test_salvage_of_a_truncated_dump(tmp_path: Path, guest: Guest) -> None:
    path = tmp_path / "cut"
    path.write_bytes(kdump.build(guest, codec="raw", truncate=-4096 * 3))
    with dumpxlate.open(path) as dump:
        with pytest.raises(errors.CorruptDumpError, match="truncated"):
            convert(dump, tmp_path / "vmcore", "elf")
        convert(dump, tmp_path / "vmcore", "elf", salvage=True)
    lost = {pfn for pfn in guest.stored[-4:] if any(guest.pages[pfn])}
    there = vmcore_pages(tmp_path / "vmcore")
    assert there == {pfn: data for pfn, data in guest.pages.items() if pfn in there}
    assert vmcore_missing(tmp_path / "vmcore") == guest.excluded | (guest.pages.keys() - there.keys())
    assert len(guest.pages) - len(there) == 3
    assert guest.pages.keys() - there.keys() <= lost


@pytest.mark.parametrize(
    ("keep", "what"), [(8, "disk_dump_header"), (463, "disk_dump_header"), (4100, "kdump_sub_header")]
)
def test_truncated_headers(keep: int, what: str) -> None:
    with pytest.raises(errors.TruncatedDumpError, match=what):
        opened(kdump.build(SMALL, truncate=keep))


def test_truncated_bitmaps() -> None:
    at = kdump.parts(SMALL)[4][0]
    with pytest.raises(errors.TruncatedDumpError, match="bitmaps at 0x2000: truncated"):
        opened(kdump.build(SMALL, truncate=at - 1))


# What must be rejected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"header": {"block_size": 5000}}, "block_size is 5000, expected a power of two"),
        ({"header": {"block_size": 512}}, "block_size is 512"),
        ({"header": {"block_size": 1 << 21}}, "block_size is 2097152"),
        ({"header": {"block_size": 0}}, "block_size is 0"),
        ({"header": {"sub_hdr_size": 0}}, "sub_hdr_size is 0, expected at least 1"),
        ({"header": {"sub_hdr_size": -3}}, "sub_hdr_size is -3"),
        ({"header": {"sub_hdr_size": 0x7FFFFFFF}}, "bitmaps at 0x80000000000: truncated"),
        ({"header": {"bitmap_blocks": 0}}, "bitmap_blocks is 0, expected at least 1"),
        ({"header": {"bitmap_blocks": 0xFFFFFFFF}}, "bitmaps at 0x2000: truncated"),
        ({"header": {"bitmap_blocks": 2}, "sub": {"max_mapnr_64": 1 << 20}}, "bitmap_blocks is 2, but max_mapnr"),
        ({"version": 5, "header": {"max_mapnr": 1 << 20}}, "bitmap_blocks is 2, but max_mapnr 0x100000"),
        ({"sub": {"max_mapnr_64": 1 << 63}}, "bitmap_blocks is 2, but max_mapnr"),
        ({"header": {"max_mapnr": 0}, "sub": {"max_mapnr_64": 0}}, "max_mapnr is 0"),
        ({"sub": {"offset_note": 1 << 40}}, "notes at 0x10000000000"),
        ({"sub": {"size_note": 1 << 40}}, "notes at 0x1068"),
        ({"sub": {"offset_note": -8}}, "notes at 0xfffffffffffffff8"),
        ({"sub": {"offset_vmcoreinfo": 1 << 40}}, "vmcoreinfo at 0x10000000000"),
    ],
)
def test_headers_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.CorruptDumpError, match=message):
        opened(kdump.build(SMALL, **options))


def test_more_memory_than_there_can_be(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    parts = kdump.parts(SMALL, header={"bitmap_blocks": 1 << 26}, sub={"max_mapnr_64": (1 << 34) + 1})
    with path.open("wb") as file:
        for at, data in parts[:3]:
            file.seek(at)
            file.write(data)
        file.truncate(1 << 39)
    with pytest.raises(errors.UnsupportedFeatureError, match="max_mapnr is 0x400000001"):
        dumpxlate.open(path)


@pytest.mark.parametrize(
    "lie",
    [
        {"size": 0},
        {"size": 4097},
        {"size": 0xFFFFFFFF},
        {"flags": 3},
        {"flags": 0x8},
        {"flags": 0x10},
        {"flags": 0x101},
        {"flags": 0x80000001},
        {"flags": 0},  # a raw page must be as long as a page
        {"offset": 1},
        {"offset": 0},
        {"offset": 4096},
        {"offset": 1 << 63},
        {"offset": -1},
    ],
)
def test_descriptors_that_make_no_sense(lie: dict[str, int]) -> None:
    pfn = 8
    dump = opened(kdump.build(SMALL, descriptors={pfn: lie}))
    assert dump.states([pfn]) == [PageState.BAD]
    assert not dump.read_pages([pfn]).any()
    rest = [other for other in SMALL.stored if other != pfn]
    assert b"".join(map(bytes, dump.read_pages(rest))) == b"".join(SMALL.pages[other] for other in rest)


def test_descriptor_just_behind_the_table_is_good() -> None:
    guest = Guest(pages={0: page(0), 1: page(1)})
    assert_pages(opened(kdump.build(guest, codec="raw", shared_zero=False)), guest)
    at = kdump.parts(guest, codec="raw", shared_zero=False)[5][0]
    dump = opened(kdump.build(guest, codec="raw", shared_zero=False, descriptors={0: {"offset": at - 1}}))
    assert dump.states([0, 1]) == [PageState.BAD, PageState.STORED]


@pytest.mark.parametrize("codec", ["zlib", "lzo", "snappy", "zstd"])
def test_page_that_does_not_decode(codec: str) -> None:
    data = bytearray(kdump.build(SMALL, codec=codec))
    table = kdump.parts(SMALL, codec=codec)[4][1]
    row = SMALL.stored.index(0x12)
    offset, size, flags = struct.unpack_from("<QII", table, 24 * row)
    assert flags
    data[offset : offset + size] = b"\xff" * size
    dump = opened(bytes(data))
    assert dump.states([0x12]) == [PageState.STORED]
    out = np.empty((2, 4096), np.uint8)
    assert read_pages(dump.pages, np.array([0x11, 0x12]), out).tolist() == [PageState.STORED, PageState.BAD]
    assert out[0].tobytes() == SMALL.pages[0x11]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_damaged_headers_raise_nothing_unexpected(data: st.DataObject) -> None:
    image = bytearray(_IMAGES[data.draw(st.sampled_from(sorted(_IMAGES)))])
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.one_of(st.integers(0, 480), st.integers(4096, 4220), st.integers(0, len(image) - 1)))
        image[at] = data.draw(st.sampled_from([0, 1, 2, 0x10, 0x7F, 0x80, 0xFF]))
    if data.draw(st.booleans()):
        del image[data.draw(st.integers(8, len(image))) :]
    try:
        dump = opened(bytes(image))
        dump.read_pages(range(0x150))
        assert dump.pages.stored.count <= dump.pages.ram.count
    except errors.DumpxlateError:
        pass


_IMAGES = {
    f"{layout}{order}": kdump.build(SMALL, layout=layout, byte_order=order, eraseinfo=b"erase x size 1\n")
    for layout in ("64", "packed", "natural")
    for order in "<>"
}


# Cost


class Counting(BytesSource):
    """Counts the bytes that are asked for."""

    read = 0

    def view(self, offset: int = 0, length: int | None = None) -> memoryview:
        found = super().view(offset, length)
        self.read += len(found)
        return found

    def gather(self, offset: Int64s, size: Int32s) -> tuple[memoryview, Int64s]:
        self.read += int(size.sum())
        return super().gather(offset, size)


def test_opening_reads_no_table() -> None:
    """Only headers, notes and the second bitmap are read, and a few descriptors at the end."""
    count = 60000
    guest = Guest(pages=dict.fromkeys(range(count), bytes(4096)) | {count: page(count)})
    source = Counting(kdump.build(guest))
    dump = FORMAT.open([source], OpenOptions())
    assert isinstance(dump.pages, DeferredStore)
    assert dump.pages.entries == count + 1
    assert source.read < 24 * (count + 1) // 5
    before = source.read
    dump.states(range(1000))
    assert source.read - before < 3 * 4096 * 24 + 4096 * 4


# Real files


def unflatten(data: bytes) -> bytes:
    inner = bytearray()
    at = 4096
    while True:
        offset, size = struct.unpack_from(">qq", data, at)
        if offset == size == -1:
            return bytes(inner)
        inner.extend(bytes(max(offset + size - len(inner), 0)))
        inner[offset : offset + size] = data[at + 16 : at + 16 + size]
        at += 16 + size


TINY = {
    "aarch64": "aarch64", "arm": "arm", "i386-isapc": "i386", "i386-pae": "i386", "i386-paging": "i386",
    "i386-real": "i386", "ppc64": "ppc64", "s390x": "s390x", "x64-core": "x86_64", "x64-flat32": "i386",
    "x64-la57": "x86_64", "x64-long": "x86_64", "x64-split": "x86_64",
}  # fmt: skip


@pytest.mark.parametrize("name", TINY)
def test_qemu_files_of_every_machine(shared: Path, name: str) -> None:
    folder = shared / "fixtures" / "tiny" / name
    dump = opened(unflatten(lzma.decompress((folder / "kdump-zlib.xz").read_bytes())))
    assert dump.machine.arch.name == TINY[name]
    assert dump.variant.startswith("QEMU, version 6")
    assert not dump.damage
    oracle = np.load(folder / "oracle.npz")
    size = int(oracle["page_size"])
    address = oracle["pfn"].astype(np.int64) * size
    wrong = [
        at
        for at, wanted in zip(address.tolist(), oracle["digest"].tolist(), strict=True)
        if digest_of(dump.read(at, size)) != wanted
    ]
    assert not wrong
    assert dump.pages.ram.count * dump.pages.page_size == len(address) * size
    facts = json.loads((folder / "facts.json").read_text())
    assert len(dump.cpus) == len(facts["cpus"])


def digest_of(data: bytes) -> int:
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little")


@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_qemu_codecs_tell_the_same(shared: Path, machine: str) -> None:
    folder = shared / "fixtures" / "qemu-core" / machine
    found = []
    for codec in ("zlib", "lzo", "snappy"):
        dump = opened(unflatten(lzma.decompress((folder / f"{codec}.dump.xz").read_bytes())))
        assert dump.variant.endswith(codec)
        pfn = dump.pages.stored.select(0, 1 << 30)
        found.append((pfn.tobytes(), dump.read_pages(pfn).tobytes()))
        assert PageState.BAD not in set(dump.states(pfn))
    assert found[0] == found[1] == found[2]


@pytest.mark.peer
@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("codec", ["-c", "-l", None])
def test_what_makedumpfile_writes(tmp_path: Path, codec: str | None, level: int) -> None:
    peers.require("makedumpfile")
    guest = small_guest(high=False, excluded=())
    source = tmp_path / "vmcore"
    source.write_bytes(elf_cores.core(guest))
    options = [codec] if codec else []
    with dumpxlate.open(peers.refilter(source, tmp_path / "kdump", *options, level=level)) as dump:
        assert dump.variant.startswith("makedumpfile, version 6")
        assert_pages(dump, guest)
        assert set(dump.states(guest.zeros)) == {PageState.ZERO if level else PageState.STORED}


@pytest.mark.peer
def test_sets_that_makedumpfile_splits(tmp_path: Path) -> None:
    peers.require("makedumpfile")
    guest = small_guest(high=False, excluded=())
    source = tmp_path / "vmcore"
    source.write_bytes(elf_cores.core(guest))
    parts = [tmp_path / f"part{at}" for at in range(3)]
    peers.makedumpfile("-c", "-d", "1", "--split", source, *parts)
    with dumpxlate.open(*parts[::-1]) as dump:
        assert not dump.damage
        assert_pages(dump, guest)
    found: dict[int, bytes] = {}
    for path in parts:
        with dumpxlate.open(path) as alone:
            held = alone.pages.stored.select(0, 1 << 30)
            assert bool(alone.damage) == (len(held) < len(guest.stored))
            found |= zip(held.tolist(), map(bytes, alone.read_pages(held)), strict=True)
    assert found == guest.pages
