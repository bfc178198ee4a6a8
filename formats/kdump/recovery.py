"""A kdump-compressed file whose header is lost: found again by the shape of what stands behind it.

::

    [header] | sub header, notes | bitmap of RAM | bitmap of pages | descriptors | data, first of them right behind

The descriptors are rows of 24 bytes that lead behind themselves and into the file; where their data begin tells how
many they are, and the second bitmap must have as many bits as there are rows. That leaves one place for the bitmaps,
and with them every page has its pfn. Without the bitmaps no page could be placed, whatever its descriptor says.

One part of a split dump is found by the others, whose headers say the same but for the pfns.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from dumpxlate.bitmap import PageBitmap
from dumpxlate.formats.kdump.header import Part
from dumpxlate.formats.kdump.layout import (
    INVALID_CODEC,
    KDUMP_SIGNATURE,
    LAST_VERSION,
    DiskDumpHeader64,
    KdumpSubHeader64,
    PageDesc,
    codecs_of_flags,
)
from dumpxlate.formats.kdump.parts import gaps
from dumpxlate.io.bits import SourceBits
from dumpxlate.structs import dtype_of, parse, size_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from dumpxlate.arrays import Bools, Int64s
    from dumpxlate.io.source import Source
    from dumpxlate.structs import Endian

__all__ = ["recover", "recover_among"]

_BLOCKS = (4096, 65536, 16384, 8192, 32768)
_STEP = 4096
_WINDOW = 16 << 20
_FURTHEST = 1 << 30
"""Where the descriptors of a dump of 16 TiB begin; no further is looked."""

_TEXTS = ("sysname", "nodename", "release", "version", "machine", "domainname")
_CANDIDATES = 16
"""Places that are looked at closely: memory may be full of what looks like descriptors."""

_ROW = size_of(PageDesc)
_CHUNK = 1 << 16
_LOST = "the header is lost; blocks, bitmaps and descriptors were found by their shape"
_LOST_OF_PART = "the header of {} is lost; it is what the other parts of the set leave over"


@dataclass(frozen=True, slots=True)
class _Table:
    """Descriptors that were found: where, how many, and the largest page among them."""

    at: int
    count: int
    endian: Endian
    largest: int
    raw: int


def recover(source: Source) -> Part | None:
    """Find the pieces of a file whose header says nothing; None where they are not there, or could be several ones."""
    for table in islice(_tables(source), _CANDIDATES):
        found = [part for size in _BLOCKS for part in _parts(source, table, size)] if table else []
        if len(found) == 1:
            return found[0]
    return None


def recover_among(source: Source, others: Sequence[Part]) -> Part | None:
    """Make up the header of one part of a split dump from those of all others; None where it does not fit to them.

    The bitmaps are the same in all parts, which is checked when they are put in order.
    """
    if not others or not all(part.is_split for part in others):
        return None
    between = gaps(sorted(others, key=lambda part: part.pfns))
    if len(between) != 1:
        return None
    first, (start, stop) = others[0], between[0]
    names = ("start_pfn", "end_pfn"), ("start_pfn_64", "end_pfn_64")
    pfns: dict[str, Any] = dict(zip(names[first.version >= 6], (start, stop), strict=True))
    part = replace(first, source=source, sub=replace(first.sub, **pfns), recovered=_LOST_OF_PART.format(source.name))
    if part.table_at + 2 * _ROW > source.size:
        return None
    rows = _rows(source, part.table_at, 2, part.endian)
    return part if _sensible(rows, part.table_at, source.size, part.block_size).all() else None


def _tables(source: Source) -> Iterator[_Table | None]:
    """Find what looks like descriptors at the beginning of a block."""
    for start in range(_STEP, min(source.size, _FURTHEST), _WINDOW):
        body = source.view(start, min(_WINDOW, source.size - start))
        if len(body) < 2 * _ROW:
            return
        blocks = (len(body) - 2 * _ROW) // _STEP + 1
        at = start + np.arange(blocks, dtype=np.int64) * _STEP
        for endian in ("<", ">"):
            likely = np.ones(blocks, bool)
            for row in range(2):
                rows = np.ndarray((blocks,), dtype_of(PageDesc, endian), body, row * _ROW, (_STEP,))
                likely &= _sensible(rows, at + 2 * _ROW, source.size, max(_BLOCKS))
            for place in at[likely].tolist():
                yield _measured(source, place, endian)


def _sensible(rows: NDArray[np.void], behind: int | Int64s, size: int, largest: int) -> Bools:
    """Tell which rows may be descriptors; those of zeros are pages that were never written."""
    offset, length, flags = (rows[name].astype(np.int64) for name in ("offset", "size", "flags"))
    good: Bools = (codecs_of_flags(flags) != INVALID_CODEC) & (length > 0) & (length <= largest)
    return good & (offset >= behind) & (offset <= size)


def _measured(source: Source, at: int, endian: Endian) -> _Table | None:
    """Find where a table ends: data begin right behind it, with the block of zeros that zero pages share, or a page."""
    first = _rows(source, at, min(_CHUNK, (source.size - at) // _ROW), endian)
    offset = first["offset"].astype(np.int64)
    nearest = np.minimum.accumulate(np.where(offset > 0, offset, np.iinfo(np.int64).max))
    # Rows from the lowest offset on are data, and no rows.
    end = np.flatnonzero(at + np.arange(len(nearest)) * _ROW >= nearest)
    lowest = int(nearest[max(int(end[0]) - 1, 0) if len(end) else -1])
    for data in (lowest, *(lowest - size for size in _BLOCKS)):
        rows, rest = divmod(data - at, _ROW)
        if not rest and rows > 0 and (found := _checked(source, _Table(at, rows, endian, 0, 0))):
            return found
    return None


def _checked(source: Source, table: _Table) -> _Table | None:
    """Check every row of a table, as far as the file has it."""
    data, largest, raw = table.at + table.count * _ROW, 0, 0
    for row in range(0, table.count, _CHUNK):
        at = table.at + row * _ROW
        rows = _rows(source, at, min(_CHUNK, table.count - row, (source.size - at) // _ROW), table.endian)
        written = rows[(rows["offset"] != 0) | (rows["size"] != 0)]
        length = written["size"].astype(np.int64)
        # Truncated files have descriptors that lead behind the end.
        if not _sensible(written, data, np.iinfo(np.int64).max, max(_BLOCKS)).all():
            return None
        largest = max(largest, int(length.max(initial=0)))
        plain = np.unique(length[written["flags"] == 0])
        if len(plain) > 1 or (raw and len(plain) and plain[0] != raw):
            return None
        raw = int(plain[0]) if len(plain) else raw
    return _Table(table.at, table.count, table.endian, largest, raw)


def _rows(source: Source, at: int, count: int, endian: Endian) -> NDArray[np.void]:
    return np.frombuffer(source.view(at, max(count, 0) * _ROW), dtype_of(PageDesc, endian))


def _parts(source: Source, table: _Table, size: int) -> Iterator[Part]:
    """Find the bitmaps before a table: two of the same length, the second with a bit for each row, all in the first."""
    if table.at % size or table.largest > size or table.raw not in (0, size):
        return
    blocks = table.at // size
    everything = PageBitmap(SourceBits(source, 0, table.at))
    before = everything.rank(np.arange(blocks + 1, dtype=np.int64) * size * 8)
    for sub in range(1, blocks - 2):
        length, odd = divmod(blocks - 1 - sub, 2)
        if odd or not length or before[-1] - before[blocks - length] != table.count:
            continue
        stored_at = (blocks - length) * size
        ram, stored = (
            PageBitmap(SourceBits(source, at, length * size)) for at in (stored_at - length * size, stored_at)
        )
        if stored.is_within(ram):
            yield _part(source, table, size, sub, length, ram.stop)


def _part(source: Source, table: _Table, size: int, sub_blocks: int, length: int, highest: int) -> Part:
    """Make up the header that a file must have had; the sub header may still be there.

    Args:
        source: the file.
        table: its descriptors.
        size: bytes of a block.
        sub_blocks: blocks of the sub header.
        length: blocks of each bitmap.
        highest: one past the last page of RAM.
    """
    sub = _sub_header(source, table.endian, size, sub_blocks, length * size * 8)
    mapnr = sub.max_mapnr_64 or highest
    blank: Any = dict.fromkeys((field.name for field in fields(DiskDumpHeader64)), 0)
    blank |= dict.fromkeys((*_TEXTS, "pad"), b"")
    header = DiskDumpHeader64(
        **blank
        | {
            "signature": KDUMP_SIGNATURE,
            "header_version": LAST_VERSION,
            "block_size": size,
            "sub_hdr_size": sub_blocks,
            "bitmap_blocks": 2 * length,
            "max_mapnr": min(mapnr, 0xFFFFFFFF),
        }
    )
    return Part(source, table.endian, header, sub, mapnr, length * size, single_bitmap=False, recovered=_LOST)


def _sub_header(source: Source, endian: Endian, size: int, blocks: int, most: int) -> KdumpSubHeader64:
    """Read the sub header of a 64-bit machine if it fits in; else one that says nothing."""
    found = parse(KdumpSubHeader64, source.view(size, size_of(KdumpSubHeader64)), 0, endian)
    low, high = size, (1 + blocks) * size
    inside = all(
        not length or (low < at and at + length <= high)
        for at, length in ((found.offset_note, found.size_note), (found.offset_vmcoreinfo, found.size_vmcoreinfo))
    )
    if inside and 0 < found.max_mapnr_64 <= most and not found.split:
        return found
    return parse(KdumpSubHeader64, bytes(size_of(KdumpSubHeader64)), 0, endian)
