"""convert --paging: segments as QEMU's own ``paging=true`` has them, and what we do otherwise on purpose."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

import dumpxlate
from dumpxlate.errors import UnsupportedFeatureError
from dumpxlate.format import WriteOptions
from dumpxlate.paging import guest as guest_module
from dumpxlate.registry import all_formats
from tests.builders import elf_cores
from tests.builders.guest import Guest
from tests.builders.page_tables import image, long_tables
from tests.readers import elf_segments

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from dumpxlate.dump import Dump

    Cli = Callable[..., subprocess.CompletedProcess[str]]
    Unpack = Callable[[Path], Path]

PAGED = {"i386-paging": 32, "i386-pae": 32, "x64-long": 48, "x64-la57": 57, "x64-core": 48, "x64-split": 48}
NOT_PAGED = ["i386-real", "i386-isapc", "x64-flat32"]
KIB, MIB = 1 << 10, 1 << 20
KERNEL = 0xFFFF_8880_0000_0000
Load = tuple[int, int, int]
"""p_paddr, p_vaddr, p_memsz"""


def loads_of(path: Path) -> list[Load]:
    return [(paddr, vaddr, memsz) for kind, _, vaddr, paddr, _, memsz in elf_segments(path) if kind == 1]


def write(dump: Dump, out: Path, paging: str | None, **options: int) -> Path:
    dumpxlate.convert(dump, out, "elf", WriteOptions(paging=paging, **options), overwrite=True)  # type: ignore[arg-type]
    return out


def memory_runs(path: Path) -> list[tuple[int, int]]:
    """Where RAM begins and ends, as QEMU's plain dump says; blocks that touch are one."""
    found: list[tuple[int, int]] = []
    for start, _, length in sorted(loads_of(path)):
        first = found.pop()[0] if found and found[-1][1] == start else start
        found.append((first, start + length))
    return found


def canonical(address: int, bits: int) -> int:
    """QEMU extends every address as if its highest bit were set; 32-bit ones it leaves alone."""
    return address if bits == 32 or address >> (bits - 1) & 1 else address & ((1 << bits) - 1)


def within(segments: Iterable[Load], ram: list[tuple[int, int]]) -> list[Load]:
    """Cut segments where RAM ends: QEMU's go on, over memory that is not in the file."""
    found = []
    for paddr, vaddr, length in segments:
        for start, end in ram:
            low, high = max(paddr, start), min(paddr + length, end)
            if low < high:
                found.append((low, vaddr + low - paddr, high - low))
    return found


def unmapped(segments: Iterable[Load], ram: list[tuple[int, int]]) -> list[Load]:
    """RAM under none of the segments, with address 0."""
    left = ram
    for paddr, _, length in segments:
        pieces = [((start, min(end, paddr)), (max(start, paddr + length), end)) for start, end in left]
        left = [piece for both in pieces for piece in both if piece[0] < piece[1]]
    return [(start, 0, end - start) for start, end in left]


def in_qemus_order(segments: Iterable[Load]) -> list[Load]:
    return sorted(segments, key=lambda load: (load[0], -load[1]))


# Against QEMU's own dump of the same stopped guest.


@pytest.fixture(params=PAGED)
def pair(request: pytest.FixtureRequest, shared: Path, unpacked: Unpack) -> tuple[Path, Path, int]:
    """QEMU's plain dump, its dump with paging, and the bits of an address."""
    folder = shared / "fixtures/tiny" / request.param
    return unpacked(folder / "elf.xz"), unpacked(folder / "elf-paging.xz"), PAGED[request.param]


def test_segments_equal_those_of_qemu(pair: tuple[Path, Path, int], tmp_path: Path) -> None:
    plain, paging, bits = pair
    ram = memory_runs(plain)
    theirs = within(((paddr, canonical(vaddr, bits), size) for paddr, vaddr, size in loads_of(paging)), ram)
    with dumpxlate.open(plain) as dump:
        mapped = loads_of(write(dump, tmp_path / "mapped", "mapped"))
        every = loads_of(write(dump, tmp_path / "all", "all"))
    assert len(theirs) >= 7
    assert mapped == theirs
    rest = unmapped(theirs, ram)
    assert rest
    assert every == in_qemus_order(theirs + rest)


def test_every_segment_shows_the_memory_that_the_tables_map(pair: tuple[Path, Path, int], tmp_path: Path) -> None:
    with dumpxlate.open(pair[0]) as dump:
        out = write(dump, tmp_path / "out", "all").read_bytes()
        seen = dump.virtual(cpu=0)
        for kind, offset, vaddr, paddr, filesz, memsz in elf_segments(tmp_path / "out"):
            if kind != 1:
                continue
            assert filesz == memsz
            assert out[offset : offset + filesz] == dump.read(paddr, filesz)
            if vaddr:
                assert seen.read(vaddr, filesz) == out[offset : offset + filesz]


def test_all_memory_is_read_back_once(pair: tuple[Path, Path, int], tmp_path: Path) -> None:
    """QEMU's own file lacks pages that no table maps, and those of segments that go on beyond a block of RAM."""
    plain, paging, _ = pair
    with (
        dumpxlate.open(plain) as before,
        dumpxlate.open(write(before, tmp_path / "out", "all")) as after,
        dumpxlate.open(paging) as qemu,
    ):
        pages = before.pages.stored.select(0, 1 << 40)
        assert after.pages.stored.select(0, 1 << 40).tolist() == pages.tolist()
        assert (after.read_pages(pages) == before.read_pages(pages)).all()
        assert qemu.pages.stored.count < len(pages)
        for dump in (after, qemu):
            assert not dump.damage
            assert not any("overlap" in remark for remark in dump.remarks)
        assert after.attributes["mapped segments"] == sum(
            vaddr not in (0, paddr) for paddr, vaddr, _ in loads_of(tmp_path / "out")
        )


def test_only_what_is_mapped(shared: Path, unpacked: Unpack, tmp_path: Path) -> None:
    path = unpacked(shared / "fixtures/tiny/x64-split/elf.xz")
    with dumpxlate.open(path) as dump:
        report = dumpxlate.convert(dump, tmp_path / "out", "elf", WriteOptions(paging="mapped"))
        assert report.pages_out["excluded"] == dump.pages.ram.count - 512
    with dumpxlate.open(tmp_path / "out") as dump:
        assert dump.pages.stored.count == dump.pages.ram.count == 512
    assert (tmp_path / "out").stat().st_size < 2 * MIB + 8 * KIB


@pytest.mark.parametrize("guest", NOT_PAGED)
@pytest.mark.parametrize("paging", ["all", "mapped"])
def test_without_paging_virtual_addresses_are_physical(
    shared: Path, unpacked: Unpack, tmp_path: Path, guest: str, paging: str
) -> None:
    with dumpxlate.open(unpacked(shared / "fixtures/tiny" / guest / "elf.xz")) as dump:
        report = dumpxlate.convert(dump, tmp_path / "out", "elf", WriteOptions(paging=paging))  # type: ignore[arg-type]
        plain = write(dump, tmp_path / "plain", None)
    assert (tmp_path / "out").read_bytes() == plain.read_bytes()
    assert report.remarks == ("no processor has paging: virtual addresses are physical ones",)


@pytest.mark.parametrize(("begin", "length"), [(0x48800, 0x1_2345), (0x10_0001, 0x8_1000), (0, 0x123), (0x18_0FFF, 2)])
def test_window_cuts_mappings(pair: tuple[Path, Path, int], tmp_path: Path, begin: int, length: int) -> None:
    """The virtual address advances with the memory, unless there is none."""
    with dumpxlate.open(pair[0]) as dump:
        whole = loads_of(write(dump, tmp_path / "whole", "all"))
        cut = loads_of(write(dump, tmp_path / "out", "all", begin=begin, length=length))
        mapped = [load for load in whole if load[1] or load[0] == 0]
        assert cut == in_qemus_order(within(mapped, [(begin, begin + length)]))
        body = (tmp_path / "out").read_bytes()
        for kind, offset, _, paddr, filesz, memsz in elf_segments(tmp_path / "out"):
            if kind == 1:
                assert (filesz, body[offset : offset + filesz]) == (memsz, dump.read(paddr, filesz))
        assert len(body) <= 8 * KIB + length


def test_window_over_memory_that_nothing_maps(shared: Path, unpacked: Unpack, tmp_path: Path) -> None:
    with dumpxlate.open(unpacked(shared / "fixtures/tiny/x64-split/elf.xz")) as dump:
        out = write(dump, tmp_path / "out", "all", begin=0x1_0000_0800, length=0x1000)
        assert loads_of(out) == [(0x1_0000_0800, 0, 0x1000)]
        with pytest.raises(UnsupportedFeatureError, match="no page table maps RAM in the range"):
            write(dump, tmp_path / "none", "mapped", begin=0x1_0000_0800, length=0x1000)
    assert not (tmp_path / "none").exists()


# Guests of our own.


def guest_of(
    words: Mapping[int, int],
    *cpus: Mapping[str, int],
    pages: int = 16,
    vmcoreinfo: str = "",
    excluded: tuple[int, ...] = (),
) -> Guest:
    memory = image(words, pages * 4096)
    content = {pfn: bytes(memory[4096 * pfn : 4096 * pfn + 4096]) for pfn in range(pages) if pfn not in excluded}
    return Guest(pages=content, excluded=frozenset(excluded), registers=tuple(cpus), vmcoreinfo=vmcoreinfo)


def saved(guest: Guest, path: Path, arch: str = "x86_64", style: str = "qemu") -> Path:
    style = next(name for name in elf_cores.STYLES if name.startswith(style))
    path.write_bytes(elf_cores.core(guest, style, arch=arch))
    return path


def paged(cr3: int, **registers: int) -> dict[str, int]:
    return {"cr0": 1 << 31, "cr3": cr3, "cr4": 0x20, "cs": 0x10, **registers}


FIRST = long_tables({KERNEL + 4096 * at: 4096 * at for at in range(8)} | {0x40_0000: 0x9000}, 0x1000, 0xA000)
SECOND = {0x2000: 0xB067} | long_tables({0x50_0000: 0x9000, 0x50_1000: 0xF000}, 0x2000, 0x10000)


def test_several_processors(tmp_path: Path) -> None:
    """Mappings of all that have paging, each once; aliases of a page stay."""
    words = FIRST | SECOND | {0x2000 + 8 * 273: FIRST[0x1000 + 8 * 273]}
    cpus = (paged(0x1000), {"cr0": 0x10, "cr3": 0, "cr4": 0}, paged(0x2000), paged(0x1000))
    with dumpxlate.open(saved(guest_of(words, *cpus, pages=32), tmp_path / "in")) as dump:
        out = write(dump, tmp_path / "out", "mapped")
    assert loads_of(out) == [
        (0, KERNEL, 0x8000),
        (0x9000, 0x50_0000, 0x1000),
        (0x9000, 0x40_0000, 0x1000),
        (0xF000, 0x50_1000, 0x1000),
    ]


def test_memory_that_the_source_left_out(tmp_path: Path) -> None:
    guest = guest_of(FIRST, paged(0x1000), pages=17, excluded=(3, 16))
    with dumpxlate.open(saved(guest, tmp_path / "in", style="makedumpfile")) as dump:
        source = replace(dump, cpus=(replace(dump.cpus[0], registers=paged(0x1000)),))
        out = write(source, tmp_path / "out", "all")
    found = [(paddr, vaddr, filesz, memsz) for kind, _, vaddr, paddr, filesz, memsz in elf_segments(out) if kind == 1]
    assert found == [
        (0, KERNEL, 0x3000, 0x3000),
        (0x3000, KERNEL + 0x3000, 0, 0x1000),
        (0x4000, KERNEL + 0x4000, 0x4000, 0x4000),
        (0x8000, 0, 0x1000, 0x1000),
        (0x9000, 0x40_0000, 0x1000, 0x1000),
        (0xA000, 0, 0x6000, 0x6000),
        (0x1_0000, 0, 0, 0x1000),
    ]
    with dumpxlate.open(out) as back:
        assert back.pages.ram.count - back.pages.stored.count == 2


INFO = "SYMBOL(init_top_pgt)=ffffffff82001000\nNUMBER(phys_base)=-33554432\nNUMBER(pgtable_l5_enabled)=0\n"


@pytest.mark.parametrize("cpus", [(paged(0x7000_0000),), ()])
def test_kernel_tables_where_no_cr3_is_usable(tmp_path: Path, cpus: tuple[dict[str, int], ...]) -> None:
    with dumpxlate.open(saved(guest_of(FIRST, *cpus, vmcoreinfo=INFO), tmp_path / "in")) as dump:
        out = write(dump if cpus else replace(dump, cpus=()), tmp_path / "out", "mapped")
        assert loads_of(out) == [(0, KERNEL, 0x8000), (0x9000, 0x40_0000, 0x1000)]
        with pytest.raises(UnsupportedFeatureError, match="neither a usable cr3 nor VMCOREINFO"):
            write(replace(dump, cpus=(), vmcoreinfo=None), tmp_path / "none", "all")


def test_user_tables_of_a_kernel_that_isolates_itself(tmp_path: Path) -> None:
    """A processor stopped in user mode runs on tables without the kernel (PTI): the kernel's own are added."""
    user = {key: word for key, word in FIRST.items() if key != 0x1000 + 8 * 273}
    words = {key + (0x1000 if key < 0x2000 else 0): word for key, word in user.items()}
    words |= {0x1000 + 8 * 273: FIRST[0x1000 + 8 * 273]}
    words |= {key: word for key, word in FIRST.items() if key >= 0x2000}
    process = (0x9000, 0x40_0000, 0x1000)
    for cs, expected in ((0x10, [process]), (0x33, [(0, KERNEL, 0x8000), process])):
        guest = guest_of(words, paged(0x2000, cs=cs), vmcoreinfo=INFO)
        with dumpxlate.open(saved(guest, tmp_path / "in")) as dump:
            assert loads_of(write(dump, tmp_path / "out", "mapped")) == expected


def test_paravirtual_guest_is_walked_through_its_map(shared: Path, unpacked: Unpack, tmp_path: Path) -> None:
    """Xen's own part of the address space is not the guest's."""
    with dumpxlate.open(unpacked(shared / "fixtures/xen-linux/pv1.core.xz")) as dump:
        out = write(dump, tmp_path / "out", "all")
        found = np.array([row[1:] for row in elf_segments(out) if row[0] == 1], np.uint64).astype(np.int64)
        offset, vaddr, paddr, filesz, _ = found.T
        mapped = vaddr != 0
        views = [dump.virtual(cpu=cpu.index).physical(vaddr[mapped]) == paddr[mapped] for cpu in dump.cpus]
        assert (views[0] | views[1]).all()
        assert not ((vaddr >> 39 & 511 >= 256) & (vaddr >> 39 & 511 < 272)).any()
        assert filesz[vaddr - paddr == KERNEL - (1 << 64)].sum() == dump.pages.stored.count * 4096
        body = np.memmap(out, np.uint8)
        for row in range(0, len(found), 997):
            assert bytes(body[offset[row] : offset[row] + 64]) == dump.read(int(paddr[row]), 64)
        pages = dump.pages.stored.count
    with dumpxlate.open(out) as back:
        assert back.pages.stored.count == pages


@pytest.mark.parametrize(("arch", "bits"), [("i386", 32), ("x86_64", 64)])
def test_more_mappings_than_an_elf_header_counts(tmp_path: Path, arch: str, bits: int) -> None:
    """One page under 70,000 addresses: PN_XNUM, and readers of other people count the same."""
    pages = {0x1000_0000 + 4096 * at: 0x9000 for at in range(70_000)}
    width = 4 if bits == 32 else 8
    if bits == 32:
        words = {0x1000 + (virtual >> 22) * 4: 0x10_0000 + (at >> 10) * 4096 | 3 for at, virtual in enumerate(pages)}
        words |= {0x10_0000 + 4 * at: 0x9003 for at in range(70_000)}
    else:
        words = long_tables(pages, 0x1000, 0x10_0000)
    memory = image(words, 2 * MIB, width=width)
    content = {pfn: bytes(memory[4096 * pfn : 4096 * pfn + 4096]) for pfn in range(512)}
    registers = paged(0x1000) if bits == 64 else {"cr0": 1 << 31, "cr3": 0x1000, "cr4": 0}
    source = saved(Guest(pages=content, registers=(registers,), vmcoreinfo=""), tmp_path / "in", arch)
    with dumpxlate.open(source) as dump:
        out = write(dump, tmp_path / "out", "all")
    found = loads_of(out)
    assert len(found) == 70_002
    assert out.read_bytes()[4] == bits // 32
    assert sorted(vaddr for paddr, vaddr, _ in found if paddr == 0x9000) == sorted(pages)
    with dumpxlate.open(out) as back:
        assert back.pages.stored.count == 512
        assert back.read(0, 2 * MIB) == bytes(memory)
        assert not any("overlap" in remark for remark in back.remarks)


def test_hostile_tables_are_counted_and_told(tmp_path: Path) -> None:
    words = dict.fromkeys(range(0x1000, 0x2000, 8), 0x1003) | {0x1008: 0x7FFF_F003, 0x1010: 0x83}
    cpu = paged(0x1000, cr4=0x1020)
    with dumpxlate.open(saved(guest_of(words, cpu), tmp_path / "in")) as dump:
        report = dumpxlate.convert(dump, tmp_path / "out", "elf", WriteOptions(paging="mapped"))
    (remark,) = report.remarks
    assert "skipped tables" in remark
    assert "tables not held" in remark
    assert {paddr for paddr, _, _ in loads_of(tmp_path / "out")} == {0x1000, 0}


def test_processors_beyond_all_bounds_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_module, "_TABLES", 2)
    cpus = [paged(cr3) for cr3 in (0x1000, 0x2000, 0x3000, 0x4000)]
    with dumpxlate.open(saved(guest_of(FIRST | SECOND, *cpus, pages=32), tmp_path / "in")) as dump:
        report = dumpxlate.convert(dump, tmp_path / "out", "elf", WriteOptions(paging="mapped"))
    assert report.remarks == ("of 7 page tables: 3 vcpus not walked",)
    assert loads_of(tmp_path / "out") == [(0, KERNEL, 0x8000), (0x9000, 0x40_0000, 0x1000)]


def test_other_machines(tmp_path: Path) -> None:
    with dumpxlate.open(saved(guest_of({}), tmp_path / "in", "s390x")) as dump, pytest.raises(UnsupportedFeatureError):
        write(dump, tmp_path / "out", "all")
    info = (
        "PAGESIZE=4096\nSYMBOL(swapper_pg_dir)=ffff800008001000\nNUMBER(kimage_voffset)=0xffff800008000000\n"
        "NUMBER(VA_BITS)=48\nNUMBER(TCR_EL1_T1SZ)=0x10\n"
    )
    words = {0x1000: 0x2003, 0x2000: 0x3003, 0x3000: 0x4003, 0x4000: 0x5003, 0x4008: 0x6003}
    with dumpxlate.open(saved(guest_of(words, vmcoreinfo=info), tmp_path / "in", "aarch64")) as dump:
        assert loads_of(write(dump, tmp_path / "out", "mapped")) == [(0x5000, 0xFFFF_0000_0000_0000, 0x2000)]


# What is refused, and the command line.


@pytest.mark.parametrize("format", [each.name for each in all_formats() if each.writes and each.name != "elf"])
def test_other_formats_have_no_place_for_it(tmp_path: Path, format: str) -> None:
    with (
        dumpxlate.open(saved(guest_of(FIRST, paged(0x1000)), tmp_path / "in")) as dump,
        pytest.raises(UnsupportedFeatureError, match="takes no paging option"),
    ):
        dumpxlate.convert(dump, tmp_path / "out", format, WriteOptions(paging="all"), allow_loss=True)


@pytest.mark.parametrize(("word", "count"), [("--paging", 4), ("--paging=all", 4), ("--paging=mapped", 2)])
def test_command_line(cli: Cli, tmp_path: Path, word: str, count: int) -> None:
    saved(guest_of(FIRST, paged(0x1000)), tmp_path / "in")
    done = cli("convert", word, "in", "-o", "out", "--report", "report.json")
    assert done.returncode == 0, done.stderr
    assert len(loads_of(tmp_path / "out")) == count
    assert json.loads((tmp_path / "report.json").read_text())["remarks"] == []
    shown = json.loads(cli("info", "out", "--json").stdout)
    assert shown["attributes"]["mapped segments"] == 2


def test_command_line_refuses(cli: Cli, tmp_path: Path) -> None:
    saved(guest_of(FIRST, paged(0x1000)), tmp_path / "in")
    assert cli("convert", "in", "-o", "out", "--paging=some").returncode == 2
    done = cli("convert", "in", "-o", "out", "--to", "kdump", "--paging")
    assert (done.returncode, done.stderr) == (3, "dumpxlate: kdump output takes no paging option\n")
