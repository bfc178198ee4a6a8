"""Raw images: read without looking at holes, in pieces, with the map beside them; written sparse."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import stat
import time
from typing import TYPE_CHECKING, Any

import jsonschema
import numpy as np
import pytest

import dumpxlate
from dumpxlate import errors
from dumpxlate.format import Confidence, OpenOptions, WriteOptions
from dumpxlate.formats.raw import FORMAT
from dumpxlate.io import spool
from dumpxlate.io.sink import PipeSink
from dumpxlate.io.source import BytesSource
from dumpxlate.pages import PageState
from dumpxlate.registry import open_dump
from tests.builders import elf_cores, raw
from tests.builders.guest import far_guest, page, small_guest
from tests.conftest import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dumpxlate.dump import Dump
    from tests.builders.guest import Guest

PAGE = 4096
ABSENT, EXCLUDED, ZERO, STORED = PageState.ABSENT, PageState.EXCLUDED, PageState.ZERO, PageState.STORED


@pytest.fixture
def guest() -> Guest:
    return small_guest(high=False)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def assert_pages(dump: Dump, expected: dict[int, bytes]) -> None:
    pfns = sorted(expected)
    found = dump.read_pages(pfns)
    assert [pfn for pfn, row in zip(pfns, found, strict=True) if row.tobytes() != expected[pfn]] == []


def runs(pages: Any) -> list[tuple[int, int]]:
    return list(zip(*(column.tolist() for column in pages.runs()), strict=True))


# Recognising.


@pytest.mark.parametrize(("size", "claimed"), [(4096, True), (8192, True), (4095, False), (4097, False), (0, False)])
def test_anything_of_whole_pages_is_claimed_with_the_least_confidence(size: int, claimed: bool) -> None:
    match = FORMAT.detect(BytesSource(bytes(size)))
    assert (match is not None) is claimed
    assert match is None or match.confidence is Confidence.FALLBACK


def test_a_file_with_a_known_magic_is_never_raw(tmp_path: Path) -> None:
    path = write(tmp_path / "dump", b"PAGEDU64".ljust(8192, b"\0"))
    with pytest.raises(errors.UnsupportedFeatureError, match="Windows crash dump"):
        dumpxlate.open(path)
    with dumpxlate.open(path, format="raw") as dump:
        assert dump.read(0, 8) == b"PAGEDU64"


# Reading.


def test_offset_is_address(tmp_path: Path, guest: Guest) -> None:
    with dumpxlate.open(write(tmp_path / "image", guest.memory())) as dump:
        assert (dump.format, dump.variant) == ("raw", "without a map")
        assert dump.pages.ram.count == dump.pages.stored.count == guest.end_pfn
        assert_pages(dump, {pfn: guest.pages.get(pfn, bytes(PAGE)) for pfn in range(guest.end_pfn)})
        assert dump.read(5 * PAGE - 8, 16) == (guest.pages[4] + guest.pages[5])[PAGE - 8 : PAGE + 8]
        assert dump.machine.arch.name == "x86_64"
        assert any("x86-64, little-endian" in remark for remark in dump.remarks)


def test_holes_are_zero_pages(tmp_path: Path) -> None:
    guest = far_guest([3, 4, 700, 9000])
    path = raw.sparse(tmp_path / "image", guest, nr_pages=10_000)
    with dumpxlate.open(path) as dump:
        assert dump.pages.ram.count == dump.pages.stored.count == 10_000
        assert dump.states([2, 3, 4, 5, 700, 9000, 9999, 10_000]) == [
            ZERO,
            STORED,
            STORED,
            ZERO,
            STORED,
            STORED,
            ZERO,
            ABSENT,
        ]
        assert_pages(dump, guest.pages)
        assert not dump.read_pages([0, 9999]).any()


def test_holes_are_found_where_files_cannot_be_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError(19, "No such device")

    monkeypatch.setattr(spool.mmap, "mmap", refuse)
    test_holes_are_zero_pages(tmp_path)


def test_without_knowledge_of_holes_everything_is_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File systems that cannot tell answer EINVAL."""
    path = raw.sparse(tmp_path / "image", far_guest([3]), nr_pages=8)
    real = os.lseek

    def lseek(fd: int, at: int, how: int) -> int:
        if how in (os.SEEK_DATA, os.SEEK_HOLE):
            raise OSError(22, "Invalid argument")
        return real(fd, at, how)

    monkeypatch.setattr(os, "lseek", lseek)
    with dumpxlate.open(path) as dump:
        assert dump.states(range(8)) == [STORED] * 8
        assert dump.read(3 * PAGE, 8) == page(3)[:8]


def test_a_sparse_tebibyte_opens_at_once(tmp_path: Path) -> None:
    last = (1 << 28) - 1
    path = raw.sparse(tmp_path / "image", far_guest([0, 1 << 27, last]), nr_pages=1 << 28)
    start = time.perf_counter()
    with dumpxlate.open(path) as dump:
        assert dump.pages.ram.count == 1 << 28
        assert dump.read(last * PAGE, 8) == page(last)[:8]
        assert dump.states([5, 1 << 27]) == [ZERO, STORED]
    assert time.perf_counter() - start < 5


def test_a_last_page_in_part(tmp_path: Path) -> None:
    path = write(tmp_path / "image", page(0) + page(1)[:100])
    with pytest.raises(errors.UnknownFormatError):
        dumpxlate.open(path)
    with dumpxlate.open(path, format="raw") as dump:
        assert_pages(dump, {0: page(0), 1: page(1)[:100].ljust(PAGE, b"\0")})
        assert any("only in part" in remark for remark in dump.remarks)


# Pieces.


def pieces(folder: Path, *parts: tuple[int, bytes]) -> Dump:
    paths = [write(folder / f"piece{number}", data) for number, (_, data) in enumerate(parts)]
    return open_dump(paths, "raw", OpenOptions(addresses=tuple(address for address, _ in parts)))


def test_pieces_at_their_addresses(tmp_path: Path) -> None:
    """pmemsave of each range; Qualcomm's DDRCS0.BIN@0x80000000."""
    low, high = b"".join(map(page, range(16, 24))), b"".join(map(page, range(1 << 20, (1 << 20) + 5)))
    with pieces(tmp_path, (1 << 32, high), (16 * PAGE, low)) as dump:
        assert dump.variant == "2 pieces"
        assert runs(dump.pages.ram) == [(16, 8), (1 << 20, 5)]
        assert_pages(dump, {pfn: page(pfn) for pfn in (*range(16, 24), *range(1 << 20, (1 << 20) + 5))})
        assert dump.attributes["address"] == "0x100000000, 0x10000"
        dumpxlate.convert(dump, tmp_path / "vmcore", "elf")
    with dumpxlate.open(tmp_path / "vmcore") as dump:
        assert_pages(dump, {pfn: page(pfn) for pfn in (*range(16, 24), *range(1 << 20, (1 << 20) + 5))})


def test_one_piece_with_an_address(tmp_path: Path) -> None:
    with pieces(tmp_path, (0x8000_0000, page(7))) as dump:
        assert runs(dump.pages.ram) == [(0x80000, 1)]
        assert dump.read(0x8000_0000, PAGE) == page(7)


def test_holes_of_pieces_are_zero(tmp_path: Path) -> None:
    raw.sparse(tmp_path / "a", {1: page(1)}, nr_pages=64)
    raw.sparse(tmp_path / "b", {20: page(2)}, nr_pages=64)
    with open_dump([tmp_path / "a", tmp_path / "b"], "raw", OpenOptions(addresses=(0, 1 << 30))) as dump:
        base = (1 << 30) // PAGE
        assert dump.states([0, 1, 63, 64, base, base + 20]) == [ZERO, STORED, ZERO, ABSENT, ZERO, STORED]
        assert_pages(dump, {1: page(1), base + 20: page(2)})


def test_pieces_that_meet_inside_a_page_and_overlap(tmp_path: Path) -> None:
    whole = b"".join(map(page, range(4)))
    with pieces(tmp_path, (0, whole[:5000]), (5000, whole[5000:9000]), (8000, b"\xee" * 100 + whole[8100:])) as dump:
        assert_pages(dump, {pfn: page(pfn) for pfn in range(4)})
        assert any("1,000 bytes are there more than once; the first counts" in remark for remark in dump.remarks)


@pytest.mark.parametrize("addresses", [(), (0,), (0, 4096, 8192)])
def test_each_piece_needs_an_address(tmp_path: Path, addresses: tuple[int, ...]) -> None:
    paths = [write(tmp_path / name, page(1)) for name in "ab"]
    with pytest.raises(errors.UnsupportedFeatureError, match="give each its own, as in low"):
        open_dump(paths, "raw", OpenOptions(addresses=addresses))


@pytest.mark.parametrize("address", [-4096, 1 << 62, 1 << 70])
def test_an_address_beyond_all_memory(tmp_path: Path, address: int) -> None:
    with pytest.raises(errors.UnsupportedFeatureError, match="beyond all memory"):
        pieces(tmp_path, (address, page(1)))


# Writing.


@pytest.fixture
def vmcore(tmp_path: Path, guest: Guest) -> Path:
    return write(tmp_path / "vmcore", elf_cores.core(guest.but(vmcoreinfo="")))


def test_every_page_at_its_address(vmcore: Path, tmp_path: Path, guest: Guest) -> None:
    out = tmp_path / "out.raw"
    with dumpxlate.open(vmcore) as dump:
        stored = runs(dump.pages.stored)
        report = dumpxlate.convert(dump, out, "raw", allow_loss=True)
    assert out.read_bytes() == guest.memory()[: out.stat().st_size]
    assert out.stat().st_size == max(first + count for first, count in stored) * PAGE
    assert report.bytes_written == out.stat().st_size
    assert stat.S_IMODE(out.stat().st_mode) == stat.S_IMODE((tmp_path / "out.raw.dxmap").stat().st_mode) == 0o600


def test_what_is_lost_is_declared(vmcore: Path, tmp_path: Path) -> None:
    with dumpxlate.open(vmcore) as dump:
        with pytest.raises(errors.LossyConversionError, match="registers of 2 vcpus"):
            dumpxlate.convert(dump, tmp_path / "out.raw", "raw")
        assert not (tmp_path / "out.raw").exists()
        report = dumpxlate.convert(dump, tmp_path / "out.raw", "raw", allow_loss=True)
    assert [loss.what for loss in report.losses] == ["registers of 2 vcpus", "ELF notes"]


def test_a_far_guest_is_written_sparse_and_read_back(tmp_path: Path) -> None:
    guest = far_guest([1, 2, 1 << 20, (1 << 26) - 1])
    (tmp_path / "vmcore").write_bytes(elf_cores.core(guest.but(vmcoreinfo="")))
    out = tmp_path / "out.raw"
    with dumpxlate.open(tmp_path / "vmcore") as dump:
        dumpxlate.convert(dump, out, "raw", allow_loss=True)
    assert out.stat().st_size == 1 << 38
    assert out.stat().st_blocks * 512 < 1 << 20
    with dumpxlate.open(out) as dump:
        assert runs(dump.pages.ram) == [(1, 2), (1 << 20, 1), ((1 << 26) - 1, 1)]
        assert_pages(dump, guest.pages)


def test_the_map_says_what_the_image_cannot(tmp_path: Path) -> None:
    """Holes, left-out pages, page size, byte order: a big-endian machine with 64 KiB pages comes back as it was."""
    guest = small_guest(page_size=65536, high=False)
    core = elf_cores.core(guest, "makedumpfile", arch="ppc64", byte_order=">")
    with dumpxlate.open(write(tmp_path / "vmcore", core)) as dump:
        before = (dump.machine.arch.name, dump.machine.endian, dump.machine.page_size)
        ram, stored = runs(dump.pages.ram), runs(dump.pages.stored)
        assert ram != stored
        dumpxlate.convert(dump, tmp_path / "out.raw", "raw", allow_loss=True)
    with dumpxlate.open(tmp_path / "out.raw") as dump:
        assert (dump.machine.arch.name, dump.machine.endian, dump.machine.page_size) == before == ("ppc64", ">", 65536)
        assert (runs(dump.pages.ram), runs(dump.pages.stored)) == (ram, stored)
        assert dump.variant == "with its map"
        assert_pages(dump, guest.pages)
    written = json.loads((tmp_path / "out.raw.dxmap").read_text())
    jsonschema.validate(written, json.loads((ROOT / "docs" / "schemas" / "rawmap-1.json").read_text()))
    assert written["schema"] == "dumpxlate.rawmap/1"
    assert written["machine"] == {"arch": "ppc64", "elf_machine": 21, "word_bits": 64, "byte_order": "big"}
    assert written["ram"] == [[hex(first * 65536), hex((first + count) * 65536)] for first, count in ram]


def test_a_window_begins_at_its_address(vmcore: Path, tmp_path: Path, guest: Guest) -> None:
    """As pmemsave writes it; the map keeps where it was."""
    options = WriteOptions(begin=2 * PAGE, length=9 * PAGE)
    with dumpxlate.open(vmcore) as dump:
        dumpxlate.convert(dump, tmp_path / "out.raw", "raw", options, allow_loss=True)
        beyond = WriteOptions(begin=1 << 40)
        with pytest.raises(errors.UnsupportedFeatureError, match="no RAM in the range"):
            dumpxlate.convert(dump, tmp_path / "none", "raw", beyond, allow_loss=True)
    assert (tmp_path / "out.raw").read_bytes() == guest.run(2, 9)
    with dumpxlate.open(tmp_path / "out.raw") as dump:
        assert_pages(dump, {pfn: guest.pages.get(pfn, bytes(PAGE)) for pfn in range(2, 11)})
        assert dump.states([1, 2, 11])[::2] == [ABSENT, ABSENT]


def test_bad_pages_are_missing_in_the_map(vmcore: Path, tmp_path: Path) -> None:
    with dumpxlate.open(vmcore) as dump:
        dumpxlate.convert(dump, tmp_path / "kdump", "kdump", allow_loss=True)
    body = bytearray((tmp_path / "kdump").read_bytes())
    with dumpxlate.open(tmp_path / "kdump") as dump:
        table = dump.pages.locate(np.array([4], np.int64))
    body[int(table.offset[0]) : int(table.offset[0] + table.size[0])] = b"\xff" * int(table.size[0])
    with dumpxlate.open(write(tmp_path / "broken", bytes(body))) as dump:
        report = dumpxlate.convert(dump, tmp_path / "out.raw", "raw", allow_loss=True, bad_pages="skip")
    assert report.pages_out["bad"] == 1
    with dumpxlate.open(tmp_path / "out.raw") as dump:
        assert dump.states([4]) == [EXCLUDED]


def test_a_pipe_gets_every_byte_and_no_map(vmcore: Path, tmp_path: Path, guest: Guest) -> None:
    out = tmp_path / "out"
    with dumpxlate.open(vmcore) as dump, out.open("wb") as file:
        report = dumpxlate.convert(dump, PipeSink(file.fileno()), "raw", allow_loss=True)
    assert out.read_bytes() == guest.memory()[: out.stat().st_size]
    assert report.losses[-1].what == "which pages are RAM, and of what machine"
    assert report.container is None
    assert [path.name for path in tmp_path.iterdir() if "dxmap" in path.name] == []


def test_an_image_or_its_map_is_not_overwritten_unasked(vmcore: Path, tmp_path: Path) -> None:
    out, beside = tmp_path / "out.raw", write(tmp_path / "out.raw.dxmap", b"mine")
    with dumpxlate.open(vmcore) as dump:
        with pytest.raises(errors.OutputError, match="dxmap: exists"):
            dumpxlate.convert(dump, out, "raw", allow_loss=True)
        assert (out.exists(), beside.read_bytes()) == (False, b"mine")
        dumpxlate.convert(dump, out, "raw", allow_loss=True, overwrite=True)
    assert json.loads(beside.read_text())["size"] == out.stat().st_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.raw", "out.raw.dxmap", "vmcore"]


# Maps that do not fit.


def broken_map(folder: Path, **changes: Any) -> Dump:
    content = {
        "schema": "dumpxlate.rawmap/1",
        "size": 4 * PAGE,
        "base": "0x0",
        "page_size": PAGE,
        "machine": {"arch": "x86_64", "elf_machine": 62, "word_bits": 64, "byte_order": "little"},
        "ram": [["0x0", "0x2000"]],
        "missing": [],
    }
    image = write(folder / "image", b"".join(map(page, range(4))))
    (folder / "image.dxmap").write_text(changes.get("text") or json.dumps(content | changes))
    return dumpxlate.open(image)


def test_a_map_that_fits(tmp_path: Path) -> None:
    with broken_map(tmp_path) as dump:
        assert dump.damage == ()
        assert dump.states(range(4)) == [STORED, STORED, ABSENT, ABSENT]
    with broken_map(tmp_path, missing=[["0x1000", "0x2000"]], base="0x0") as dump:
        assert dump.states(range(4)) == [STORED, EXCLUDED, ABSENT, ABSENT]


@pytest.mark.parametrize(
    "changes",
    [
        {"size": 5 * PAGE},
        {"schema": "dumpxlate.rawmap/2"},
        {"page_size": 1000},
        {"page_size": 0},
        {"page_size": 1 << 40},
        {"base": "0x10"},
        {"base": "-0x1000"},
        {"base": 0},
        {"machine": {}},
        {"machine": {"elf_machine": 62, "word_bits": 64, "byte_order": "middle"}},
        {"ram": [["0x0", "0x5000"]]},
        {"ram": [["0x1000", "0x1000"]]},
        {"ram": [["0x0", "0x1800"]]},
        {"ram": [["0x2000", "0x3000"], ["0x0", "0x1000"]]},
        {"ram": [["0x0", "0x10000000000000000"]]},
        {"ram": [["0x0"]]},
        {"ram": None},
        {"missing": {"a": 1}},
        {"text": "no json"},
        {"text": "[]"},
        {"text": "[" * 100_000},
    ],
)
def test_a_map_that_does_not_fit_is_damage(tmp_path: Path, changes: dict[str, Any]) -> None:
    with broken_map(tmp_path, **changes) as dump:
        assert len(dump.damage) == 1
        assert dump.damage[0].startswith("image.dxmap beside it")
        assert dump.states(range(4)) == [STORED] * 4
        with pytest.raises(errors.CorruptDumpError, match="--salvage"):
            dumpxlate.convert(dump, tmp_path / "out")


def test_the_map_of_an_image_goes_with_its_compressed_form(vmcore: Path, tmp_path: Path, guest: Guest) -> None:
    with dumpxlate.open(vmcore) as dump:
        dumpxlate.convert(dump, tmp_path / "out.raw", "raw", allow_loss=True)
        ram = runs(dump.pages.ram)
    (tmp_path / "out.raw.xz").write_bytes(lzma.compress((tmp_path / "out.raw").read_bytes(), preset=0))
    with dumpxlate.open(tmp_path / "out.raw.xz") as dump:
        assert runs(dump.pages.ram) == ram


def test_real_memory_reads_like_the_oracle(shared: Path, unpacked: Callable[[Path], Path], tmp_path: Path) -> None:
    """QEMU's own ELF of a guest, as a raw image, against digests of QEMU's raw physical reads."""
    folder = shared / "fixtures" / "tiny" / "x64-split"
    oracle = np.load(folder / "oracle.npz")
    with dumpxlate.open(unpacked(folder / "elf.xz")) as dump:
        dumpxlate.convert(dump, tmp_path / "out.raw", "raw", allow_loss=True)
    with (tmp_path / "out.raw").open("rb") as file:
        for pfn, digest in zip(oracle["pfn"].tolist(), oracle["digest"].tolist(), strict=True):
            file.seek(pfn * PAGE)
            assert int.from_bytes(hashlib.sha256(file.read(PAGE)).digest()[:8], "little") == digest
