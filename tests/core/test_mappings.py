"""Whole page tables at once: the runs equal what single walks find, and hostile trees stay bounded and counted."""

from __future__ import annotations

import re
import time
import tracemalloc
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

import dumpxlate
from dumpxlate.errors import UnsupportedFeatureError
from dumpxlate.extents import Extents
from dumpxlate.io.source import BytesSource
from dumpxlate.memory import PhysicalMemory
from dumpxlate.p2m.map import P2M
from dumpxlate.pageset import PageRuns
from dumpxlate.paging import mappings as mappings_module
from dumpxlate.paging import tree
from dumpxlate.paging.aarch64 import aarch64_paging
from dumpxlate.paging.addrxlat import first_of, frame_map, linear, page_walk
from dumpxlate.paging.mappings import Mappings, by_memory, cut
from dumpxlate.paging.x86 import LEGACY, LEGACY_PSE, LEVEL_4, LEVEL_5, PAE
from dumpxlate.stores import IndexedStore
from tests.builders.page_tables import image, long_tables

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from dumpxlate.paging.format import Paging

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
HIGH = 1 << 64
PAGED = ["i386-paging", "i386-pae", "x64-long", "x64-la57", "x64-core", "x64-split"]


def memory_of(data: bytes, *, page_size: int = 4096) -> PhysicalMemory:
    extents = Extents(*(np.array([n], np.int64) for n in (0, len(data) // page_size, 0)))
    return PhysicalMemory(IndexedStore(BytesSource(data, "memory"), page_size, extents))


def tables(words: Mapping[int, int], size: int = 64 * KIB, *, width: int = 8, page_size: int = 4096) -> PhysicalMemory:
    return memory_of(bytes(image(words, size, width=width)), page_size=page_size)


def rows(found: Mappings) -> list[tuple[int, int, int]]:
    """Runs with unsigned addresses."""
    columns = (found.virtual, found.physical, found.length)
    return [(virtual % HIGH, *rest) for virtual, *rest in zip(*(column.tolist() for column in columns), strict=True)]


def runs_of(pages: Mapping[int, int]) -> list[tuple[int, int, int]]:
    """Pages of 4 KiB, virtual to physical, joined one by one."""
    found: list[tuple[int, int, int]] = []
    for virtual, physical in sorted(pages.items()):
        if found and (sum(found[-1][::2]), sum(found[-1][1:])) == (virtual, physical):
            found[-1] = (*found[-1][:2], found[-1][2] + 4096)
        else:
            found.append((virtual, physical, 4096))
    return found


# Real guests.


@pytest.mark.parametrize("guest", PAGED)
def test_runs_are_what_qemu_lists(shared: Path, guest: str) -> None:
    folder = shared / "fixtures/tiny" / guest
    large = 4 * MIB if guest == "i386-paging" else 2 * MIB
    pages = {}
    for line in re.findall(r"^([0-9a-f]{16}): ([0-9a-f]{16}) (\S+)$", (folder / "tlb.txt").read_text(), re.MULTILINE):
        virtual, physical = int(line[0], 16), int(line[1], 16)
        for skip in range(0, large if "P" in line[2] else 4096, 4096):
            pages[virtual + skip] = physical + skip
    with dumpxlate.open(folder / "elf.xz") as dump:
        found = dump.virtual(cpu=0).mappings()
    assert rows(found) == runs_of(pages)
    assert found.tables > 1
    assert not found.faults


@pytest.mark.parametrize("guest", ["pv1", "pvh1"])
def test_runs_of_a_linux_guest_of_xen(shared: Path, unpacked: Callable[[Path], Path], guest: str) -> None:
    """Inside the runs, and right outside, single walks agree."""
    with dumpxlate.open(unpacked(shared / "fixtures/xen-linux" / f"{guest}.core.xz")) as dump:
        seen = dump.virtual(cpu=0)
        found = seen.mappings()
        assert len(found) > 50
        for skip in (0, 0x123, 4095):
            assert (seen.physical(found.virtual + skip) == found.physical + skip).all()
        last = found.virtual + (found.length - 1)
        assert (seen.physical(last) == found.physical + found.length - 1).all()
        after = seen.physical(np.minimum(last, -2) + 1)
        assert (after[after >= 0] != (found.physical + found.length)[after >= 0]).all()
        assert (np.diff(found.virtual.view(np.uint64).astype(object)) >= found.length[:-1]).all()


# Hand-made tables.


def all_of(mode: Paging, memory: PhysicalMemory, root: int = 0x1000) -> Mappings:
    return page_walk(memory, root, mode).mappings()


def test_levels_sizes_and_both_halves() -> None:
    words = {0x1000: 0x2003, 0x1FF8: 0x2003, 0x2000: 0x3003, 0x2008: 0x4000_0083, 0x3000: 0x4003, 0x3008: 0x20_0083}
    words |= {0x4000 + 8 * at: 0x1000 * at | 3 for at in range(512) if at != 5}
    found = all_of(LEVEL_4, tables(words))
    low = [(0, 0, 0x5000), (0x6000, 0x6000, 4 * MIB - 0x6000), (GIB, GIB, GIB)]
    assert rows(found) == low + [(virtual + 0xFFFF_FF80_0000_0000, *rest) for virtual, *rest in low]
    assert (found.tables, found.faults) == (7, {})


def test_5_levels() -> None:
    pages = {0xFF11_2233_4455_6000 + at: 0x7000 + at for at in (0, 4096)} | {0x11_2233_4455_6000: 0x9000}
    found = all_of(LEVEL_5, tables(long_tables(pages, 0x1000, 0x2000, levels=5)))
    assert rows(found) == [(0x11_2233_4455_6000, 0x9000, 4096), (0xFF11_2233_4455_6000, 0x7000, 8192)]


def test_tables_of_32_bits() -> None:
    words = {0x1000: 0x00C0_0083 | 0xAB << 13, 0x1004: 0x2003, 0x1008: 0x0060_0083, 0x2FFC: 0xFFFF_F001}
    memory = tables(words, width=4)
    found = all_of(LEGACY_PSE, memory)
    assert rows(found) == [(0, 0xAB_00C0_0000, 4 * MIB), (0x7F_F000, 0xFFFF_F000, 4096)]
    assert found.faults == {"reserved entries": 1}
    found = all_of(LEGACY, memory)
    assert (rows(found), found.faults) == ([(0x7F_F000, 0xFFFF_F000, 4096)], {"tables not held": 2})
    words = {0x1020: 0x2001, 0x1028: 0x2081, 0x1038: 0x2001, 0x2000: 0x3003, 0x2008: 0x12_3460_0083, 0x3008: 0x4001}
    found = all_of(PAE, tables(words), 0x1020)
    low = [(0x1000, 0x4000, 4096), (2 * MIB, 0x12_3460_0000, 2 * MIB)]
    assert rows(found) == low + [(virtual + 0xC000_0000, *rest) for virtual, *rest in low]


@pytest.mark.parametrize("page_size", [4096, 65536])
def test_aarch64(page_size: int) -> None:
    """Tables smaller and larger than a page of the dump."""
    words = {0x1_0008: 0x2_0003, 0x2_0008: 0x4000_0401, 0x2_0000: 0x3_0003, 0x3_0008: 0x7_0003, 0x3_FFF8: 0x7_0003}
    found = all_of(aarch64_paging(65536, 48, "high"), tables(words, 256 * KIB, page_size=page_size), 0x1_0000)
    base = 0xFFFF_0400_0000_0000
    assert rows(found) == [
        (base + 0x1_0000, 0x7_0000, 0x1_0000),
        (base + 0x1FFF_0000, 0x7_0000, 0x1_0000),
        (base + 0x2000_0000, 0x4000_0000, 512 * MIB),
    ]
    words = {0x1000: 0x2003, 0x2000: 0x3003, 0x3000: 0x4003, 0x4000: 0x5003, 0x4FF8: 0x6003}
    found = all_of(aarch64_paging(4096, 48, "low"), tables(words, page_size=page_size))
    assert rows(found) == [(0, 0x5000, 4096), (0x1F_F000, 0x6000, 4096)]


def test_paravirtual_frames() -> None:
    """Tables hold machine frames. A large page, which Xen does not give, and a frame of nobody are not believed."""
    mfn = 0x20_0000 + np.arange(16)[::-1]
    words = {0x1000: int(mfn[2]) << 12 | 3, 0x2000: int(mfn[3]) << 12 | 3, 0x3000: int(mfn[4]) << 12 | 3}
    words |= {
        0x4000: int(mfn[9]) << 12 | 3,
        0x4008: int(mfn[10]) << 12 | 3,
        0x4010: 0x1234_5003,
        0x3008: int(mfn[15]) << 12 | 0x83,
        0x1800: int(mfn[2]) << 12 | 3,  # Xen's own part
    }
    found = page_walk(tables(words), 0x1000, LEVEL_4, p2m=P2M.from_pairs(np.arange(16), mfn)).mappings()
    assert rows(found) == [(0, 0x9000, 8192)]
    assert found.faults == {"unknown frames": 1, "reserved entries": 1}


def test_what_is_no_table() -> None:
    found = first_of(linear(0xFFFF_FFFF_8000_0000, GIB, -0x20_0000), linear(0, 8192, 0)).mappings()
    assert rows(found) == [(0, 0, 8192), (0xFFFF_FFFF_8020_0000, 0, GIB - 0x20_0000)]
    assert rows(first_of(linear(0, 8192, 0x5000), linear(4096, 8192, 0)).mappings()) == [
        (0, 0x5000, 8192),
        (8192, 4096, 4096),
    ]
    frames = P2M.from_pairs(np.array([3, 4, 5, 6]), np.array([0x900, 0x500, 0x501, 0x500]))
    assert rows(frame_map(frames, 4096).mappings()) == [(0x50_0000, 0x4000, 8192), (0x90_0000, 0x3000, 4096)]


def test_kernel_of_4_gib() -> None:
    """Every page of 4 GiB in the direct map by itself, and 512 MiB of them mapped again in no order."""
    order = np.random.default_rng(3).permutation(1 << 17).astype(np.uint64) * np.uint64(2)
    last = np.concatenate((np.arange(1 << 20, dtype=np.uint64), order)) << np.uint64(12) | np.uint64(3)
    pts = len(last) // 512
    upper = np.zeros((9, 512), np.uint64)  # root, PDPT and PDs of the direct map, PDPT and PD of the rest
    upper[0, [273, 402]] = [0x1003, 0x6003]
    upper[1, :4], upper[6, 0] = np.arange(2, 6) << 12 | 3, 0x7003
    at = (np.arange(pts, dtype=np.uint64) + np.uint64(9)) << np.uint64(12) | np.uint64(3)
    upper[2:6], upper[7, : pts - 2048] = at[:2048].reshape(4, 512), at[2048:]
    begun = time.process_time()
    found = all_of(LEVEL_4, memory_of(np.concatenate((upper.reshape(-1), last)).tobytes()), 0)
    assert time.process_time() - begun < 10  # a tenth of a second, in fact
    assert (found.tables, found.faults) == (1 + 1 + 4 + 1 + 1 + pts, {})
    assert rows(found)[0] == (0xFFFF_8880_0000_0000, 0, 4 * GIB)
    assert found.physical[1:].tolist() == (order << np.uint64(12)).tolist()
    assert (found.virtual[1:] == (0xFFFF_C900_0000_0000 - HIGH) + np.arange(1 << 17) * 4096).all()


# What a hostile guest may do.


def self_map(mode: Paging) -> tuple[PhysicalMemory, int]:
    """A table whose entries all lead back to it: 512 to the fifth pages, if one believed it."""
    size = 8 << mode.levels[-1].bits
    return memory_of(bytes(size) + np.full(size // 8, size | 3, np.uint64).tobytes() + bytes(2 * size)), size


@pytest.mark.parametrize("mode", [LEVEL_4, LEVEL_5, aarch64_paging(65536, 52, "high")])
def test_tables_that_lead_to_themselves_end(mode: Paging, monkeypatch: pytest.MonkeyPatch) -> None:
    if mode is not LEVEL_5:
        monkeypatch.setattr(tree, "REPEATS", 1 << 12)
    memory, root = self_map(mode)
    found = all_of(mode, memory, root)
    assert found.tables <= tree.REPEATS + 16 * len(mode.levels) + 1
    assert found.faults["skipped tables"] > 1 << 20
    assert 0 < len(found) <= mappings_module.MAPPINGS_LIMIT
    assert set(found.physical.tolist()) == {root}


def test_memory_full_of_tables_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every word of 16 MiB leads to some page of them, five levels deep."""
    monkeypatch.setattr(tree, "TABLES", 1 << 14)
    monkeypatch.setattr(tree, "MAPPINGS_LIMIT", 1 << 16)
    words = np.random.default_rng(1).integers(0, 4096, 2 * MIB, np.uint64) << np.uint64(12) | np.uint64(3)
    memory = memory_of(words.tobytes())
    tracemalloc.start()
    found = all_of(LEVEL_4, memory)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.tables <= 1 << 14
    assert found.faults["skipped tables"] > 1 << 20
    assert len(found) <= 1 << 16
    assert most < 160 * MIB


def test_limit_of_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "MAPPINGS_LIMIT", 100)
    words = {0x1000: 0x2003, 0x2000: 0x3003, 0x3000: 0x4003} | {0x4000 + 8 * at: 0x5003 for at in range(512)}
    found = all_of(LEVEL_4, tables(words))
    assert (len(found), found.faults) == (100, {"runs not listed": 412})


def test_shared_subtrees_are_walked_as_often_as_real_ones_are() -> None:
    """Linux's espfix and KASAN's empty shadow: one table under a thousand entries."""
    words = {0x1000: 0x2003} | {0x2000 + 8 * at: 0x3003 for at in range(512)}
    words |= {0x3000 + 8 * at: 0x4003 for at in range(2)} | {0x4008: 0x5003}
    found = all_of(LEVEL_4, tables(words))
    assert rows(found) == [(at * GIB + half * 2 * MIB + 4096, 0x5000, 4096) for at in range(512) for half in (0, 1)]
    assert (found.tables, found.faults) == (1 + 1 + 512 + 1024, {})


def test_faults_are_counted() -> None:
    words = {0x1000: 0x2083, 0x1008: 0x2003, 0x1010: 0x10_0003, 0x1018: 0xF_FFFF_FFFF_F003, 0x1020: 0x3002}
    words |= {0x2000: 0x3003, 0x3000: 0x20_2083, 0x3008: 0x7FE_0000_0083}
    found = all_of(LEVEL_4, tables(words))
    assert rows(found) == [((1 << 39) + 2 * MIB, 0x7FE_0000_0000, 2 * MIB)]
    assert found.faults == {"reserved entries": 2, "tables not held": 2}
    found = all_of(LEVEL_4, tables({}), 0xF_FFFF_FFFF_F000)
    assert (len(found), found.faults) == (0, {"tables not held": 1})


@pytest.mark.parametrize("mode", [LEGACY, LEGACY_PSE, PAE, LEVEL_4, LEVEL_5, aarch64_paging(16384, 47, "high")])
@pytest.mark.parametrize("page_size", [4096, 65536])
def test_any_bytes_can_be_walked_as_single_walks_do(mode: Paging, page_size: int) -> None:
    rng = np.random.default_rng(7)
    words = rng.integers(0, 1 << 32, 16384, np.uint64)
    words[rng.random(16384) < 0.5] &= np.uint64(0xFFFF)  # these lead back into the memory
    words[rng.random(16384) < 0.5] = 0
    words[:8] = [0x1001, 0, 0x2001, 0, 0x3001, 0, 0x4001, 0]  # as the root does in any case
    memory = memory_of(words.astype(np.uint32).tobytes(), page_size=page_size)
    found = page_walk(memory, 0, mode).mappings()
    single = page_walk(memory, 0, mode)
    assert len(found)
    assert (single.physical(found.virtual) == found.physical).all()
    assert (single.physical(found.virtual + found.length - 1) == found.physical + found.length - 1).all()
    assert mode.accepts(found.virtual).all()


# Mappings of several processors together, and cut to memory.


def runs(*given: tuple[int, int, int]) -> Mappings:
    """Runs of (virtual, physical, length)."""
    columns = np.array(given, np.uint64).astype(np.int64).reshape(-1, 3).T
    return Mappings(columns[0], columns[1], columns[2])


def test_processors_together() -> None:
    kernel = 0xFFFF_8880_0000_0000
    first = runs((0x1000, 0x5000, 0x1000), (kernel, 0, 0x8000))
    second = runs((0x2000, 0x6000, 0x1000), (0x9000, 0x5000, 0x1000), (kernel + 0x4000, 0x4000, 0x8000))
    assert rows(by_memory([first, second])) == [
        (kernel, 0, 0xC000),
        (0x9000, 0x5000, 0x1000),
        (0x1000, 0x5000, 0x2000),
    ]
    assert rows(by_memory([])) == []
    assert rows(by_memory([runs((kernel, 0, 0x1000)), runs((0, 0, 0x1000)), runs((1 << 63, 0, 0x1000))])) == [
        (kernel, 0, 0x1000),
        (1 << 63, 0, 0x1000),
        (0, 0, 0x1000),
    ]


def test_many_processors_like_one_by_one() -> None:
    """Against sets of (address, delta), one byte an address."""
    rng = np.random.default_rng(5)
    given = [(int(d), int(p), int(n)) for d, p, n in rng.integers((0, 0, 1), (4, 300, 30), (60, 3))]
    expected = {(d, p + at) for d, p, n in given for at in range(n)}
    found = by_memory([runs(*((d * 1000 + p, p, n) for d, p, n in given))])
    listed = [((v - p) // 1000, p + at) for v, p, n in rows(found) for at in range(n)]
    assert len(listed) == len(set(listed))
    assert set(listed) == expected
    ends = {(v - p, p + n) for v, p, n in rows(found)}
    assert not ends & {(v - p, p) for v, p, n in rows(found)}


def test_processors_with_too_much_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mappings_module, "MAPPINGS_LIMIT", 2)
    given = replace(
        runs((0x1000, 0x5000, 4096), (0x3000, 0x4000, 4096), (0x9000, 0, 4096)), faults={"runs not listed": 3}
    )
    found = by_memory([given])
    assert (rows(found), found.faults) == ([(0x9000, 0, 4096), (0x3000, 0x4000, 4096)], {"runs not listed": 4})


def test_cut_to_memory() -> None:
    memory = PageRuns.from_runs(np.array([0x1000, 0x3000, 0x9000]), np.array([0x1000, 0x2800, 0x1000]))
    given = runs((0xFFFF_8880_0000_0000, 0, 0x10000), (0x2000, 0x3400, 0x100), (0x7000, 0x6000, 0x1000))
    assert rows(cut(given, memory)) == [
        (0xFFFF_8880_0000_1000, 0x1000, 0x1000),
        (0xFFFF_8880_0000_3000, 0x3000, 0x2800),
        (0xFFFF_8880_0000_9000, 0x9000, 0x1000),
        (0x2000, 0x3400, 0x100),
    ]
    assert rows(cut(runs(), memory)) == []


def test_cut_into_too_many_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mappings_module, "MAPPINGS_LIMIT", 1000)
    memory = PageRuns(np.arange(0, 200, 2), np.ones(100, np.int64))
    with pytest.raises(UnsupportedFeatureError, match="in 1,100 pieces, at most 1,000"):
        cut(runs(*((at << 20, 0, 200) for at in range(11))), memory)
