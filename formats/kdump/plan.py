"""What stands before the pages of a kdump-compressed file: headers, notes, and where everything will lie."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dumpxlate.elf.notes import pack_notes
from dumpxlate.errors import UnsupportedFeatureError
from dumpxlate.formats.kdump.header import MAX_PFN
from dumpxlate.formats.kdump.layout import (
    DUMP_DH_COMPRESSED_INCOMPLETE,
    FLAG_OF_CODEC,
    KDUMP_SIGNATURE,
    LAST_VERSION,
    DiskDumpHeader32,
    DiskDumpHeader64,
    KdumpSubHeader32Packed,
    KdumpSubHeader64,
)
from dumpxlate.formats.kdump.table import ROW
from dumpxlate.guest_notes import notes_for
from dumpxlate.structs import pack, size_of
from dumpxlate.version import __version__

if TYPE_CHECKING:
    from dumpxlate.dump import Dump, Machine
    from dumpxlate.formats.kdump.layout import Header, SubHeader
    from dumpxlate.pages import CodecId
    from dumpxlate.structs import Endian

__all__ = ["Extent", "Plan", "make_plan"]

_WIDTH = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Extent:
    """Which pages go into a file.

    Attributes:
        max_mapnr: one past the last pfn of the dump.
        descriptors: pages in this file.
        part: first pfn, and one past the last, of a part of a split dump; None for a whole one.
    """

    max_mapnr: int
    descriptors: int
    part: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Plan:
    """Headers of a file to be, and what follows from them.

    Attributes:
        endian: byte order of the guest.
        header: the header.
        sub: the sub header.
        notes: what stands behind the sub header.
        descriptors: how many there will be.
        eraseinfo: what stands at the very end.
    """

    endian: Endian
    header: Header
    sub: SubHeader
    notes: bytes
    descriptors: int
    eraseinfo: bytes

    @property
    def bitmap_at(self) -> int:
        """Where the bitmaps begin."""
        return (1 + self.header.sub_hdr_size) * self.header.block_size

    @property
    def bitmap_bytes(self) -> int:
        """Length of each of the two bitmaps."""
        return self.header.bitmap_blocks // 2 * self.header.block_size

    @property
    def table_at(self) -> int:
        """Where the descriptors begin."""
        return self.bitmap_at + 2 * self.bitmap_bytes

    @property
    def data_at(self) -> int:
        """Where page data begin, with the page that all zero pages share."""
        return self.table_at + self.descriptors * ROW

    def head(self) -> bytes:
        """Give everything before the bitmaps."""
        size = self.header.block_size
        return pack(self.header, self.endian).ljust(size, b"\0") + (pack(self.sub, self.endian) + self.notes).ljust(
            self.bitmap_at - size, b"\0"
        )

    def finished(self, *, end: int, incomplete: bool) -> Plan:
        """Enter what is known when the pages are written: where they end, and whether some are missing."""
        status = self.header.status | (DUMP_DH_COMPRESSED_INCOMPLETE if incomplete else 0)
        at = end if self.eraseinfo else 0
        return replace(
            self,
            header=replace(self.header, status=status),
            sub=replace(self.sub, offset_eraseinfo=at, size_eraseinfo=len(self.eraseinfo)),
        )


def make_plan(dump: Dump, extent: Extent, codec: CodecId) -> Plan:
    """Make the headers of a dump.

    Raises:
        UnsupportedFeatureError: the dump has no RAM, or more than the format's readers take.
    """
    if not 0 < extent.max_mapnr <= MAX_PFN:
        raise UnsupportedFeatureError(
            f"RAM up to pfn {extent.max_mapnr:#x}, expected 1 to {MAX_PFN:#x}", format="kdump", feature="max_mapnr"
        )
    machine = dump.machine
    form, sub_form = _forms(machine)
    notes, vmcoreinfo_at, vmcoreinfo_size, eraseinfo = _notes(dump)
    notes_at = dump.pages.page_size + size_of(sub_form)
    sub: Any = _blank(sub_form) | {
        "phys_base": _phys_base(dump, machine.word_bits),
        "dump_level": _level(dump),
        "offset_note": notes_at,
        "size_note": len(notes),
        "offset_vmcoreinfo": notes_at + vmcoreinfo_at if vmcoreinfo_size else 0,
        "size_vmcoreinfo": vmcoreinfo_size,
        "max_mapnr_64": extent.max_mapnr,
    }
    if extent.part:
        start, stop = extent.part
        narrow = ~0 if machine.word_bits == 64 else _WIDTH
        sub |= {"split": 1, "start_pfn": start & narrow, "end_pfn": stop & narrow}
        sub |= {"start_pfn_64": start, "end_pfn_64": stop}
    header = _header(dump, form, extent, size_of(sub_form) + len(notes))
    header = replace(header, status=FLAG_OF_CODEC[codec] | (DUMP_DH_COMPRESSED_INCOMPLETE if dump.damage else 0))
    return Plan(machine.endian, header, sub_form(**sub), notes, extent.descriptors, eraseinfo)


def _forms(machine: Machine) -> tuple[type[Header], type[SubHeader]]:
    """Choose the layout by the guest's word.

    For all 32-bit machines it is the packed one, as QEMU does it: libkdumpfile 0.5.1 knows no other. On 32-bit
    Arm makedumpfile and crash have another one, but there they count pfns from phys_base as well, so that nothing
    written with physical pfns is for them.
    """
    if machine.word_bits == 64:
        return DiskDumpHeader64, KdumpSubHeader64
    return DiskDumpHeader32, KdumpSubHeader32Packed


def _blank(form: type[Any]) -> dict[str, Any]:
    """Give every field of a structure as zero."""
    return {name: b"" if name.startswith("pad") else 0 for name in form.__slots__}


def _header(dump: Dump, form: type[Header], extent: Extent, sub_bytes: int) -> Header:
    size = dump.pages.page_size
    texts = {name: text.encode("latin-1", "replace")[:64] for name, text in _utsname(dump).items()}
    seconds = dump.attributes.get("timestamp", 0) if dump.format == "kdump" else 0
    if not seconds and dump.vmcoreinfo:
        seconds = dump.vmcoreinfo.crash_time or 0
    fields: Any = _blank(form) | texts
    fields |= {
        "signature": KDUMP_SIGNATURE,
        "header_version": LAST_VERSION,
        "tv_sec": int(seconds) & _WIDTH,
        "block_size": size,
        "sub_hdr_size": -(-sub_bytes // size),
        "bitmap_blocks": 2 * -(-extent.max_mapnr // (8 * size)),
        "max_mapnr": min(extent.max_mapnr, _WIDTH),
        "nr_cpus": len(dump.cpus) or _number(dump, "nr_cpus") or 1,
        "current_cpu": _number(dump, "current_cpu"),
    }
    return form(**fields)


def _number(dump: Dump, name: str) -> int:
    """Give a number that a kdump-compressed source had in its header."""
    value = dump.attributes.get(name) if dump.format == "kdump" else None
    return value & _WIDTH if isinstance(value, int) else 0


def _utsname(dump: Dump) -> dict[str, str]:
    """Name the machine as its kernel would; drgn and libkdumpfile refuse a file where one of these texts is empty."""
    texts = {
        "sysname": "Linux",
        "nodename": "(none)",
        "release": dump.machine.release or "0.0.0",
        "version": "#1",
        "machine": _uname(dump.machine),
        "domainname": "(none)",
    }
    if dump.format == "kdump":
        own = ((name, dump.attributes.get(name)) for name in ("sysname", "nodename", "version", "domainname"))
        texts |= {name: str(text) for name, text in own if text}
        if dump.machine.arch.name.startswith("unknown"):
            texts["machine"] = str(dump.attributes.get("machine", ""))
    return texts


_UNAMES = {
    ("i386", "<"): "i686",
    ("arm", "<"): "armv7l",
    ("arm", ">"): "armv7b",
    ("aarch64", ">"): "aarch64_be",
    ("ppc64", "<"): "ppc64le",
}
"""What ``uname -m`` says where it is not the architecture's name."""


def _uname(machine: Machine) -> str:
    return _UNAMES.get((machine.arch.name, machine.endian), machine.arch.name)


def _notes(dump: Dump) -> tuple[bytes, int, int, bytes]:
    """Pack the notes; gives also where in them the text of VMCOREINFO is, its size, and what makedumpfile erased."""
    everything = notes_for(dump, f"dumpxlate {__version__}")
    notes = [note for note in everything if note.name != "ERASEINFO"]
    eraseinfo = b"".join(note.desc for note in everything if note.name == "ERASEINFO")
    packed = pack_notes(notes, dump.machine.endian)
    which = next((at for at, note in enumerate(notes) if note.name == "VMCOREINFO"), None)
    if which is None:
        return packed, 0, 0, eraseinfo
    before = len(pack_notes(notes[:which], dump.machine.endian))
    return packed, before + 24, len(notes[which].desc), eraseinfo  # 12 of numbers, 12 of "VMCOREINFO" padded


_FROM_LOWEST_RAM = ("arm", "aarch64")


def _phys_base(dump: Dump, word_bits: int) -> int:
    """Give what turns kernel addresses into physical ones: the kernel's own word, else what the source's header said.

    On Arm it is where RAM begins, which readers need and QEMU writes as well.
    """
    base = dump.vmcoreinfo.phys_base if dump.vmcoreinfo else None
    if base is None and dump.format == "kdump":
        base = int(str(dump.attributes.get("phys_base", "0")), 16)
    if not base and dump.machine.arch.name in _FROM_LOWEST_RAM:
        base = int(dump.pages.ram.select(0, 1)[0]) * dump.pages.page_size
    return (base or 0) & ((1 << word_bits) - 1)


def _level(dump: Dump) -> int:
    """Give the dump level: what the source's header said, and that zero pages share one block."""
    return _number(dump, "dump_level") | 1
