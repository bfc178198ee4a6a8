"""Reads ELF vmcores of every producer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.arch import by_machine_or_unknown
from dumpxlate.dump import Dump, Machine
from dumpxlate.elf.container import ET_CORE, PT_NOTE, ElfFile, Segments, machine_name, read_elf
from dumpxlate.elf.notes import MAX_NOTES, NT_AUXV, NT_FILE, NT_TASKSTRUCT, parse_notes
from dumpxlate.errors import CorruptDumpError, UnsupportedFeatureError
from dumpxlate.guest_notes import (
    blocks_from_notes,
    cpus_from_notes,
    is_canonical,
    p2m_from_notes,
    vmcoreinfo_from_notes,
)
from dumpxlate.pageset import PageRuns, difference
from dumpxlate.segments import index_segments
from dumpxlate.stores import IndexedStore

if TYPE_CHECKING:
    from dumpxlate.elf.notes import Note
    from dumpxlate.format import OpenOptions
    from dumpxlate.io.source import Source
    from dumpxlate.pageset import PageSet

__all__ = ["open_elf"]

_PAGE = 4096
_NOTE_LIMIT = 256 << 20
_MANY = 100
"""Remarks on notes, after which no further notes are read."""

_INCOMPLETE = 1  # e_flags bit that makedumpfile sets when the target was full (DUMP_ELF_INCOMPLETE)


def open_elf(source: Source, options: OpenOptions) -> Dump:
    """Open an ELF vmcore.

    Memory that a segment has without bytes (p_memsz beyond p_filesz) was left out by a filter, or is zero, or both:
    makedumpfile does not say which. ``options.missing`` decides.

    Raises:
        UnsupportedFeatureError: it is an ELF file, but no dump of physical memory.
        CorruptDumpError: headers contradict themselves.
    """
    file = read_elf(source)
    notes, remarks = _notes(source, file)
    producer = _producer(file, notes)
    promised, wrong = _usable_loads(source, file, remarks, producer_known=producer != _UNNAMED)
    if producer == _VIRTUALBOX:
        promised = promised.where(promised.filesz > 0)  # the others are MMIO ranges, not memory
    loads, damage = _clip(source, promised)
    damage += wrong
    vmcoreinfo = vmcoreinfo_from_notes(notes)
    arch = by_machine_or_unknown(file.header.e_machine, file.bits, file.endian)
    page_size = (vmcoreinfo and vmcoreinfo.page_size) or _PAGE
    pages = _store(source, loads, promised, page_size, options, remarks)
    if file.header.e_flags & _INCOMPLETE:
        damage.append("the writer ran out of space and marked the file incomplete")
    canonical = is_canonical(notes)
    p2m = p2m_from_notes(notes, file.endian)
    return Dump(
        format="elf",
        variant=f"{producer}, ELF{file.bits} {'little' if file.endian == '<' else 'big'}-endian",
        machine=Machine(
            arch=arch,
            endian=file.endian,
            page_size=page_size,
            release=vmcoreinfo.release if vmcoreinfo else None,
            paravirtual=p2m is not None and not canonical,
            canonical=canonical,
        ),
        pages=pages,
        sources=(source,),
        cpus=cpus_from_notes(notes, arch, file.endian),
        notes=notes,
        vmcoreinfo=vmcoreinfo,
        p2m=p2m,
        blocks=blocks_from_notes(notes, file.endian),
        attributes={"e_machine": machine_name(file.header.e_machine), **_segments(file)},
        remarks=tuple(remarks),
        damage=tuple(damage),
    )


def _segments(file: ElfFile) -> dict[str, int]:
    """Count segments, and those that tell a virtual address: neither none nor the physical one."""
    loads = file.segments.loads
    mapped = int(((loads.vaddr != 0) & (loads.vaddr != loads.paddr)).sum())
    return {"segments": len(loads)} | ({"mapped segments": mapped} if mapped else {})


def _notes(source: Source, file: ElfFile) -> tuple[tuple[Note, ...], list[str]]:
    """Read all PT_NOTE segments, in order; a broken one keeps what stands before the break."""
    found: list[Note] = []
    remarks: list[str] = []
    wanted = file.segments.where(file.segments.type == PT_NOTE)
    room = min(_NOTE_LIMIT, source.size)  # segments may share their bytes: they are not read any number of times
    for at, size in zip(wanted.offset.tolist(), wanted.filesz.tolist(), strict=True):
        if not 0 <= at < source.size or size < 0:
            remarks.append(f"a PT_NOTE at {at & (1 << 64) - 1:#x} lies outside the file")
            if len(remarks) < _MANY:
                continue
        if len(remarks) >= _MANY or not room or len(found) >= MAX_NOTES:
            remarks.append(f"more PT_NOTE segments, from the one at {at & (1 << 64) - 1:#x} on, are left out")
            break
        size = min(size, source.size - at, room)
        room -= size
        parsed = parse_notes(source.view(at, size), file.endian, limit=MAX_NOTES - len(found))
        found += parsed.notes
        if parsed.complaint:
            remarks.append(f"notes at {at:#x}: {parsed.complaint}")
    return tuple(found), remarks


_VIRTUALBOX, _UNNAMED = "VirtualBox", "unnamed producer"
_BY_NOTE = (
    ("DUMPXLATE", "written by dumpxlate"),
    ("VBCORE", _VIRTUALBOX),
    ("Xen", "kexec dump of a Xen host"),
    ("ERASEINFO", "makedumpfile"),
    ("QEMU", "QEMU"),
    ("VMCOREINFO", "Linux /proc/vmcore"),
    ("NONE", "QEMU's gdb script"),
)


def _producer(file: ElfFile, notes: tuple[Note, ...]) -> str:
    """Name the producer by its notes, never by oddities of the header.

    Raises:
        UnsupportedFeatureError: the file is no core, has no memory, or is the core of an ordinary process.
    """
    if file.header.e_type != ET_CORE:
        raise UnsupportedFeatureError(
            f"an ELF file of type {file.header.e_type}, not a core (4)", format="elf", feature="e_type"
        )
    if not len(file.segments.loads):
        raise UnsupportedFeatureError("an ELF core without PT_LOAD segments", format="elf", feature="no PT_LOAD")
    names = {note.name for note in notes}
    kinds = {note.type for note in notes if note.name == "CORE"}
    named = next((producer for name, producer in _BY_NOTE if name in names), None)
    if named is None and kinds & {NT_AUXV, NT_FILE}:
        raise UnsupportedFeatureError(
            "the core of an ordinary process, not a dump of guest memory", format="elf", feature="process core"
        )
    if named is None and NT_TASKSTRUCT in kinds:
        return "/proc/kcore"
    return named or _UNNAMED


def _usable_loads(
    source: Source, file: ElfFile, remarks: list[str], *, producer_known: bool
) -> tuple[Segments, list[str]]:
    """Keep segments with a physical address; those that contradict themselves are damage.

    Raises:
        UnsupportedFeatureError: no segment has one.
        CorruptDumpError: there are no others, or they may be those of a process.
    """
    loads = file.segments.loads
    bad = (loads.filesz < 0) | (loads.memsz < loads.filesz) | (loads.paddr < -1) | (loads.paddr > (1 << 62))
    bad |= loads.memsz > (1 << 62)
    damage = []
    if bad.any():
        at = int(np.flatnonzero(bad)[0])
        error = CorruptDumpError(
            f"p_paddr {int(loads.paddr[at]) & (1 << 64) - 1:#x}, p_filesz {int(loads.filesz[at]):#x}, "
            f"p_memsz {int(loads.memsz[at]):#x}: expected p_filesz <= p_memsz, both below 2^62",
            what=f"PT_LOAD {at}",
        )
        if bad.all() or not (loads.paddr[~bad].any() or producer_known):
            raise error
        damage.append(f"{error}; where its memory was, nothing tells: {int(bad.sum()):,} such segments are left out")
        loads = loads.where(~bad)
    unknown = loads.paddr == -1
    if unknown.any():
        remarks.append(f"{int(unknown.sum())} segments have no physical address and are left out")
        loads = loads.where(~unknown)
    if len(loads) > 1 and not loads.paddr.any():
        # /proc/kcore before Linux 4.11, and drgn's rule for others.
        _refuse_cut_process(source, file)
        raise UnsupportedFeatureError(
            "every segment has physical address 0: the file maps virtual memory only", format="elf", feature="p_paddr"
        )
    return loads, damage


def _refuse_cut_process(source: Source, file: ElfFile) -> None:
    """Say so where the notes are lost that would tell whose core it is; gdb writes them behind the memory."""
    notes = file.segments.where(file.segments.type == PT_NOTE)
    for at, size in zip(notes.offset.tolist(), notes.filesz.tolist(), strict=True):
        if at >= 0 and at + size > source.size:
            raise CorruptDumpError(
                f"truncated: the notes end at {at + size:,}, the file at {source.size:,}; by its addresses it is the "
                "core of a process: if that was QEMU, --from qemu_core reads what is left",
                format="elf",
                offset=at,
                what="PT_NOTE",
            )


def _clip(source: Source, loads: Segments) -> tuple[Segments, list[str]]:
    """Cut segments that leave the file."""
    offset = np.where(loads.filesz > 0, loads.offset, 0)
    inside = (offset >= 0) & (offset <= source.size)
    filesz = np.where(inside, np.minimum(loads.filesz, source.size - np.where(inside, offset, 0)), 0)
    lost = int((loads.filesz - filesz).sum())
    damage = [f"truncated: {lost:,} bytes of memory that the headers promise lie beyond the end"] if lost else []
    clipped = Segments(loads.type, loads.flags, offset, loads.vaddr, loads.paddr, filesz, loads.memsz)
    return clipped, damage


def _store(
    source: Source, loads: Segments, promised: Segments, page_size: int, options: OpenOptions, remarks: list[str]
) -> IndexedStore:
    """Index the pages of segments that were cut to the file, and say what is odd about them."""
    low, high = loads.paddr // page_size, -(-(loads.paddr + loads.memsz) // page_size)
    ram = PageRuns.from_runs(low, high - low)
    index = index_segments(source, loads.paddr, loads.filesz, loads.offset, page_size)
    remarks += index.remarks("segments")
    lost = _lost(promised, page_size, index.extents.pages())
    missing = difference(difference(ram, index.extents.pages()), lost)
    if missing.count:
        remarks.append(
            f"{missing.count:,} pages have no bytes in the file (p_filesz < p_memsz): taken for "
            + ("zero" if options.missing == "zero" else "left out (--missing zero takes them for zero)")
        )
    if options.missing == "zero":
        return IndexedStore(index.source, page_size, index.extents, zero=missing, lost=lost)
    return IndexedStore(index.source, page_size, index.extents, excluded=missing, lost=lost)


def _lost(loads: Segments, page_size: int, held: PageSet) -> PageSet:
    """Give the pages that the headers promise bytes for, and that the file has not."""
    used = loads.filesz > 0
    low, high = loads.paddr[used] // page_size, -(-(loads.paddr + loads.filesz)[used] // page_size)
    return difference(PageRuns.from_runs(low, high - low), held)
