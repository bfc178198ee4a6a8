"""The core of a process: who it was, what it had mapped, and its memory by host address.

::

    NT_PRPSINFO  pr_fname[16] at 40 (28 in 32-bit cores), pr_psargs[80] behind it
    NT_AUXV      pairs of words (type, value): AT_PHDR 3, AT_ENTRY 9
    NT_FILE      words: count, page size; count times (start, stop, offset in pages); then the names, each with a NUL

Sources: linux fs/binfmt_elf.c, include/uapi/linux/auxvec.h, elfcore.h; gdb's linux-tdep.c for cores made by gcore.
"""

from __future__ import annotations

import re
import struct
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.elf.container import ELF_MAGIC, ET_CORE, PT_NOTE, elf_head, read_elf
from dumpxlate.elf.notes import MAX_NOTES, NT_AUXV, NT_FILE, NT_PRPSINFO, parse_notes
from dumpxlate.elf.sections import build_id_of_notes
from dumpxlate.errors import CorruptDumpError, FormatError
from dumpxlate.extents import first_wins, merge

if TYPE_CHECKING:
    from dumpxlate.arrays import Int64s
    from dumpxlate.elf.container import ElfFile
    from dumpxlate.io.source import Source
    from dumpxlate.structs import Endian

__all__ = ["Mapping", "Process", "ProcessMemory", "Stretches", "qemu_program", "read_process", "without_holes"]

AT_PHDR, AT_PHENT, AT_PHNUM, AT_ENTRY = 3, 4, 5, 9

_NOTES_LIMIT = 64 << 20
_FIRST_NOTES = 64
"""Notes among which the process is named: kernels do so behind the first thread's registers, gdb before them."""
_PROGRAM_HEADERS = 64
_FILES_LIMIT = 1 << 18
_PIECES_LIMIT = 1 << 24
_ADDRESS_LIMIT = 1 << 62
_NAMES = re.compile(r"qemu-system-.*|qemu-kvm|kvm|qemu-syst.*")
_PRPSINFO = {32: (28, 44), 64: (40, 56)}


@dataclass(frozen=True, slots=True)
class Mapping:
    """A file that the process had mapped: host addresses, and its name."""

    start: int
    stop: int
    name: str


@dataclass(frozen=True, slots=True)
class Stretches:
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
        size = np.clip(source.size - loads.offset, 0, np.clip(loads.filesz, 0, loads.memsz))
        size[loads.offset < 0] = 0
        self.lost = int((np.clip(loads.filesz, 0, None) - size).sum())
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

    def _build_id(self) -> str | None:
        headers = self.auxv.get(AT_PHDR)
        if headers is None:
            return None
        base = headers & ~0xFFF
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


def qemu_program(source: Source) -> str | None:
    """Name the program if a file is the core of a QEMU process; reads headers and the first notes."""
    if source.size < 20 or bytes(source.view(0, 4)) != ELF_MAGIC or ET_CORE not in source.view(16, 2).tolist():
        return None
    try:
        process = read_process(source, notes=_FIRST_NOTES)
    except (FormatError, struct.error):
        return None
    if _NAMES.fullmatch(process.program):
        return process.program
    names = (mapping.name.rpartition("/")[2].removesuffix(" (deleted)") for mapping in process.files)
    return next((name for name in names if _NAMES.fullmatch(name)), None) if process.program else None


def read_process(source: Source, *, notes: int = MAX_NOTES) -> Process:
    """Read the headers and the notes of a core.

    Args:
        source: the core.
        notes: how many to look at.

    Raises:
        CorruptDumpError: the headers contradict the file.
    """
    file = read_elf(source)
    found: dict[int, bytes] = {}
    remarks = []
    segments = file.segments.where(file.segments.type == PT_NOTE)
    for at, size in zip(segments.offset.tolist(), segments.filesz.tolist(), strict=True):
        if not 0 <= at < source.size or size < 0:
            remarks.append("notes lie outside the file: it is truncated")
            continue
        parsed = parse_notes(source.view(at, min(size, source.size - at, _NOTES_LIMIT)), file.endian, limit=notes)
        for note in parsed.notes:
            if note.name == "CORE":
                found.setdefault(note.type, note.desc)
    program, arguments = _names(found.get(NT_PRPSINFO, b""), file.bits)
    return Process(
        program=program,
        arguments=arguments,
        auxv=_auxv(found.get(NT_AUXV, b""), file),
        files=_files(found.get(NT_FILE, b""), file),
        memory=ProcessMemory(source, file),
        file=file,
        remarks=tuple(remarks),
    )


def _names(desc: bytes, bits: int) -> tuple[str, str]:
    """Cut the name and the arguments out of an NT_PRPSINFO."""
    name, arguments = _PRPSINFO[bits]
    parts = (desc[name : name + 16], desc[arguments : arguments + 80])
    first, second = (part.partition(b"\0")[0].decode("latin-1") for part in parts)
    return first, second


def _auxv(desc: bytes, file: ElfFile) -> dict[int, int]:
    word = "Q" if file.bits == 64 else "I"
    count = len(desc) // struct.calcsize(word)
    words = struct.unpack_from(f"{file.endian}{count}{word}", desc)
    return dict(zip(words[::2], words[1::2], strict=False))


def _files(desc: bytes, file: ElfFile) -> tuple[Mapping, ...]:
    """Read NT_FILE, as far as it makes sense."""
    size = file.bits // 8
    order = f"{file.endian}u{size}"
    if len(desc) < 2 * size:
        return ()
    count = int(np.frombuffer(desc, order, 1)[0])
    if count > _FILES_LIMIT or (2 + 3 * count) * size > len(desc):
        return ()
    rows = np.frombuffer(desc, order, 3 * count, 2 * size).reshape(-1, 3).tolist()
    names = desc[(2 + 3 * count) * size :].split(b"\0")
    return tuple(
        Mapping(start, stop, name.decode("utf-8", "replace"))
        for (start, stop, _), name in zip(rows, names, strict=False)
    )


def _segment(row: bytes, bits: int, endian: Endian) -> tuple[int, int, int]:
    """Type, address and size of a program header."""
    if bits == 64:
        kind, _, _, vaddr, _, size = struct.unpack_from(endian + "IIQQQQ", row)
    else:
        kind, _, vaddr, _, size = struct.unpack_from(endian + "IIIII", row)
    return kind, vaddr, size
