"""Who the process was whose core this is, as its notes say.

::

    NT_PRPSINFO  pr_fname[16] at 40 (28 in 32-bit cores), pr_psargs[80] behind it
    NT_AUXV      pairs of words (type, value): AT_PHDR 3, AT_ENTRY 9
    NT_FILE      words: count, page size; count times (start, stop, offset in pages); then the names, each with a NUL

Sources: linux fs/binfmt_elf.c, include/uapi/linux/auxvec.h, elfcore.h; gdb's linux-tdep.c for cores made by gcore.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dumpxlate.elf.notes import MAX_NOTES, NT_AUXV, NT_FILE, NT_PRPSINFO
from dumpxlate.formats.qemu_core.recognise import core_notes, is_qemu, process_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dumpxlate.elf.container import ElfFile
    from dumpxlate.io.source import Source

__all__ = ["Mapping", "ProcessNotes", "program_files", "program_name", "read_notes"]

_FILES_LIMIT = 1 << 18


class Mapping(NamedTuple):
    """A file that the process had mapped: host addresses, and its name."""

    start: int
    stop: int
    name: str


class ProcessNotes(NamedTuple):
    """What the notes of a core say of the process.

    Attributes:
        program: its name; that of its file where NT_PRPSINFO is lost.
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


def program_name(found: dict[int, bytes], file: ElfFile) -> str | None:
    """Name the program by what it had mapped; None if that is not QEMU."""
    mapped = program_files(_files(found.get(NT_FILE, b""), file))
    return _base_name(mapped[0]) if mapped else None


def program_files(files: Sequence[Mapping]) -> tuple[Mapping, ...]:
    """Give the mappings of the program itself, as far as its name tells: an upgrade may have deleted the file."""
    named = [each for each in files if is_qemu(_base_name(each))]
    return tuple(each for each in named if each.name == named[0].name)


def _base_name(mapping: Mapping) -> str:
    return mapping.name.rpartition("/")[2].removesuffix(" (deleted)")


def read_notes(source: Source, file: ElfFile) -> ProcessNotes:
    """Read the notes of a core, whose headers are given."""
    found, remarks = core_notes(source, file, limit=MAX_NOTES)
    program, arguments = process_names(found.get(NT_PRPSINFO, b""), file.bits)
    files = _files(found.get(NT_FILE, b""), file)
    return ProcessNotes(
        program or next(map(_base_name, program_files(files)), ""),
        arguments,
        auxv=_auxv(found.get(NT_AUXV, b""), file),
        files=files,
        remarks=tuple(remarks),
    )


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
