"""Opens kdump-compressed dumps: headers and notes at once, descriptors when pages are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.arch import all_arches, by_machine_or_unknown
from dumpxlate.dump import Dump, Machine
from dumpxlate.elf.notes import NT_PRSTATUS, Note, parse_notes
from dumpxlate.errors import CorruptDumpError, FormatError
from dumpxlate.formats.kdump.anchor import anchor_of
from dumpxlate.formats.kdump.fit import fit
from dumpxlate.formats.kdump.header import arch_named, read_part, text_of
from dumpxlate.formats.kdump.layout import FLAG_OF_CODEC, LAST_VERSION, SIGNATURES, KdumpSubHeader32Packed
from dumpxlate.formats.kdump.parts import gaps, in_order
from dumpxlate.formats.kdump.recovery import recover, recover_among
from dumpxlate.formats.kdump.store import KdumpStore, ShiftedStore
from dumpxlate.formats.kdump.table import DescriptorTable
from dumpxlate.guest_notes import (
    blocks_from_notes,
    cpus_from_notes,
    is_canonical,
    p2m_from_notes,
    vmcoreinfo_from_notes,
)
from dumpxlate.io.joined import ConcatenatedSource
from dumpxlate.stores import DeferredStore
from dumpxlate.vmcoreinfo import VmCoreInfo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dumpxlate.arch import Arch
    from dumpxlate.bitmap import PageBitmap
    from dumpxlate.formats.kdump.header import Part
    from dumpxlate.io.source import Source
    from dumpxlate.pages import PageStore

__all__ = ["UTSNAME", "open_kdump"]

UTSNAME = ("sysname", "nodename", "release", "version", "machine", "domainname")
"""Texts of the header, which are attributes of the same name."""

_NOTE_LIMIT = 256 << 20
_COUNT_LIMIT = 1 << 21
"""Descriptors that are looked at when a damaged dump is opened, to say how many lead nowhere."""


def open_kdump(sources: Sequence[Source]) -> Dump:
    """Open a kdump-compressed dump, or the parts of a split one in any order.

    Raises:
        CorruptDumpError: headers contradict themselves, the file, or each other.
        UnsupportedFeatureError: several files that are no parts.
    """
    parts = in_order(_read_all(sources))
    first = parts[0]
    remarks: list[str] = []
    notes = _notes(first, remarks) + _eraseinfo(parts, remarks)
    vmcoreinfo = _vmcoreinfo(first) or vmcoreinfo_from_notes(notes)
    arch = _arch(first, notes)
    canonical = is_canonical(notes)
    p2m = p2m_from_notes(notes, first.endian)
    pages, damage = _pages(parts, arch, vmcoreinfo)
    remarks += _oddities(first, vmcoreinfo)
    return Dump(
        format="kdump",
        variant=_variant(parts, notes),
        machine=Machine(
            arch=arch,
            endian=first.endian,
            page_size=first.block_size,
            release=text_of(first.header.release) or (vmcoreinfo.release if vmcoreinfo else None),
            paravirtual=p2m is not None and not canonical,
            canonical=canonical,
        ),
        pages=pages,
        sources=tuple(part.source for part in parts),
        cpus=cpus_from_notes(notes, arch, first.endian),
        notes=notes,
        vmcoreinfo=vmcoreinfo,
        p2m=p2m,
        blocks=blocks_from_notes(notes, first.endian),
        attributes=_attributes(first, pages.entries),
        remarks=tuple(remarks),
        damage=tuple(damage),
    )


def _read_all(sources: Sequence[Source]) -> list[Part]:
    """Read the headers of all files; one that has lost its own is found by its shape, or by the others of its set."""
    lost = [bytes(source.view(0, min(source.size, 8))) not in SIGNATURES for source in sources]
    parts = [_read_named(source) for source, is_lost in zip(sources, lost, strict=True) if not is_lost]
    for source in (source for source, is_lost in zip(sources, lost, strict=True) if is_lost):
        parts.append(recover_among(source, parts) or _recovered(source))
    return parts


def _read_named(source: Source) -> Part:
    """Read the headers of one of several files, so that an error names it."""
    try:
        return read_part(source)
    except FormatError as error:
        error.path = error.path or source.name
        raise


def _recovered(source: Source) -> Part:
    """Find the pieces of a file that does not begin like one: the user says that it is one.

    Raises:
        CorruptDumpError: they are not there.
    """
    found = recover(source)
    if found is None:
        raise CorruptDumpError(
            "no signature, and no bitmaps and descriptors that fit each other were found behind it",
            path=source.name,
            offset=0,
            what="disk_dump_header",
        )
    return found


def _pages(parts: Sequence[Part], arch: Arch, info: VmCoreInfo | None) -> tuple[DeferredStore, list[str]]:
    """Make the store, and say what it lacks; only bitmaps are read, unless something is wrong."""
    anchor = anchor_of(parts[0], info, text_of(parts[0].header.release) or (info.release if info else None))
    found = fit(parts, anchor)
    first, bitmap = found.part, found.bitmap
    if found.certain is None:
        source = first.source if len(parts) == 1 else ConcatenatedSource([part.source for part in parts])
        table = DescriptorTable.of_parts(source, parts, bitmap)
    else:
        table = DescriptorTable.of_stretches(first, found.certain)
    damage = [part.recovered for part in parts if part.recovered] + ([found.complaint] if found.complaint else [])
    damage += _lost_parts(parts, bitmap) + _lost_pages(parts, table)

    def load() -> PageStore:
        store = KdumpStore(first, bitmap, table, damaged=bool(damage), certain=found.certain is None)
        base = first.sub.phys_base // first.block_size if arch.name == "arm" else 0
        # makedumpfile on 32-bit Arm counts pfns from phys_base, QEMU from 0: then there is no RAM below phys_base.
        lowest = store.ram.select(0, 1).tolist() if base else []
        return ShiftedStore(store, base) if lowest and lowest[0] < base else store

    return DeferredStore(load, first.block_size, int(table.count.sum())), damage


def _lost_parts(parts: Sequence[Part], bitmap: PageBitmap) -> list[str]:
    """Say which pages are in a part that was not given."""
    lost = []
    for start, stop in gaps(parts):
        low, high = bitmap.rank(np.array([start, stop], np.int64)).tolist()
        if high > low:
            lost.append(
                f"part of a split dump: the {high - low:,} pages of pfns {start:#x} to {stop - 1:#x} are in a file "
                "that was not given"
            )
    return lost


def _lost_pages(parts: Sequence[Part], table: DescriptorTable) -> list[str]:
    """Say how many descriptors lead nowhere, where the header or the last of them says that some do."""
    incomplete = any(part.incomplete for part in parts)
    if not incomplete and not table.looks_cut():
        return []
    why = "the writer ran out of space and marked the file incomplete" if incomplete else "truncated or incomplete"
    total = int(table.count.sum())
    if total > _COUNT_LIMIT:
        return [f"{why}: some of the {total:,} pages that it promises are not in the file"]
    lost = sum(len(rank) for rank in table.missing())
    return [f"{why}: {lost:,} of the {total:,} pages that it promises are not in the file"]


def _area(part: Part, at: int, size: int, what: str) -> memoryview:
    """View what the sub header points to.

    Raises:
        CorruptDumpError: it lies outside the file.
    """
    if not size:
        return memoryview(b"")
    if at + size > part.source.size:
        raise CorruptDumpError(
            f"{size:#x} bytes, but the file ends at {part.source.size:#x}",
            path=part.source.name,
            offset=at,
            what=what,
        )
    return part.source.view(at, size)


def _notes(part: Part, remarks: list[str]) -> tuple[Note, ...]:
    area = _area(part, part.sub.offset_note, part.sub.size_note, "notes")
    parsed = parse_notes(area[:_NOTE_LIMIT], part.endian)
    if parsed.complaint:
        remarks.append(f"notes at {part.sub.offset_note:#x}: {parsed.complaint}")
    return parsed.notes


def _vmcoreinfo(part: Part) -> VmCoreInfo | None:
    area = _area(part, part.sub.offset_vmcoreinfo, part.sub.size_vmcoreinfo, "vmcoreinfo")
    return VmCoreInfo.from_bytes(area) if area else None


def _eraseinfo(parts: Sequence[Part], remarks: list[str]) -> tuple[Note, ...]:
    """Read what makedumpfile erased: it stands at the very end of a file, so that truncation takes it first."""
    texts: dict[bytes, None] = {}
    for part in parts:
        try:
            texts[bytes(_area(part, part.sub.offset_eraseinfo, part.sub.size_eraseinfo, "eraseinfo"))] = None
        except CorruptDumpError as error:
            remarks.append(str(error))
    return tuple(Note("ERASEINFO", 0, text) for text in texts if text)


def _arch(part: Part, notes: Sequence[Note]) -> Arch:
    """Find the architecture: as the header names it, unless the registers in the notes or its width contradict.

    QEMU names its own target: x86_64 for a guest in 32-bit mode as well, "Unknown" for 32-bit Arm.
    """
    named = arch_named(text_of(part.header.machine))
    sizes = {len(note.desc) for note in notes if note.name == "CORE" and note.type == NT_PRSTATUS}
    if named and named.word_bits <= part.bits and (not sizes or sizes & _status_sizes(named)):
        return named
    for arch in all_arches():
        if part.endian in arch.endians and arch.word_bits <= part.bits and sizes & _status_sizes(arch):
            return arch
    if named and named.word_bits > part.bits:
        named = next((arch for arch in all_arches() if arch.name == _NARROW.get(named.name)), None)
    return named or by_machine_or_unknown(0, part.bits, part.endian)


_NARROW = {"x86_64": "i386", "aarch64": "arm", "ppc64": "ppc", "riscv64": "riscv32"}


def _status_sizes(arch: Arch) -> set[int]:
    return {layout.size for layout in (arch.prstatus, *arch.other_prstatus) if layout.fields}


def _variant(parts: Sequence[Part], notes: Sequence[Note]) -> str:
    """Describe the kind of file in words."""
    part = parts[0]
    names = {note.name for note in notes}
    producer = "makedumpfile"
    if part.is_diskdump:
        producer = "diskdump"
    elif "DUMPXLATE" in names:
        producer = "written by dumpxlate"
    elif text_of(part.header.machine) and not text_of(part.header.sysname):
        producer = "QEMU"
    order = "little" if part.endian == "<" else "big"
    codecs = [codec.name.lower() for codec, flag in FLAG_OF_CODEC.items() if part.header.status & flag]
    words = [producer, f"version {part.header.header_version}", f"{part.bits}-bit {order}-endian headers"]
    if not part.is_diskdump:
        words.append(" and ".join(codecs) or "not compressed")
    return ", ".join([*words, f"{len(parts)} parts"] if len(parts) > 1 else words)


def _oddities(part: Part, vmcoreinfo: VmCoreInfo | None) -> list[str]:
    found = []
    if part.header.header_version > LAST_VERSION:
        found.append(f"header version {part.header.header_version} is read like {LAST_VERSION}, the last one known")
    base = vmcoreinfo.phys_base if vmcoreinfo else None
    if base is not None and part.sub.phys_base not in (0, base & (1 << part.bits) - 1):
        # QEMU takes the decimal text of NUMBER(phys_base) for hexadecimal.
        found.append(f"phys_base is {part.sub.phys_base:#x} in the header, {base:#x} in VMCOREINFO, which counts")
    return found


def _attributes(part: Part, descriptors: int) -> dict[str, int | str]:
    """Collect what the headers say and nothing else tells."""
    header, sub = part.header, part.sub
    found: dict[str, int | str] = {
        "header_version": header.header_version,
        "status": f"{header.status:#x}",
        "max_mapnr": part.max_mapnr,
        "descriptors": descriptors,
        "timestamp": header.tv_sec,
        "nr_cpus": header.nr_cpus,
        "current_cpu": header.current_cpu,
    }
    found |= {name: text for name in UTSNAME if (text := text_of(getattr(header, name)))}
    if not part.is_diskdump:
        found["phys_base"] = f"{sub.phys_base:#x}"
        if part.version >= 1:
            found["dump_level"] = sub.dump_level
    if part.bits == 32:
        found["sub_header"] = "packed" if isinstance(sub, KdumpSubHeader32Packed) else "natural"
    return found
