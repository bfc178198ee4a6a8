"""ELF vmcores: of every producer, class, byte order and machine; real ones against an oracle; what must be refused."""

from __future__ import annotations

import hashlib
import json
import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest

import dumpxlate
from dumpxlate import errors
from dumpxlate.format import OpenOptions, WriteOptions
from dumpxlate.pages import PageState
from dumpxlate.registry import open_dump
from tests.builders import elf, elf_cores, elf_notes
from tests.builders.guest import Guest, page, register, small_guest
from tests.readers import elf_notes as notes_of
from tests.readers import elf_segments, vmcore_missing, vmcore_pages

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FULL = small_guest(excluded=())
LOW = small_guest(excluded=(), high=False)
FILTERED = small_guest()

TINY = ["aarch64", "arm", "i386-isapc", "i386-pae", "i386-paging", "i386-real", "ppc64", "s390x"]
TINY += ["x64-core", "x64-flat32", "x64-la57", "x64-long", "x64-split"]


def write(folder: Path, data: bytes) -> Path:
    path = folder / "vmcore"
    path.write_bytes(data)
    return path


def assert_pages(dump: dumpxlate.Dump, expected: dict[int, bytes]) -> None:
    pfns = sorted(expected)
    assert dump.pages.stored.select(0, 1 << 40).tolist() == pfns
    found = dump.read_pages(pfns)
    assert [pfn for pfn, row in zip(pfns, found, strict=True) if row.tobytes() != expected[pfn]] == []


@pytest.mark.parametrize(
    ("arch", "bits", "order"),
    [
        ("x86_64", 64, "<"),
        ("i386", 32, "<"),
        ("i386", 64, "<"),
        ("aarch64", 64, "<"),
        ("aarch64", 64, ">"),
        ("arm", 32, "<"),
        ("arm", 32, ">"),
        ("ppc64", 64, ">"),
        ("ppc64", 64, "<"),
        ("s390x", 64, ">"),
        ("riscv64", 64, "<"),
    ],
)
@pytest.mark.parametrize("style", ["plain", "qemu", "qemu72", "vmcore"])
def test_machines(tmp_path: Path, arch: str, bits: int, order: str, style: str) -> None:
    guest = FULL if bits == 64 else LOW
    path = write(tmp_path, elf_cores.core(guest, style, arch=arch, bits=bits, byte_order=order))
    with dumpxlate.open(path) as dump:
        assert_pages(dump, guest.pages)
        assert dump.machine.endian == order
        assert dump.machine.arch.name == arch
        assert [cpu.index for cpu in dump.cpus] == [0, 1]
        names = [dump.machine.arch.pc, dump.machine.arch.sp]
        for cpu in dump.cpus:
            for name in names:
                width = 8 if dump.machine.word_bits == 64 else 4
                assert cpu.registers[name] in (register(name, cpu.index, width), register(name, cpu.index, 8))
        out = tmp_path / "out"
        dumpxlate.convert(dump, out)
        notes = dump.notes
    assert vmcore_pages(out) == guest.pages
    body = out.read_bytes()
    assert body[5] == (1 if order == "<" else 2)
    assert struct.unpack_from(order + "H", body, 18) == (elf_notes.MACHINES[arch],)
    # The notes of the source arrive as they were, before our own.
    kept = [(note.name, note.type, note.desc) for note in notes]
    assert notes_of(out)[: len(kept)] == kept


PRODUCERS = {
    "plain": "unnamed",
    "qemu": "QEMU",
    "qemu72": "QEMU",
    "vmcore": "/proc/vmcore",
    "xen-host": "Xen host",
    "makedumpfile": "makedumpfile",
    "virtualbox": "VirtualBox",
    "gdb-script": "gdb script",
}


@pytest.mark.parametrize("style", PRODUCERS)
def test_producers(tmp_path: Path, style: str) -> None:
    guest = FILTERED if style == "makedumpfile" else FULL
    path = write(tmp_path, elf_cores.core(guest, style))
    with dumpxlate.open(path) as dump:
        assert PRODUCERS[style] in dump.variant
        assert_pages(dump, guest.pages)
        assert not dump.damage
        dumpxlate.convert(dump, tmp_path / "out")
    assert vmcore_pages(tmp_path / "out") == guest.pages
    assert vmcore_missing(tmp_path / "out") == guest.excluded


def test_kernel_alias_of_proc_vmcore_is_not_counted_twice(tmp_path: Path) -> None:
    path = write(tmp_path, elf_cores.core(FULL, "vmcore"))
    with dumpxlate.open(path) as dump:
        assert dump.pages.ram.count == len(FULL.ram)
        assert any("overlap" in remark for remark in dump.remarks)


def test_excluded_or_zero_as_asked(tmp_path: Path) -> None:
    path = write(tmp_path, elf_cores.core(FILTERED, "makedumpfile"))
    left_out = sorted(FILTERED.excluded)
    with open_dump([path]) as dump:
        assert set(dump.states(left_out)) == {PageState.EXCLUDED}
        assert any("taken for left out" in remark for remark in dump.remarks)
        with pytest.raises(errors.PageUnavailableError, match="excluded"):
            dump.read(left_out[0] * 4096, 1)
    with open_dump([path], options=OpenOptions(missing="zero")) as dump:
        assert set(dump.states(left_out)) == {PageState.ZERO}
        assert any("taken for zero" in remark for remark in dump.remarks)
        assert dump.read(left_out[0] * 4096, 4096) == bytes(4096)


def test_incomplete_flag_is_damage(tmp_path: Path) -> None:
    data = elf.build(elf_cores.segments(FULL), [], header={"e_flags": 1})
    with dumpxlate.open(write(tmp_path, data)) as dump:
        assert any("incomplete" in damage for damage in dump.damage)


def test_more_segments_than_e_phnum_holds(tmp_path: Path) -> None:
    """Read with PN_XNUM, written with PN_XNUM: 66,000 runs."""
    count = 66_000
    pages = {2 * row: page(2 * row) for row in range(0, count, 1000)}
    loads = [
        elf.Segment(paddr=2 * row * 4096, data=pages.get(2 * row, b""), memsz=4096, lies={}) for row in range(count)
    ]
    with dumpxlate.open(write(tmp_path, elf.build(loads, []))) as dump:
        assert dump.pages.ram.count == count
        assert_pages(dump, pages)
        out = tmp_path / "out"
        dumpxlate.convert(dump, out)
    assert out.read_bytes()[56:58] == b"\xff\xff"
    assert len(elf_segments(out)) == count + 1
    assert vmcore_pages(out) == pages
    assert len(vmcore_missing(out)) == count - len(pages)


def test_unaligned_and_overlapping_segments(tmp_path: Path) -> None:
    memory = b"".join(page(pfn) for pfn in range(8))
    loads = [
        elf.Segment(paddr=0x1800, data=memory[0x1800:0x3400]),
        elf.Segment(paddr=0x3400, data=memory[0x3400:0x5000]),
        elf.Segment(paddr=0x2000, data=b"\xee" * 0x1000),  # loses: the first segment has these addresses
        elf.Segment(paddr=0x6001, data=memory[0x6001:0x6003]),
    ]
    with dumpxlate.open(write(tmp_path, elf.build(loads, []))) as dump:
        expected = {2: page(2), 3: page(3), 4: page(4)}
        expected[1] = bytes(0x800) + page(1)[0x800:]
        expected[6] = b"\0" + page(6)[1:3] + bytes(4093)
        assert_pages(dump, expected)


def test_segments_without_a_physical_address(tmp_path: Path) -> None:
    loads = [elf.Segment(paddr=0x1000, data=page(1)), elf.Segment(paddr=(1 << 64) - 1, data=page(2))]
    with dumpxlate.open(write(tmp_path, elf.build(loads, []))) as dump:
        assert_pages(dump, {1: page(1)})
        assert any("no physical address" in remark for remark in dump.remarks)


def test_larger_program_header_entries(tmp_path: Path) -> None:
    data = bytearray(elf.build([elf.Segment(paddr=0x1000, data=page(1))], []))
    table = data[64 : 64 + 56]
    at = len(data)
    data += table + b"\xaa" * 8
    struct.pack_into("<Q", data, 32, at)
    struct.pack_into("<HH", data, 54, 64, 1)
    with dumpxlate.open(write(tmp_path, bytes(data))) as dump:
        assert_pages(dump, {1: page(1)})


def test_truncated_memory_is_damage(tmp_path: Path) -> None:
    path = write(tmp_path, elf_cores.core(LOW, "plain", truncate=-6000))
    with dumpxlate.open(path) as dump:
        assert any("6,000 bytes" in damage for damage in dump.damage)
        with pytest.raises(errors.CorruptDumpError, match="--salvage"):
            dumpxlate.convert(dump, tmp_path / "out")
        report = dumpxlate.convert(dump, tmp_path / "out", salvage=True)
    assert not report.complete
    last = LOW.stored[-2:]
    found = vmcore_pages(tmp_path / "out")
    assert {pfn: data for pfn, data in found.items() if pfn not in last} == {
        pfn: data for pfn, data in LOW.pages.items() if pfn not in last
    }


def test_broken_note_keeps_those_before(tmp_path: Path) -> None:
    good = elf_notes.cpu_notes(LOW, "x86_64", "<")
    bad = struct.pack("<3I", 5, 1 << 30, 1) + b"CORE\0\0\0\0"
    data = elf.build(elf_cores.segments(LOW), [*good, bad])
    with dumpxlate.open(write(tmp_path, data)) as dump:
        assert len(dump.cpus) == 2
        assert any("notes at" in remark for remark in dump.remarks)


REFUSED: dict[str, tuple[dict[str, int], type[errors.FormatError], str]] = {
    "class": ({"ei_class": 3}, errors.CorruptDumpError, "class 3"),
    "byte order": ({"ei_data": 0}, errors.CorruptDumpError, "byte order 0"),
    "type": ({"e_type": 2}, errors.UnsupportedFeatureError, "type 2"),
    "no segments": ({"e_phnum": 0}, errors.UnsupportedFeatureError, "without PT_LOAD"),
    "short entries": ({"e_phentsize": 8}, errors.CorruptDumpError, "e_phentsize 8"),
    "table beyond the file": ({"e_phoff": 1 << 40}, errors.TruncatedDumpError, "program headers"),
    "count without section header": ({"e_phnum": 0xFFFF, "e_shoff": 0}, errors.CorruptDumpError, "PN_XNUM"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_headers(tmp_path: Path, case: str) -> None:
    header, kind, words = REFUSED[case]
    data = bytearray(elf.build(elf_cores.segments(LOW), []))
    at = {"ei_class": (4, "B"), "ei_data": (5, "B"), "e_type": (16, "H"), "e_phnum": (56, "H"), "e_shoff": (40, "Q")}
    at |= {"e_phentsize": (54, "H"), "e_phoff": (32, "Q")}
    for name, value in header.items():
        struct.pack_into("<" + at[name][1], data, at[name][0], value)
    with pytest.raises(kind, match=words), dumpxlate.open(write(tmp_path, bytes(data))):
        pass


@pytest.mark.parametrize(
    "lies",
    [
        {"p_filesz": 1 << 63},
        {"p_filesz": 0x2000, "p_memsz": 0x1000},
        {"p_memsz": 1 << 63},
        {"p_paddr": (1 << 64) - 0x2000},
    ],
)
def test_refused_segments(tmp_path: Path, lies: dict[str, int]) -> None:
    data = elf.build([elf.Segment(paddr=0x1000, data=page(1), lies=lies)], [])
    with pytest.raises(errors.CorruptDumpError, match="PT_LOAD 0"), dumpxlate.open(write(tmp_path, data)):
        pass


def test_absurd_number_of_headers(tmp_path: Path) -> None:
    data = bytearray(elf.build(elf_cores.segments(LOW), [], xnum=True))
    shoff = struct.unpack_from("<Q", data, 40)[0]
    struct.pack_into("<I", data, shoff + 44, 0xFFFFFFF0)
    with (
        pytest.raises(errors.TruncatedDumpError, match="program headers"),
        dumpxlate.open(write(tmp_path, bytes(data))),
    ):
        pass


def test_process_core_is_named(tmp_path: Path) -> None:
    note = elf_notes.note("CORE", 6, bytes(32))
    data = elf.build([elf.Segment(paddr=0, vaddr=0x400000, data=page(1))], [note])
    with pytest.raises(errors.UnsupportedFeatureError, match="ordinary process"), dumpxlate.open(write(tmp_path, data)):
        pass


def test_virtual_only_core_is_refused(tmp_path: Path) -> None:
    loads = [elf.Segment(paddr=0, vaddr=0xFFFF888000000000 + at, data=page(1)) for at in (0, 0x1000)]
    with (
        pytest.raises(errors.UnsupportedFeatureError, match="physical address 0"),
        dumpxlate.open(write(tmp_path, elf.build(loads, []))),
    ):
        pass


@pytest.mark.parametrize("length", [5, 15, 63, 64, 100, 119])
def test_truncated_headers(tmp_path: Path, length: int) -> None:
    path = write(tmp_path, elf_cores.core(LOW, "plain", truncate=length))
    with pytest.raises(errors.FormatError), dumpxlate.open(path):
        pass


# Windows.


def window_bytes(path: Path) -> dict[int, int]:
    """Every byte of memory in a vmcore, by physical address."""
    body = path.read_bytes()
    found = {}
    for kind, offset, _, paddr, filesz, _ in elf_segments(path):
        if kind == 1:
            found.update(zip(range(paddr, paddr + filesz), body[offset : offset + filesz], strict=True))
    return found


@pytest.mark.parametrize(
    ("begin", "length"),
    [(0, 0x2000), (0x1234, 0x10), (0x1800, 0x3001), (0x9F000, 0x63000), (0x100000, 1), (0x9FFFF, 0x60002), (5, None)],
)
def test_window_cuts_to_the_byte(tmp_path: Path, begin: int, length: int | None) -> None:
    guest = small_guest(excluded=(), high=False)
    out = tmp_path / "out"
    with dumpxlate.open(write(tmp_path, elf_cores.core(guest, "plain"))) as dump:
        dumpxlate.convert(dump, out, options=WriteOptions(begin=begin, length=length))
    end = begin + length if length else 1 << 40
    expected = {
        pfn * 4096 + at: value
        for pfn, data in guest.pages.items()
        if begin < (pfn + 1) * 4096 and pfn * 4096 < end
        for at, value in enumerate(data)
        if begin <= pfn * 4096 + at < end
    }
    assert window_bytes(out) == expected


def test_window_of_a_filtered_dump(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with dumpxlate.open(write(tmp_path, elf_cores.core(FILTERED, "makedumpfile"))) as dump:
        dumpxlate.convert(dump, out, options=WriteOptions(begin=0x109000, length=0x10000))
    assert vmcore_missing(out) == {pfn for pfn in FILTERED.excluded if 0x109 <= pfn < 0x119}
    assert vmcore_pages(out) == {pfn: data for pfn, data in FILTERED.pages.items() if 0x109 <= pfn < 0x119}


def test_window_without_memory_is_refused(tmp_path: Path) -> None:
    with dumpxlate.open(write(tmp_path, elf_cores.core(LOW, "plain"))) as dump:
        for begin, length in ((0xA0000, 0x1000), (1 << 40, None)):
            with pytest.raises(errors.UnsupportedFeatureError, match="no RAM in the range"):
                dumpxlate.convert(dump, tmp_path / "out", options=WriteOptions(begin=begin, length=length))
        with pytest.raises(ValueError, match="cannot write"):
            dumpxlate.convert(dump, tmp_path / "out", options=WriteOptions(length=0))
    assert not (tmp_path / "out").exists()


def test_class_follows_memory(tmp_path: Path) -> None:
    """A 32-bit machine gets 64-bit headers once its memory passes 4 GiB, as QEMU does it."""
    for guest, expected in ((LOW, 1), (FULL, 2)):
        data = elf_cores.core(guest, "plain", arch="i386", bits=64)
        out = tmp_path / f"out{expected}"
        with dumpxlate.open(write(tmp_path, data)) as dump:
            dumpxlate.convert(dump, out)
        assert out.read_bytes()[4] == expected
        assert vmcore_pages(out) == guest.pages


# Real dumps: QEMU 7.2, thirteen tiny machines, with a digest of every page taken from the guest's memory itself.


def oracle(folder: Path) -> tuple[dict[int, int], int, int]:
    """(digest of each pfn's page, page size, digest of a zero page)."""
    found = np.load(folder / "oracle.npz")
    digests = dict(zip(found["pfn"].tolist(), found["digest"].tolist(), strict=True))
    return digests, int(found["page_size"]), int(found["zero"])


def digest(data: bytes) -> int:
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little")


@pytest.mark.parametrize("machine", TINY)
def test_real_qemu_dumps(shared: Path, unpacked: Callable[[Path], Path], tmp_path: Path, machine: str) -> None:
    folder = shared / "fixtures" / "tiny" / machine
    digests, size, _ = oracle(folder)
    with dumpxlate.open(unpacked(folder / "elf.xz")) as dump:
        assert not dump.damage
        assert dump.pages.page_size == 4096
        scale = size // 4096
        for pfn, expected in digests.items():
            assert digest(dump.read(pfn * size, size)) == expected
        assert dump.pages.stored.count == len(digests) * scale
        assert len(dump.cpus) == len(json.loads((folder / "facts.json").read_text())["cpus"])
        dumpxlate.convert(dump, tmp_path / "out")
    ours = vmcore_pages(tmp_path / "out", size)
    assert {pfn: digest(data) for pfn, data in ours.items()} == digests


@pytest.mark.parametrize("machine", TINY)
def test_real_paging_dumps_hold_no_wrong_page(shared: Path, unpacked: Callable[[Path], Path], machine: str) -> None:
    """With paging=true QEMU leaves memory out and lists some twice; what is there must be right."""
    folder = shared / "fixtures" / "tiny" / machine
    digests, size, zero = oracle(folder)
    with dumpxlate.open(unpacked(folder / "elf-paging.xz")) as dump:
        known = [pfn for pfn in digests if set(dump.states([pfn * size // 4096])) == {PageState.STORED}]
        for pfn in known:
            assert digest(dump.read(pfn * size, size)) == digests[pfn]
        assert [pfn for pfn in known if digests[pfn] != zero]


@pytest.mark.parametrize("machine", TINY)
def test_windows_equal_qemu(shared: Path, unpacked: Callable[[Path], Path], tmp_path: Path, machine: str) -> None:
    """``dump-guest-memory`` with begin and length of the same stopped guest: the same bytes at the same addresses."""
    folder = shared / "fixtures" / "tiny" / machine
    theirs = window_bytes(unpacked(folder / "elf-window.xz"))
    begin, end = min(theirs), max(theirs) + 1
    out = tmp_path / "out"
    with dumpxlate.open(unpacked(folder / "elf.xz")) as dump:
        dumpxlate.convert(dump, out, options=WriteOptions(begin=begin, length=end - begin))
    assert window_bytes(out) == theirs


def test_guest_with_a_map_keeps_it(tmp_path: Path) -> None:
    """The map of a PV guest travels in a note, and comes back."""
    from tests.builders import xendump

    source = write(tmp_path, xendump.build(FULL))
    from dumpxlate.p2m.map import P2M

    p2m = P2M.from_pairs(np.array(list(FULL.mfns), np.int64), np.array(list(FULL.mfns.values()), np.int64))
    with dumpxlate.open(source) as dump:
        dumpxlate.convert(dump.with_p2m(p2m), tmp_path / "out")
    with dumpxlate.open(tmp_path / "out") as dump:
        assert dump.machine.paravirtual
        assert dump.p2m is not None
        pfn = np.array(FULL.ram, np.int64)
        assert dump.p2m.mfn(pfn).tolist() == [FULL.mfns[number] for number in FULL.ram]
        assert_pages(dump, FULL.pages)
        assert [cpu.raw["xen"][:8] for cpu in dump.cpus]


def test_registers_are_made_for_a_dump_that_has_none_of_this_form(tmp_path: Path) -> None:
    from tests.builders import xendump

    hvm: Guest = small_guest(excluded=(), high=False)
    source = write(tmp_path, xendump.build(hvm, hvm=True, dense=True))
    with dumpxlate.open(source) as dump:
        dumpxlate.convert(dump, tmp_path / "out")
        contexts = dump.cpus
    notes = notes_of(tmp_path / "out")
    assert [(name, number) for name, number, _ in notes[:4]] == [("CORE", 1), ("CORE", 1), ("QEMU", 0), ("QEMU", 0)]
    for cpu, (_, _, desc) in zip(contexts, notes[2:4], strict=False):
        assert struct.unpack_from("<2I", desc) == (1, 440)
        assert struct.unpack_from("<Q", desc, 416) == (cpu.registers["cr3"],)


@pytest.mark.parametrize("which", [0, 1])
def test_a_segment_that_contradicts_itself_costs_its_own_memory_only(tmp_path: Path, which: int) -> None:
    guest = small_guest(excluded=())
    data = bytearray(elf_cores.core(guest))
    at = struct.unpack_from("<Q", data, 32)[0]
    rows = [at + 56 * row for row in range(struct.unpack_from("<H", data, 56)[0])]
    loads = [row for row in rows if struct.unpack_from("<I", data, row)[0] == 1]
    start, size = struct.unpack_from("<QQ", data, loads[which] + 24)
    struct.pack_into("<Q", data, loads[which] + 40, 5)  # p_memsz
    (tmp_path / "in").write_bytes(data)
    gone = range(start // 4096, (start + size) // 4096)
    with dumpxlate.open(tmp_path / "in") as dump:
        assert any("1 such segments are left out" in line for line in dump.damage)
        kept = [pfn for pfn in guest.stored if pfn not in gone]
        assert dump.pages.stored.select(0, 1 << 40).tolist() == kept
        found = dump.read_pages(kept)
        assert [pfn for pfn, row in zip(kept, found, strict=True) if row.tobytes() != guest.pages[pfn]] == []
