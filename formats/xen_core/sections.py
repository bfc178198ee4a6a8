"""Sections of a domain core whose names are lost: the table of names is the last thing in the file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dumpxlate.arch.xen_vcpu import CONTEXT_32
from dumpxlate.elf.container import SHN_XINDEX
from dumpxlate.formats.xen_core import layout
from dumpxlate.xen import PAGE_SIZE

if TYPE_CHECKING:
    from dumpxlate.elf.container import ElfFile, Section

__all__ = ["has_names", "named_by_shape"]

_INDEX = {16: layout.XEN_P2M, 8: layout.XEN_PFN}
"""The page index by the length of its entries."""


def has_names(file: ElfFile, size: int) -> bool:
    """Tell whether every section of a file of so many bytes has a name."""
    table = file.header.e_shstrndx
    if table != SHN_XINDEX and file.sections[table].offset + file.sections[table].size > size:
        return False
    return all(section.name for section in file.sections[1:])


def named_by_shape(file: ElfFile) -> ElfFile | None:
    """Name the sections by their types, their order and the lengths of their entries, which are those of libxc.

    Returns:
        The same file with names, or None where index and pages do not fit each other: then these are other sections.
    """
    rest = [section for section in file.sections if section.type == layout.SHT_PROGBITS and section.size]
    if len(rest) < 2 or rest[-1].entry_size not in _INDEX:
        return None
    index, pages = rest.pop(), rest.pop()
    if pages.entry_size < PAGE_SIZE or pages.size // pages.entry_size != index.size // index.entry_size:
        return None
    names = {index.offset: _INDEX[index.entry_size], pages.offset: layout.XEN_PAGES}
    names |= {section.offset: _small(section) for section in rest}
    names |= {section.offset: layout.NOTE_XEN for section in file.sections if section.type == layout.SHT_NOTE}
    sections = (section._replace(name=names.get(section.offset, "")) for section in file.sections)
    return file._replace(sections=tuple(sections))


def _small(section: Section) -> str:
    """Tell contexts from the page that Xen shares with the guest, of which there is one."""
    if section.size == section.entry_size == PAGE_SIZE:
        return layout.XEN_SHARED_INFO
    return layout.XEN_PRSTATUS if section.entry_size >= CONTEXT_32.size else ""
