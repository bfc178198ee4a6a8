"""The ELF container: header, program headers as arrays, sections, and the same to bytes.

Field names are those of elf.h (System V ABI; the layouts stand in glibc's and Linux's elf.h). Program headers are
read as one record array, since a fragmented guest has tens of thousands of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from dumpxlate.elf.layout import Elf32_Ehdr, Elf32_Phdr, Elf32_Shdr, Elf64_Ehdr, Elf64_Phdr, Elf64_Shdr
from dumpxlate.errors import CorruptDumpError, TruncatedDumpError, UnsupportedFeatureError
from dumpxlate.structs import Endian, dtype_of, pack, parse, size_of

if TYPE_CHECKING:
    from dumpxlate.arrays import Bools, Int64s
    from dumpxlate.io.source import Source

__all__ = [
    "ELF_MAGIC",
    "ET_CORE",
    "PN_XNUM",
    "PT_LOAD",
    "PT_NOTE",
    "SHN_XINDEX",
    "ElfFile",
    "Section",
    "Segments",
    "elf_head",
    "machine_name",
    "program_headers",
    "read_elf",
]

ELF_MAGIC = b"\x7fELF"
ET_CORE = 4
PT_LOAD = 1
PT_NOTE = 4
PN_XNUM = 0xFFFF
SHN_XINDEX = 0xFFFF
_SECTION_LIMIT = 1 << 16
_STRINGS_LIMIT = 1 << 20
_NAME_LIMIT = 255
_MACHINES = {
    3: "EM_386",
    20: "EM_PPC",
    21: "EM_PPC64",
    22: "EM_S390",
    40: "EM_ARM",
    62: "EM_X86_64",
    183: "EM_AARCH64",
    243: "EM_RISCV",
    258: "EM_LOONGARCH",
}
"""Names of the machines that dumps are usually of; pyelftools, which knows the others, takes longer to import than a
dump to open."""


_EHDR: dict[int, type[Elf32_Ehdr | Elf64_Ehdr]] = {32: Elf32_Ehdr, 64: Elf64_Ehdr}
_PHDR: dict[int, type[Elf32_Phdr | Elf64_Phdr]] = {32: Elf32_Phdr, 64: Elf64_Phdr}
_SHDR: dict[int, type[Elf32_Shdr | Elf64_Shdr]] = {32: Elf32_Shdr, 64: Elf64_Shdr}


@dataclass(frozen=True, slots=True)
class Segments:
    """Program headers as parallel int64 arrays, in file order, shape (n,).

    An address of all ones, which says "unknown", is -1, and so is the upper half of a 64-bit address space negative.
    """

    type: Int64s
    flags: Int64s
    offset: Int64s
    vaddr: Int64s
    paddr: Int64s
    filesz: Int64s
    memsz: Int64s

    @classmethod
    def make(
        cls, paddr: Int64s, memsz: Int64s, *, filesz: Int64s, offset: Int64s, vaddr: Int64s | None = None
    ) -> Segments:
        """Make PT_LOAD segments; virtual addresses equal physical ones where none are given, as QEMU has it."""
        return cls(
            np.full(len(paddr), PT_LOAD),
            np.full(len(paddr), 7),
            offset,
            paddr if vaddr is None else vaddr,
            paddr,
            filesz,
            memsz,
        )

    def __len__(self) -> int:
        return len(self.type)

    def where(self, mask: Bools | Int64s) -> Segments:
        """Keep the segments that a mask or an index selects."""
        return Segments(*(getattr(self, name)[mask] for name in self.__slots__))

    @property
    def loads(self) -> Segments:
        """The PT_LOAD segments."""
        wanted = self.type == PT_LOAD
        return self if wanted.all() else self.where(wanted)


class Section(NamedTuple):
    """One section header, with its name looked up."""

    name: str
    type: int
    offset: int
    size: int
    entry_size: int
    info: int
    flags: int = 0


class ElfFile(NamedTuple):
    """What the headers of an ELF file say.

    Attributes:
        bits: class, 32 or 64.
        endian: byte order of all fields.
        header: the file header.
        segments: program headers; read even where e_ehsize or e_phoff are odd.
        sections: section headers, empty where there is no usable table.
    """

    bits: Literal[32, 64]
    endian: Endian
    header: Elf32_Ehdr | Elf64_Ehdr
    segments: Segments
    sections: tuple[Section, ...]

    def section(self, name: str) -> Section | None:
        """Find a section by name."""
        return next((section for section in self.sections if section.name == name), None)


def machine_name(machine: int) -> str:
    """Name an e_machine number."""
    if machine in _MACHINES:
        return _MACHINES[machine]
    from elftools.elf.enums import ENUM_E_MACHINE

    return next((name for name, number in ENUM_E_MACHINE.items() if number == machine), f"machine {machine}")


def elf_head(body: memoryview) -> tuple[Literal[32, 64], Endian, Elf32_Ehdr | Elf64_Ehdr]:
    """Read the file header.

    Raises:
        CorruptDumpError: it is no ELF file, or class or byte order are none there is.
        TruncatedDumpError: the file ends inside the header.
    """
    magic = bytes(body[: len(ELF_MAGIC)])
    if not ELF_MAGIC.startswith(magic):
        raise CorruptDumpError(
            f"begins with {magic.hex(' ')}: expected {ELF_MAGIC.hex(' ')}", offset=0, what="ELF identification"
        )
    bits, order = (body[4], body[5]) if len(body) > 5 else (2, 1)
    if bits not in (1, 2) or order not in (1, 2):
        raise CorruptDumpError(
            f"class {bits}, byte order {order}: found neither 1 nor 2", offset=4, what="ELF identification"
        )
    width: Literal[32, 64] = 64 if bits == 2 else 32
    endian: Endian = "<" if order == 1 else ">"
    return width, endian, parse(_EHDR[width], body, 0, endian, what="ELF header")


def read_elf(source: Source) -> ElfFile:
    """Read the headers of an ELF file; contents of segments and sections stay untouched.

    e_ehsize is ignored: QEMU since 7.2 stores the size of a pointer there.

    Raises:
        CorruptDumpError: a header contradicts itself or the file.
    """
    bits, endian, header = elf_head(source.view(0, min(source.size, size_of(Elf64_Ehdr))))
    first = _section_zero(source, bits, endian, header)
    count = header.e_phnum
    if count == PN_XNUM:
        if first is None:
            raise CorruptDumpError(
                "e_phnum is PN_XNUM, but section header 0 with the count is missing",
                offset=44 if bits == 32 else 56,
                what="ELF header",
            )
        count = first.sh_info
    return ElfFile(
        bits,
        endian,
        header,
        _segments(source, bits, endian, header, count),
        _sections(source, bits, endian, header, first),
    )


def _section_zero(
    source: Source, bits: int, endian: Endian, header: Elf32_Ehdr | Elf64_Ehdr
) -> Elf32_Shdr | Elf64_Shdr | None:
    at, cls = header.e_shoff, _SHDR[bits]
    if not at or at + size_of(cls) > source.size:
        return None
    return parse(cls, source.view(at, size_of(cls)), 0, endian)


def _segments(source: Source, bits: int, endian: Endian, header: Elf32_Ehdr | Elf64_Ehdr, count: int) -> Segments:
    size, stride = size_of(_PHDR[bits]), header.e_phentsize
    if count and stride < size:
        raise CorruptDumpError(
            f"e_phentsize {stride}: expected {size}", offset=42 if bits == 32 else 54, what="ELF header"
        )
    # A larger entry is legal: step by it.
    length = (count - 1) * stride + size if count else 0
    at = header.e_phoff if count else 0
    if at + length > source.size:
        raise TruncatedDumpError("program headers", offset=at, wanted=length, available=source.size - at)
    body = source.view(at, length)
    rows = np.ndarray(count, dtype_of(_PHDR[bits], endian), body, 0, (stride,) if count else None)
    columns = [rows[name].astype(np.int64) for name in _PHDR_COLUMNS]
    if bits == 32:
        for address in columns[3:5]:
            address[address == 0xFFFFFFFF] = -1
    return Segments(*columns)


_PHDR_COLUMNS = ("p_type", "p_flags", "p_offset", "p_vaddr", "p_paddr", "p_filesz", "p_memsz")


def _sections(
    source: Source,
    bits: int,
    endian: Endian,
    header: Elf32_Ehdr | Elf64_Ehdr,
    first: Elf32_Shdr | Elf64_Shdr | None,
) -> tuple[Section, ...]:
    """Read the section table; a broken one counts as none: QEMU writes garbage there for big-endian guests."""
    cls = _SHDR[bits]
    if first is None or header.e_shentsize != size_of(cls):
        return ()
    count = min(header.e_shnum or first.sh_size, _SECTION_LIMIT)
    names = first.sh_link if header.e_shstrndx == SHN_XINDEX else header.e_shstrndx
    if names >= count or header.e_shoff + count * size_of(cls) > source.size:
        return ()
    body = source.view(header.e_shoff, count * size_of(cls))
    rows = [parse(cls, body, at * size_of(cls), endian) for at in range(count)]
    at = min(rows[names].sh_offset, source.size)
    strings = bytes(source.view(at, min(rows[names].sh_size, source.size - at, _STRINGS_LIMIT)))
    return tuple(
        Section(
            strings[row.sh_name : row.sh_name + _NAME_LIMIT].split(b"\0", 1)[0].decode("latin-1"),
            row.sh_type,
            row.sh_offset,
            row.sh_size,
            row.sh_entsize,
            row.sh_info,
            row.sh_flags,
        )
        for row in rows
    )


def program_headers(
    *, bits: Literal[32, 64], endian: Endian, machine: int, segments: Segments, flags: int = 0
) -> bytes:
    """Write a core file's header and program headers: header at 0, program headers right behind it.

    makedumpfile ignores e_phoff and expects them there. From 65535 segments on, section header 0 follows them and
    holds the count (PN_XNUM); otherwise no section header is written.

    Raises:
        UnsupportedFeatureError: an address or a size does not fit the class.
    """
    count = len(segments)
    extended = count >= PN_XNUM
    ehsize, phsize, shsize = (size_of(of[bits]) for of in (_EHDR, _PHDR, _SHDR))
    ident = ELF_MAGIC + bytes([2 if bits == 64 else 1, 1 if endian == "<" else 2, 1])
    header = _EHDR[bits](
        e_ident=ident.ljust(16, b"\0"),
        e_type=ET_CORE,
        e_machine=machine,
        e_version=1,
        e_entry=0,
        e_phoff=ehsize,
        e_shoff=ehsize + count * phsize if extended else 0,
        e_flags=flags,
        e_ehsize=ehsize,
        e_phentsize=phsize,
        e_phnum=min(count, PN_XNUM),
        e_shentsize=shsize if extended else 0,
        e_shnum=1 if extended else 0,
        e_shstrndx=0,
    )
    out = pack(header, endian) + _pack_segments(bits, endian, segments)
    if extended:
        zero = _SHDR[bits](0, 0, 0, 0, 0, 1, 0, count, 0, 0)
        out += pack(zero, endian)
    return out


def _pack_segments(bits: Literal[32, 64], endian: Endian, segments: Segments) -> bytes:
    rows = np.zeros(len(segments), dtype_of(_PHDR[bits], endian))
    for name, values in zip(_PHDR_COLUMNS, (getattr(segments, slot) for slot in Segments.__slots__), strict=True):
        if bits == 32 and name != "p_vaddr" and len(values) and int(values.max()) > 0xFFFFFFFF:
            raise UnsupportedFeatureError(
                f"{name} {int(values.max()):#x} does not fit a 32-bit ELF file",
                format="elf",
                feature="ELFCLASS32",
            )
        rows[name] = values.astype(np.uint64) & np.uint64(0xFFFFFFFF if name in _WORDS or bits == 32 else _ALL)
    return rows.tobytes()


_WORDS = ("p_type", "p_flags")
_ALL = 0xFFFFFFFFFFFFFFFF
