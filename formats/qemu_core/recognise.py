"""Tells the core of a QEMU process from other ELF files: all of them are asked, so this does without what reads one."""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

from dumpxlate.elf.container import ELF_MAGIC, ET_CORE, PT_NOTE, read_elf
from dumpxlate.elf.notes import NT_FILE, NT_PRPSINFO, parse_notes
from dumpxlate.errors import FormatError

if TYPE_CHECKING:
    from dumpxlate.elf.container import ElfFile
    from dumpxlate.io.source import Source

__all__ = ["core_notes", "is_qemu", "process_names", "qemu_program"]

_NOTES_LIMIT = 64 << 20
_FIRST_NOTES = 64
"""Notes among which the process is named: kernels do so behind the first thread's registers, gdb before them."""
_PRPSINFO = {32: (28, 44), 64: (40, 56)}


def qemu_program(source: Source) -> str | None:
    """Name the program if a file is the core of a QEMU process; reads headers and the first notes."""
    if source.size < 20 or bytes(source.view(0, 4)) != ELF_MAGIC or ET_CORE not in source.view(16, 2).tolist():
        return None
    try:
        file = read_elf(source)
        found, _ = core_notes(source, file, limit=_FIRST_NOTES)
        program, _ = process_names(found.get(NT_PRPSINFO, b""), file.bits)
        if is_qemu(program):
            return program
        if NT_FILE not in found:
            return None
        from dumpxlate.formats.qemu_core.notes import program_name

        return program_name(found, file)
    except (FormatError, struct.error):
        return None


def is_qemu(name: str) -> bool:
    """Tell whether a program is called as QEMU's are."""
    return bool(re.fullmatch(r"qemu-system-.*|qemu-kvm|kvm|qemu-syst.*", name))


def core_notes(source: Source, file: ElfFile, *, limit: int) -> tuple[dict[int, bytes], list[str]]:
    """Read the notes that speak of the process: the first of each type, and what is odd about them.

    Args:
        source: the core.
        file: its headers.
        limit: how many notes to look at, in each segment.
    """
    found: dict[int, bytes] = {}
    remarks = []
    segments = file.segments.where(file.segments.type == PT_NOTE)
    for at, size in zip(segments.offset.tolist(), segments.filesz.tolist(), strict=True):
        if not 0 <= at < source.size or size < 0:
            remarks.append("notes lie outside the file: it is truncated")
            continue
        if size > source.size - at:
            remarks.append("notes end outside the file: it is truncated")
        parsed = parse_notes(source.view(at, min(size, source.size - at, _NOTES_LIMIT)), file.endian, limit=limit)
        for note in parsed.notes:
            if note.name == "CORE":
                found.setdefault(note.type, bytes(note.desc))
    return found, remarks


def process_names(desc: bytes, bits: int) -> tuple[str, str]:
    """Cut the name and the arguments out of an NT_PRPSINFO."""
    name, arguments = _PRPSINFO[bits]
    parts = (desc[name : name + 16], desc[arguments : arguments + 80])
    first, second = (part.partition(b"\0")[0].decode("latin-1") for part in parts)
    return first, second
