"""Writing kdump-compressed dumps: the bytes themselves, and what other programs make of them."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import dumpxlate
from dumpxlate import errors
from dumpxlate.arch import by_name
from dumpxlate.bitmap import PageBitmap
from dumpxlate.dump import Dump, Machine, Space
from dumpxlate.format import WriteOptions
from dumpxlate.formats.kdump import bitmaps
from dumpxlate.pages import PageBatch, PageState, PageTable
from dumpxlate.pageset import PageRuns, Picked
from dumpxlate.pipeline import convert
from tests.builders import elf_cores, kdump
from tests.builders.elf_notes import cpu_notes
from tests.builders.guest import Guest, page, small_guest
from tests.builders.packing import runs
from tests.peers import peers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CODECS = {"zlib": 0x1, "lzo": 0x2, "snappy": 0x4, "zstd": 0x20}
INCOMPLETE = 8


@dataclass
class Parsed:
    """A kdump-compressed file, taken apart with struct alone."""

    header: dict[str, Any]
    sub: dict[str, int]
    notes: bytes
    ram: list[int]
    stored: list[int]
    rows: dict[int, tuple[int, int, int]]
    image: bytes

    def content(self, pfn: int) -> bytes:
        """Bytes of a page as they are in the file."""
        offset, size, _ = self.rows[pfn]
        assert offset + size <= len(self.image)
        return self.image[offset : offset + size]

    def page(self, pfn: int) -> bytes:
        """A page that is raw or zlib-compressed."""
        return {0: bytes, 1: zlib.decompress}[self.rows[pfn][2]](self.content(pfn))

    def at(self, name: str) -> bytes:
        """What offset_NAME and size_NAME point to."""
        start = self.sub[f"offset_{name}"]
        return self.image[start : start + self.sub[f"size_{name}"]]


def parse(path: Path, *, layout: str = "64", order: str = "<") -> Parsed:
    image = path.read_bytes()
    codes = kdump.HEADERS[layout]
    form = struct.Struct(order + "".join(code for _, code in codes))
    header = dict(zip((name for name, _ in codes), form.unpack_from(image), strict=True))
    size = header["block_size"]
    assert not any(image[form.size : size])
    slots, _ = kdump.sub_slots(layout)
    letters = {4: "I", 8: "Q"}
    sub = {name: struct.unpack_from(order + letters[width], image, size + at)[0] for name, (at, width) in slots.items()}
    bits_at, half = (1 + header["sub_hdr_size"]) * size, header["bitmap_blocks"] // 2 * size
    ram, stored = (_bits(image[at : at + half]) for at in (bits_at, bits_at + half))
    first, last = (sub["start_pfn_64"], sub["end_pfn_64"]) if sub["split"] else (0, 1 << 64)
    held = [pfn for pfn in stored if first <= pfn < last]
    table_at = bits_at + 2 * half
    rows = dict(zip(held, struct.iter_unpack(order + "QIIQ", image[table_at : table_at + 24 * len(held)]), strict=True))
    assert not any(flags for *_, flags in rows.values())
    notes = image[sub["offset_note"] : sub["offset_note"] + sub["size_note"]]
    return Parsed(header, sub, notes, ram, stored, {pfn: row[:3] for pfn, row in rows.items()}, image)


def _bits(data: bytes) -> list[int]:
    return [8 * at + bit for at, byte in enumerate(data) if byte for bit in range(8) if byte >> bit & 1]


def text(field: bytes) -> str:
    return field.rstrip(b"\0").decode()


@pytest.fixture(scope="module")
def guest() -> Guest:
    return small_guest()


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Any]:
    """Open bytes as a dump, convert it to kdump, and give the path."""

    def run(data: bytes, name: str = "out", *, options: WriteOptions | None = None, **kwargs: Any) -> Path:
        source = tmp_path / f"{name}.source"
        source.write_bytes(data)
        with dumpxlate.open(source) as dump:
            convert(dump, tmp_path / name, "kdump", options, **kwargs)
        return tmp_path / name

    yield run


def elf_of(guest: Guest, **options: Any) -> bytes:
    """A vmcore that says of the excluded pages that they are RAM."""
    return elf_cores.core(guest, "makedumpfile", **options)


def test_whole_file(guest: Guest, write: Any) -> None:
    path = write(elf_of(guest))
    found = parse(path)
    assert found.ram == guest.ram
    assert found.stored == guest.stored
    assert {pfn: found.page(pfn) for pfn in guest.stored} == guest.pages
    header = found.header
    assert header["signature"] == b"KDUMP   "
    assert header["header_version"] == 6
    assert header["status"] == CODECS["zlib"]
    assert header["block_size"] == 4096
    assert header["max_mapnr"] == found.sub["max_mapnr_64"] == guest.end_pfn
    assert header["bitmap_blocks"] == 2 * -(-guest.end_pfn // (8 * 4096))
    assert header["nr_cpus"] == 2
    assert header["tv_sec"] == 1700000000  # CRASHTIME of VMCOREINFO
    assert found.sub["phys_base"] == -90177536 & (1 << 64) - 1
    assert found.sub["dump_level"] & 1
    assert not found.sub["split"] | found.sub["start_pfn"] | found.sub["end_pfn"] | found.sub["end_pfn_64"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_data_are_packed_behind_one_zero_page(guest: Guest, write: Any) -> None:
    found = parse(write(elf_of(guest)))
    data_at = (1 + found.header["sub_hdr_size"] + found.header["bitmap_blocks"]) * 4096 + 24 * len(guest.stored)
    assert {found.rows[pfn] for pfn in guest.zeros} == {(data_at, 4096, 0)}
    assert not any(found.image[data_at : data_at + 4096])
    at = data_at + 4096
    for pfn in guest.stored:
        if pfn not in guest.zeros:
            offset, size, flags = found.rows[pfn]
            assert offset == at
            assert (flags == 0) == (size == 4096)
            at += size
    assert found.image[at:] == found.at("eraseinfo")
    assert {flags for _, _, flags in found.rows.values()} == {0, 1}  # noise does not shrink


def test_notes_and_vmcoreinfo(guest: Guest, write: Any) -> None:
    found = parse(write(elf_of(guest)))
    assert found.sub["offset_note"] == 4096 + 104
    assert found.sub["offset_note"] + found.sub["size_note"] <= (1 + found.header["sub_hdr_size"]) * 4096
    assert found.notes.startswith(b"".join(cpu_notes(guest)))
    assert found.at("vmcoreinfo") == guest.vmcoreinfo.encode()
    at = found.sub["offset_vmcoreinfo"] - found.sub["offset_note"]
    assert found.notes[at - 12 : at] == b"VMCOREINFO\0\0"


def test_utsname_is_never_empty(guest: Guest, write: Any) -> None:
    """drgn and libkdumpfile refuse a file where one of these is; QEMU fills only the machine."""
    found = parse(write(elf_of(guest.but(vmcoreinfo=""))))
    names = {name: text(found.header[name]) for name in kdump.UTSNAME}
    assert all(names.values())
    assert names["machine"] == "x86_64"
    known = parse(write(elf_of(guest), "known"))
    assert text(known.header["release"]) == "6.1.0-model"
    empty = dict.fromkeys(kdump.UTSNAME, b"") | {"machine": b"x86_64"}
    qemu = parse(write(kdump.build(guest, utsname=empty), "qemu"))
    assert all(text(qemu.header[name]) for name in kdump.UTSNAME)
    assert text(qemu.header["release"]) == "6.1.0-model"


def test_header_of_a_kdump_source_is_kept(guest: Guest, write: Any) -> None:
    lies: dict[str, Any] = {"sub": {"dump_level": 30, "phys_base": 0x123000}, "header": {"current_cpu": 1}}
    found = parse(write(kdump.build(guest.but(vmcoreinfo="OSRELEASE=1\n"), **lies)))
    assert {name: found.header[name].rstrip(b"\0") for name in kdump.UTSNAME} == kdump.UTSNAME
    assert found.header["tv_sec"] == 1700000000
    assert found.header["current_cpu"] == 1
    assert found.sub["dump_level"] == 31
    assert found.sub["phys_base"] == 0x123000


MACHINES = [  # arch, order, page size, layout, uname -m
    ("x86_64", "<", 4096, "64", "x86_64"),
    ("i386", "<", 4096, "packed", "i686"),
    ("aarch64", "<", 65536, "64", "aarch64"),
    ("aarch64", "<", 16384, "64", "aarch64"),
    ("arm", "<", 4096, "packed", "armv7l"),
    ("ppc64", "<", 65536, "64", "ppc64le"),
    ("ppc64", ">", 65536, "64", "ppc64"),
    ("s390x", ">", 4096, "64", "s390x"),
    ("riscv64", "<", 4096, "64", "riscv64"),
]


@pytest.mark.parametrize(("arch", "order", "page_size", "layout", "uname"), MACHINES)
def test_every_machine(
    write: Any, tmp_path: Path, arch: str, order: str, page_size: int, layout: str, uname: str
) -> None:
    guest = small_guest(page_size=page_size)
    names = {"machine": uname.encode()}
    notes = cpu_notes(guest, arch, order)
    data = kdump.build(guest, layout=layout, byte_order=order, notes=notes, utsname=names, codec="snappy")
    path = write(data, options=WriteOptions(compress="zlib"))
    found = parse(path, layout=layout, order=order)
    assert found.ram == guest.ram
    assert {pfn: found.page(pfn) for pfn in guest.stored} == guest.pages
    assert text(found.header["machine"]) == uname
    assert found.header["block_size"] == page_size
    assert found.notes.startswith(b"".join(notes))
    assert found.sub["phys_base"] == -90177536 & (1 << (32 if layout == "packed" else 64)) - 1
    with dumpxlate.open(path) as dump:
        assert dump.machine.arch.name == arch
        assert dump.machine.endian == order


@pytest.mark.parametrize("arch", ["arm", "aarch64"])
def test_phys_base_of_arm_is_where_ram_begins(write: Any, arch: str) -> None:
    guest = Guest(pages={0x40000 + pfn: page(0x40000 + pfn) for pfn in range(8)})
    layout = "packed" if arch == "arm" else "64"
    options: dict[str, Any] = {"layout": layout, "utsname": {"machine": arch.encode()}, "vmcoreinfo": None}
    found = parse(write(kdump.build(guest, notes=cpu_notes(guest, arch), **options)), layout=layout)
    assert found.sub["phys_base"] == 0x40000000


# Codecs


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec(guest: Guest, write: Any, codec: str) -> None:
    path = write(elf_of(guest), options=WriteOptions(compress=codec))
    found = parse(path)
    assert found.header["status"] == CODECS[codec]
    assert {flags for _, _, flags in found.rows.values()} == {0, CODECS[codec]}
    assert all((flags == 0) == (size == 4096) for _, size, flags in found.rows.values())
    with dumpxlate.open(path) as dump:
        assert [bytes(row) for row in dump.read_pages(guest.stored)] == [guest.pages[pfn] for pfn in guest.stored]


def test_no_codec(guest: Guest, write: Any) -> None:
    for name in ("none", "raw"):
        found = parse(write(kdump.build(guest), name, options=WriteOptions(compress=name)))
        assert found.header["status"] == 0
        assert {found.rows[pfn][1:] for pfn in guest.stored} == {(4096, 0)}
        assert {pfn: found.page(pfn) for pfn in guest.stored} == guest.pages
        assert len({found.rows[pfn] for pfn in guest.zeros}) == 1


@pytest.mark.parametrize("codec", CODECS)
def test_compressed_pages_pass_untouched(guest: Guest, write: Any, codec: str) -> None:
    data = kdump.build(guest, codec=codec)
    path = write(data)
    before, after = parse(path.with_name("out.source")), parse(path)
    assert after.header["status"] == CODECS[codec]
    for pfn in guest.stored:
        assert after.rows[pfn][1:] == before.rows[pfn][1:]
        assert after.content(pfn) == before.content(pfn)


def test_page_that_does_not_decode_passes_untouched(guest: Guest, write: Any) -> None:
    """Nothing is decoded on the way, so nothing is found wrong: that is what ``check`` is for."""
    data = kdump.build(guest, codec=lambda pfn, body: (1, b"not zlib" + bytes([pfn & 255])))
    assert parse(write(data)).content(0x22) == b"not zlib\x22"


def test_mixed_codecs_pass_untouched(guest: Guest, write: Any) -> None:
    path = write(kdump.build(guest, codec=["zlib", "zlib", "lzo", "zstd"]))
    before, after = parse(path.with_name("out.source")), parse(path)
    assert [row[1:] for row in after.rows.values()] == [row[1:] for row in before.rows.values()]
    assert after.header["status"] == CODECS["zlib"]


@pytest.mark.parametrize("asked", ["zlib", "zlib:9", "snappy"])
def test_what_was_asked_for_counts(guest: Guest, write: Any, asked: str) -> None:
    """The codec that the source has passes; another one, or a level, means that pages are compressed anew."""
    path = write(kdump.build(guest, codec=wasteful), options=WriteOptions(compress=asked))
    before, after = parse(path.with_name("out.source")), parse(path)
    same = [after.content(pfn) == before.content(pfn) for pfn in guest.stored if before.rows[pfn][2]]
    assert all(same) if asked == "zlib" else not any(same)
    assert {flags for _, _, flags in after.rows.values()} == {0, CODECS[asked.partition(":")[0]]}


def wasteful(pfn: int, body: bytes) -> tuple[int, bytes]:
    """A zlib stream with the header of another level, which no compressor writes before such data."""
    packed = zlib.compress(body, 1)[:2] + zlib.compress(body, 6)[2:]
    return (1, packed) if len(packed) < len(body) else (0, body)


def test_uncompressed_source_is_compressed(guest: Guest, write: Any) -> None:
    found = parse(write(kdump.build(guest, codec="raw", shared_zero=False)))
    assert {flags for _, _, flags in found.rows.values()} == {0, 1}
    assert len({found.rows[pfn] for pfn in guest.zeros}) == 1


@pytest.mark.parametrize("text", ["rle", "rle:1"])
def test_codec_that_descriptors_have_no_flag_for(guest: Guest, write: Any, text: str) -> None:
    with pytest.raises((errors.UnsupportedFeatureError, ValueError), match="rle"):
        write(elf_of(guest), options=WriteOptions(compress=text))


@pytest.mark.parametrize("text", ["bzip2", "zlib:99", "zstd:x"])
def test_codec_that_there_is_not(guest: Guest, write: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text.partition(":")[0]):
        write(elf_of(guest), options=WriteOptions(compress=text))


# What is missing


def test_eraseinfo_goes_to_the_end(guest: Guest, write: Any) -> None:
    erased = b"erase saved_command_line size 28\n"
    found = parse(write(kdump.build(guest, eraseinfo=erased)))
    assert found.at("eraseinfo") == erased
    assert found.image.endswith(erased)
    assert b"ERASEINFO" not in found.notes
    assert {pfn: found.page(pfn) for pfn in guest.stored} == guest.pages


def bad_source(guest: Guest, bad: int) -> bytes:
    return kdump.build(guest, codec="lzo", descriptors={bad: {"flags": 3}})


def test_bad_pages_become_descriptors_of_zeros(guest: Guest, write: Any) -> None:
    with pytest.raises(errors.CorruptPageError, match="page 0x22"):
        write(bad_source(guest, 0x22))
    path = write(bad_source(guest, 0x22), bad_pages="skip", options=WriteOptions(compress="zlib"))
    found = parse(path)
    assert found.header["status"] == CODECS["zlib"] | INCOMPLETE
    assert found.rows[0x22] == (0, 0, 0)
    assert {pfn: found.page(pfn) for pfn in guest.stored if pfn != 0x22} == {
        pfn: data for pfn, data in guest.pages.items() if pfn != 0x22
    }
    with dumpxlate.open(path) as dump:
        assert "1 of the" in dump.damage[0]
        assert dump.states([0x21, 0x22, 0x23]) == [PageState.STORED, PageState.EXCLUDED, PageState.STORED]


def test_salvage_stays_marked(guest: Guest, write: Any) -> None:
    path = write(kdump.build(guest, written=100), salvage=True)
    found = parse(path)
    assert found.header["status"] == CODECS["zlib"] | INCOMPLETE
    assert found.ram == guest.ram
    assert found.stored == guest.stored[:100]
    with dumpxlate.open(path) as dump:
        assert dump.damage


def test_window_of_physical_memory(guest: Guest, write: Any) -> None:
    """The rest of RAM is known, and its content is not in the file."""
    options = WriteOptions(begin=0x20800, length=0xF0000)
    found = parse(write(elf_of(guest), options=options))
    assert found.ram == guest.ram
    assert found.stored == [pfn for pfn in guest.stored if 0x20 <= pfn <= 0x110]
    assert {pfn: found.page(pfn) for pfn in found.stored} == {pfn: guest.pages[pfn] for pfn in found.stored}
    rest = parse(write(elf_of(guest), "rest", options=WriteOptions(begin=0x120000)))
    assert rest.stored == [pfn for pfn in guest.stored if pfn >= 0x120]


# Split sets


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("arch", ["x86_64", "i386"])
def test_parts(guest: Guest, write: Any, count: int, arch: str) -> None:
    layout = "64" if arch == "x86_64" else "packed"
    data = kdump.build(guest, layout=layout, utsname={"machine": arch.encode()}, notes=cpu_notes(guest, arch))
    paths = [write(data, f"part{at}", options=WriteOptions(part=(at, count))) for at in range(1, count + 1)]
    found = [parse(path, layout=layout) for path in paths]
    assert [part.sub["split"] for part in found] == [1] * count
    edges = [(part.sub["start_pfn_64"], part.sub["end_pfn_64"]) for part in found]
    assert edges[0][0] == 0
    assert edges[-1][1] == guest.end_pfn
    assert [stop for _, stop in edges[:-1]] == [start for start, _ in edges[1:]]
    narrow = (1 << (64 if layout == "64" else 32)) - 1
    assert [(part.sub["start_pfn"], part.sub["end_pfn"]) for part in found] == [
        (start & narrow, stop & narrow) for start, stop in edges
    ]
    assert {pfn: part.page(pfn) for part in found for pfn in part.rows} == guest.pages
    assert max(len(part.rows) for part in found) - min(len(part.rows) for part in found) <= 1
    for part in found:
        assert part.ram == guest.ram
        assert part.stored == guest.stored
    with dumpxlate.open(*paths[::-1]) as dump:
        assert not dump.damage
        assert [bytes(row) for row in dump.read_pages(guest.stored)] == [guest.pages[pfn] for pfn in guest.stored]


def test_more_parts_than_pages(write: Any) -> None:
    guest = Guest(pages={3: page(3), 9: page(9)})
    paths = [write(kdump.build(guest), f"part{at}", options=WriteOptions(part=(at, 5))) for at in range(1, 6)]
    assert sorted(len(parse(path).rows) for path in paths) == [0, 0, 0, 1, 1]
    with dumpxlate.open(*paths) as dump:
        assert not dump.damage
        assert bytes(dump.read_pages([9])[0]) == page(9)


@pytest.mark.parametrize("part", [(0, 2), (3, 2), (-1, 1)])
def test_part_that_there_is_not(guest: Guest, write: Any, part: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"part {part[0]} of {part[1]}"):
        write(elf_of(guest), options=WriteOptions(part=part))


# Dumps that cannot be written


def model(pages: Any, **changes: Any) -> Dump:
    return Dump(format="model", variant="", machine=Machine(by_name("x86_64"), "<", 4096), pages=pages, **changes)


class Sets:
    """A store of zero pages."""

    page_size = 4096

    def __init__(self, ram: Any, stored: Any = None) -> None:
        self.ram = ram
        self.stored = ram if stored is None else stored

    def locate(self, pfn: Any) -> Any:
        table = PageTable.raw(pfn, np.full(len(pfn), -1), 4096)
        table.state[:] = PageState.ZERO
        return table

    def fetch(self, table: Any) -> Any:
        return PageBatch(table, memoryview(b""))


def pages_of(*numbers: int) -> PageRuns:
    return PageRuns.from_pfns(np.array(numbers, np.int64))


def test_machine_frames_need_a_map(tmp_path: Path) -> None:
    with pytest.raises(errors.MapError, match="--p2m"):
        convert(model(Sets(pages_of(1, 2)), space=Space.MACHINE), tmp_path / "out", "kdump")


@pytest.mark.parametrize("numbers", [(), (1 << 34,)])
def test_no_ram_or_too_much(tmp_path: Path, numbers: tuple[int, ...]) -> None:
    with pytest.raises(errors.UnsupportedFeatureError, match="RAM up to pfn"):
        convert(model(Sets(pages_of(*numbers))), tmp_path / "out", "kdump")
    assert not list(tmp_path.iterdir())


def test_far_memory_makes_a_sparse_file(tmp_path: Path) -> None:
    """A machine with a little RAM at 4 TiB: bitmaps of 128 MiB, of which a few blocks are written."""
    convert(model(Sets(pages_of(1, 1 << 30))), tmp_path / "out", "kdump")
    stat = (tmp_path / "out").stat()
    assert stat.st_size > 1 << 28
    assert stat.st_blocks * 512 < 64 << 20
    with dumpxlate.open(tmp_path / "out") as dump:
        assert dump.pages.stored.select(0, 10).tolist() == [1, 1 << 30]
        assert dump.states([0, 1, 2, 1 << 30]) == [PageState.ABSENT, PageState.ZERO, PageState.ABSENT, PageState.ZERO]


PIECE = 8192


@pytest.mark.parametrize("kind", ["runs", "bitmap", "limited", "picked"])
@pytest.mark.parametrize(
    "numbers",
    [
        (), (0,), (63,), (64,), (PIECE - 1,), (PIECE,), (4 * PIECE - 1,), range(PIECE), range(3 * PIECE + 900),
        (5, PIECE - 6, PIECE - 5, PIECE + 50, 3 * PIECE, 3 * PIECE + 1000), range(100, 2 * PIECE, 7),
    ],
)  # fmt: skip
def test_bitmaps_in_pieces(monkeypatch: pytest.MonkeyPatch, kind: str, numbers: Any) -> None:
    monkeypatch.setattr(bitmaps, "_CHUNK", PIECE)
    monkeypatch.setattr(bitmaps, "_LISTED", PIECE)
    size = 4 * PIECE // 8
    pages: Any = pages_of(*numbers)
    if kind == "bitmap":
        pages = PageBitmap.from_bytes(kdump.bitmap(runs(numbers), size))
    if kind == "limited":
        stop = max(numbers, default=-1) + 1
        pages = PageBitmap.from_bytes(kdump.bitmap([*runs(numbers), (stop, 8 * size - stop)], size), stop)
    if kind == "picked":
        more = sorted({*numbers, *range(0, 4 * PIECE, 50)})
        wanted = set(numbers)
        pages = Picked(pages_of(*more), pages_of(*(rank for rank, pfn in enumerate(more) if pfn in wanted)))
    words = list(bitmaps.packed(pages))
    data = b"".join(piece.tobytes() for piece in words)
    assert all(len(piece) == PIECE // 64 for piece in words[:-1])
    assert data.ljust(size, b"\0") == kdump.bitmap(runs(numbers), size)


# Other programs


@pytest.mark.peer
@pytest.mark.parametrize("codec", ["none", *CODECS])
@pytest.mark.parametrize(("arch", "order", "page_size", "layout", "uname"), MACHINES)
def test_libkdumpfile_reads_every_page(
    write: Any, codec: str, arch: str, order: str, page_size: int, layout: str, uname: str
) -> None:
    peers.require("kdumpfile")
    if arch == "riscv64":
        pytest.skip("libkdumpfile 0.5.1 does not know RISC-V")
    guest = small_guest(page_size=page_size)
    data = kdump.build(
        guest, layout=layout, byte_order=order, notes=cpu_notes(guest, arch, order), utsname={"machine": uname.encode()}
    )
    path = write(data, options=WriteOptions(compress=codec))
    seen = peers.kdumpfile_pages(path, [*guest.ram, guest.end_pfn], page_size)
    wanted = {pfn: zlib.crc32(guest.pages[pfn]) if pfn in guest.pages else None for pfn in guest.ram}
    assert seen == wanted | {guest.end_pfn: None}
    attrs = peers.kdumpfile_attrs(path)
    assert attrs["max_pfn"] == guest.end_pfn
    assert attrs["arch.name"] == {"i386": "ia32"}.get(arch, arch)
    assert attrs["arch.page_size"] == page_size
    assert attrs["linux.uts.machine"] == uname
    assert attrs["linux.uts.release"] == "6.1.0-model"


@pytest.mark.peer
def test_libkdumpfile_reads_registers(guest: Guest, write: Any) -> None:
    peers.require("kdumpfile")
    attrs = peers.kdumpfile_attrs(write(elf_of(guest)))
    assert attrs["cpu.number"] == 2
    assert [attrs[f"cpu.{cpu}.reg.rip"] for cpu in (0, 1)] == [guest.register(cpu, "rip") for cpu in (0, 1)]
    assert attrs["linux.vmcoreinfo.lines.OSRELEASE"] == "6.1.0-model"


@pytest.mark.peer
def test_makedumpfile_reassembles_our_parts(guest: Guest, write: Any, tmp_path: Path) -> None:
    peers.require("makedumpfile", "kdumpfile")
    paths = [write(elf_of(guest), f"part{at}", options=WriteOptions(part=(at, 3))) for at in (1, 2, 3)]
    peers.makedumpfile("--reassemble", *paths, tmp_path / "whole")
    seen = peers.kdumpfile_pages(tmp_path / "whole", guest.ram)
    assert seen == {pfn: zlib.crc32(guest.pages[pfn]) if pfn in guest.pages else None for pfn in guest.ram}
