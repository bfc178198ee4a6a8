"""ELF notes of a guest: what they say of its processors, and the notes to write for a dump that had none.

Besides the notes that everybody knows, dumpxlate writes notes of its own (name ``DUMPXLATE``) for what no other note
has a place for, so that translating a Xen dump loses nothing. Other tools pass over them.

==== ========================= ==================================================================================
type content                   layout, in the file's byte order
==== ========================= ==================================================================================
1    producer                  text: name and version of this program
2    vcpu_guest_context        u32 vcpu, u32 size, then the context as Xen wrote it
3    p2m map of a PV guest     u64 entries in the map, then three u64 (pfn, mfn, count) for each run of pages
4    named block               u32 length of the name, the name, then the block as the hypervisor wrote it
5    canonical                 empty: page tables and cr3 of this PV guest hold its own frames, not the machine's
==== ========================= ==================================================================================
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.arch import i386, prstatus_desc, qemu_note, read_prstatus, xen_vcpu
from dumpxlate.arrays import slices
from dumpxlate.dump import Cpu, Dump
from dumpxlate.elf.notes import NT_PRSTATUS, Note
from dumpxlate.errors import CorruptDumpError
from dumpxlate.p2m.map import P2M, FrameRuns
from dumpxlate.vmcoreinfo import VmCoreInfo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dumpxlate.arch import Arch
    from dumpxlate.structs import Endian

__all__ = [
    "OWN",
    "blocks_from_notes",
    "cpus_from_notes",
    "is_canonical",
    "notes_for",
    "p2m_from_notes",
    "vmcoreinfo_from_notes",
]

OWN = "DUMPXLATE"
NT_OWN_PRODUCER = 1
NT_OWN_XEN_CONTEXT = 2
NT_OWN_P2M = 3
NT_OWN_BLOCK = 4
NT_OWN_CANONICAL = 5

_FRAMES = 1 << 52  # pages of a 64-bit address space
_RUN = np.dtype([("pfn", "<u8"), ("mfn", "<u8"), ("count", "<u8")])


def cpus_from_notes(notes: Sequence[Note], arch: Arch, endian: Endian) -> tuple[Cpu, ...]:
    """Read the processors: the n-th NT_PRSTATUS and the n-th QEMU note belong together.

    A note of unexpected size is kept as raw bytes and not decoded.
    """
    status = [bytes(note.desc) for note in notes if note.name == "CORE" and note.type == NT_PRSTATUS]
    qemu = [bytes(note.desc) for note in notes if note.name == "QEMU" and note.type == 0]
    contexts = _own_contexts(notes, endian)
    count = max(len(status), len(qemu), max(contexts, default=-1) + 1)
    return tuple(
        _cpu(at, status[at : at + 1], qemu[at : at + 1], contexts.get(at), arch, endian) for at in range(count)
    )


def _cpu(index: int, status: list[bytes], qemu: list[bytes], context: bytes | None, arch: Arch, endian: Endian) -> Cpu:
    registers: dict[str, int] = {}
    raw: dict[str, bytes] = {}
    for desc in status:
        raw["prstatus"] = desc
        if status_registers := read_prstatus(arch, desc, endian):
            registers |= status_registers[1]
    for desc in qemu:
        raw["qemu"] = desc
        try:
            found = qemu_note.unpack(desc)
        except CorruptDumpError:
            continue
        registers = (i386.narrow(found) if arch is i386.ARCH else found) | registers
    if context is not None and len(context) in _CONTEXT_BITS:
        raw["xen"] = context
        layout = xen_vcpu.context_layout(_CONTEXT_BITS[len(context)])
        registers = xen_vcpu.to_core_registers(layout.unpack(context, "<")) | registers
    return Cpu(index, registers, raw)


_CONTEXT_BITS: dict[int, xen_vcpu.WordBits] = {xen_vcpu.CONTEXT_32.size: 32, xen_vcpu.CONTEXT_64.size: 64}


def _own_contexts(notes: Sequence[Note], endian: Endian) -> dict[int, bytes]:
    found = {}
    for note in notes:
        if note.name == OWN and note.type == NT_OWN_XEN_CONTEXT and len(note.desc) > 8:
            index, size = struct.unpack_from(endian + "2I", note.desc)
            if index < 4096 and len(note.desc) == 8 + size:
                found[index] = bytes(note.desc[8:])
    return found


def vmcoreinfo_from_notes(notes: Sequence[Note]) -> VmCoreInfo | None:
    """Find the kernel's VMCOREINFO."""
    return next((VmCoreInfo.from_bytes(note.desc) for note in notes if note.name == "VMCOREINFO"), None)


def blocks_from_notes(notes: Sequence[Note], endian: Endian) -> dict[str, bytes]:
    """Find the named blocks that an earlier conversion left."""
    found = {}
    for note in notes:
        if note.name == OWN and note.type == NT_OWN_BLOCK and len(note.desc) > 4:
            (length,) = struct.unpack_from(endian + "I", note.desc)
            if 0 < length <= len(note.desc) - 4:
                found[bytes(note.desc[4 : 4 + length]).decode("latin-1")] = bytes(note.desc[4 + length :])
    return found


def is_canonical(notes: Sequence[Note]) -> bool:
    """Tell whether an earlier conversion rewrote the page tables of a PV guest."""
    return any(note.name == OWN and note.type == NT_OWN_CANONICAL for note in notes)


def p2m_from_notes(notes: Sequence[Note], endian: Endian) -> P2M | None:
    """Find the map that an earlier conversion left.

    Raises:
        CorruptDumpError: it is there but makes no sense.
    """
    desc = next((note.desc for note in notes if note.name == OWN and note.type == NT_OWN_P2M), None)
    if desc is None:
        return None
    if len(desc) < 8 or (len(desc) - 8) % _RUN.itemsize:
        raise CorruptDumpError(f"{len(desc)} bytes are no whole number of runs", what="DUMPXLATE p2m note")
    (size,) = struct.unpack_from(endian + "q", desc)
    rows = np.frombuffer(desc, _RUN.newbyteorder(endian), offset=8)
    pfn, mfn, count = (rows[name].astype(np.int64) for name in ("pfn", "mfn", "count"))
    sane = (pfn >= 0) & (mfn >= 0) & (mfn <= _FRAMES) & (count > 0) & (count <= size) & (pfn <= size - count)
    if not 0 <= size <= _FRAMES or not sane.all() or (pfn[1:] < pfn[:-1] + count[:-1]).any():
        raise CorruptDumpError("runs are not ascending and disjoint", what="DUMPXLATE p2m note")
    return P2M(FrameRuns(pfn, mfn, count), size)


def notes_for(dump: Dump, producer: str) -> tuple[Note, ...]:
    """Give the notes that carry everything but pages of a dump: its own as they are, and those it lacks.

    Args:
        dump: any dump.
        producer: name and version to sign with.
    """
    notes = [note for note in dump.notes if note.name != OWN]
    if not any(note.name == "CORE" and note.type == NT_PRSTATUS for note in notes):
        notes = _status_notes(dump) + notes
    if dump.vmcoreinfo and not any(note.name == "VMCOREINFO" for note in notes):
        notes.append(Note("VMCOREINFO", 0, dump.vmcoreinfo.text.encode("latin-1")))
    return (*notes, *_own_notes(dump, producer))


def _status_notes(dump: Dump) -> list[Note]:
    """Build NT_PRSTATUS for each processor, and QEMU's note where its control registers mean what QEMU's do."""
    machine = dump.machine
    if not machine.arch.prstatus.fields:
        return []
    notes = [
        Note("CORE", NT_PRSTATUS, prstatus_desc(machine.arch, cpu.registers, machine.endian, pid=cpu.index + 1))
        for cpu in dump.cpus
    ]
    # A PV guest's cr3 is a machine address: a tool that believes QEMU's note would walk from it.
    if machine.arch.elf_machine in _QEMU_MACHINES and not machine.paravirtual:
        notes += [Note("QEMU", 0, qemu_note.pack(cpu.registers)) for cpu in dump.cpus if "cr3" in cpu.registers]
    return notes


_QEMU_MACHINES = (3, 62)  # QEMU writes its note for i386 and x86-64 only


def _own_notes(dump: Dump, producer: str) -> list[Note]:
    endian = dump.machine.endian
    notes = [Note(OWN, NT_OWN_PRODUCER, producer.encode())]
    for cpu in dump.cpus:
        if "xen" in cpu.raw:
            context = cpu.raw["xen"]
            notes.append(Note(OWN, NT_OWN_XEN_CONTEXT, struct.pack(endian + "2I", cpu.index, len(context)) + context))
    for name, block in dump.blocks.items():
        label = name.encode("latin-1")
        notes.append(Note(OWN, NT_OWN_BLOCK, struct.pack(endian + "I", len(label)) + label + block))
    if dump.machine.canonical:
        notes.append(Note(OWN, NT_OWN_CANONICAL, b""))
    if dump.p2m:
        notes.append(Note(OWN, NT_OWN_P2M, _written_map(dump.p2m, endian)))
    return notes


def _written_map(p2m: P2M, endian: Endian) -> memoryview:
    """Write a map as the note has it; that of a guest whose memory is scattered has three words a page."""
    runs = p2m.runs
    words = np.empty(1 + 3 * len(runs.pfn), f"{endian}i8")
    words[0], rows = p2m.size, words[1:].reshape(-1, 3)
    for piece in slices(len(rows)):
        for column, values in enumerate((runs.pfn, runs.frame, runs.count)):
            rows[piece, column] = values[piece]
    return words.view(np.uint8).data.toreadonly()
