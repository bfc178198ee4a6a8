"""Debuggers find their way through a real Linux guest by virtual addresses, in what we write from it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import dumpxlate
from dumpxlate.format import WriteOptions
from dumpxlate.vmcoreinfo_search import find, with_vmcoreinfo
from tests.peers import peers
from tests.peers.guest import MEMORY
from tests.readers import elf_segments

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dumpxlate.dump import Dump

pytestmark = pytest.mark.peer

# A kernel at rest: what each processor runs, innermost first.
FIRST_IDLES = ("default_idle_call", "do_idle", "cpu_startup_entry", "rest_init", "start_kernel")
OTHERS_IDLE = ("default_idle_call", "do_idle", "cpu_startup_entry", "start_secondary")
CODECS = ("zlib", "lzo", "snappy", "zstd", "none")


def write(dump: Dump, out: Path, target: str = "elf", **options: Any) -> Path:
    dumpxlate.convert(dump, out, target, WriteOptions(**options))
    return out


def kernel_offset(dump: Dump) -> int:
    assert dump.vmcoreinfo
    return int(dump.vmcoreinfo.lines["KERNELOFFSET"], 16)


def contains(stack: tuple[str, ...], names: tuple[str, ...]) -> bool:
    return tuple(name for name in stack if name in names) == names


@pytest.fixture(scope="module")
def qemu(guest: Path) -> peers.GdbKernel:
    """What gdb makes of QEMU's own dump with virtual addresses."""
    peers.require("gdb")
    with dumpxlate.open(guest / "elf-paging") as dump:
        return peers.gdb_kernel(guest / "elf-paging", guest / "vmlinux", kernel_offset(dump))


@pytest.fixture(scope="module")
def mapped(guest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """QEMU's flattened kdump, in which no address is virtual, with the addresses of its page tables."""
    with dumpxlate.open(guest / "kdump-zlib") as dump:
        return write(dump, tmp_path_factory.mktemp("mapped") / "vmcore", paging="all")


def listed_by_qemu(text: str) -> list[tuple[int, int, int]]:
    """The lines of ``info tlb``, a page each, joined where they continue each other: virtual, physical, length."""
    runs: list[tuple[int, int, int]] = []
    for address, target, flags in re.findall(r"^([0-9a-f]{16}): ([0-9a-f]{16}) (\S+)$", text, re.MULTILINE):
        virtual, physical, length = int(address, 16), int(target, 16), 2 << 20 if "P" in flags else 4096
        if runs and (virtual, physical) == (sum(runs[-1][::2]), sum(runs[-1][1:])):
            virtual, physical, before = runs.pop()
            length += before
        runs.append((virtual, physical, length))
    return runs


@pytest.mark.parametrize("cpu", [0, 1])
def test_addresses_lead_where_qemu_says(guest: Path, facts: dict[str, Any], cpu: int) -> None:
    """Those that ``gva2gpa`` was asked for, and all that ``info tlb`` lists."""
    if "gva2gpa" not in facts:
        pytest.skip("this guest was made before guest.py asked QEMU where addresses lead")
    asked = {virtual: -1 if physical is None else physical for by, virtual, physical in facts["gva2gpa"] if by == cpu}
    assert len(asked) > 20
    with dumpxlate.open(guest / "kdump-zlib") as dump:
        registers = facts["registers"][cpu]
        seen = replace(dump, cpus=(replace(dump.cpus[cpu], registers=registers),)).virtual()
        assert dict(zip(asked, seen.physical(list(asked)).tolist(), strict=True)) == asked
        found = seen.mappings()
    runs = zip(found.virtual.tolist(), found.physical.tolist(), found.length.tolist(), strict=True)
    assert not found.faults
    assert [(at % (1 << 64), *rest) for at, *rest in runs] == listed_by_qemu((guest / f"tlb-{cpu}.txt").read_text())


def test_segments_map_what_those_of_qemu_map(guest: Path, tmp_path: Path) -> None:
    """Page by page: where QEMU cuts segments, and what it lists twice, depends on the order in which it came by.

    Addresses in segments that QEMU merges wrongly, which do not lead where it says, are left out.
    """
    theirs = sorted(pages_of(guest / "elf-paging"))
    with dumpxlate.open(guest / "elf") as dump:
        ours = pages_of(write(dump, tmp_path / "vmcore", paging="mapped"))
        virtual, physical = np.array(theirs, np.uint64).T
        views = [dump.virtual(cpu.index).physical(virtual) for cpu in dump.cpus]
    wrong = set(virtual[np.all([seen != physical.view(np.int64) for seen in views], axis=0)].tolist())
    assert [page for page in sorted(ours) if page[0] not in wrong] == [page for page in theirs if page[0] not in wrong]
    assert len(wrong) < len(ours) // 20 > MEMORY // 4096 // 20


def pages_of(path: Path) -> set[tuple[int, int]]:
    """(virtual, physical) of each page in the segments of an ELF file of x86-64."""
    return {
        ((vaddr + at) % (1 << 64) if vaddr >> 47 & 1 else (vaddr + at) % (1 << 47), paddr + at)
        for kind, _, vaddr, paddr, _, memsz in elf_segments(path)
        for at in range(0, memsz, 4096)
        if kind == 1
    }


def test_gdb_prints_the_banner_and_where_each_cpu_is(
    guest: Path, mapped: Path, qemu: peers.GdbKernel, facts: dict[str, Any]
) -> None:
    with dumpxlate.open(mapped) as dump:
        seen = peers.gdb_kernel(mapped, guest / "vmlinux", kernel_offset(dump))
    assert seen == qemu
    assert seen.banner.startswith(f"Linux version {facts['release']} ")
    assert contains(seen.stacks[0], FIRST_IDLES)
    assert contains(seen.stacks[1], OTHERS_IDLE)


def test_gdb_finds_the_kernel_by_its_own_tables(guest: Path, qemu: peers.GdbKernel, tmp_path: Path) -> None:
    """No registers, no notes: VMCOREINFO is found in memory, and names the tables to walk."""
    with dumpxlate.open(guest / "elf") as dump:
        bare = replace(dump, cpus=(), notes=(), vmcoreinfo=None)
        found = find(bare)
        assert found
        out = write(with_vmcoreinfo(bare, found.info), tmp_path / "vmcore", paging="all")
        offset = kernel_offset(dump)
    seen = peers.gdb_kernel(out, guest / "vmlinux", offset)
    assert (seen.address, seen.banner) == (qemu.address, qemu.banner)


@pytest.mark.parametrize("codec", [None, *CODECS])
def test_libkdumpfile_reads_by_virtual_address(
    guest: Path, mapped: Path, qemu: peers.GdbKernel, tmp_path: Path, codec: str | None
) -> None:
    peers.require("kdumpfile")
    out = mapped
    if codec:
        with dumpxlate.open(mapped) as dump:
            out = write(dump, tmp_path / "kdump", "kdump", compress=codec)
    wanted = qemu.banner.encode()[:64]
    assert peers.kdumpfile_memory(out, [qemu.address]) == {qemu.address: wanted}


def test_volatility_translates_as_we_do(guest: Path, tmp_path: Path, facts: dict[str, Any]) -> None:
    """Every run that the tables map, its two ends, and right behind it; from a plain file, without aliases."""
    peers.require("volatility3")
    cr3 = facts["registers"][0]["cr3"]
    with dumpxlate.open(guest / "kdump-zlib") as dump:
        out = write(dump, tmp_path / "vmcore")
        seen = dump.virtual(cr3=cr3)
        runs = seen.mappings()
        last = runs.virtual + (runs.length - 1)
        addresses = np.unique(np.concatenate((runs.virtual, last, np.minimum(last, -2) + 1)))
        # Beyond RAM Volatility has no memory to show: addresses of devices are none for it.
        ours = seen.physical(addresses)
        ours[~dump.pages.stored.contains(ours // dump.pages.page_size)] = -1
    virtual = [address % (1 << 64) for address in addresses.tolist()]
    expected = {at: None if to < 0 else to for at, to in zip(virtual, ours.tolist(), strict=True)}
    assert len(expected) > 300
    assert peers.volatility_physical(out, cr3 & ~0xFFF, virtual) == expected


def test_crash_and_drgn_take_aliases(guest: Path, mapped: Path, facts: dict[str, Any]) -> None:
    peers.require("crash", "drgn")
    assert facts["task"] in peers.drgn_kernel(mapped, guest / "vmlinux").tasks.values()
    said = peers.crash(mapped, guest / "vmlinux", "log", "list task_struct.tasks -s task_struct.comm -h init_task")
    assert f'comm = "{facts["task"]}' in said
    assert f"Linux version {facts['release']}" in said


def test_crash_and_drgn_open_the_flattened_form(guest: Path, tmp_path: Path, facts: dict[str, Any]) -> None:
    peers.require("crash", "drgn")
    with dumpxlate.open(guest / "elf") as dump:
        out = write(dump, tmp_path / "flat", "flattened")
    assert out.read_bytes()[:12] == b"makedumpfile"
    assert facts["task"] in peers.drgn_kernel(out, guest / "vmlinux").tasks.values()
    said = peers.crash(out, guest / "vmlinux", "list task_struct.tasks -s task_struct.comm -h init_task")
    assert f'comm = "{facts["task"]}' in said


def test_makedumpfile_takes_aliases_with_the_kernels_symbols(guest: Path, mapped: Path, tmp_path: Path) -> None:
    """Without them it takes the start of the direct map from the first segment that it likes."""
    peers.require("makedumpfile")
    out = peers.refilter(mapped, tmp_path / "out", "-c", level=31, vmlinux=guest / "vmlinux")
    with dumpxlate.open(mapped) as before, dumpxlate.open(out) as after:
        held = after.pages.stored.select(0, 1 << 30)
        assert 0 < len(held) < before.pages.stored.count
        assert (after.read_pages(held) == before.read_pages(held)).all()


# Guests of Xen, of the same kernel.


@pytest.fixture(scope="module")
def of_xen(
    guest: Path,
    shared: Path,
    unpacked: Callable[[Path], Path],
    facts: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Path]:
    """Xen's core files as vmcores with virtual addresses; VMCOREINFO was found in their memory."""

    def make(name: str) -> Path:
        out = tmp_path_factory.mktemp(name) / "vmcore"
        with dumpxlate.open(unpacked(shared / f"fixtures/xen-linux/{name}.core.xz")) as dump:
            found = find(dump)
            assert found
            if found.info.release != facts["release"]:
                pytest.skip(f"the guest of Xen runs {found.info.release}, the vmlinux is of {facts['release']}")
            return write(with_vmcoreinfo(dump, found.info), out, paging="all")

    return make


@pytest.fixture(scope="module")
def pvh(of_xen: Callable[[str], Path]) -> Path:
    return of_xen("pvh1")


def test_xen_pv_in_gdb(guest: Path, of_xen: Callable[[str], Path], facts: dict[str, Any]) -> None:
    """Its tables hold machine frames, which no other debugger that walks them gets by."""
    peers.require("gdb")
    seen = peers.gdb_kernel(of_xen("pv1"), guest / "vmlinux")
    assert seen.banner.startswith(f"Linux version {facts['release']} ")
    assert {stack[0] for stack in seen.stacks} == {"xen_hypercall_pv"}


def test_xen_pvh_in_gdb(guest: Path, pvh: Path, facts: dict[str, Any]) -> None:
    peers.require("gdb")
    with dumpxlate.open(pvh) as dump:
        seen = peers.gdb_kernel(pvh, guest / "vmlinux", kernel_offset(dump))
    assert seen.banner.startswith(f"Linux version {facts['release']} ")
    assert contains(seen.stacks[0], FIRST_IDLES)
    assert contains(seen.stacks[1], OTHERS_IDLE)


@pytest.mark.parametrize("target", ["elf", "kdump"])
def test_xen_pvh_in_drgn_and_libkdumpfile(guest: Path, pvh: Path, tmp_path: Path, target: str) -> None:
    peers.require("drgn", "kdumpfile", "gdb")
    with dumpxlate.open(pvh) as dump:
        out = write(dump, tmp_path / "out", target)
        seen = peers.gdb_kernel(pvh, guest / "vmlinux", kernel_offset(dump))
    kernel = peers.drgn_kernel(out, guest / "vmlinux")
    assert (kernel.cpus, {"xenwatch", "xenbus"} <= set(kernel.tasks.values())) == (2, True)
    assert peers.kdumpfile_memory(out, [seen.address]) == {seen.address: seen.banner.encode()[:64]}


def test_xen_pvh_in_crash(guest: Path, pvh: Path, facts: dict[str, Any]) -> None:
    peers.require("crash")
    said = peers.crash(pvh, guest / "vmlinux", "sys", "log", "list task_struct.tasks -s task_struct.comm -h init_task")
    table = peers.crash_table(said)
    assert (table["RELEASE"], table["CPUS"]) == (facts["release"], "2")
    assert 'comm = "xenwatch' in said
    assert "Booting kernel on Xen PVH" in said
