"""Translations agree with QEMU and Xen on real guests, and hand-made and hostile tables read as a processor would."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

import dumpxlate
from dumpxlate.arch import by_name
from dumpxlate.errors import MapError, PageUnavailableError, TranslationError, UnsupportedFeatureError
from dumpxlate.extents import Extents
from dumpxlate.io.source import BytesSource
from dumpxlate.memory import PhysicalMemory
from dumpxlate.p2m.map import P2M
from dumpxlate.paging.aarch64 import aarch64_paging
from dumpxlate.paging.aarch64 import table_root as ttbr_root
from dumpxlate.paging.addrxlat import as_addresses, first_of, frame_map, linear, page_walk, signed
from dumpxlate.paging.format import Entry, Paging
from dumpxlate.paging.x86 import LEGACY, LEGACY_PSE, LEVEL_4, LEVEL_5, PAE, table_root, x86_paging
from dumpxlate.registry import open_from
from dumpxlate.stores import IndexedStore
from dumpxlate.vmcoreinfo import VmCoreInfo
from tests.builders import elf_cores, raw
from tests.builders.guest import Guest
from tests.builders.page_tables import image, long_tables
from tests.conftest import SAMPLES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from dumpxlate.dump import Dump

PAGED = ["i386-paging", "i386-pae", "x64-long", "x64-la57", "x64-core", "x64-split"]
NOT_PAGED = ["i386-real", "i386-isapc", "x64-flat32"]
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def memory_of(
    words: Mapping[int, int], size: int = 64 * KIB, *, width: int = 8, order: str = "<", page_size: int = 4096
) -> PhysicalMemory:
    data = bytes(image(words, size, width=width, byte_order=order))
    extents = Extents(*(np.array([n], np.int64) for n in (0, size // page_size, 0)))
    return PhysicalMemory(IndexedStore(BytesSource(data, "memory"), page_size, extents), order)  # type: ignore[arg-type]


def walk(mode: Paging, words: Mapping[int, int], *addresses: int, root: int = 0x1000, **options: int) -> list[int]:
    found = page_walk(memory_of(words, width=mode.entry_bytes, **options), root, mode)  # type: ignore[arg-type]
    physical = found.physical(as_addresses(addresses)).tolist()
    assert [found.trace(address).physical for address in addresses] == physical
    return physical


# Real guests.


def tlb(shared: Path, guest: str) -> dict[int, tuple[int, bool]]:
    """What ``info tlb`` says: virtual address to physical address, and whether the page is large."""
    text = (shared / "fixtures/tiny" / guest / "tlb.txt").read_text()
    rows = re.findall(r"^([0-9a-f]{16}): ([0-9a-f]{16}) (\S+)$", text, re.MULTILINE)
    return {int(virtual, 16): (int(physical, 16), "P" in flags) for virtual, physical, flags in rows}


@pytest.mark.parametrize("guest", PAGED)
@pytest.mark.parametrize("file", ["elf", "elf-paging"])
def test_every_mapping_that_qemu_lists(shared: Path, guest: str, file: str) -> None:
    mappings = tlb(shared, guest)
    large = 4 * MIB if guest == "i386-paging" else 2 * MIB
    assert len(mappings) > 300
    expected = {}
    for virtual, (physical, is_large) in mappings.items():
        for skip in range(0, large if is_large else 4096, 4096):
            expected[virtual + skip] = physical + skip
    with dumpxlate.open(shared / "fixtures/tiny" / guest / f"{file}.xz") as dump:
        seen = dump.virtual(cpu=0)
        found = seen.physical([address | 0x123 for address in expected])
        assert found.tolist() == [physical | 0x123 for physical in expected.values()]
        others = {page + 4096 for page in expected} | {page - 4096 for page in expected} - {-4096}
        outside = sorted(page for page in others - expected.keys() if page < 1 << (32 if "i386" in guest else 64))
        assert outside
        assert set(seen.physical(outside).tolist()) == {-1}


@pytest.mark.parametrize("guest", ["i386-paging", "i386-pae"])
def test_nothing_else_of_4_gib_is_mapped(shared: Path, guest: str) -> None:
    with dumpxlate.open(shared / "fixtures/tiny" / guest / "elf.xz") as dump:
        found = dump.virtual().physical(np.arange(0, 4 * GIB, 4096))
    mappings = tlb(shared, guest)
    pages = sum(
        (4 * MIB if guest == "i386-paging" else 2 * MIB) // 4096 if large else 1 for _, large in mappings.values()
    )
    assert (found >= 0).sum() == pages


@pytest.mark.parametrize("guest", NOT_PAGED)
def test_without_paging_addresses_are_physical(shared: Path, guest: str) -> None:
    assert (shared / "fixtures/tiny" / guest / "tlb.txt").read_text().startswith("PG disabled")
    with dumpxlate.open(shared / "fixtures/tiny" / guest / "elf.xz") as dump:
        assert dump.virtual(cpu=0).physical([0, 0x1234, 0xFFFFFFFF, 1 << 32]).tolist() == [0, 0x1234, 0xFFFFFFFF, -1]


def test_second_cpu_in_real_mode(shared: Path) -> None:
    with dumpxlate.open(shared / "fixtures/tiny/x64-long/elf.xz") as dump:
        assert dump.virtual(cpu=1).physical([0x1234, 0xFFFFFFFF80201000]).tolist() == [0x1234, -1]
        assert dump.virtual(cpu=1, cr3=0x10000).physical([0xFFFFFFFF80201000]).tolist() == [0x104000]
        with pytest.raises(ValueError, match="no vcpu 2, found 0, 1"):
            dump.virtual(cpu=2)


@pytest.mark.parametrize("guest", ["pv1", "pvh1"])
def test_code_and_stack_that_xen_shows(shared: Path, unpacked: Callable[[Path], Path], guest: str) -> None:
    folder = shared / "fixtures/xen-linux"
    parts = re.split(r"^== vcpu (\d+)$", (folder / f"{guest}.xenctx.txt").read_text(), flags=re.MULTILINE)
    with dumpxlate.open(unpacked(folder / f"{guest}.core.xz")) as dump:
        for number, text in zip(parts[1::2], parts[2::2], strict=True):
            seen = dump.virtual(cpu=int(number))
            rsp = int(re.search(r"rsp: ([0-9a-f]+)", text)[1], 16)  # type: ignore[index]
            rip, code = re.search(r"instr addr ([0-9a-f]+)\)\n(.*)", text).groups()  # type: ignore[union-attr]
            before = code.split("<")[0].split()
            plain = bytes.fromhex(code.replace("<", "").replace(">", ""))
            assert seen.read(int(rip, 16) - len(before), len(plain)) == plain
            stack = [int(word, 16) for word in re.findall(r"[0-9a-f]{16}", text.split("Stack:")[1].split("\n\n")[0])]
            assert len(stack) >= 20
            assert seen.read_u64(range(rsp, rsp + 8 * len(stack), 8)).tolist() == stack


def test_paravirtual_direct_map_is_the_pseudo_physical_memory(shared: Path, unpacked: Callable[[Path], Path]) -> None:
    with dumpxlate.open(unpacked(shared / "fixtures/xen-linux/pv1.core.xz")) as dump:
        pages = dump.pages.stored.select(0, 1 << 20)
        found = dump.virtual().physical((pages * 4096).astype(np.uint64) + np.uint64(0xFFFF888000000000))
        mapped = found >= 0
        assert mapped.sum() > 0.95 * len(pages)
        assert (found[mapped] == pages[mapped] * 4096).all()
        with pytest.raises(MapError, match="p2m map is needed"):
            replace(dump, p2m=None).virtual()


@pytest.mark.parametrize("guest", ["pv1", "pvh1"])
def test_linux_without_registers(shared: Path, unpacked: Callable[[Path], Path], guest: str) -> None:
    path = unpacked(shared / f"fixtures/xen-linux/{guest}.core.xz")
    data = path.read_bytes()
    # The kernel keeps its VMCOREINFO in memory.
    first = data.rfind(b"OSRELEASE=", 0, data.index(b"SYMBOL(init_top_pgt)="))
    info = VmCoreInfo.from_bytes(data[first : first + 4096])
    with dumpxlate.open(path) as dump:
        kernel = replace(dump, cpus=(), vmcoreinfo=info).virtual()
        assert kernel.trace(0xFFFF_FFFF_8100_0000).by == "x86 4-level"
        pages = np.arange(0, 5 * GIB // 4, 4096)
        for start in (0xFFFF_8880_0000_0000, 0xFFFF_FFFF_8100_0000, 0xFFFF_C900_0000_0000):
            found = kernel.physical(pages + signed(start))
            assert (found >= 0).any()
            assert (found == dump.virtual(cpu=0).physical(pages + signed(start))).all()


def test_paravirtual_pae_tables_above_4_gib() -> None:
    mfn = 0x20_0000 + np.arange(16)[::-1]
    words = {0x1020: int(mfn[2]) << 12 | 1, 0x2000: int(mfn[3]) << 12 | 0x67, 0x3008: int(mfn[9]) << 12 | 0x67}
    words |= {0x3010: 0x1234_5067, 0x2008: 0x1234_5067}
    with opened(guest_of(words)) as dump:
        machine = replace(dump.machine, arch=by_name("i386"), paravirtual=True)
        cpu = replace(dump.cpus[0], registers={"cr0": 0, "cr3": int(mfn[1]) << 12 | 0x20, "cr4": 0})
        guest = replace(dump, machine=machine, cpus=(cpu,), p2m=P2M.from_pairs(np.arange(16), mfn))
        assert guest.virtual().physical([0x1234, 0x2234, 0x20_0000]).tolist() == [0x9234, -1, -1]
        kinds = [guest.virtual().trace(address).steps[-1].kind for address in (0x2234, 0x20_0000, 0x40_0000)]
        assert kinds == [Entry.UNKNOWN_FRAME, Entry.UNKNOWN_FRAME, Entry.NOT_PRESENT]


# Hand-made tables.


def test_4_level_sizes() -> None:
    words = {0x1000: 0x2003, 0x1FF8: 0x2003, 0x2000: 0x3003, 0x2008: 0x40000083, 0x3000: 0x4003, 0x3008: 0xA01083}
    words |= {0x4000: 0x8000_0000_0000_9003 | 0x7FF << 52, 0x4008: 0x9002, 0x4010: 0xFE00_0000_9101}
    low = [0x123, 0x1000, 0x2FFF, 0x2ABCDE, 0x4567_89AB, 1 << 31]
    expected = [0x9123, -1, 0xFE00_0000_9FFF, 0xAABCDE, 0x4567_89AB, -1]
    assert walk(LEVEL_4, words, *low) == expected
    assert walk(LEVEL_4, words, *(0xFFFF_FF80_0000_0000 + address for address in low)) == expected


def test_5_levels() -> None:
    words = long_tables({0xFF11_2233_4455_6000: 0x7000}, 0x1000, 0x2000, levels=5)
    assert walk(LEVEL_5, words, 0xFF11_2233_4455_6789, 0x11_2233_4455_6000, 0x0111_2233_4455_6789) == [0x7789, -1, -1]


def test_addresses_that_are_not_canonical_are_refused() -> None:
    words = dict.fromkeys(range(0x1000, 0x2000, 8), 0x1003)  # every entry leads to the same table
    bad = [0x8000_0000_0000, 0xFFFF_7FFF_FFFF_F000, 1 << 63]
    assert walk(LEVEL_4, words, *bad, 0x7FFF_FFFF_FFFF) == [-1, -1, -1, 0x1FFF]
    with pytest.raises(ValueError, match="more than 64 bits"):
        as_addresses([1 << 64])
    assert signed(0xFFFF_FFFF_FFFF_FFFF) == -1


def test_4_mib_pages_reach_beyond_4_gib() -> None:
    words = {0x1000: 0x00C0_0083 | 0xAB << 13, 0x1004: 0x2003, 0x1008: 0x0060_0083, 0x100C: 0x3080, 0x2FFC: 0xFFFF_F001}
    addresses = [0x3_4567, 0x40_0000, 0x7F_F888, 0x80_0000, 0xC0_0000, 1 << 32]
    assert walk(LEGACY_PSE, words, *addresses) == [0xAB_00C3_4567, -1, 0xFFFF_F888, -1, -1, -1]
    # Without PSE the size bit means nothing: the first entry leads to a table outside the dump.
    assert walk(LEGACY, words, *addresses) == [-1, -1, 0xFFFF_F888, -1, -1, -1]


def test_pae() -> None:
    words = {0x1020: 0x2001, 0x1028: 0x2081, 0x1038: 0x2001, 0x2000: 0x3003, 0x2008: 0x12_3460_0083, 0x3008: 0x4001}
    addresses = [0x1234, 0x2A_BCDE, 0x4000_1234, 0x8000_1234, 0xC000_1234]
    assert walk(PAE, words, *addresses, root=0x1020) == [0x4234, 0x12_346A_BCDE, -1, -1, 0x4234]


def test_bits_that_must_be_zero() -> None:
    words = {0x1000: 0x2003, 0x1008: 0x2083, 0x2000: 0x3003, 0x2008: 0x4000_2083, 0x3000: 0x20_2083, 0x3008: 0x20_1083}
    assert walk(LEVEL_4, words, 0, 1 << 39, 1 << 30, 1 << 21) == [-1, -1, -1, 0x20_0000]


@pytest.mark.parametrize(
    ("cr4", "long_mode", "mode"),
    [(0, True, LEGACY), (0x10, True, LEGACY_PSE), (0x20, False, PAE), (0x30, True, LEVEL_4), (0x1020, True, LEVEL_5)],
)
def test_mode_follows_cr4(cr4: int, long_mode: bool, mode: Paging) -> None:
    assert x86_paging(cr4, long_mode=long_mode) is mode


def test_root_without_flags() -> None:
    assert table_root(0x8000_1234_5678_9ABC, LEVEL_4) == 0x0000_1234_5678_9000 & 0x000F_FFFF_FFFF_F000
    assert [table_root(0x1234_56FF, mode) for mode in (PAE, LEGACY)] == [0x1234_56E0, 0x1234_5000]


@pytest.mark.parametrize(
    ("granule", "bits", "first", "widths"),
    [
        *[(4096, 48, 0, [9, 9, 9, 9]), (4096, 39, 1, [9, 9, 9]), (4096, 36, 1, [6, 9, 9])],
        *[(16384, 48, 0, [1, 11, 11, 11]), (16384, 47, 1, [11, 11, 11]), (16384, 36, 2, [11, 11])],
        *[(65536, 48, 1, [6, 13, 13]), (65536, 42, 2, [13, 13]), (65536, 52, 1, [10, 13, 13])],
        *[(4096, 52, -1, [4, 9, 9, 9, 9]), (16384, 52, 0, [5, 11, 11, 11])],
    ],
)
def test_aarch64_levels(granule: int, bits: int, first: int, widths: list[int]) -> None:
    levels = aarch64_paging(granule, bits, "high").levels
    assert [level.number for level in levels] == list(range(first, 4))
    assert [level.bits for level in levels] == widths
    assert levels[-1].shift == granule.bit_length() - 1
    assert levels[0].shift + levels[0].bits == bits


def test_aarch64_4_kib() -> None:
    words = {
        0x1000: 0x2003,
        0x2000: 0x3003,
        0x2008: 0x4000_0701,
        0x2010: 0x8000_0000,
        0x3000: 0x4003,
        0x3008: 0x60_0701,
    }
    words |= {0x4000: 0x0060_0000_0000_5F43, 0x4008: 0x5F41, 0x1008: 0x4000_0001}
    addresses = [0x123, 0x1123, 0x21_2345, 0x4123_4567, 0x8000_0000, 1 << 39]
    expected = [0x5123, -1, 0x61_2345, 0x4123_4567, -1, -1]
    assert walk(aarch64_paging(4096, 48, "low"), words, *addresses) == expected
    high = [0xFFFF_0000_0000_0000 + address for address in addresses]
    assert walk(aarch64_paging(4096, 48, "high"), words, *high, 0x123) == [*expected, -1]


def test_aarch64_16_and_64_kib() -> None:
    words = {0x4000: 0x8003, 0x8000: 0xC003, 0x8008: 0x600_0401, 0xC008: 0x1_4403}
    middle = aarch64_paging(16384, 47, "low")
    assert walk(middle, words, 0x5678, 0x234_5678, 0x1234, root=0x4000) == [0x1_5678, 0x634_5678, -1]
    words = {0x1_0008: 0x2_0003, 0x2_0008: 0x4000_0401, 0x2_0000: 0x3_0003, 0x3_0008: 0x7_5003}
    large = aarch64_paging(65536, 48, "low")
    at = 1 << 42
    found = walk(large, words, at + 0x1_2345, at + 0x2345_6789, at, root=0x1_0000, size=256 * KIB)
    assert found == [0x5_0000_0007_2345, 0x4345_6789, -1]


def test_aarch64_addresses_of_52_bits() -> None:
    """LPA2: bits 51:50 of an address stand in bits 9:8 of a descriptor, and level 0 has blocks."""
    words = {0x1000: 0x2003, 0x2000: 0x3003, 0x2008: 0x0002_0000_0000_0101, 0x3000: 0x4003, 0x4000: 0x5003}
    words |= {0x5000: 0x0001_0000_0000_6303}
    small = aarch64_paging(4096, 52, "high")
    base = 0xFFF0_0000_0000_0000
    expected = [0x000D_0000_0000_6123, 0x0006_0000_1234_5678, -1]
    assert walk(small, words, base + 0x123, base + (1 << 39) + 0x1234_5678, base + 4096) == expected
    words = {0x4000: 0x8003, 0x8008: 0xC_0000_0201, 0x8000: 0xC003, 0xC000: 0x600_0001}
    middle = aarch64_paging(16384, 52, "low")
    assert walk(middle, words, (1 << 36) + 0x1234, 0x12, root=0x4000) == [0x0008_0000_0000_1234, 0x600_0012]
    for paging in (small, middle, aarch64_paging(65536, 48, "low")):
        assert ttbr_root(0xAB_0000_0001_0000 | 0x5 << 2 | 1, paging) == 0x5_0000_0001_0000
    assert ttbr_root(0xAB_0000_0001_0000 | 1, aarch64_paging(4096, 48, "low")) == 0x1_0000


def test_aarch64_halves_and_what_does_not_exist() -> None:
    memory = memory_of({0x1000: 0x4000_0701, 0x2000: 0x8000_0701})
    low, high = (aarch64_paging(4096, 39, half) for half in ("low", "high"))  # type: ignore[arg-type]
    both = first_of(page_walk(memory, ttbr_root(0xAB_0000_0000_1001, low), low), page_walk(memory, 0x2000, high))
    assert both.physical(as_addresses([0x1234, 0xFFFF_FF80_0000_1234, 1 << 45])).tolist() == [
        0x40001234,
        0x80001234,
        -1,
    ]
    assert both.trace(0xFFFF_FF80_0000_1234).root == 0x2000
    for granule, bits in ((8192, 48), (4096, 53), (4097, 48), (65536, 53), (4096, 24)):
        with pytest.raises(UnsupportedFeatureError, match="expected"):
            aarch64_paging(granule, bits, "low")


# What a hostile guest may do.


def test_tables_that_lead_to_themselves_end() -> None:
    words = dict.fromkeys(range(0x1000, 0x2000, 8), 0x1003)
    addresses = np.random.default_rng(1).integers(-(1 << 56), 1 << 56, 100_000)
    found = page_walk(memory_of(words), 0x1000, LEVEL_5)
    started = time.perf_counter()
    assert (found.physical(addresses) == 0x1000 + addresses % 4096).all()
    assert time.perf_counter() - started < 10
    assert [step.kind for step in found.steps(0)] == [Entry.TABLE] * 4 + [Entry.PAGE]


@pytest.mark.parametrize("beyond", [0x1_0000, 0x10_0000, 0xF_FFFF_FFFF_F000])
def test_tables_outside_the_dump_are_not_followed(beyond: int) -> None:
    words = {0x1000: 0x2003, 0x2000: beyond | 3}
    found = page_walk(memory_of(words), 0x1000, LEVEL_4)
    trace = found.trace(0)
    assert (trace.physical, trace.level, trace.steps[-1].kind) == (-1, 2, Entry.NOT_HELD)
    assert f"PD entry at {beyond:#x} is not held" in trace.fault
    assert page_walk(memory_of({}), beyond, LEVEL_4).physical(as_addresses([0])).tolist() == [-1]


@pytest.mark.parametrize("mode", [LEGACY, LEGACY_PSE, PAE, LEVEL_4, LEVEL_5, aarch64_paging(65536, 52, "high")])
def test_any_bytes_can_be_walked(mode: Paging) -> None:
    rng = np.random.default_rng(7)
    words = dict(enumerate(rng.integers(0, 1 << 32, 16384).tolist()))
    # Half of the entries lead back into the dump, so that walks get deep.
    words = {4 * at: word & (0xFFFF if at % 4 < 2 else -1) for at, word in words.items()}
    found = page_walk(memory_of(words, width=4), 0, mode)
    physical = found.physical(rng.integers(-(1 << 63), 1 << 63, 50_000))
    assert (physical >= -1).all()
    assert (physical < 1 << 52).all()


def test_entry_to_a_device_is_a_translation_without_content() -> None:
    words = long_tables({0x5000: 0xFEE0_0000}, 0x1000, 0x2000)
    with opened(guest_of(words, cr3=0x1000)) as dump:
        assert dump.virtual().physical([0x5000]).tolist() == [0xFEE0_0000]
        with pytest.raises(PageUnavailableError, match="page 0xfee00 is absent"):
            dump.virtual().read(0x5000, 1)


# Linear maps, frame maps, memory.


def test_linear() -> None:
    text = linear(0xFFFF_FFFF_8000_0000, GIB, -0x20_0000)
    addresses = [0xFFFF_FFFF_8020_0010, 0xFFFF_FFFF_8000_0000, 0xFFFF_FFFF_C000_0000, 0, 1 << 63]
    assert text.physical(as_addresses(addresses)).tolist() == [0x10, -1, -1, -1, -1]
    assert text.steps(0) == ()
    assert "outside" in text.trace(0).fault


def test_frame_map() -> None:
    found = frame_map(P2M.from_pairs(np.array([3, 4]), np.array([0x900, 0x500])), 4096)
    assert found.physical(as_addresses([0x50_0123, 0x90_0FFF, 0x123, 1 << 63])).tolist() == [0x4123, 0x3FFF, -1, -1]


@pytest.mark.parametrize("order", ["<", ">"])
def test_words(order: str) -> None:
    memory = memory_of({0x1000: 0x1122_3344_5566_7788, 0x2FF8: 1 << 63}, 16 * KIB, order=order)
    assert memory.read_u64(np.array([0x2FF8, 0x1000, 0x1000])).tolist() == [1 << 63, *[0x1122_3344_5566_7788] * 2]
    assert memory.read_u32(np.array([0x1000])).tolist() == [0x5566_7788 if order == "<" else 0x1122_3344]
    words, held = memory.read_words(np.array([-8, 0x1000, 0x4000, 1 << 62]), 8)
    assert (words.tolist(), held.tolist()) == ([0, 0x1122_3344_5566_7788, 0, 0], [False, True, False, False])
    with pytest.raises(PageUnavailableError, match="page 0x4 is absent"):
        memory.read_u64(np.array([0, 0x4000]))
    with pytest.raises(ValueError, match="multiples"):
        memory.read_u64(np.array([4]))


@pytest.mark.parametrize("page_size", [4096, 16384])
def test_blocks(page_size: int) -> None:
    memory = memory_of({at: at for at in range(0, 32 * KIB, 8)}, 32 * KIB, page_size=page_size)
    addresses = np.array([0x3000, 0, 0x7000, 0x8000, -4096, 1 << 60, 0x3000])
    blocks, held = memory.read_blocks(addresses, 4096)
    assert held.tolist() == [True, True, True, False, False, False, True]
    words = blocks.view(np.uint64)
    assert words[held].tolist() == [list(range(at, at + 4096, 8)) for at in addresses[held].tolist()]
    assert not words[~held].any()
    for at, size in ((4, 4096), (0, 2 * page_size)):
        with pytest.raises(ValueError, match="multiples"):
            memory.read_blocks(np.array([at]), size)


def test_words_of_many_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dumpxlate.memory.BATCH_BYTES", 8192)
    memory = memory_of({at: at for at in range(0, 64 * KIB, 8)})
    addresses = np.random.default_rng(3).permutation(np.arange(0, 64 * KIB, 8))
    assert memory.read_u64(addresses).tolist() == addresses.tolist()


# Which tables a dump is read by.


def guest_of(words: Mapping[int, int], *, vmcoreinfo: str = "", **registers: int) -> Guest:
    memory = image(words, 64 * KIB)
    pages = {pfn: bytes(memory[4096 * pfn : 4096 * pfn + 4096]) for pfn in range(16)}
    return Guest(pages=pages, vmcoreinfo=vmcoreinfo, registers=({"cr0": 1 << 31, "cr4": 0x20, **registers},))


def opened(guest: Guest, style: str = "qemu", arch: str = "x86_64") -> Dump:
    style = next(name for name in elf_cores.STYLES if name.startswith(style))
    return open_from([BytesSource(elf_cores.core(guest, style, arch=arch), "dump")])


INFO = "SYMBOL(init_top_pgt)=ffffffff82001000\nNUMBER(phys_base)=-33554432\nNUMBER(pgtable_l5_enabled)=0\n"
KERNEL = long_tables({0xFFFF_8880_0000_5000: 0x5000}, 0x1000, 0x2000)


def test_kernel_tables_where_no_cr3_is_usable() -> None:
    with opened(guest_of(KERNEL, vmcoreinfo=INFO, cr3=0x7000_0000)) as dump:
        seen = dump.virtual()
        assert seen.trace(0xFFFF_8880_0000_5008).root == 0x1000
        assert seen.physical([0xFFFF_8880_0000_5008, 0xFFFF_FFFF_8200_1000]).tolist() == [0x5008, -1]
        assert seen.read(0xFFFF_8880_0000_5000, 8) == dump.read(0x5000, 8)


def test_linear_maps_where_the_kernel_tables_are_not_there() -> None:
    info = INFO.replace("82001000", "83001000") + "SYMBOL(page_offset_base)=ffffffff82006000\n"
    with opened(guest_of({0x6000: 0xFFFF_8880_0000_0000}, vmcoreinfo=info, cr3=0x7000_0000)) as dump:
        seen = dump.virtual()
        addresses = [0xFFFF_FFFF_8200_2345, 0xFFFF_8880_0000_2345, 0xFFFF_8881_0000_0000, 0x2345]
        assert seen.physical(addresses).tolist() == [0x2345, 0x2345, -1, -1]
        assert seen.trace(addresses[1]).by == "kernel direct mapping"


@pytest.mark.parametrize(("mask", "found"), [(1 << 47, 0x5008), (0, -1), (3 << 46, -1), (1 << 11, -1), (-1, -1)])
def test_marks_of_encrypted_memory(mask: int, found: int) -> None:
    """SME: a bit of every address in the tables, and in cr3, that VMCOREINFO names."""
    marked = {at: word | 1 << 47 for at, word in KERNEL.items()}
    for cr3 in (0x1000 | 1 << 47, 0x7000_0000):
        with opened(guest_of(marked, vmcoreinfo=f"{INFO}NUMBER(sme_mask)={mask}\n", cr3=cr3)) as dump:
            translated = dump.virtual().physical([0xFFFF_8880_0000_5008]).tolist()
            # Without the bit, cr3 leads nowhere, and the kernel's first table is found, and none behind it.
            assert translated == [found]


@pytest.mark.parametrize("value", ["99999999999999999999", "-99999999999999999999", "0x7fffffffffffffff"])
def test_senseless_vmcoreinfo(value: str) -> None:
    info = f"SYMBOL(init_top_pgt)=ffffffffffffffff\nNUMBER(phys_base)={value}\nNUMBER(page_offset_base)={value}\n"
    with (
        opened(guest_of({}, vmcoreinfo=info, cr3=0x7000_0000)) as dump,
        pytest.raises(UnsupportedFeatureError, match="no page tables are known"),
    ):
        dump.virtual()


def test_aarch64_kernel() -> None:
    words = {0x1000: 0x2003, 0x2000: 0x4000_0701}
    info = (
        "PAGESIZE=4096\nSYMBOL(swapper_pg_dir)=ffff800008001000\nNUMBER(kimage_voffset)=0xffff800008000000\n"
        "NUMBER(VA_BITS)=48\nNUMBER(TCR_EL1_T1SZ)=0x10\n"
    )
    with opened(guest_of(words, vmcoreinfo=info), arch="aarch64") as dump:
        assert dump.virtual().physical([0xFFFF_0000_0012_3456, 0x12_3456]).tolist() == [0x4012_3456, -1]
        assert dump.virtual(cr3=0x1000).physical([0x12_3456]).tolist() == [0x4012_3456]


def test_no_tables_are_known() -> None:
    pages = raw.build(guest_of({}))
    for dump in (open_from([BytesSource(pages, "memory.raw")], format="raw"), opened(guest_of({}), "plain")):
        with dump, pytest.raises(UnsupportedFeatureError, match="no page tables are known"):
            dump.virtual()
    with opened(guest_of({}), arch="s390x") as dump, pytest.raises(UnsupportedFeatureError, match="only those of x86"):
        dump.virtual(cr3=0)


def test_reads_across_pages() -> None:
    words = long_tables({0x5000: 0x9000, 0x6000: 0x8000}, 0x1000, 0x2000) | {0x9FF8: 0x1111, 0x8000: 0x2222}
    with opened(guest_of(words, cr3=0x1000)) as dump:
        seen = dump.virtual(cpu=0)
        assert seen.read(0x5FF8, 16) == (0x1111).to_bytes(8, "little") + (0x2222).to_bytes(8, "little")
        assert seen.read_u64([0x6000, 0x5FF8]).tolist() == [0x2222, 0x1111]
        assert seen.read(0x5000, 0) == b""
        with pytest.raises(
            TranslationError, match=r"address 0x7000: unmapped: PT entry at 0x4038 is not present"
        ) as caught:
            seen.read(0x6FFF, 2)
        assert (caught.value.address, caught.value.level) == (0x7000, 1)
        with pytest.raises(TranslationError, match="not canonical"):
            seen.read(0x8000_0000_0000, 1)
        with pytest.raises(ValueError, match="cannot read"):
            seen.read((1 << 64) - 1, 2)


def test_old_paravirtual_dump_with_and_without_its_map(sample: Callable[[str], Path]) -> None:
    addresses = np.arange(0, 2 * MIB, 4096)
    with dumpxlate.open(sample("xendump/t1.old8")) as dump:
        machine = dump.virtual(cpu=0).physical(addresses)
        code = dump.virtual(cpu=0).read(0x6A1, 16)
    with dumpxlate.open(sample("xendump/t1.old8"), p2m=SAMPLES / "xendump/t1.map") as dump:
        own = dump.virtual(cpu=0).physical(addresses)
        assert dump.virtual(cpu=0).read(0x6A1, 16) == code == dump.read(int(own[0]) + 0x6A1, 16)
        assert dump.p2m is not None
        assert dump.p2m.mfn(own[own >= 0] // 4096).tolist() == (machine[own >= 0] // 4096).tolist()
    assert (own >= 0).sum() > 100
    assert (own[own >= 0] == addresses[own >= 0]).all()  # the guest maps its memory from 0 on
