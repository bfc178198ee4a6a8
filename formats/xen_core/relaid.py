"""Sections of a domain core whose headers are damaged, found by the order in which Xen's tools write them.

Notes, contexts of the processors, a page that Xen shares with the guest (or none), pages at a multiple of their size,
the index, the names. The header note has the counts; where the names stand then, nothing was guessed wrong.

Source: xc_core.c of Xen (xc_domain_dumpcore_via_callback).
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from dumpxlate.arch.xen_vcpu import CONTEXT_32
from dumpxlate.elf.container import Section
from dumpxlate.elf.notes import NT_XEN_DUMPCORE_HEADER, pack_notes, parse_notes
from dumpxlate.formats.xen_core import layout
from dumpxlate.formats.xen_core.recognise import notes_begin
from dumpxlate.structs import parse, size_of
from dumpxlate.xen import MAX_VCPUS, PAGE_SIZE

if TYPE_CHECKING:
    from dumpxlate.elf.container import ElfFile
    from dumpxlate.io.source import Source

__all__ = ["are_odd", "relaid"]

_NOTES = 4
"""Notes that the tools write: marker, header, Xen's version, version of the format."""
_LONGEST_NOTES = 8192
_MOST_PAGES = 1 << 40
_NAMES = b"\0" + layout.SHSTRTAB.encode() + b"\0"


def are_odd(file: ElfFile, file_size: int) -> bool:
    """Tell whether the section headers do not fit each other, or the file."""
    pages = file.section(layout.XEN_PAGES)
    index = [(each, size) for name, size in ((layout.XEN_P2M, 16), (layout.XEN_PFN, 8)) if (each := file.section(name))]
    if pages is None or len(index) != 1 or file.section(layout.NOTE_XEN) is None:
        return True
    found, size = index[0]
    held = pages.size // max(pages.entry_size, PAGE_SIZE)
    inside = pages.offset + pages.size <= found.offset <= file_size - found.size
    return found.size != held * size or not inside


def relaid(source: Source, file: ElfFile) -> tuple[Section, ...]:
    """Find the sections of a file by what it holds; none where they are not as Xen's tools write them."""
    at = notes_begin(source, file.endian)
    if at < 0:
        return ()
    area = source.view(at, min(_LONGEST_NOTES, source.size - at))
    notes = parse_notes(area, file.endian, limit=_NOTES).notes
    desc = next((note.desc for note in notes if note.type == NT_XEN_DUMPCORE_HEADER), b"")
    if len(notes) < _NOTES or len(desc) < size_of(layout.DumpcoreHeader):
        return ()
    header = parse(layout.DumpcoreHeader, desc, 0, file.endian)
    size, count = header.xch_page_size, header.xch_nr_pages
    if size & (size - 1) or not PAGE_SIZE <= size <= 1 << 20 or count > _MOST_PAGES or header.xch_nr_vcpus > MAX_VCPUS:
        return ()
    end = at + len(pack_notes(notes, file.endian))
    for slot, shared, words in product((layout.CONTEXT_SLOT, CONTEXT_32.size), (PAGE_SIZE, 0), (2, 1)):
        behind = end + header.xch_nr_vcpus * slot
        pages = -(-(behind + shared) // size) * size
        index = pages + count * size
        names = index + count * 8 * words
        if names + len(_NAMES) <= source.size and source.view(names, len(_NAMES)) == _NAMES:
            name = layout.XEN_P2M if words == 2 else layout.XEN_PFN
            found = [
                Section(layout.NOTE_XEN, layout.SHT_NOTE, at, end - at, 0, 0),
                Section(layout.XEN_PRSTATUS, layout.SHT_PROGBITS, end, behind - end, slot, 0),
                Section(layout.XEN_PAGES, layout.SHT_PROGBITS, pages, count * size, size, 0),
                Section(name, layout.SHT_PROGBITS, index, count * 8 * words, 8 * words, 0),
            ]
            block = [Section(layout.XEN_SHARED_INFO, layout.SHT_PROGBITS, behind, shared, shared, 0)]
            return (*found, *block) if shared else tuple(found)
    return ()
