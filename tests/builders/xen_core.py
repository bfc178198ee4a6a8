"""Xen's ELF domain core (``xl dump-core``): everything in sections, no program headers."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from .elf import EHDR, SHDR, SIZES
from .elf_notes import note
from .guest import Guest, page
from .packing import align, cut, fields, pack, place
from .xen_vcpu import contexts as vcpu_contexts
from .xen_vcpu import shared_info as shared_info_page

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["MAGIC_HVM", "MAGIC_PV", "NAMES", "build", "notes", "version_note"]

MAGIC_PV, MAGIC_HVM = 0xF00FEBED, 0xF00FEBEE
NONE = (1 << 64) - 1
# The order of the names in the string table of a real file, which is that of the section headers.
NAMES = [".shstrtab", ".note.Xen", ".xen_prstatus", ".xen_shared_info", ".xen_pages"]
VERSION = [
    *fields("major minor", "Q"), ("extra", "16s"), ("compiler", "64s"), ("compile_by", "16s"),
    ("compile_domain", "32s"), ("compile_date", "32s"), ("capabilities", "1024s"), ("changeset", "64s"),
    *fields("virt_start page_size", "Q"),
]  # fmt: skip


def version_note(**values: int | bytes) -> bytes:
    """Desc of the XEN_VERSION note as 64-bit tools write it; ``values`` replace the model's."""
    model: dict[str, int | bytes] = {
        "major": 4, "minor": 17, "extra": b".0-model", "capabilities": b"xen-3.0-x86_64 hvm-3.0-x86_64",
        "virt_start": 0xFFFF800000000000, "page_size": 4096,
    }  # fmt: skip
    return pack("<", VERSION, model, values)


def notes(
    *, magic: int, nr_vcpus: int, nr_pages: int, page_size: int = 4096, format_version: int = 1, version: bytes = b""
) -> list[bytes]:
    """The four notes: marker, header, Xen's version (``version`` is its desc), format version."""
    header = struct.pack("<4Q", magic, nr_vcpus, nr_pages, page_size)
    descs = [b"", header, version or version_note(), struct.pack("<Q", format_version)]
    return [note("Xen", 0x2000000 + number, desc) for number, desc in enumerate(descs)]


def build(
    guest: Guest,
    *,
    hvm: bool = False,
    magic: int | None = None,
    width: int = 8,
    bits: int = 64,
    machine: int | None = None,
    contexts: Sequence[bytes] | None = None,
    context_size: int | None = None,
    shared_info: bytes | bool = True,
    unfilled: int = 0,
    duplicates: Iterable[int] = (),
    order: Sequence[int] | None = None,
    note_list: Sequence[bytes] | None = None,
    drop: Iterable[str] = (),
    rename: Mapping[str, str] | None = None,
    header: Mapping[str, int | bytes] | None = None,
    sections: Mapping[str, Mapping[str, int]] | None = None,
    counts: Mapping[str, int] | None = None,
    stale_tail: bytes = b"",
    truncate: int | None = None,
) -> bytes:
    """A domain core.

    Args:
        guest: its pages; mfns too unless ``hvm``.
        hvm: an auto-translated guest (HVM, PVH): ``.xen_pfn`` instead of ``.xen_p2m``.
        magic: in the header note, instead of what ``hvm`` says.
        width: guest's word; 4: 32-bit contexts and shared_info (in a 5168-byte slot unless ``context_size``).
        bits: 32 for the ELFCLASS32 variant of 2007.
        machine: e_machine; default 62, 3 for a 32-bit PV guest.
        contexts: the vcpu records themselves.
        context_size: bytes per record, and sh_entsize.
        shared_info: the page, True for one with only max_pfn, False for no such section.
        unfilled: so many index entries at the end are all-ones, with pages of zeros.
        duplicates: pfns repeated (before the unfilled ones) with a page that must lose.
        order: the pfns in file order (default ascending).
        note_list: notes already packed.
        drop: names of sections that are left out, header and bytes.
        rename: name of a section -> what it is called instead.
        header: fields of the ELF header that shall lie; ``sections``: name -> fields of its section header.
        counts: nr_vcpus, nr_pages, page_size, format_version for the notes instead of the truth.
        stale_tail: bytes behind the string table.
        truncate: keep that many bytes.
    """
    size = guest.page_size
    auto = ".xen_pfn" if hvm else ".xen_p2m"
    if contexts is None:
        slot = context_size or (2800 if bits == 32 and width == 4 else 5168)
        contexts = vcpu_contexts(guest, width=width, size=slot)
    if shared_info is True:
        shared_info = shared_info_page(width=width, max_pfn=guest.end_pfn)
    pairs = [(pfn, guest.pages[pfn]) for pfn in (guest.stored if order is None else order)]
    pairs += [(pfn, page(pfn, size, "noise")) for pfn in duplicates]
    rows = [(pfn, guest.mfns.get(pfn, pfn), data) for pfn, data in pairs] + [(NONE, NONE, bytes(size))] * unfilled
    magic = magic if magic is not None else MAGIC_HVM if hvm else MAGIC_PV
    known: dict[str, Any] = {
        "magic": magic,
        "nr_vcpus": len(contexts),
        "nr_pages": len(rows),
        "page_size": size,
        **(counts or {}),
    }
    content = {
        ".note.Xen": b"".join(notes(**known) if note_list is None else note_list),
        ".xen_prstatus": b"".join(contexts),
        ".xen_shared_info": shared_info or b"",
        ".xen_pages": b"".join(data for _, _, data in rows),
        auto: b"".join(struct.pack("<Q", pfn) + (b"" if hvm else struct.pack("<Q", mfn)) for pfn, mfn, _ in rows),
    }
    absent = {*drop, *([] if shared_info else [".xen_shared_info"])}
    names = [name for name in [*NAMES, auto] if name not in absent]
    strings, where = _strings([(rename or {}).get(name, name) for name in names])
    content[".shstrtab"] = strings
    entsize = {".xen_prstatus": len(contexts[0]) if contexts else 0, ".xen_shared_info": size, ".xen_pages": size}
    entsize[auto] = 8 if hvm else 16
    machine = machine or (3 if width == 4 and not hvm else 62)
    image = _file(bits, machine, names, content, where, entsize, size, header or {}, sections or {})
    return cut(image + stale_tail, truncate)


def _strings(names: Sequence[str]) -> tuple[bytes, list[int]]:
    """The string table, which begins with an empty name, and the offset of each name in it."""
    table, where = b"\0", []
    for name in names:
        where.append(len(table))
        table += name.encode() + b"\0"
    return table, where


def _file(
    bits: int, machine: int, names: Sequence[str], content: Mapping[str, bytes], strings: Sequence[int],
    entsize: Mapping[str, int], page_size: int, header: Mapping[str, int | bytes],
    lies: Mapping[str, Mapping[str, int]],
) -> bytes:  # fmt: skip
    """Headers in the order of ``names``; data in the same order but for the string table, which comes last."""
    ehsize, phentsize, shentsize = SIZES[bits]
    at = ehsize + shentsize * (len(names) + 1)
    offsets = {}
    for name in [*names[1:], names[0]]:
        at = align(at, page_size) if name == ".xen_pages" else at
        offsets[name] = at
        at += len(content[name])
    values: dict[str, int | bytes] = {
        "magic": b"\x7fELF", "ei_class": bits // 32, "ei_data": 1, "ei_version": 1, "ei_abiversion": 1, "e_type": 4,
        "e_machine": machine, "e_version": 1, "e_shoff": ehsize, "e_ehsize": ehsize, "e_phentsize": phentsize,
        "e_shentsize": shentsize, "e_shnum": len(names) + 1, "e_shstrndx": 1,
    }  # fmt: skip
    table = pack("<", SHDR[bits], {}, lies.get(""))
    for name, string in zip(names, strings, strict=True):
        form = {
            "sh_name": string, "sh_type": {".shstrtab": 3, ".note.Xen": 7}.get(name, 1), "sh_offset": offsets[name],
            "sh_size": len(content[name]), "sh_entsize": entsize.get(name, 0),
            "sh_addralign": 0 if name not in entsize else page_size if name == ".xen_pages" else 8,
        }  # fmt: skip
        table += pack("<", SHDR[bits], form, lies.get(name))
    parts = [(0, pack("<", EHDR[bits], values, header)), (ehsize, table)]
    return place([*parts, *((offsets[name], content[name]) for name in names)])
