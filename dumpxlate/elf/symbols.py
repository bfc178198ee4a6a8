"""Addresses of symbols by name: from an ELF file that has a symbol table (vmlinux, xen-syms), or a System.map.

Nothing but the names asked for is looked up, so the size of the kernel hardly matters: the first eight bytes of all
names are brought together once, and compared as numbers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from dumpxlate.elf.container import ELF_MAGIC, read_elf
from dumpxlate.elf.late import whole
from dumpxlate.elf.layout import Elf32_Sym, Elf64_Sym
from dumpxlate.errors import CorruptDumpError, UnknownFormatError
from dumpxlate.io.source import open_source
from dumpxlate.structs import size_of, table

if TYPE_CHECKING:
    import os
    from typing import Any

    from numpy.typing import NDArray

    from dumpxlate.arrays import Int64s, UInt64s
    from dumpxlate.elf.container import ElfFile, Section
    from dumpxlate.io.source import Source

__all__ = ["Symbols", "elf_symbols", "read_symbols"]

_SHN_UNDEF = 0
_GLOBAL = 1
_MAP_LINE = re.compile(rb"(0x)?[0-9A-Fa-f]{8,16} [A-Za-z?] \S+")
_PEEK = 4096
_WORD = 8


class Symbols(Protocol):
    """Where symbols are."""

    def address(self, name: str) -> int | None:
        """Give the virtual address of a symbol; None where there is none of that name, of several the global one."""
        ...


@dataclass(frozen=True)
class _ElfSymbols:
    """A symbol table and its names, eight zeros behind them."""

    rows: NDArray[Any]
    names: bytes

    def address(self, name: str) -> int | None:
        """Give the virtual address of a symbol."""
        found = self.rows[self._called(name.encode() + b"\0")]
        found = found[found["st_shndx"] != _SHN_UNDEF]
        return int(found["st_value"][np.argmax(found["st_info"] >> 4 == _GLOBAL)]) if len(found) else None

    def _called(self, name: bytes) -> list[int]:
        """Give the rows of symbols of a name: those whose names begin and end alike are looked at."""
        words, begins = self._words, name[:_WORD]
        same = self._first & np.uint64((1 << 8 * len(begins)) - 1) == np.uint64(int.from_bytes(begins, "little"))
        rows = np.flatnonzero(same)
        if len(name) > _WORD:
            last = np.minimum(self._name[rows] + len(name) - _WORD, len(words) - 1)
            rows = rows[words[last] == int.from_bytes(name[-_WORD:], "little")]
        return [row for row in rows.tolist() if self.names.startswith(name, self._name[row])]

    @cached_property
    def _words(self) -> UInt64s:
        """The eight bytes at each place of the names."""
        return np.ndarray(len(self.names) - _WORD + 1, "<u8", self.names, strides=(1,))

    @cached_property
    def _name(self) -> Int64s:
        """Where the name of each symbol is."""
        starts: Int64s = np.minimum(self.rows["st_name"], len(self._words) - 1).astype(np.int64)
        return starts

    @cached_property
    def _first(self) -> UInt64s:
        """The first eight bytes of each name, and of what stands behind a short one."""
        return self._words[self._name]


class _MapSymbols(NamedTuple):
    """The text of a System.map: address, type and name a line."""

    text: bytes

    def address(self, name: str) -> int | None:
        """Give the virtual address of a symbol."""
        line = re.compile(
            rb"^(?:0x)?([0-9A-Fa-f]{8,16}) ([A-Za-z?]) " + re.escape(name.encode()) + rb"\r?$", re.MULTILINE
        )
        found = line.findall(self.text)
        best = next((row for row in found if row[1].isupper()), found[0] if found else None)
        return int(best[0], 16) if best else None


def read_symbols(path: str | os.PathLike[str]) -> Symbols:
    """Read where symbols are.

    Args:
        path: a vmlinux or xen-syms with its symbol table, or a System.map.

    Raises:
        UnknownFormatError: it is neither.
        CorruptDumpError: its headers contradict the file.
        OSError: it cannot be read.
    """
    with open_source(path) as source:
        if bytes(source.view(0, min(source.size, len(ELF_MAGIC)))) == ELF_MAGIC:
            return elf_symbols(source)
        first = bytes(source.view(0, min(source.size, _PEEK))).split(b"\n", 1)[0].rstrip(b"\r")
        if _MAP_LINE.fullmatch(first):
            return _MapSymbols(bytes(source.view()))
        raise UnknownFormatError("neither an ELF file with symbols nor a System.map", path=source.name)


def elf_symbols(source: Source, file: ElfFile | None = None) -> Symbols:
    """Read the symbol table of an ELF file.

    Args:
        source: the file.
        file: its headers, where somebody has read them.

    Raises:
        UnknownFormatError: it has none.
        CorruptDumpError: its headers contradict the file.
    """
    file = file or read_elf(source)
    symbols, strings = file.section(".symtab"), file.section(".strtab")
    if symbols is None or strings is None:
        raise UnknownFormatError(
            "an ELF file without a symbol table: a stripped one, expected vmlinux or xen-syms", path=source.name
        )
    cls = Elf64_Sym if file.bits == 64 else Elf32_Sym
    count = _inside(source, symbols).size // size_of(cls)
    names = _inside(source, strings)
    body = memoryview(whole(source, symbols.offset, symbols.size))
    return _ElfSymbols(table(cls, body, 0, count, file.endian), whole(source, names.offset, names.size) + bytes(_WORD))


def _inside(source: Source, section: Section) -> Section:
    """Check that a section is in the file."""
    if section.offset + section.size > source.size:
        raise CorruptDumpError(
            f"{section.size:,} bytes, the file ends at {source.size:#x}",
            path=source.name,
            offset=section.offset,
            what=section.name,
        )
    return section
