"""Tells a domain core from other ELF files: all of them are asked, so this module does without the reader."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dumpxlate.elf.container import ET_CORE, read_elf
from dumpxlate.elf.notes import NT_XEN_DUMPCORE_NONE, Note, pack_notes
from dumpxlate.errors import FormatError
from dumpxlate.format import Confidence, Match
from dumpxlate.formats.xen_core import layout

if TYPE_CHECKING:
    from dumpxlate.io.source import Source
    from dumpxlate.structs import Endian

__all__ = ["notes_begin", "recognise"]

_NOTES_WITHIN = 4096


def recognise(source: Source) -> Match | None:
    """Tell a domain core from other ELF files."""
    try:
        file = read_elf(source)
    except FormatError:
        return None
    if file.header.e_type != ET_CORE:
        return None
    if any(file.section(name) for name in (layout.NOTE_XEN, layout.XEN_PAGES)):
        return Match(Confidence.SPECIFIC, "ELF core with Xen's sections")
    marker = _marker(file.endian)
    for section in file.sections:
        inside = section.offset + len(marker) <= source.size
        if section.type == layout.SHT_NOTE and inside and source.view(section.offset, len(marker)) == marker:
            return Match(Confidence.SPECIFIC, "ELF core that begins with Xen's DUMPCORE_NONE note")
    if not len(file.segments.loads) and notes_begin(source, file.endian) >= 0:
        return Match(Confidence.SPECIFIC, "ELF core without segments, with Xen's DUMPCORE_NONE note")
    return None


def notes_begin(source: Source, endian: Endian) -> int:
    """Find the note that a domain core's notes begin with; -1 if it is not near the file's beginning."""
    return bytes(source.view(0, min(_NOTES_WITHIN, source.size))).find(_marker(endian))


def _marker(endian: Endian) -> bytes:
    return pack_notes([Note("Xen", NT_XEN_DUMPCORE_NONE, b"")], endian)
