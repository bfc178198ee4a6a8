"""ELF cores with physical memory in PT_LOADs: any class, order and machine, and each producer's habits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .packing import align, cut, fields, pack, place, write_sparse

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

__all__ = ["EHDR", "PHDR", "SHDR", "SIZES", "Segment", "build", "layout", "sparse_huge"]

PT_LOAD, PT_NOTE = 1, 4
EHDR = {
    bits: [
        *[("magic", "4s"), *fields("ei_class ei_data ei_version ei_osabi ei_abiversion", "B"), ("ei_pad", "7s")],
        *[*fields("e_type e_machine", "H"), ("e_version", "I"), *fields("e_entry e_phoff e_shoff", word)],
        *[("e_flags", "I"), *fields("e_ehsize e_phentsize e_phnum e_shentsize e_shnum e_shstrndx", "H")],
    ]
    for bits, word in ((64, "Q"), (32, "I"))
}
PHDR = {
    64: fields("p_type p_flags", "I") + fields("p_offset p_vaddr p_paddr p_filesz p_memsz p_align", "Q"),
    32: fields("p_type p_offset p_vaddr p_paddr p_filesz p_memsz p_flags p_align", "I"),
}
SHDR = {
    bits: [
        *[*fields("sh_name sh_type", "I"), *fields("sh_flags sh_addr sh_offset sh_size", word)],
        *[*fields("sh_link sh_info", "I"), *fields("sh_addralign sh_entsize", word)],
    ]
    for bits, word in ((64, "Q"), (32, "I"))
}
SIZES = {64: (64, 56, 64), 32: (52, 32, 40)}  # Ehdr, Phdr, Shdr


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One program header and its bytes.

    Attributes:
        vaddr: default: same as ``paddr``.
        memsz: default: as much as there is data.
        share: number of an earlier segment into whose bytes this one points, from ``share_at`` on, ``memsz`` bytes.
        lies: fields of the program header that shall be wrong (p_offset, p_filesz...).
    """

    paddr: int = 0
    data: bytes = b""
    vaddr: int | None = None
    memsz: int | None = None
    type: int = PT_LOAD
    flags: int = 0
    align: int = 0
    share: int | None = None
    share_at: int = 0
    lies: Mapping[str, int] = field(default_factory=dict)


def build(
    loads: Sequence[Segment], notes: Sequence[bytes] = (), *, truncate: int | None = None, **options: Any
) -> bytes:
    """An ET_CORE file; ``options`` are those of ``layout``, ``truncate`` keeps that many bytes."""
    return cut(place(layout(loads, notes, **options)[0]), truncate)


def layout(
    loads: Sequence[Segment],
    notes: Sequence[bytes] = (),
    *,
    bits: int = 64,
    byte_order: str = "<",
    machine: int = 62,
    style: str = "plain",
    align_data: int = 1,
    align_notes: int = 4,
    notes_last: bool = False,
    split_notes: bool = False,
    xnum: bool | None = None,
    header: Mapping[str, int | bytes] | None = None,
    section0: Mapping[str, int] | None = None,
) -> tuple[list[tuple[int, bytes]], list[int]]:
    """The parts of an ET_CORE file as (offset, bytes), and the offset of each PT_LOAD's bytes.

    Args:
        loads: the PT_LOADs, in the order of their headers.
        notes: notes already packed; all in one PT_NOTE, which comes first unless ``notes_last``.
        bits: 64 or 32.
        byte_order: ``<`` or ``>``.
        machine: e_machine.
        style: ``plain``; or ``qemu72``: sections before program headers, e_ehsize 8, .shstrtab at the end.
        align_data: alignment of each segment's bytes in the file; ``align_notes`` likewise.
        notes_last: header of the PT_NOTE behind those of the PT_LOADs (the bytes stay in front).
        split_notes: a PT_NOTE for each note.
        xnum: force (or forbid) the real count of headers in section header 0; default: when it must be there.
        header: fields of the ELF header that shall lie (e_phoff, e_phnum, ei_class, magic...).
        section0: likewise of section header 0.
    """
    qemu72 = style == "qemu72"
    ehsize, phentsize, shentsize = SIZES[bits]
    groups = list(notes) if split_notes else [b"".join(notes)] * bool(notes)
    count = len(groups) + len(loads)
    extended = count >= 0xFFFF if xnum is None else xnum
    sections = 2 if qemu72 else int(extended)
    phoff = ehsize + shentsize * sections * qemu72
    phend = phoff + phentsize * count
    shoff = ehsize if qemu72 else phend if extended else 0
    headers_end = align(phend + shentsize * sections * (not qemu72), align_notes)
    note_offsets, notes_end = _offsets([Segment(data=group) for group in groups], headers_end, align_notes)
    offsets, end = _offsets(loads, align(notes_end, align_notes), align_data)
    note_table = [
        _phdr(bits, byte_order, Segment(type=PT_NOTE, data=data, vaddr=0), offset)
        for offset, data in zip(note_offsets, groups, strict=True)
    ]
    load_table = [_phdr(bits, byte_order, load, at) for load, at in zip(loads, offsets, strict=True)]
    values: dict[str, int | bytes] = {
        "magic": b"\x7fELF", "ei_class": bits // 32, "ei_data": 1 if byte_order == "<" else 2, "ei_version": 1,
        "e_type": 4, "e_machine": machine, "e_version": 1, "e_phoff": phoff, "e_shoff": shoff,
        "e_ehsize": 8 if qemu72 else ehsize, "e_phentsize": phentsize, "e_phnum": 0xFFFF if extended else count,
        "e_shentsize": shentsize if sections else 0, "e_shnum": sections, "e_shstrndx": int(qemu72),
    }  # fmt: skip
    parts = [(0, pack(byte_order, EHDR[bits], values, header))]
    parts.append((phoff, b"".join(load_table + note_table if notes_last else note_table + load_table)))
    parts += _sections(bits, byte_order, shoff, end, count * extended, section0, qemu72) if sections else []
    parts += zip(note_offsets, groups, strict=True)
    return parts + [(at, load.data) for at, load in zip(offsets, loads, strict=True) if load.data], offsets


def _offsets(segments: Sequence[Segment], at: int, step: int) -> tuple[list[int], int]:
    """File offset of each segment's bytes, and their end; one without bytes takes the place of the next."""
    offsets: list[int] = []
    for segment in segments:
        if segment.share is not None:
            offsets.append(offsets[segment.share] + segment.share_at)
            continue
        offsets.append(align(at, step))
        at = offsets[-1] + len(segment.data)
    return offsets, at


def _phdr(bits: int, byte_order: str, segment: Segment, offset: int) -> bytes:
    filesz = len(segment.data) if segment.share is None else segment.memsz or 0
    values = {
        "p_type": segment.type, "p_flags": segment.flags, "p_offset": offset, "p_align": segment.align,
        "p_vaddr": segment.paddr if segment.vaddr is None else segment.vaddr, "p_paddr": segment.paddr,
        "p_filesz": filesz, "p_memsz": filesz if segment.memsz is None else segment.memsz,
    }  # fmt: skip
    return pack(byte_order, PHDR[bits], values, segment.lies)


def _sections(
    bits: int, order: str, at: int, end: int, count: int, lies: Mapping[str, int] | None, qemu72: bool
) -> list[tuple[int, bytes]]:
    """Section header 0 with the real count; QEMU 7.2 adds .shstrtab, described in the order of its host."""
    first = pack(order, SHDR[bits], {"sh_info": count}, lies)
    if not qemu72:
        return [(at, first)]
    strings = {"sh_name": 1, "sh_type": 3, "sh_offset": end, "sh_size": 11}
    return [(at, first + pack("<", SHDR[bits], strings)), (end, b"\0.shstrtab\0")]


def sparse_huge(
    path: Path, pages: Mapping[int, bytes], *, ram: Iterable[tuple[int, int]], page_size: int = 4096
) -> Path:
    """A sparse 64-bit core with a PT_LOAD for each (first pfn, count) of ``ram``; only ``pages`` take disk space."""
    runs = [(first * page_size, count * page_size) for first, count in ram]
    at = align(64 + 56 * len(runs), 4096)
    loads, parts = [], []
    for paddr, size in runs:
        loads.append(Segment(paddr=paddr, lies={"p_offset": at, "p_filesz": size, "p_memsz": size}))
        inside = (pfn for pfn in pages if paddr <= pfn * page_size < paddr + size)
        parts += [(at + pfn * page_size - paddr, pages[pfn]) for pfn in inside]
        at += size
    return write_sparse(path, at, layout(loads)[0] + parts)
