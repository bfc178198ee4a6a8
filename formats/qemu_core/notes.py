"""Who the process was whose core this is, as its notes say: enough to recognise QEMU's.

::

    NT_PRPSINFO  pr_fname[16] at 40 (28 in 32-bit cores), pr_psargs[80] behind it
    NT_AUXV      pairs of words (type, value): AT_PHDR 3, AT_ENTRY 9
    NT_FILE      words: count, page size; count times (start, stop, offset in pages); then the names, each with a NUL

Every ELF file is asked whether it is such a core, so this module does without what only reads one.

Sources: linux fs/binfmt_elf.c, include/uapi/linux/auxvec.h, elfcore.h; gdb's linux-tdep.c for cores made by gcore.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.elf.container import ELF_MAGIC, ET_CORE, PT_NOTE, read_elf
from dumpxlate.elf.notes import MAX_NOTES, NT_AUXV, NT_FILE, NT_PRPSINFO, parse_notes
from dumpxlate.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dumpxlate.elf.container import ElfFile
    from dumpxlate.io.source import Source

__all__ = ["Mapping", "ProcessNotes", "program_files", "qemu_program", "read_notes"]

_NOTES_LIMIT = 64 << 20
_FIRST_NOTES = 64
"""Notes among which the process is named: kernels do so behind the first thread's registers, gdb before them."""
_FILES_LIMIT = 1 << 18
_NAMES = re.compile(r"qemu-system-.*|qemu-kvm|kvm|qemu-syst.*")
_PRPSINFO = {32: (28, 44), 64: (40, 56)}


@dataclass(frozen=True, slots=True)
class Mapping:
    """A file that the process had mapped: host addresses, and its name."""

    start: int
    stop: int
    name: str


@dataclass(frozen=True, slots=True)
class ProcessNotes:
    """What the notes of a core say of the process.

    Attributes:
        program: its name.
        arguments: the first 80 bytes of its command line.
        auxv: the auxiliary vector.
        files: what it had mapped, by address.
        remarks: what is odd about the notes.
    """

    program: str
    arguments: str
    auxv: dict[int, int]
    files: tuple[Mapping, ...]
    remarks: tuple[str, ...]


def qemu_program(source: Source) -> str | None:
    """Name the program if a file is the core of a QEMU process; reads headers and the first notes."""
    if source.size < 20 or bytes(source.view(0, 4)) != ELF_MAGIC or ET_CORE not in source.view(16, 2).tolist():
        return None
    try:
        process = read_notes(source, read_elf(source), limit=_FIRST_NOTES)
    except (FormatError, struct.error):
        return None
    if _NAMES.fullmatch(process.program):
        return process.program
    mapped = program_files(process.files) if process.program else ()
    return _base_name(mapped[0]) if mapped else None


def program_files(files: Sequence[Mapping]) -> tuple[Mapping, ...]:
    """Give the mappings of the program itself, as far as its name tells: an upgrade may have deleted the file."""
    named = [each for each in files if _NAMES.fullmatch(_base_name(each))]
    return tuple(each for each in named if each.name == named[0].name)


def _base_name(mapping: Mapping) -> str:
    return mapping.name.rpartition("/")[2].removesuffix(" (deleted)")


def read_notes(source: Source, file: ElfFile, *, limit: int = MAX_NOTES) -> ProcessNotes:
    """Read the notes of a core.

    Args:
        source: the core.
        file: its headers.
        limit: how many notes to look at.
    """
    found: dict[int, bytes] = {}
    remarks = []
    segments = file.segments.where(file.segments.type == PT_NOTE)
    for at, size in zip(segments.offset.tolist(), segments.filesz.tolist(), strict=True):
        if not 0 <= at < source.size or size < 0:
            remarks.append("notes lie outside the file: it is truncated")
            continue
        parsed = parse_notes(source.view(at, min(size, source.size - at, _NOTES_LIMIT)), file.endian, limit=limit)
        for note in parsed.notes:
            if note.name == "CORE":
                found.setdefault(note.type, note.desc)
    program, arguments = _names(found.get(NT_PRPSINFO, b""), file.bits)
    return ProcessNotes(
        program,
        arguments,
        auxv=_auxv(found.get(NT_AUXV, b""), file),
        files=_files(found.get(NT_FILE, b""), file),
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
