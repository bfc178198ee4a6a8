"""Indexes the records of a flattened file: one pass over their headers, no byte copied.

Behind a record that cannot be right the next one is looked for, and what no record covers then is missing, not zero.
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass, replace
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
from dumpxlate.formats.flattened.resync import next_record
from dumpxlate.io.spliced import SplicedSource
from dumpxlate.pageset import EMPTY, PageRuns, difference
from dumpxlate.structs import parse, size_of

if TYPE_CHECKING:
    from dumpxlate.arrays import Int64s
    from dumpxlate.io.source import Source

__all__ = ["check_header", "open_flattened"]

_HEAD = size_of(MakedumpfileDataHeader)
_RECORD = struct.Struct(">qq")
_LONG, _ALL, _HEADS = 16 << 10, (256 << 10, 1), (2 << 10, 256)
"""Bytes that are brought in a call, and calls until it is looked again: where records are shorter than _LONG, reading
over them costs less than a call for each. makedumpfile's have 64 KiB, and those between them 1 KiB."""
_MOST_DEFECTS, _TOLD = 1 << 10, 4
"""Defects that are passed over, and those that are told."""


@dataclass(frozen=True, slots=True)
class _Records:
    """The records of a stream, in its order.

    Attributes:
        offset: where the bytes of each belong in the file inside.
        at: where they are in the stream.
        size: how many there are, which may be fewer than the last record promises.
        complaint: what is wrong behind them.
        passed: whether others may be missing between them.
    """

    offset: Int64s
    at: Int64s
    size: Int64s
    complaint: str | None
    passed: bool = False


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
    inner = SplicedSource(
        source, pieces, size, records.complaint, _uncovered(pieces, size) if records.passed else EMPTY
    )
    if size >= len(SIGNATURE) and inner.view(0, len(SIGNATURE)) == SIGNATURE:
        raise CorruptDumpError("holds another flattened file: no tool writes that", what="flattened records")
    return inner


def _uncovered(pieces: Extents, size: int) -> PageRuns:
    """Give the bytes that no record covers."""
    return difference(PageRuns.from_runs(np.zeros(1, np.int64), np.array([size], np.int64)), pieces.pages())


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
    """Walk over the record headers; behind one that cannot be right, go on with the next that can."""
    parts: list[_Records] = []
    at: int | None = MAX_SIZE_MDF_HEADER
    while at is not None:
        found, wrong = _stretch(source, at)
        at = None
        if found.complaint and len(parts) < _MOST_DEFECTS:
            # The length of the record before may be what is wrong: it hides others then.
            begin = int(found.at[-1]) if len(found.at) else wrong + 1
            at = next_record(source, begin)
            found = _passed_over(found, wrong, at)
        parts.append(found)
    told = [part.complaint for part in parts if part.complaint]
    more = f"; and {len(told) - _TOLD:,} more defects" if len(told) > _TOLD else ""
    offset, place, size = (np.concatenate([getattr(part, name) for part in parts]) for name in ("offset", "at", "size"))
    return _Records(offset, place, size, "; ".join(told[:_TOLD]) + more if told else None, passed=len(parts) > 1)


def _passed_over(found: _Records, wrong: int, at: int | None) -> _Records:
    """Say what is behind a defect; the last record before it ends where the next one begins."""
    if at is None:
        return replace(found, complaint=f"{found.complaint}; what follows is left out")
    size = found.size.copy()
    if len(size):
        size[-1] = min(int(size[-1]), at - int(found.at[-1]))
    skipped = at - max(wrong, 0)
    told = f"; {skipped:,} bytes up to {at:#x} are passed over" if skipped > 0 else f"; records go on at {at:#x}"
    return replace(found, size=size, complaint=f"{found.complaint}{told}")


def _stretch(source: Source, at: int) -> tuple[_Records, int]:
    """Walk over records that follow each other; gives them, and where the first one is that cannot be right."""
    found = array("q")
    first, long, ended = at, False, False
    while not ended and at + _HEAD <= source.size:
        known, begin = len(found), at
        at, ended = _walk(source, at, *(_HEADS if long else _ALL), found)
        long = at - begin > (len(found) - known) // 2 * _LONG
    offset, size = np.array(found, np.int64).reshape(-1, 2).T
    # Only the last record may claim more than there is; where adding that overflows, taking it off again does too.
    start = first + np.cumsum(size + _HEAD) - size
    return _usable(source, offset, start, size, _ending(source, at) if ended else _CUT, at)


_CUT = "truncated: the end marker of the flattened file is missing"


def _walk(source: Source, at: int, window: int, calls: int, found: array[int]) -> tuple[int, bool]:
    """Note offset and size of the next records, of which so many bytes are brought in so many calls.

    Gives where in the stream the record behind them begins, and whether it is one without a size.
    """
    bring, read, note = source.read, _RECORD.unpack_from, found.extend
    for _ in range(calls):
        if at + _HEAD > source.size:
            break
        body: bytes | memoryview = bring(at, window)
        if len(body) < _HEAD:
            body = source.view(at, _HEAD)  # says that the file has become shorter
        place, last = 0, len(body) - _HEAD
        while place <= last:
            record = read(body, place)
            if record[1] <= 0:
                return at + place, True
            note(record)
            place += record[1] + _HEAD
        at += place
    return at, False


def _ending(source: Source, at: int) -> str | None:
    """Say what is wrong with the record without a size that ends the stream; nothing for the end marker."""
    header = parse(MakedumpfileDataHeader, source.view(at, _HEAD), 0, ">")
    return None if header.offset == header.buf_size == END_FLAG_FLAT_HEADER else _bad(source, at)


def _bad(source: Source, at: int) -> str:
    header = parse(MakedumpfileDataHeader, source.view(at, _HEAD), 0, ">")
    return (
        f"flattened record at {at:#x}: offset {header.offset:#x}, size {header.buf_size:#x}: expected an offset from "
        f"0 to {MAX_OFFSET:#x} and a positive size"
    )


def _usable(
    source: Source, offset: Int64s, at: Int64s, size: Int64s, complaint: str | None, end: int
) -> tuple[_Records, int]:
    """Keep the records before the first that cannot be right, and of the last one what is there."""
    wrong = (offset < 0) | (offset > MAX_OFFSET) | (size > MAX_OFFSET - offset)
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        end = int(at[first]) - _HEAD
        complaint = _bad(source, end)
        offset, at, size = offset[:first], at[:first], size[:first]
    there = source.size - at
    if len(size) and size[-1] > there[-1]:
        complaint = (
            f"truncated: flattened record at {int(at[-1]) - _HEAD:#x} has {int(size[-1]):,} bytes, "
            f"{int(there[-1]):,} of them are there"
        )
        end = source.size
    size = np.minimum(size, there)
    used = size > 0
    return _Records(offset[used], at[used], size[used], complaint), end
