"""Indexes the records of a flattened file: one pass over their headers, no byte copied."""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.errors import CorruptDumpError, TruncatedDumpError, UnsupportedFeatureError
from dumpxlate.extents import Extents, first_wins
from dumpxlate.formats.flattened.layout import (
    END_FLAG_FLAT_HEADER,
    MAX_OFFSET,
    MAX_SIZE_MDF_HEADER,
    SIGNATURE,
    TYPE_FLAT_HEADER,
    VERSION_FLAT_HEADER,
    MakedumpfileDataHeader,
    MakedumpfileHeader,
)
from dumpxlate.io.spliced import SplicedSource
from dumpxlate.structs import parse, size_of

if TYPE_CHECKING:
    from dumpxlate.arrays import Int64s
    from dumpxlate.io.source import Source

__all__ = ["check_header", "open_flattened"]

_HEAD = size_of(MakedumpfileDataHeader)
_RECORD = struct.Struct(">qq")
_MANY, _FEW, _LONG = 256 << 10, 4 << 10, 16 << 10
"""Bytes of the stream that are brought at once: where records are shorter than _LONG, reading over them costs less than
a call for each. makedumpfile's have 64 KiB, and shorter ones between them."""


@dataclass(frozen=True, slots=True)
class _Records:
    """The records of a stream, in its order.

    Attributes:
        offset: where the bytes of each belong in the file inside.
        at: where they are in the stream.
        size: how many there are, which may be fewer than the last record promises.
        complaint: what is wrong behind them.
    """

    offset: Int64s
    at: Int64s
    size: Int64s
    complaint: str | None


def open_flattened(source: Source) -> SplicedSource:
    """Give the file inside a flattened one.

    Raises:
        UnsupportedFeatureError: another type or version of the container.
        CorruptDumpError: there is no usable record, or another flattened file inside.
    """
    check_header(source)
    records = _records(source)
    if not len(records.offset):
        raise CorruptDumpError(
            records.complaint or "ends before the first record", offset=MAX_SIZE_MDF_HEADER, what="flattened records"
        )
    size = int((records.offset + records.size).max())
    # The last record wins: as if all were written one after the other.
    pieces = Extents(*first_wins(records.offset[::-1], records.size[::-1], records.at[::-1]))
    inner = SplicedSource(source, pieces, size, records.complaint)
    if size >= len(SIGNATURE) and inner.view(0, len(SIGNATURE)) == SIGNATURE:
        raise CorruptDumpError("holds another flattened file: no tool writes that", what="flattened records")
    return inner


def check_header(source: Source) -> None:
    """Check what stands before the records.

    Raises:
        UnsupportedFeatureError: another type or version of the container.
        TruncatedDumpError: the file ends inside it.
    """
    body = source.view(0, min(source.size, MAX_SIZE_MDF_HEADER))
    header = parse(MakedumpfileHeader, body, 0, ">", what="flattened header")
    if (header.type, header.version) != (TYPE_FLAT_HEADER, VERSION_FLAT_HEADER):
        raise UnsupportedFeatureError(
            f"flattened header: type {header.type}, version {header.version}: expected "
            f"{TYPE_FLAT_HEADER} and {VERSION_FLAT_HEADER}",
            format="flattened",
            feature="version",
        )
    if source.size < MAX_SIZE_MDF_HEADER:
        raise TruncatedDumpError("flattened header", offset=0, wanted=MAX_SIZE_MDF_HEADER, available=source.size)


def _records(source: Source) -> _Records:
    """Walk over the record headers; a broken one ends the walk, since nothing tells where the next would be."""
    found = array("q")
    at, window, ended = MAX_SIZE_MDF_HEADER, _MANY, False
    while not ended and at + _HEAD <= source.size:
        begin, known = at, len(found)
        body = source.view(begin, min(window, source.size - begin))
        length, ended = _walk(body, found)
        at += length
        window = _FEW if length > (len(found) - known) // 2 * _LONG else _MANY
    offset, size = np.array(found, np.int64).reshape(-1, 2).T
    # Only the last record may claim more than there is; where adding that overflows, taking it off again does too.
    start = MAX_SIZE_MDF_HEADER + np.cumsum(size + _HEAD) - size
    return _usable(source, offset, start, size, _ending(source, at) if ended else _CUT)


_CUT = "truncated: the end marker of the flattened file is missing"


def _walk(body: memoryview, found: array[int]) -> tuple[int, bool]:
    """Note offset and size of each record that a body begins with; gives where the next one begins.

    That is behind the body, or the record has no size, of which the second value tells.
    """
    read, note = _RECORD.unpack_from, found.extend
    at, last = 0, len(body) - _HEAD
    while at <= last:
        record = read(body, at)
        if record[1] <= 0:
            return at, True
        note(record)
        at += record[1] + _HEAD
    return at, False


def _ending(source: Source, at: int) -> str | None:
    """Say what is wrong with the record without a size that ends the stream; nothing for the end marker."""
    header = parse(MakedumpfileDataHeader, source.view(at, _HEAD), 0, ">")
    return None if header.offset == header.buf_size == END_FLAG_FLAT_HEADER else _bad(source, at)


def _bad(source: Source, at: int) -> str:
    header = parse(MakedumpfileDataHeader, source.view(at, _HEAD), 0, ">")
    return (
        f"flattened record at {at:#x}: offset {header.offset:#x}, size {header.buf_size:#x}: expected an offset from "
        f"0 to {MAX_OFFSET:#x} and a positive size; what follows is left out"
    )


def _usable(source: Source, offset: Int64s, at: Int64s, size: Int64s, complaint: str | None) -> _Records:
    """Keep the records before the first that cannot be right, and of the last one what is there."""
    wrong = (offset < 0) | (offset > MAX_OFFSET) | (size > MAX_OFFSET - offset)
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        complaint = _bad(source, int(at[first]) - _HEAD)
        offset, at, size = offset[:first], at[:first], size[:first]
    there = source.size - at
    if len(size) and size[-1] > there[-1]:
        complaint = (
            f"truncated: flattened record at {int(at[-1]) - _HEAD:#x} has {int(size[-1]):,} bytes, "
            f"{int(there[-1]):,} of them are there; what follows is missing"
        )
    size = np.minimum(size, there)
    used = size > 0
    return _Records(offset[used], at[used], size[used], complaint)
