"""The core of a process: who it was, what it had mapped, and its memory by host address."""

from __future__ import annotations

import struct
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dumpxlate.elf.container import PT_NOTE, elf_head, read_elf
from dumpxlate.elf.sections import build_id_of_notes
from dumpxlate.errors import CorruptDumpError, FormatError
from dumpxlate.extents import first_wins, merge
from dumpxlate.formats.qemu_core.notes import program_files, read_notes

if TYPE_CHECKING:
    from dumpxlate.arrays import Int64s
    from dumpxlate.elf.container import ElfFile
    from dumpxlate.formats.qemu_core.notes import Mapping
    from dumpxlate.io.source import Source
    from dumpxlate.structs import Endian

__all__ = ["Process", "ProcessMemory", "Stretches", "read_process", "without_holes"]

AT_PHDR, AT_PHENT, AT_PHNUM, AT_ENTRY = 3, 4, 5, 9

_PROGRAM_HEADERS = 64
_PIECES_LIMIT = 1 << 24
_ADDRESS_LIMIT = 1 << 62


class Stretches(NamedTuple):
    """Pieces of memory of one process, each in one piece in the core, int64, shape (n,).

    Attributes:
        start: address that the pieces are looked for under (guest-physical).
        length: bytes.
        offset: in the file.
    """

    start: Int64s
    length: Int64s
    offset: Int64s


class ProcessMemory:
    """Memory of a process by host address.

    Args:
        source: the core.
        file: its headers.
    """

    def __init__(self, source: Source, file: ElfFile) -> None:
        loads = file.segments.loads
        sane = (loads.vaddr >= 0) & (loads.vaddr < _ADDRESS_LIMIT) & (loads.memsz > 0) & (loads.memsz < _ADDRESS_LIMIT)
        loads = loads.where(sane)
        promised = np.clip(loads.filesz, 0, loads.memsz)
        size = np.clip(source.size - loads.offset, 0, promised)
        size[loads.offset < 0] = 0
        self.lost = int((promised - size).sum())
        """Bytes that the headers promise beyond the end of the file."""
        held = size > 0
        self.start, self.length, self.offset = merge(*first_wins(loads.vaddr[held], size[held], loads.offset[held]))
        """Where the bytes are: ascending host addresses, disjoint; bytes; file offsets."""
        self.mapped = merge(*first_wins(loads.vaddr, loads.memsz, loads.vaddr))[:2]
        """What the process had mapped, with or without bytes: start and length."""
        self._source = source
        # Structures are read one by one, and a search in a list costs a tenth of one in an array.
        self._starts: list[int] = self.start.tolist()
        self._stops: list[int] = (self.start + self.length).tolist()
        self._offsets: list[int] = self.offset.tolist()

    def held(self, address: int) -> tuple[int, int] | None:
        """Give where the piece of memory begins and ends that an address lies in; None where the core has none."""
        index = bisect_right(self._starts, address) - 1
        return (self._starts[index], self._stops[index]) if index >= 0 and address < self._stops[index] else None

    def mapping(self, address: int) -> tuple[int, int] | None:
        """Give where the mapping begins and ends that an address lies in, with or without bytes."""
        start, size = self.mapped
        index = int(np.searchsorted(start, min(address, _ADDRESS_LIMIT), side="right")) - 1
        stop = int(start[index] + size[index]) if index >= 0 else 0
        return (int(start[index]), stop) if address < stop else None

    def read(self, address: int, length: int, what: str) -> bytes:
        """Read bytes.

        Raises:
            CorruptDumpError: some of them are not in the core; says that ``what`` should be there.
        """
        parts = []
        at, stop = address, address + length
        index = bisect_right(self._starts, at) - 1
        while at < stop:
            end = self._stops[index] if 0 <= index < len(self._starts) else -1
            if not 0 <= at < end or at < self._starts[index]:
                raise CorruptDumpError(f"host address {at:#x} is not in the core", what=what)
            take = min(end, stop) - at
            parts.append(self._source.view(self._offsets[index] + at - self._starts[index], take))
            at, index = at + take, index + 1
        return b"".join(parts)

    def stretches(self, guest: Int64s, length: Int64s, host: Int64s) -> Stretches:
        """Find where ranges of host memory lie in the core; what it lacks is left out.

        Args:
            guest: address that each range is known by, shape (n,).
            length: bytes of each, positive.
            host: host address of each.

        Raises:
            CorruptDumpError: the ranges lie in more pieces than those of any real process.
        """
        row, segment = _overlaps(host, host + length, self.start, self.start + self.length)
        low = np.maximum(host[row], self.start[segment])
        high = np.minimum((host + length)[row], (self.start + self.length)[segment])
        return Stretches(guest[row] + low - host[row], high - low, self.offset[segment] + low - self.start[segment])


def without_holes(held: Stretches, source: Source, page_size: int) -> Stretches:
    """Leave out what is known to be zero: holes of a sparse core.

    Pages are kept or left out as a whole; stretches whose pages do not lie at multiples of the page size in the file
    are kept.
    """
    start, length = source.data_runs()
    low, high = start // page_size * page_size, -(-(start + length) // page_size) * page_size
    low, length, _ = merge(*first_wins(low, high - low, low))
    aligned = (held.offset - held.start) % page_size == 0
    row, run = _overlaps(held.offset[aligned], (held.offset + held.length)[aligned], low, low + length)
    rows = np.flatnonzero(aligned)[row]
    first = np.maximum(held.offset[rows], low[run])
    last = np.minimum((held.offset + held.length)[rows], (low + length)[run])
    begin = np.concatenate((held.start[~aligned], held.start[rows] + first - held.offset[rows]))
    return Stretches(
        begin,
        np.concatenate((held.length[~aligned], last - first)),
        np.concatenate((held.offset[~aligned], first)),
    )


def _overlaps(low: Int64s, high: Int64s, start: Int64s, stop: Int64s) -> tuple[Int64s, Int64s]:
    """Pair ranges with those that they overlap of a second, ascending and disjoint set; gives the numbers of both.

    Raises:
        CorruptDumpError: there are more pairs than any real process has.
    """
    first = np.searchsorted(stop, low, side="right")
    count = np.maximum(np.searchsorted(start, high, side="left") - first, 0)
    total = int(count.sum())
    if total > _PIECES_LIMIT:
        raise CorruptDumpError(
            f"lies in {total:,} pieces from host address {int(low.min()):#x} on: expected {_PIECES_LIMIT:,} at most",
            what="guest memory",
        )
    row = np.repeat(np.arange(len(low)), count)
    return row, np.arange(total) - np.repeat(np.cumsum(count) - count, count) + first[row]


@dataclass(frozen=True)
class Process:
    """A process, as its core has it.

    Attributes:
        program: its name.
        arguments: the first 80 bytes of its command line.
        auxv: the auxiliary vector.
        files: what it had mapped, by address.
        memory: its memory.
        file: headers of the core.
        remarks: what is odd about the core.
    """

    program: str
    arguments: str
    auxv: dict[int, int]
    files: tuple[Mapping, ...]
    memory: ProcessMemory
    file: ElfFile
    remarks: tuple[str, ...] = ()

    @property
    def endian(self) -> Endian:
        """Byte order of the host."""
        return self.file.endian

    @property
    def pointer(self) -> int:
        """Bytes of a pointer."""
        return self.file.bits // 8

    def word(self, address: int, size: int, what: str) -> int:
        """Read a number.

        Raises:
            CorruptDumpError: it is not in the core.
        """
        order = "little" if self.endian == "<" else "big"
        return int.from_bytes(self.memory.read(address, size, what), order)  # type: ignore[arg-type]

    @cached_property
    def build_id(self) -> str | None:
        """Build id of the program; None where its first page is not in the core, or has none."""
        try:
            return self._build_id()
        except (FormatError, struct.error):
            return None

    @cached_property
    def program_files(self) -> tuple[Mapping, ...]:
        """Where the program's own file is mapped."""
        return program_files(self.files)

    def _first_page(self) -> int | None:
        """Give where the program's ELF header lies, with its program headers right behind it."""
        mapped, headers = self.program_files, self.auxv.get(AT_PHDR)
        if headers is not None and (not mapped or any(each.start <= headers < each.stop for each in mapped)):
            return headers & ~0xFFF
        return min((each.start for each in mapped), default=None)

    def _build_id(self) -> str | None:
        base = self._first_page()
        if base is None:
            return None
        head = self.memory.read(base, 64, "ELF header")
        _, endian, header = elf_head(memoryview(head))
        if header.e_phentsize < (56 if self.file.bits == 64 else 32):
            return None
        count = min(header.e_phnum, _PROGRAM_HEADERS)
        rows = self.memory.read(base + header.e_phoff, count * header.e_phentsize, "program headers")
        for at in range(0, len(rows), header.e_phentsize):
            kind, vaddr, size = _segment(rows[at : at + header.e_phentsize], self.file.bits, endian)
            if kind == PT_NOTE and size <= 1 << 16:
                # As linked; a program that is loaded where it was linked has its first page at its base, others at 0.
                where = vaddr if vaddr >= base else base + vaddr
                found = build_id_of_notes(self.memory.read(where, size, "notes"), endian)
                if found:
                    return found
        return None


def read_process(source: Source) -> Process:
    """Read the headers and the notes of a core.

    Raises:
        CorruptDumpError: the headers contradict the file.
    """
    file = read_elf(source)
    notes = read_notes(source, file)
    return Process(
        program=notes.program,
        arguments=notes.arguments,
        auxv=notes.auxv,
        files=notes.files,
        memory=ProcessMemory(source, file),
        file=file,
        remarks=notes.remarks,
    )


def _segment(row: bytes, bits: int, endian: Endian) -> tuple[int, int, int]:
    """Type, address and size of a program header."""
    if bits == 64:
        kind, _, _, vaddr, _, size = struct.unpack_from(endian + "IIQQQQ", row)
    else:
        kind, _, vaddr, _, size = struct.unpack_from(endian + "IIIII", row)
    return kind, vaddr, size
