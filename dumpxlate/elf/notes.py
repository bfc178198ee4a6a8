r"""ELF notes to and from bytes.

A note is three u32 (size of the name with its NUL, size of the desc, type), the name and the desc, each padded to
four bytes, also in 64-bit files::

    +--------+--------+------+-----------------+--------------+
    | namesz | descsz | type | name \0 padding | desc padding |
    +--------+--------+------+-----------------+--------------+

VirtualBox alone pads to eight, and counts its names with the NUL or, in later releases, without. What a type means
depends on the name; the constants here are grouped by it.

Sources: the ELF gABI; Linux's include/uapi/linux/elf.h; QEMU's dump/dump.c; Xen's public/elfnote.h; VirtualBox's
DBGFCoreWrite.cpp.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dumpxlate.structs import Endian

__all__ = [
    "MAX_NOTES",
    "NT_ARM_SVE",
    "NT_ARM_VFP",
    "NT_AUXV",
    "NT_FILE",
    "NT_KDUMP_VMCOREINFO",
    "NT_PPC_SPE",
    "NT_PPC_VMX",
    "NT_PPC_VSX",
    "NT_PRFPREG",
    "NT_PRPSINFO",
    "NT_PRSTATUS",
    "NT_QEMU",
    "NT_TASKSTRUCT",
    "NT_VBOXCORE",
    "NT_VBOXCPU",
    "NT_VMCOREDD",
    "NT_XEN_CRASH_INFO",
    "NT_XEN_CRASH_REGS",
    "NT_XEN_DUMPCORE_FORMAT_VERSION",
    "NT_XEN_DUMPCORE_HEADER",
    "NT_XEN_DUMPCORE_NONE",
    "NT_XEN_DUMPCORE_XEN_VERSION",
    "Note",
    "ParsedNotes",
    "note_parts",
    "pack_notes",
    "parse_notes",
]

# "CORE", written by kernels and QEMU
NT_PRSTATUS = 1
NT_PRFPREG = 2
NT_PRPSINFO = 3
NT_TASKSTRUCT = 4
NT_AUXV = 6
NT_FILE = 0x46494C45
NT_PPC_VMX = 0x100
NT_PPC_SPE = 0x101
NT_PPC_VSX = 0x102
# "LINUX"
NT_ARM_VFP = 0x400
NT_ARM_SVE = 0x405
NT_VMCOREDD = 0x700
# "VMCOREINFO" and "QEMU" have one type each
NT_KDUMP_VMCOREINFO = 0
NT_QEMU = 0
# "VBCORE" and "VBCPU"
NT_VBOXCORE = 0xB00
NT_VBOXCPU = 0xB01
# "Xen": a crashed hypervisor's own, then those of a domain's core
NT_XEN_CRASH_INFO = 0x1000001
NT_XEN_CRASH_REGS = 0x1000002
NT_XEN_DUMPCORE_NONE = 0x2000000
NT_XEN_DUMPCORE_HEADER = 0x2000001
NT_XEN_DUMPCORE_XEN_VERSION = 0x2000002
NT_XEN_DUMPCORE_FORMAT_VERSION = 0x2000003

MAX_NOTES = 1 << 17
"""Notes read of one file: ten for each of 8192 CPUs are fewer."""


class Note(NamedTuple):
    """One note; ``name`` is Latin-1 up to its first NUL, and untrusted like all text of a dump.

    What is read has bytes; what is to be written may have a view, of bytes too.
    """

    name: str
    type: int
    desc: bytes | memoryview


class ParsedNotes(NamedTuple):
    """The notes that could be read, and why reading stopped early, or None if it did not."""

    notes: tuple[Note, ...]
    complaint: str | None = None


def parse_notes(data: bytes | memoryview, endian: Endian, *, limit: int = MAX_NOTES) -> ParsedNotes:
    """Read notes until the data ends, until a note of zeros, or until one that cannot be.

    Args:
        data: notes one behind the other.
        endian: byte order.
        limit: notes to read at most.
    """
    body = memoryview(data)
    notes: list[Note] = []
    at = 0
    while at < len(body):
        if not any(body[at : at + 12]):
            return ParsedNotes(tuple(notes))
        if len(notes) == limit:
            return ParsedNotes(tuple(notes), f"note at {at:#x}: more than {limit} notes")
        if len(body) - at < 12:
            return ParsedNotes(tuple(notes), f"note at {at:#x}: {len(body) - at} bytes, expected a header of 12")
        namesz, descsz, kind = struct.unpack_from(endian + "III", body, at)
        desc_at, after = _extent(bytes(body[at + 12 : at + 12 + min(namesz, 2)]), at + 12, namesz, descsz)
        if desc_at + descsz > len(body):
            found = f"name of {namesz} and desc of {descsz} bytes"
            return ParsedNotes(tuple(notes), f"note at {at:#x}: {found}, {len(body) - at - 12} bytes follow")
        name = bytes(body[at + 12 : at + 12 + namesz]).partition(b"\0")[0].decode("latin-1")
        notes.append(Note(name, kind, bytes(body[desc_at : desc_at + descsz])))
        at = after
    return ParsedNotes(tuple(notes))


def pack_notes(notes: Iterable[Note], endian: Endian) -> bytes:
    """Write notes one behind the other, VirtualBox's own in its way.

    Raises:
        UnicodeEncodeError: a name is not Latin-1.
    """
    return b"".join(note_parts(notes, endian))


def note_parts(notes: Iterable[Note], endian: Endian) -> list[bytes | memoryview]:
    """Write notes as ``pack_notes`` does, in parts: the map of a large guest is copied for none of them."""
    parts: list[bytes | memoryview] = []
    for note in notes:
        name = note.name.encode("latin-1")
        namesz = len(name) + (not _is_virtualbox(name) and bool(name))
        desc_at, after = _extent(name, 0, namesz, len(note.desc))
        parts += (
            struct.pack(endian + "III", namesz, len(note.desc), note.type),
            name.ljust(desc_at, b"\0"),
            note.desc,
            bytes(after - desc_at - len(note.desc)),
        )
    return parts


def _extent(name: bytes, at: int, namesz: int, descsz: int) -> tuple[int, int]:
    """Give where the desc begins and where the next note does, for a name at ``at``."""
    if _is_virtualbox(name):
        desc_at = at + _round_up(namesz + 1, 8)
        return desc_at, desc_at + _round_up(descsz, 8)
    desc_at = at + _round_up(namesz, 4)
    return desc_at, desc_at + _round_up(descsz, 4)


def _is_virtualbox(name: bytes) -> bool:
    return name.startswith(b"VB")


def _round_up(value: int, to: int) -> int:
    return (value + to - 1) // to * to
