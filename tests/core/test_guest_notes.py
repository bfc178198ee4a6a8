"""What notes say of a guest, and the notes that are made for it: by struct, never by a round trip alone."""

from __future__ import annotations

import dataclasses
import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dumpxlate.arch import by_machine_or_unknown, by_name
from dumpxlate.dump import Cpu, Dump, Machine
from dumpxlate.elf.notes import Note, parse_notes
from dumpxlate.errors import CorruptDumpError
from dumpxlate.extents import Extents
from dumpxlate.guest_notes import (
    OWN,
    blocks_from_notes,
    cpus_from_notes,
    notes_for,
    p2m_from_notes,
    vmcoreinfo_from_notes,
)
from dumpxlate.io.source import BytesSource
from dumpxlate.p2m.map import P2M
from dumpxlate.stores import IndexedStore
from dumpxlate.vmcoreinfo import VmCoreInfo
from tests.builders import elf_notes, xen_vcpu
from tests.builders.guest import Guest, register

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dumpxlate.structs import Endian

GUEST = Guest(pages={}, registers=({}, {}, {}))
both_endians = pytest.mark.parametrize("endian", ["<", ">"])


def parsed(parts: Iterable[bytes], endian: Endian = "<") -> tuple[Note, ...]:
    found = parse_notes(b"".join(parts), endian)
    assert found.complaint is None
    return found.notes


def slots(layout: Mapping[str, tuple[int, int]], vcpu: int) -> dict[str, int]:
    return {name: register(name, vcpu, width) for name, (_, width) in layout.items()}


@pytest.mark.parametrize(
    ("arch", "endian"),
    [("x86_64", "<"), ("i386", "<"), ("aarch64", "<"), ("aarch64", ">"), ("ppc64", ">"), ("s390x", ">"), ("arm", "<")],
)
def test_each_processor_has_its_own_status(arch: str, endian: Endian) -> None:
    notes = parsed(elf_notes.cpu_notes(GUEST, arch, endian), endian)
    cpus = cpus_from_notes(notes, by_name(arch), endian)
    assert [cpu.index for cpu in cpus] == [0, 1, 2]
    for cpu, note in zip(cpus, notes, strict=True):
        assert cpu.raw == {"prstatus": note.desc}
        expected = slots(elf_notes.PRSTATUS[arch].registers, cpu.index)
        assert {name: cpu.registers.get(name) for name in expected} == expected


@pytest.mark.parametrize("size", [432, 440])
def test_qemus_notes_belong_to_processors_in_order(size: int) -> None:
    """QEMU writes all status notes first, then all of its own."""
    notes = parsed([*elf_notes.cpu_notes(GUEST), *(elf_notes.qemu_cpu(GUEST, vcpu, size=size) for vcpu in range(3))])
    cpus = cpus_from_notes(notes, by_name("x86_64"), "<")
    assert len(cpus) == 3
    for cpu in cpus:
        assert len(cpu.raw["qemu"]) == size
        expected = slots(elf_notes.QEMU_CPU, cpu.index)
        if size == 432:
            del expected["kernel_gs_base"]
        assert {name: cpu.registers.get(name) for name in expected} == expected
        assert cpu.registers["fs_base"] == register("fs_base", cpu.index)


def test_qemus_note_of_a_32_bit_machine_has_wide_names() -> None:
    (cpu,) = cpus_from_notes(parsed([elf_notes.qemu_cpu(GUEST, 0)]), by_name("i386"), "<")
    assert cpu.registers["eax"] == register("rax", 0) & 0xFFFFFFFF
    assert cpu.registers["cr3"] == register("cr3", 0)
    assert not {"rax", "r8", "r15"} & cpu.registers.keys()


def test_what_a_status_says_counts_more_than_qemus_note() -> None:
    notes = parsed([*elf_notes.cpu_notes(GUEST, "i386"), elf_notes.qemu_cpu(GUEST, 0)])
    first, second, _ = cpus_from_notes(notes, by_name("i386"), "<")
    assert (first.registers["eax"], second.registers["eax"]) == (register("eax", 0, 4), register("eax", 1, 4))
    assert first.registers["cr3"] == register("cr3", 0)
    assert "cr3" not in second.registers


@pytest.mark.parametrize("size", [0, 100, 335, 337, 5000])
def test_a_status_of_odd_size_is_kept_and_not_decoded(size: int) -> None:
    notes = parsed([elf_notes.prstatus(GUEST, 0, size=size), elf_notes.prstatus(GUEST, 1)])
    odd, good = cpus_from_notes(notes, by_name("x86_64"), "<")
    assert (odd.registers, len(odd.raw["prstatus"])) == ({}, size)
    assert good.registers["rip"] == register("rip", 1)


@pytest.mark.parametrize("options", [{"size": 100}, {"version": 2}, {"size": 0}])
def test_a_broken_qemu_note_is_kept_and_not_decoded(options: dict[str, int]) -> None:
    broken = elf_notes.qemu_cpu(GUEST, 0, **options)
    (cpu,) = cpus_from_notes(parsed([elf_notes.prstatus(GUEST, 0), broken]), by_name("x86_64"), "<")
    assert "cr3" not in cpu.registers
    assert cpu.registers["rip"] == register("rip", 0)
    assert "qemu" in cpu.raw


def test_notes_of_others_are_no_processors() -> None:
    notes = parsed([elf_notes.note("LINUX", 1, bytes(336)), elf_notes.note("CORE", 2, bytes(336))])
    assert cpus_from_notes(notes, by_name("x86_64"), "<") == ()
    assert cpus_from_notes((), by_name("x86_64"), "<") == ()


def own_context(index: int, context: bytes, endian: Endian, size: int | None = None) -> Note:
    head = struct.pack(endian + "2I", index, len(context) if size is None else size)
    return Note(OWN, 2, head + context)


@both_endians
@pytest.mark.parametrize(("width", "name"), [(8, "rip"), (4, "eip")])
def test_xens_context_comes_back(width: int, name: str, endian: Endian) -> None:
    """The note's head is in the order of the file, the context always in Xen's own."""
    context = xen_vcpu.context(GUEST, 2, width=width)
    cpus = cpus_from_notes([own_context(2, context, endian)], by_name("x86_64" if width == 8 else "i386"), endian)
    assert [cpu.index for cpu in cpus] == [0, 1, 2]
    assert cpus[2].raw == {"xen": context}
    assert cpus[2].registers[name] == register(name, 2, width)
    assert cpus[0].raw == cpus[1].raw == {}


def test_what_a_status_says_counts_more_than_xens_context() -> None:
    notes = [*parsed([elf_notes.prstatus(GUEST, 1)]), own_context(0, xen_vcpu.context(GUEST, 0), "<")]
    (cpu,) = cpus_from_notes(notes, by_name("x86_64"), "<")
    assert cpu.registers["rip"] == register("rip", 1)
    assert cpu.registers["cr3"] == register("cr3", 0)


@pytest.mark.parametrize(
    "note",
    [
        Note(OWN, 2, b""),
        Note(OWN, 2, bytes(8)),
        Note(OWN, 2, bytes(7)),
        own_context(4096, bytes(5168), "<"),
        own_context(0xFFFFFFFF, bytes(5168), "<"),
        own_context(0, bytes(5168), "<", 5167),
        own_context(0, bytes(5168), "<", 0xFFFFFFFF),
        Note("DUMPXLATE2", 2, own_context(0, bytes(5168), "<").desc),
    ],
)
def test_a_broken_context_note_is_passed_over(note: Note) -> None:
    assert cpus_from_notes([note], by_name("x86_64"), "<") == ()


def test_a_context_of_unknown_size_is_not_decoded() -> None:
    (cpu,) = cpus_from_notes([own_context(0, bytes(99), "<")], by_name("x86_64"), "<")
    assert (cpu.registers, cpu.raw) == ({}, {})


def test_vmcoreinfo_is_the_first_of_its_name() -> None:
    notes = parsed(
        [
            elf_notes.vmcoreinfo("OSRELEASE=xen\n", name="VMCOREINFO_XEN"),
            elf_notes.vmcoreinfo("OSRELEASE=one\n"),
            elf_notes.vmcoreinfo("OSRELEASE=two\n"),
        ]
    )
    found = vmcoreinfo_from_notes(notes)
    assert found is not None
    assert found.release == "one"
    assert vmcoreinfo_from_notes(notes[:1]) is None


def p2m_note(size: int, runs: list[tuple[int, int, int]], endian: Endian = "<") -> Note:
    return Note(OWN, 3, struct.pack(endian + "q", size) + b"".join(struct.pack(endian + "3Q", *run) for run in runs))


def as_dict(p2m: P2M) -> dict[int, int]:
    pfn = p2m.pages().select(0, 1 << 62)
    return dict(zip(pfn.tolist(), p2m.mfn(pfn).tolist(), strict=True))


@both_endians
def test_a_map_comes_back(endian: Endian) -> None:
    runs = [(0, 0x3E000, 3), (3, 0x10, 1), (8, 0x3E001, 2), ((1 << 52) - 1, (1 << 52) - 1, 1)]
    found = p2m_from_notes([Note("CORE", 3, b"x"), p2m_note(1 << 52, runs, endian)], endian)
    assert found is not None
    assert as_dict(found) == {pfn + at: mfn + at for pfn, mfn, count in runs for at in range(count)}
    assert found.size == 1 << 52
    empty = p2m_from_notes([p2m_note(0, [], endian)], endian)
    assert empty is not None
    assert (empty.size, empty.runs.total) == (0, 0)
    assert p2m_from_notes([Note(OWN, 2, b""), Note("XEN", 3, b"")], endian) is None


TOP = (1 << 64) - 1


@pytest.mark.parametrize(
    ("size", "runs"),
    [
        (10, [(0, 5, 11)]),
        (10, [(9, 5, 2)]),
        (10, [(10, 5, 1)]),
        (10, [(0, 5, 0)]),
        (10, [(0, 5, TOP)]),
        (10, [(TOP, 5, 1)]),
        (10, [(0, TOP, 1)]),
        (10, [(0, 1 << 62, 1)]),
        (10, [(0, (1 << 52) + 1, 1)]),
        (10, [(4, 5, 1), (0, 7, 1)]),
        (10, [(0, 5, 3), (2, 9, 1)]),
        (10, [(0, 5, 3), (0, 9, 3)]),
        (10, [(1 << 63, 5, 1 << 63)]),
        (0, [(0, 5, 1)]),
        (-1, []),
        (-(1 << 63), [(0, 5, 1)]),
        ((1 << 63) - 1, [(0, (1 << 63) - 1, 1 << 62)]),
        ((1 << 52) + 1, []),
    ],
)
def test_a_map_that_makes_no_sense(size: int, runs: list[tuple[int, int, int]]) -> None:
    with pytest.raises(CorruptDumpError, match="DUMPXLATE p2m note"):
        p2m_from_notes([p2m_note(size, runs)], "<")


@pytest.mark.parametrize("length", [0, 7, 9, 31, 33])
def test_a_map_of_odd_size(length: int) -> None:
    with pytest.raises(CorruptDumpError, match=f"{length} bytes are no whole number of runs"):
        p2m_from_notes([Note(OWN, 3, bytes(length))], "<")


@both_endians
def test_blocks_come_back(endian: Endian) -> None:
    def block(name: bytes, data: bytes, length: int | None = None) -> Note:
        return Note(OWN, 4, struct.pack(endian + "I", len(name) if length is None else length) + name + data)

    notes = [
        block(b"shared", b"\1\2"),
        block(b"empty", b""),
        block(b"", b"no name"),
        block(b"long", b"", 5),
        block(b"huge", b"", 0xFFFFFFFF),
        Note(OWN, 4, b""),
        Note(OWN, 4, bytes(3)),
        Note("CORE", 4, block(b"other", b"").desc),
    ]
    assert blocks_from_notes(notes, endian) == {"shared": b"\1\2", "empty": b""}


def dump_of(arch: str = "x86_64", endian: Endian = "<", *, paravirtual: bool = False, **fields: object) -> Dump:
    nothing = np.empty(0, np.int64)
    store = IndexedStore(BytesSource(b"x"), 4096, Extents(nothing, nothing, nothing))
    machine = Machine(by_name(arch), endian, 4096, paravirtual=paravirtual)
    return dataclasses.replace(Dump("raw", "", machine, store), **fields)  # type: ignore[arg-type]


def names(notes: Iterable[Note]) -> list[tuple[str, int]]:
    return [(note.name, note.type) for note in notes]


@pytest.mark.parametrize(
    ("arch", "endian"), [("x86_64", "<"), ("i386", "<"), ("aarch64", "<"), ("s390x", ">"), ("ppc64", ">")]
)
def test_a_status_is_made_for_each_processor(arch: str, endian: Endian) -> None:
    layout = elf_notes.PRSTATUS[arch]
    cpus = tuple(Cpu(index, slots(layout.registers, index)) for index in range(2))
    first, second, own = notes_for(dump_of(arch, endian, cpus=cpus), "dumpxlate 0")
    # The model writes the same bytes, but for the process id and "is valid" fields of no interest here.
    for vcpu, note in enumerate((first, second)):
        (expected,) = parsed([elf_notes.prstatus(GUEST, vcpu, arch, order=endian)], endian)
        assert (note.name, note.type, len(note.desc)) == ("CORE", 1, layout.size)
        for at, width in layout.registers.values():
            assert note.desc[at : at + width] == expected.desc[at : at + width]
        assert note.desc[layout.pid : layout.pid + 4] == struct.pack(endian + "I", vcpu + 1)
    assert (own.name, own.type, own.desc) == (OWN, 1, b"dumpxlate 0")


def test_qemus_note_is_made_where_it_means_the_same() -> None:
    cpus = (Cpu(0, {"rip": 5, "cr3": 0x1000}), Cpu(1, {"rip": 6, "cr3": 0x2000}))
    status, qemu, own = [("CORE", 1)] * 2, [("QEMU", 0)] * 2, [(OWN, 1)]
    made = notes_for(dump_of(cpus=cpus), "x")
    assert names(made) == [*status, *qemu, *own]
    for note, cpu in zip(made[2:4], cpus, strict=True):
        assert struct.unpack_from("<2I", note.desc) == (1, 440)
        at, _ = elf_notes.QEMU_CPU["cr3"]
        assert struct.unpack_from("<Q", note.desc, at) == (cpu.registers["cr3"],)
    assert names(notes_for(dump_of(cpus=cpus, paravirtual=True), "x")) == [*status, *own]
    assert names(notes_for(dump_of("aarch64", cpus=cpus), "x")) == [*status, *own]
    assert names(notes_for(dump_of(cpus=(Cpu(0, {"rip": 5}),)), "x")) == [("CORE", 1), *own]


def test_no_status_is_made_for_an_unknown_machine() -> None:
    machine = Machine(by_machine_or_unknown(9999, 64, "<"), "<", 4096)
    assert names(notes_for(dump_of(machine=machine, cpus=(Cpu(0),)), "x")) == [(OWN, 1)]


def test_notes_of_the_dump_pass_as_they_are() -> None:
    there = (*parsed(elf_notes.cpu_notes(GUEST)), Note("QEMU", 0, b"odd"), Note("ERASEINFO", 0, b"erased"))
    dump = dump_of(notes=there, cpus=cpus_from_notes(there, by_name("x86_64"), "<"))
    assert notes_for(dump, "x") == (*there, Note(OWN, 1, b"x"))


def test_notes_of_an_earlier_conversion_are_written_anew() -> None:
    old = (Note(OWN, 1, b"dumpxlate of old"), p2m_note(5, [(0, 9, 5)]), Note(OWN, 99, b"?"))
    assert notes_for(dump_of(notes=old), "new") == (Note(OWN, 1, b"new"),)


def test_vmcoreinfo_is_added_once() -> None:
    info = VmCoreInfo.from_bytes(b"OSRELEASE=6.1 caf\xe9\n")
    made = notes_for(dump_of(vmcoreinfo=info), "x")
    assert made[0] == Note("VMCOREINFO", 0, b"OSRELEASE=6.1 caf\xe9\n")
    there = (Note("VMCOREINFO", 0, b"OSRELEASE=its own\n"),)
    assert names(notes_for(dump_of(vmcoreinfo=info, notes=there), "x")) == [("VMCOREINFO", 0), (OWN, 1)]


@pytest.mark.parametrize(("arch", "endian"), [("x86_64", "<"), ("s390x", ">")])
def test_what_no_other_note_has_a_place_for(arch: str, endian: Endian) -> None:
    """The layouts are those that the module's table promises."""
    context = xen_vcpu.context(GUEST, 1)
    p2m = P2M.from_pairs(np.array([0, 1, 5]), np.array([7, 8, 2]), size=9)
    dump = dump_of(arch, endian, cpus=(Cpu(1, {}, {"xen": context}),), p2m=p2m, blocks={"info": b"\1\2\3"})
    own = {note.type: note.desc for note in notes_for(dump, "x") if note.name == OWN}
    assert own[2] == struct.pack(endian + "2I", 1, 5168) + context
    assert own[3] == struct.pack(endian + "q6Q", 9, 0, 7, 2, 5, 2, 1)
    assert own[4] == struct.pack(endian + "I", 4) + b"info\1\2\3"
    back = p2m_from_notes(notes_for(dump, "x"), endian)
    assert back is not None
    assert (as_dict(back), back.size) == (as_dict(p2m), 9)
    assert blocks_from_notes(notes_for(dump, "x"), endian) == dump.blocks
