"""Contents of an ELF file's sections, compressed or not, and the build id that names a program.

A compressed section (SHF_COMPRESSED) begins with a header: its algorithm, and its size when unpacked. Debian packs
debug information with zlib, newer distributions with zstd. Before 2016 binutils named such a section .zdebug_info
instead of .debug_info, and had it begin with "ZLIB" and the size as eight bytes, the highest first.

Sources: elf(5); the ELF gABI, "Section Compression"; the notes of GNU ld's --build-id.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

from dumpxlate.elf.container import PT_NOTE
from dumpxlate.elf.late import LateSection, whole
from dumpxlate.elf.notes import parse_notes
from dumpxlate.errors import CorruptDumpError, MissingCodecError, UnsupportedFeatureError

if TYPE_CHECKING:
    from dumpxlate.elf.container import ElfFile, Section
    from dumpxlate.elf.notes import Note
    from dumpxlate.io.source import Source
    from dumpxlate.structs import Endian

__all__ = ["build_id_of", "build_id_of_notes", "find_section", "late_section", "section_bytes"]

_SHT_NOBITS, _SHT_NOTE = 8, 7
_SHF_COMPRESSED = 0x800
_ZLIB, _ZSTD = 1, 2
_OLD_HEADER, _OLD_MAGICS = struct.Struct(">4sQ"), {b"ZLIB": _ZLIB}
_NT_GNU_BUILD_ID = 3
_NOTE_LIMIT = 1 << 20
_UNPACKED_LIMIT = 4 << 30
"""Bytes of one section: those of a browser's debug information are a quarter of that."""
_UNPACKED_FREELY, _MOST_SHRUNK = 64 << 20, 8
"""Bytes that a section of any size may unpack to, and how many times its size a larger one: debug information shrinks
to a third or a quarter, and what shrinks further has little in it."""


def find_section(file: ElfFile, name: str) -> Section | None:
    """Find a section, also under the name that it had when it was packed before 2016."""
    return file.section(name) or file.section(name.replace(".debug_", ".zdebug_"))


def section_bytes(source: Source, file: ElfFile, name: str) -> bytes:
    """Give what a section holds, unpacked; nothing where the file has no such section, or only its size.

    Raises:
        CorruptDumpError: it leaves the file, or does not unpack.
        UnsupportedFeatureError: it is compressed in a way that is not known.
        MissingCodecError: it is compressed with zstd, and the library for that is not installed.
    """
    section = _located(source, file, name)
    if section is None:
        return b""
    if _is_packed(section):
        return _unpack(source.view(section.offset, section.size), section, file, source.name)
    return whole(source, section.offset, section.size)


def late_section(source: Source, file: ElfFile, name: str) -> LateSection | None:
    """Give a section that is read as far as somebody looks; None where it has to be unpacked, or there is none.

    Raises:
        CorruptDumpError: it leaves the file, or is larger than any program's.
    """
    section = _located(source, file, name)
    if section is None or not section.size or _is_packed(section):
        return None
    if section.size > _UNPACKED_LIMIT:
        raise CorruptDumpError(
            f"{section.size:,} bytes: more than can be", path=source.name, offset=section.offset, what=name
        )
    return LateSection(source, section.offset, section.size)


def _located(source: Source, file: ElfFile, name: str) -> Section | None:
    """Find a section that has bytes in the file, and check that they lie inside it."""
    section = find_section(file, name)
    if section is None or section.type == _SHT_NOBITS:
        return None
    if section.offset + section.size > source.size:
        raise CorruptDumpError(
            f"{section.size:,} bytes, the file ends at {source.size:#x}",
            path=source.name,
            offset=section.offset,
            what=name,
        )
    return section


def _is_packed(section: Section) -> bool:
    return bool(section.flags & _SHF_COMPRESSED) or section.name.startswith(".zdebug_")


def _unpack(body: memoryview, section: Section, file: ElfFile, path: str) -> bytes:
    old = not section.flags & _SHF_COMPRESSED
    layout = _OLD_HEADER if old else struct.Struct(file.endian + ("IIQQ" if file.bits == 64 else "III"))
    if len(body) < layout.size:
        raise CorruptDumpError(
            f"{len(body)} bytes, too few for its header", path=path, offset=section.offset, what=section.name
        )
    fields = layout.unpack_from(body)
    algorithm, size = (_OLD_MAGICS.get(fields[0], -1), fields[1]) if old else (fields[0], fields[-2])
    if size > min(_UNPACKED_LIMIT, max(_UNPACKED_FREELY, _MOST_SHRUNK * len(body))):
        raise CorruptDumpError(
            f"{size:,} bytes unpacked, of {len(body):,}: more than can be",
            path=path,
            offset=section.offset,
            what=section.name,
        )
    packed = body[layout.size :]
    try:
        data = _INFLATE[algorithm](packed, size)
    except KeyError:
        raise UnsupportedFeatureError(
            f"{section.name} is compressed by algorithm {algorithm}: expected zlib (1) or zstd (2)",
            path=path,
            feature="section compression",
        ) from None
    except (zlib.error, ValueError) as error:
        raise CorruptDumpError(
            f"does not unpack: {error}", path=path, offset=section.offset, what=section.name
        ) from error
    if len(data) != size:
        raise CorruptDumpError(
            f"unpacks to {len(data):,} bytes, expected {size:,}", path=path, offset=section.offset, what=section.name
        )
    return data


def _inflate(packed: memoryview, size: int) -> bytes:
    return zlib.decompressobj().decompress(packed, size) if size else b""


def _unzstd(packed: memoryview, size: int) -> bytes:
    try:
        import zstandard
    except ImportError as error:
        raise MissingCodecError("zstd", "zstandard") from error
    try:
        # A reader gives no more than is asked for, whatever the frame says of itself.
        return zstandard.ZstdDecompressor().stream_reader(packed).read(size)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error


_INFLATE = {_ZLIB: _inflate, _ZSTD: _unzstd}


def build_id_of(source: Source, file: ElfFile) -> str | None:
    """Give the build id of a program, or of its debug file, as hexadecimal digits.

    Sections are looked at first: the segments of a debug file lead nowhere.
    """
    places = [(section.offset, section.size) for section in file.sections if section.type == _SHT_NOTE]
    segments = file.segments.where(file.segments.type == PT_NOTE)
    places += zip(segments.offset.tolist(), segments.filesz.tolist(), strict=True)
    for at, size in places:
        if at >= 0 and 0 < size <= _NOTE_LIMIT and at + size <= source.size:
            found = build_id_of_notes(bytes(source.view(at, size)), file.endian)
            if found:
                return found
    return None


def build_id_of_notes(data: bytes, endian: Endian) -> str | None:
    """Find the build id among notes."""
    return next((note.desc.hex() for note in parse_notes(data, endian).notes if _is_build_id(note)), None)


def _is_build_id(note: Note) -> bool:
    return note.name == "GNU" and note.type == _NT_GNU_BUILD_ID and 0 < len(note.desc) <= 64
