"""Headers of one kdump-compressed file: which of their many forms they have, and where the file's pieces lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dumpxlate.arch import by_name
from dumpxlate.errors import CorruptDumpError, TruncatedDumpError, UnsupportedFeatureError
from dumpxlate.formats.kdump.layout import (
    DUMP_DH_COMPRESSED_INCOMPLETE,
    KDUMP_SIGNATURE,
    LAST_VERSION,
    SUB_SIZES,
    DiskDumpHeader32,
    DiskDumpHeader64,
    KdumpSubHeader32,
    KdumpSubHeader32Packed,
    KdumpSubHeader64,
)
from dumpxlate.structs import parse, size_of

if TYPE_CHECKING:
    from dumpxlate.arch import Arch
    from dumpxlate.formats.kdump.layout import Header, SubHeader
    from dumpxlate.io.source import Source
    from dumpxlate.structs import Endian

__all__ = ["MAX_PFN", "Part", "arch_named", "read_part", "text_of"]

MAX_PFN = 1 << 34
"""Pages that a file may claim: 64 TiB of 4 KiB pages, as much as x86 addresses with four levels of page tables. A few
bytes can claim them, in a container with holes or compressed, and each takes a bit of two bitmaps."""

_FORMS: tuple[tuple[Endian, type[Header]], ...] = (
    ("<", DiskDumpHeader64),
    (">", DiskDumpHeader64),
    ("<", DiskDumpHeader32),
    (">", DiskDumpHeader32),
)
_MIN_BLOCK, _MAX_BLOCK = 1 << 10, 1 << 20
_TRUNCATED_MAPNR = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Part:
    """One file, a whole dump or a part of a split one; its headers are checked against each other and the file.

    Attributes:
        source: the file.
        endian: byte order of everything in it.
        header: the header.
        sub: the sub header; what the file's version does not have is zero.
        max_mapnr: one past the last pfn that the bitmaps tell of.
        bitmap_bytes: length of each bitmap.
        single_bitmap: there is no bitmap of RAM (some diskdump files).
        recovered: how the headers were made up where the file has lost them.
    """

    source: Source
    endian: Endian
    header: Header
    sub: SubHeader
    max_mapnr: int
    bitmap_bytes: int
    single_bitmap: bool
    recovered: str = ""

    @property
    def bits(self) -> Literal[32, 64]:
        """Width of the headers."""
        return _bits(type(self.header))

    @property
    def version(self) -> int:
        """Version by which the file is read."""
        return min(self.header.header_version, LAST_VERSION)

    @property
    def is_diskdump(self) -> bool:
        """Whether diskdump wrote it, whose sub header and status mean something else."""
        return self.header.signature != KDUMP_SIGNATURE

    @property
    def block_size(self) -> int:
        """Bytes of a block, and of a page."""
        return self.header.block_size

    @property
    def bitmap_at(self) -> int:
        """Where the bitmap of RAM begins, or the only bitmap."""
        return (1 + self.header.sub_hdr_size) * self.block_size

    @property
    def stored_bitmap_at(self) -> int:
        """Where the bitmap of the pages in the file begins."""
        return self.bitmap_at + (0 if self.single_bitmap else self.bitmap_bytes)

    @property
    def table_at(self) -> int:
        """Where the descriptors begin."""
        return self.bitmap_at + self.header.bitmap_blocks * self.block_size

    @property
    def is_split(self) -> bool:
        """Whether it holds only some of the pages that its bitmaps tell of."""
        return bool(self.sub.split)

    @property
    def incomplete(self) -> bool:
        """Whether the writer said that it ran out of space."""
        return not self.is_diskdump and bool(self.header.status & DUMP_DH_COMPRESSED_INCOMPLETE)

    @property
    def pfns(self) -> tuple[int, int]:
        """First pfn, and one past the last, that it has descriptors for."""
        if not self.is_split:
            return 0, self.max_mapnr
        if self.version >= 6:
            return self.sub.start_pfn_64, self.sub.end_pfn_64
        return self.sub.start_pfn, self.sub.end_pfn


def read_part(source: Source) -> Part:
    """Read and check the headers of a file.

    Raises:
        CorruptDumpError: they contradict each other or the file.
        UnsupportedFeatureError: more memory than this program handles.
    """
    endian, header = _header(source)
    _check_header(header)
    sub = _sub_header(source, header, endian)
    max_mapnr = _max_mapnr(header, sub)
    needed = -(-max_mapnr // (8 * header.block_size))
    single = header.bitmap_blocks < 2 * needed
    length = header.bitmap_blocks * header.block_size // (1 if single else 2)
    if max_mapnr > 8 * length:
        raise CorruptDumpError(
            f"bitmap_blocks is {header.bitmap_blocks}, but max_mapnr {max_mapnr:#x} takes at least {needed}",
            offset=0,
            what="disk_dump_header",
        )
    if max_mapnr > MAX_PFN:
        raise UnsupportedFeatureError(
            f"max_mapnr is {max_mapnr:#x}, at most {MAX_PFN:#x} is handled", format="kdump", feature="max_mapnr"
        )
    part = Part(source, endian, header, sub, max_mapnr, length, single)
    _check_room(part)
    return part


def text_of(field: bytes) -> str:
    """Give a text of the header, up to its NUL."""
    return field.partition(b"\0")[0].decode("latin-1")


def arch_named(name: str) -> Arch | None:
    """Find the architecture that a kernel or QEMU calls so, None where nothing is; QEMU's own word is "Unknown"."""
    try:
        return by_name(name)
    except UnsupportedFeatureError:
        return None


def _bits(form: type[Header]) -> Literal[32, 64]:
    return 64 if form is DiskDumpHeader64 else 32


def _header(source: Source) -> tuple[Endian, Header]:
    """Read the header in the form that most of its fields make sense in: nothing in the file says which it is."""
    body = source.view(0, min(source.size, size_of(DiskDumpHeader64)))
    found = [(endian, parse(form, body, 0, endian, what="disk_dump_header")) for endian, form in _FORMS]
    return max(found, key=lambda guess: _sense(guess[1], guess[0], source.size))


def _sense(header: Header, endian: Endian, size: int) -> int:
    """Count what speaks for a form of the header."""
    arch = arch_named(text_of(header.machine))
    blocks = 1 + header.sub_hdr_size + header.bitmap_blocks
    return sum(
        (
            header.header_version <= LAST_VERSION,
            header.header_version < 1 << 16,
            _is_block_size(header.block_size),
            header.sub_hdr_size > 0,
            header.bitmap_blocks > 0,
            0 < blocks * header.block_size <= size,
            header.max_mapnr <= header.bitmap_blocks * header.block_size * 8,
            arch is not None and arch.word_bits == _bits(type(header)) and endian in arch.endians,
        )
    )


def _is_block_size(value: int) -> bool:
    return _MIN_BLOCK <= value <= _MAX_BLOCK and value.bit_count() == 1


def _check_header(header: Header) -> None:
    for field, sane, expected in (
        ("block_size", _is_block_size(header.block_size), f"a power of two from {_MIN_BLOCK} to {_MAX_BLOCK}"),
        ("sub_hdr_size", header.sub_hdr_size > 0, "at least 1"),
        ("bitmap_blocks", header.bitmap_blocks > 0, "at least 1"),
    ):
        if not sane:
            raise CorruptDumpError(
                f"{field} is {getattr(header, field)}, expected {expected}", offset=0, what="disk_dump_header"
            )


def _sub_header(source: Source, header: Header, endian: Endian) -> SubHeader:
    """Read the sub header, of 32-bit machines in the layout whose fields point to where notes may be."""
    forms: tuple[type[SubHeader], ...] = (KdumpSubHeader32, KdumpSubHeader32Packed)
    if isinstance(header, DiskDumpHeader64):
        forms = (KdumpSubHeader64,)
    elif _is_x86(header):
        forms = (KdumpSubHeader32Packed, KdumpSubHeader32)
    found = [_parse_sub(source, header, form, endian) for form in forms]
    return max(found, key=lambda sub: _sub_sense(sub, header))


def _is_x86(header: Header) -> bool:
    arch = arch_named(text_of(header.machine))
    return arch is not None and arch.name in ("i386", "x86_64")


def _parse_sub(source: Source, header: Header, form: type[SubHeader], endian: Endian) -> SubHeader:
    at, size = header.block_size, SUB_SIZES[form][min(header.header_version, LAST_VERSION)]
    if header.signature != KDUMP_SIGNATURE:
        size = 0  # diskdump keeps the registers of the crashing CPU there
    if at + size > source.size:
        raise TruncatedDumpError("kdump_sub_header", offset=at, wanted=size, available=source.size - at)
    return parse(form, bytes(source.view(at, size)).ljust(size_of(form), b"\0"), 0, endian)


def _sub_sense(sub: SubHeader, header: Header) -> int:
    """Count what speaks for a layout of the sub header, and against it."""
    low, high = header.block_size, (1 + header.sub_hdr_size) * header.block_size
    sense = 0
    for at, size in ((sub.offset_vmcoreinfo, sub.size_vmcoreinfo), (sub.offset_note, sub.size_note)):
        if at or size:
            sense += 1 if low < at and at + size <= high else -1
    return sense + bool(sub.max_mapnr_64 and min(sub.max_mapnr_64, _TRUNCATED_MAPNR) == header.max_mapnr)


def _max_mapnr(header: Header, sub: SubHeader) -> int:
    """Give the number of pfns: the 32-bit field is cut off in dumps of huge machines."""
    value = sub.max_mapnr_64 or header.max_mapnr
    if value == _TRUNCATED_MAPNR and not sub.max_mapnr_64:
        value = header.bitmap_blocks // 2 * header.block_size * 8
    if not value:
        raise CorruptDumpError("max_mapnr is 0: the bitmaps tell of no page", offset=0, what="disk_dump_header")
    return value


def _check_room(part: Part) -> None:
    """Check that the bitmaps are in the file, and that the part of a split dump lies inside the whole."""
    if part.table_at > part.source.size:
        raise TruncatedDumpError(
            "bitmaps",
            offset=part.bitmap_at,
            wanted=part.table_at - part.bitmap_at,
            available=part.source.size - part.bitmap_at,
        )
    start, stop = part.pfns
    if not 0 <= start <= stop <= part.max_mapnr:
        raise CorruptDumpError(
            f"part from pfn {start:#x} to {stop:#x} of a dump whose max_mapnr is {part.max_mapnr:#x}",
            offset=part.block_size,
            what="kdump_sub_header",
        )
