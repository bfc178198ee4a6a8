"""Writes domain cores as ``xl dump-core`` does, for crash and libkdumpfile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dumpxlate.elf.container import ELF_MAGIC, ET_CORE
from dumpxlate.elf.layout import Elf64_Ehdr, Elf64_Shdr
from dumpxlate.elf.notes import (
    NT_XEN_DUMPCORE_FORMAT_VERSION,
    NT_XEN_DUMPCORE_HEADER,
    NT_XEN_DUMPCORE_NONE,
    NT_XEN_DUMPCORE_XEN_VERSION,
    Note,
    pack_notes,
)
from dumpxlate.emit import append_pages
from dumpxlate.errors import MapError, UnsupportedFeatureError
from dumpxlate.format import Loss, require_physical
from dumpxlate.formats.xen_core import layout
from dumpxlate.pages import CodecId
from dumpxlate.structs import pack, size_of
from dumpxlate.xen import PAGE_SIZE, uncarried, xen_contexts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dumpxlate.arch.xen_vcpu import WordBits
    from dumpxlate.dump import Dump
    from dumpxlate.format import WriteOptions
    from dumpxlate.io.sink import Sink
    from dumpxlate.p2m.map import P2M
    from dumpxlate.pages import PageBatch
    from dumpxlate.pageset import PageSet

__all__ = ["XenCoreWriter"]

_CHUNK = 1 << 20
_BLOCKS = ("xen_shared_info", "xen_version")
_EM_386, _EM_X86_64 = 3, 62


class XenCoreWriter:
    """Plans and writes one domain core.

    A paravirtual guest's index has the machine frame of each page beside its pfn, from the dump's map. Other guests
    are written as HVM. Pages that the source left out are left out here: a gap in the pfns.

    Raises:
        MapError: the dump is keyed by machine frames, or the map of a paravirtual guest is not known.
        UnsupportedFeatureError: no Xen tool writes a core of such a machine.
    """

    accepts = frozenset({CodecId.RAW})
    seeks = False
    codec = None

    def __init__(self, dump: Dump, options: WriteOptions) -> None:
        require_physical(dump, "xen_core")
        self.pages: PageSet = dump.pages.stored
        self._frames = _map_of(dump)
        self._sink: Sink
        bits = _width(dump, paravirtual=self._frames is not None)
        lost = uncarried(dump, blocks=_BLOCKS)
        if dump.p2m and not dump.machine.paravirtual:
            lost += ("the p2m map",)
        self.losses = tuple(Loss(what, "a Xen domain core has no place for it") for what in lost)
        self._plan(dump, bits)

    def _plan(self, dump: Dump, bits: WordBits) -> None:
        """Lay all sections out: every size is known before the first page."""
        count, words = self.pages.count, 2 if self._frames else 1
        contexts = [context.ljust(layout.CONTEXT_SLOT, b"\0") for context in xen_contexts(dump, bits)]
        notes = pack_notes(_notes(dump, count, paravirtual=self._frames is not None), "<")
        shared_info = dump.blocks.get("xen_shared_info", b"")
        before = [(layout.NOTE_XEN, notes), (layout.XEN_PRSTATUS, b"".join(contexts))]
        before += [(layout.XEN_SHARED_INFO, shared_info)] if shared_info else []
        index = layout.XEN_P2M if self._frames else layout.XEN_PFN
        sizes = {name: len(data) for name, data in before}
        sizes |= {layout.XEN_PAGES: count * PAGE_SIZE, index: count * 8 * words}
        names = [layout.SHSTRTAB, *sizes]
        self._strings = b"".join(name.encode() + b"\0" for name in ["", *names])
        sizes[layout.SHSTRTAB] = len(self._strings)
        table, start = _section_headers(names, sizes)
        machine = _EM_386 if bits == 32 else _EM_X86_64
        head = _file_header(machine, len(names) + 1) + table + b"".join(data for _, data in before)
        self._head = head.ljust(start, b"\0")

    def begin(self, sink: Sink) -> None:
        """Write everything that stands before the pages."""
        self._sink = sink
        sink.append([self._head])

    def write(self, batch: PageBatch) -> None:
        """Write the next pages."""
        append_pages(self._sink, batch, PAGE_SIZE)

    def state(self) -> Mapping[str, Any]:
        """Nothing has to be known again."""
        return {}

    def restore(self, sink: Sink, done: int, state: Mapping[str, Any]) -> None:
        """Go on behind ``done`` pages."""
        self._sink = sink

    def finish(self) -> None:
        """Write the index and the names of the sections."""
        for first in range(0, self.pages.count, _CHUNK):
            pfn = self.pages.select(first, first + _CHUNK)
            columns = [pfn] if self._frames is None else [pfn, self._frames.mfn(pfn)]
            self._sink.append([np.stack(columns, axis=1).astype("<i8").tobytes()])
        self._sink.append([self._strings])


def _map_of(dump: Dump) -> P2M | None:
    """Give the map of a paravirtual guest, None for others.

    Raises:
        MapError: the guest is paravirtual, and its map is not known.
    """
    if dump.machine.paravirtual and dump.p2m is None:
        raise MapError(
            f"{dump.name}: a paravirtual guest, whose core needs the machine frame of each page: this {dump.format} "
            "dump has no p2m map"
        )
    return dump.p2m if dump.machine.paravirtual else None


def _width(dump: Dump, *, paravirtual: bool) -> WordBits:
    """Give the width of the contexts: Xen stores 64-bit ones for every guest but a 32-bit PV one.

    Raises:
        UnsupportedFeatureError: not an x86 machine with pages of 4 KiB.
    """
    name = dump.machine.arch.name
    if name not in ("x86_64", "i386") or dump.pages.page_size != PAGE_SIZE:
        raise UnsupportedFeatureError(
            f"xen_core output is for x86 guests with pages of {PAGE_SIZE} bytes, this is one of {name} with "
            f"{dump.pages.page_size}",
            format="xen_core",
            feature=f"architecture {name}",
        )
    # The save stream of a 32-bit PV guest is read as auto-translated, yet has 32-bit contexts.
    kept = any(len(cpu.raw.get("xen", b"")) not in (0, layout.CONTEXT_SLOT) for cpu in dump.cpus)
    return 32 if name == "i386" and (paravirtual or kept) else 64


def _notes(dump: Dump, count: int, *, paravirtual: bool) -> list[Note]:
    magic = layout.XC_CORE_MAGIC if paravirtual else layout.XC_CORE_MAGIC_HVM
    unknown = layout.DumpcoreXenVersion(0, 0, b"", b"", b"", b"", b"", b"", b"", 0, PAGE_SIZE)
    return [
        Note("Xen", NT_XEN_DUMPCORE_NONE, b""),
        Note("Xen", NT_XEN_DUMPCORE_HEADER, pack(layout.DumpcoreHeader(magic, len(dump.cpus), count, PAGE_SIZE), "<")),
        Note("Xen", NT_XEN_DUMPCORE_XEN_VERSION, dump.blocks.get("xen_version") or pack(unknown, "<")),
        Note("Xen", NT_XEN_DUMPCORE_FORMAT_VERSION, layout.FORMAT_VERSION_CURRENT.to_bytes(8, "little")),
    ]


_FORM = {
    layout.SHSTRTAB: (layout.SHT_STRTAB, 0, 0),
    layout.NOTE_XEN: (layout.SHT_NOTE, 0, 0),
    layout.XEN_PRSTATUS: (layout.SHT_PROGBITS, 8, layout.CONTEXT_SLOT),
    layout.XEN_SHARED_INFO: (layout.SHT_PROGBITS, 8, PAGE_SIZE),
    layout.XEN_PAGES: (layout.SHT_PROGBITS, PAGE_SIZE, PAGE_SIZE),
    layout.XEN_P2M: (layout.SHT_PROGBITS, 8, 16),
    layout.XEN_PFN: (layout.SHT_PROGBITS, 8, 8),
}
"""sh_type, sh_addralign and sh_entsize of each section."""


def _section_headers(names: list[str], sizes: dict[str, int]) -> tuple[bytes, int]:
    """Make the table, in the order of the names, and say where the pages begin; the names themselves come last."""
    at = size_of(Elf64_Ehdr) + (len(names) + 1) * size_of(Elf64_Shdr)
    offsets = {}
    for name in [*names[1:], layout.SHSTRTAB]:
        if name == layout.XEN_PAGES:
            at = -(-at // PAGE_SIZE) * PAGE_SIZE
        offsets[name] = at
        at += sizes[name]
    table = pack(Elf64_Shdr(*(0,) * 10), "<")
    string = 1
    for name in names:
        kind, align, entry = _FORM[name]
        table += pack(Elf64_Shdr(string, kind, 0, 0, offsets[name], sizes[name], 0, 0, align, entry), "<")
        string += len(name) + 1
    return table, offsets[layout.XEN_PAGES]


def _file_header(machine: int, sections: int) -> bytes:
    header = Elf64_Ehdr(
        e_ident=(ELF_MAGIC + bytes([2, 1, 1, 0, layout.EI_ABIVERSION])).ljust(16, b"\0"),
        e_type=ET_CORE,
        e_machine=machine,
        e_version=1,
        e_entry=0,
        e_phoff=0,
        e_shoff=size_of(Elf64_Ehdr),
        e_flags=0,
        e_ehsize=size_of(Elf64_Ehdr),
        e_phentsize=56,
        e_phnum=0,
        e_shentsize=size_of(Elf64_Shdr),
        e_shnum=sections,
        e_shstrndx=1,
    )
    return pack(header, "<")
