"""Reads cores of Xen domains: headers, notes and contexts at once, the index when a page is first asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NoReturn

from dumpxlate.arch import by_machine_or_unknown
from dumpxlate.arch.xen_vcpu import CONTEXT_32
from dumpxlate.dump import Cpu, Dump, Machine
from dumpxlate.elf.container import ElfFile, Section, machine_name, read_elf
from dumpxlate.elf.notes import (
    NT_XEN_DUMPCORE_FORMAT_VERSION,
    NT_XEN_DUMPCORE_HEADER,
    NT_XEN_DUMPCORE_XEN_VERSION,
    parse_notes,
)
from dumpxlate.errors import CorruptDumpError, TruncatedDumpError, UnsupportedFeatureError
from dumpxlate.formats.xen_core import layout
from dumpxlate.formats.xen_core.index import PageIndex
from dumpxlate.formats.xen_core.relaid import are_odd, relaid
from dumpxlate.formats.xen_core.sections import has_names, named_by_shape
from dumpxlate.p2m.map import DeferredP2M
from dumpxlate.stores import DeferredStore, UnkeyedStore
from dumpxlate.structs import parse, size_of
from dumpxlate.xen import MAX_VCPUS, PAGE_SIZE, context_width, xen_cpus, xen_machine

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dumpxlate.arch.xen_vcpu import WordBits
    from dumpxlate.io.source import Source

__all__ = ["open_xen_core"]

_NOTE_LIMIT = 1 << 20
_BLOCK_LIMIT = 1 << 20
_X86 = (3, 62)


@dataclass(frozen=True, slots=True)
class _Core:
    """What the headers say, as the file's pieces are needed by name."""

    source: Source
    file: ElfFile
    notes: Mapping[int, bytes]
    header: layout.DumpcoreHeader
    index: PageIndex
    lost: UnkeyedStore | None
    remarks: list[str]
    damage: list[str]

    @property
    def paravirtual(self) -> bool:
        return self.index.words == 2


def open_xen_core(source: Source) -> Dump:
    """Open a domain core.

    Raises:
        UnsupportedFeatureError: a version of the format that does not exist yet.
        CorruptDumpError: headers contradict themselves or the file.
        TruncatedDumpError: the file ends before its index, without which no page can be placed.
    """
    core = _core(source)
    index = core.index
    machine, cpus = _machine(core)
    version = core.notes.get(NT_XEN_DUMPCORE_XEN_VERSION)
    blocks = {"xen_version": version} if version else {}
    shared_info = _block(core, layout.XEN_SHARED_INFO)
    if shared_info:
        blocks["xen_shared_info"] = shared_info
    kind = layout.XEN_P2M if core.paravirtual else layout.XEN_PFN
    return Dump(
        format="xen_core",
        variant=f"{'paravirtual' if core.paravirtual else 'auto-translated (HVM, PVH, Arm)'} guest, {kind}",
        machine=replace(machine, page_size=index.page_size),
        pages=_pages(core),
        sources=(source,),
        cpus=cpus,
        p2m=DeferredP2M(index.p2m, index.count) if core.paravirtual and not core.lost else None,
        frames=(core.lost or DeferredStore(index.by_mfn, index.page_size, index.count)) if core.paravirtual else None,
        blocks=blocks,
        attributes=_attributes(core, version),
        remarks=tuple(core.remarks),
        damage=tuple(core.damage),
    )


def _pages(core: _Core) -> DeferredStore:
    return core.lost or DeferredStore(core.index.by_pfn, core.index.page_size, core.index.count)


def _core(source: Source) -> _Core:
    file = read_elf(source)
    remarks: list[str] = []
    damage: list[str] = []
    if file.sections and not has_names(file, source.size) and (named := named_by_shape(file)):
        file = named
        damage.append("the names of the sections, last in the file, are lost: their sizes and order tell them apart")
    if are_odd(file, source.size) and (found := relaid(source, file)):
        file = file._replace(sections=found)
        damage.append("the section headers do not fit each other: the notes, and where the names begin, tell sections")
    _require_sections(source, file)
    notes = _notes(source, file, remarks)
    header = _header(notes, file, remarks)
    index, lost = _index(source, file, header, damage)
    if header.xch_nr_pages != index.count:
        remarks.append(f"the header note says {header.xch_nr_pages:,} pages, the index has {index.count:,}")
    magic = layout.XC_CORE_MAGIC if index.words == 2 else layout.XC_CORE_MAGIC_HVM
    if header.xch_magic not in (0, magic):
        remarks.append(f"the header note has magic {header.xch_magic:#x}, the index is that of {magic:#x}: it counts")
    return _Core(source, file, notes, header, index, lost, remarks, damage)


def _require_sections(source: Source, file: ElfFile) -> None:
    """Check that the section table is there."""
    header = file.header
    if not file.sections:
        raise CorruptDumpError(
            f"e_shoff {header.e_shoff:#x}, e_shnum {header.e_shnum}, e_shentsize {header.e_shentsize}, "
            f"e_shstrndx {header.e_shstrndx}: no usable section table in a file of {source.size} bytes",
            offset=header.e_shoff,
            what="section headers",
        )


def _inside(source: Source, section: Section, what: str) -> None:
    if section.offset + section.size > source.size:
        raise TruncatedDumpError(
            what, offset=section.offset, wanted=section.size, available=source.size - section.offset
        )


def _notes(source: Source, file: ElfFile, remarks: list[str]) -> dict[int, bytes]:
    """Read Xen's notes by their type."""
    section = file.section(layout.NOTE_XEN)
    if section is None or section.offset > source.size:
        remarks.append(f"no section {layout.NOTE_XEN}")
        return {}
    size = min(section.size, _NOTE_LIMIT, source.size - section.offset)
    parsed = parse_notes(source.view(section.offset, size), file.endian)
    if parsed.complaint:
        remarks.append(f"{layout.NOTE_XEN}: {parsed.complaint}")
    notes = {note.type: bytes(note.desc) for note in parsed.notes if note.name == "Xen"}
    _check_version(notes, file, remarks)
    return notes


def _check_version(notes: Mapping[int, bytes], file: ElfFile, remarks: list[str]) -> None:
    desc = notes.get(NT_XEN_DUMPCORE_FORMAT_VERSION, b"")
    if len(desc) < 8:
        remarks.append("no note says the version of the format")
        return
    version = int.from_bytes(desc[:8], "little" if file.endian == "<" else "big")
    if version >> 32:
        raise UnsupportedFeatureError(
            f"a domain core of format version {version >> 32}.{version & 0xFFFFFFFF}, known is 0.1",
            format="xen_core",
            feature="format version",
        )
    if version != layout.FORMAT_VERSION_CURRENT:
        remarks.append(f"format version 0.{version}: known is 0.1")


def _header(notes: Mapping[int, bytes], file: ElfFile, remarks: list[str]) -> layout.DumpcoreHeader:
    """Read the header note; without one the sections tell what it would.

    Raises:
        CorruptDumpError: the page size is none.
    """
    desc = notes.get(NT_XEN_DUMPCORE_HEADER, b"")
    if len(desc) < size_of(layout.DumpcoreHeader):
        remarks.append("no header note: counts are taken from the sections")
        index = file.section(layout.XEN_P2M) or file.section(layout.XEN_PFN)
        entry = 16 if index and index.name == layout.XEN_P2M else 8
        pages, contexts = file.section(layout.XEN_PAGES), file.section(layout.XEN_PRSTATUS)
        vcpus = contexts.size // contexts.entry_size if contexts and contexts.entry_size else 0
        page_size = pages.entry_size if pages and pages.entry_size else PAGE_SIZE
        header = layout.DumpcoreHeader(0, vcpus, index.size // entry if index else 0, page_size)
    else:
        header = parse(layout.DumpcoreHeader, desc, 0, file.endian)
    size = header.xch_page_size
    if size & (size - 1) or not PAGE_SIZE <= size <= 1 << 20:
        raise CorruptDumpError(
            f"page size {size:#x}: expected a power of two from {PAGE_SIZE} on", what="DUMPCORE_HEADER note"
        )
    return header


def _index(
    source: Source, file: ElfFile, header: layout.DumpcoreHeader, damage: list[str]
) -> tuple[PageIndex, UnkeyedStore | None]:
    """Find index and pages, and check them against each other and the file; of an index that is cut, what is there.

    Of a PV guest without any index there are pages without addresses, which the guest's map tells if it is given.
    """
    pages = file.section(layout.XEN_PAGES)
    found = [each for name in (layout.XEN_P2M, layout.XEN_PFN) if (each := file.section(name))]
    if pages is None or len(found) != 1:
        names = ", ".join(section.name for section in file.sections if section.name)
        raise CorruptDumpError(
            f"found {names or 'none'}: expected {layout.XEN_PAGES} and one of {layout.XEN_P2M} and {layout.XEN_PFN}",
            offset=file.header.e_shoff,
            what="section headers",
        )
    index = found[0]
    words = 2 if index.name == layout.XEN_P2M else 1
    lost = _lost(source, index, pages, header.xch_page_size, damage)
    if lost:
        return PageIndex(source, file.endian, index.offset, pages.offset, 0, header.xch_page_size, words), lost
    _inside(source, pages, layout.XEN_PAGES)
    entries, rest = divmod(index.size, 8 * words)
    if rest:
        raise CorruptDumpError(
            f"{index.size} bytes: expected a multiple of {8 * words}", offset=index.offset, what=index.name
        )
    held = pages.size // header.xch_page_size
    if entries != held:
        damage.append(f"{index.name} has {entries:,} entries, {layout.XEN_PAGES} {held:,} pages: the fewer count")
    count = min(entries, held)
    there = (source.size - index.offset) // (8 * words)
    if there < count:
        behind = pages.offset + there * header.xch_page_size
        damage.append(
            f"truncated: {index.name} has {entries:,} entries, {there:,} are there; the other {count - there:,} pages, "
            f"from {behind:#x} on in the file, have no address"
        )
        count = there
    return PageIndex(source, file.endian, index.offset, pages.offset, count, header.xch_page_size, words), None


def _lost(source: Source, index: Section, pages: Section, page_size: int, damage: list[str]) -> UnkeyedStore | None:
    """Look whether at least one entry is there. Nothing else tells where a page belongs: guests have holes anywhere.

    Returns:
        For a PV guest without one, its pages in their order.

    Raises:
        TruncatedDumpError: of another guest, which has no map.
    """
    if index.offset + 8 <= source.size:
        return None
    there = max(min(pages.size, source.size - pages.offset), 0) // page_size

    def refuse() -> NoReturn:
        raise TruncatedDumpError(
            f"page index {index.name}, without which the {there:,} pages at {pages.offset:#x} have no address"
            f"{' unless --p2m FILE gives the map of the moment of the dump' if index.name == layout.XEN_P2M else ''}; "
            f"index",
            path=source.name,
            offset=index.offset,
            wanted=index.size,
            available=max(source.size - index.offset, 0),
        )

    if index.name != layout.XEN_P2M or not there:
        refuse()
    damage.append(f"truncated: {index.name} is lost; only the guest's map tells where the {there:,} pages belong")
    return UnkeyedStore(refuse, source, page_size, pages.offset, pages.size // page_size, there)


def _block(core: _Core, name: str) -> bytes:
    """Give the bytes of a small section; none where it is missing or does not fit."""
    section = core.file.section(name)
    if section is None:
        return b""
    if section.size > _BLOCK_LIMIT or section.offset + section.size > core.source.size:
        core.remarks.append(f"{name}: {section.size} bytes at {section.offset:#x} are left out")
        return b""
    return bytes(core.source.view(section.offset, section.size))


def _machine(core: _Core) -> tuple[Machine, tuple[Cpu, ...]]:
    """Describe machine and processors: contexts are understood for x86, memory is for any."""
    number = core.file.header.e_machine
    contexts = _contexts(core)
    if number not in _X86:
        if contexts:
            core.remarks.append(f"vcpu contexts of {machine_name(number)} are not decoded")
        return Machine(by_machine_or_unknown(number, core.file.bits, core.file.endian), core.file.endian, PAGE_SIZE), ()
    # e_machine 3 is a 32-bit PV guest; tools before 2009 said 62 of it too where they were 64-bit themselves.
    narrow = number == 3 or (core.paravirtual and bool(contexts) and context_width(contexts[0]) == 32)
    bits: WordBits = 32 if narrow else 64
    return xen_machine(bits, paravirtual=core.paravirtual), xen_cpus(contexts, bits)


def _contexts(core: _Core) -> list[bytes]:
    """Cut the vcpu contexts out."""
    section, count = core.file.section(layout.XEN_PRSTATUS), core.header.xch_nr_vcpus
    if section is None or not section.size:
        core.remarks.append("no vcpu contexts")
        return []
    if not 0 < count <= MAX_VCPUS or section.offset + section.size > core.source.size:
        core.remarks.append(f"{section.size} bytes of contexts for {count} vcpus: left out")
        return []
    size = section.entry_size or section.size // count
    count = min(count, section.size // size)
    if core.file.header.e_machine in _X86 and size < CONTEXT_32.size:
        core.remarks.append(f"vcpu contexts of {size} bytes are none of x86: left out")
        return []
    body = core.source.view(section.offset, count * size)
    return [bytes(body[at : at + size]) for at in range(0, count * size, size)]


def _attributes(core: _Core, version: bytes | None) -> dict[str, int | str]:
    """Say what the headers hold."""
    found: dict[str, int | str] = {
        "e_machine": machine_name(core.file.header.e_machine),
        "elf_class": core.file.bits,
        "xch_magic": f"{core.header.xch_magic:#x}",
        "xch_nr_vcpus": core.header.xch_nr_vcpus,
        "xch_nr_pages": core.header.xch_nr_pages,
        "sections": ", ".join(section.name for section in core.file.sections if section.name),
    }
    if version and len(version) >= size_of(layout.DumpcoreXenVersion) - 16:
        # 32-bit tools wrote a shorter virt_start, which stands behind all that is shown.
        xen = parse(layout.DumpcoreXenVersion, version.ljust(size_of(layout.DumpcoreXenVersion), b"\0"), 0, "<")
        found["xen_version"] = f"{xen.major_version}.{xen.minor_version}{_text(xen.extra_version)}"
        found["xen_capabilities"] = _text(xen.capabilities)
    return found


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("latin-1").strip()
