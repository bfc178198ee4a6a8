"""Finds the next record behind a defect of a flattened file.

A record's header is two numbers, and says where the next one is. What writes such files fills one or two buffers by
turns, so that most records go on where one shortly before ended. Bytes that lead to each other so, or to the end
marker, are taken for headers; the contents of dumps do not look so by chance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.formats.flattened.layout import END_FLAG_FLAT_HEADER, MAX_OFFSET, MakedumpfileDataHeader
from dumpxlate.structs import parse, size_of

if TYPE_CHECKING:
    from dumpxlate.arrays import Int64s, UInt8s
    from dumpxlate.io.source import Source

__all__ = ["next_record"]

_HEAD = size_of(MakedumpfileDataHeader)
_CHAIN, _JOINED = 8, 2
"""Records that are looked at, and those of them that must go on where one before ended."""
_LONGEST = 1 << 24
"""Bytes of a record that is believed behind a defect: its writers' buffers have some hundred KiB at most."""
_SPARSE = 64
"""Bytes of the file inside for each byte of the flattened one: what is behind is not believed."""
_FIRST_WINDOW, _LARGEST_WINDOW = 64 << 10, 4 << 20
_MOST_TRIES = 1 << 12


def next_record(source: Source, at: int) -> int | None:
    """Give the first place from ``at`` on where records go on; None if there is none."""
    window, tries = _FIRST_WINDOW, _MOST_TRIES
    while at + _HEAD <= source.size:
        length = min(window + _HEAD, source.size - at)
        for place in _likely(np.frombuffer(source.view(at, length), np.uint8)).tolist():
            if not tries:
                return None
            tries -= 1
            if _is_chain(source, at + place):
                return at + int(place)
        at, window = at + length - _HEAD + 1, min(2 * window, _LARGEST_WINDOW)
    return None


def _likely(body: UInt8s) -> Int64s:
    """List the places where an offset and a length may stand."""
    last = len(body) - _HEAD + 1
    column = [body[byte : last + byte] for byte in range(_HEAD)]
    fits = (column[0] == 0) & (column[1] == 0)
    for byte in range(8, 13):
        fits &= column[byte] == 0
    fits &= (column[13] | column[14] | column[15]) != 0
    return np.flatnonzero(fits)


def _is_chain(source: Source, at: int) -> bool:
    """Tell whether records lead to each other from a place on, and some of them go on where others ended."""
    ends: list[int] = []
    joined = 0
    for step in range(_CHAIN):
        if at + _HEAD > source.size:
            return at == source.size and joined > 0
        header = parse(MakedumpfileDataHeader, source.view(at, _HEAD), 0, ">")
        if header.offset == header.buf_size == END_FLAG_FLAT_HEADER:
            return step > 0
        if not (0 <= header.offset <= min(MAX_OFFSET, _SPARSE * source.size) and 0 < header.buf_size <= _LONGEST):
            return False
        joined += header.offset in ends
        if joined >= _JOINED:
            return True
        ends.append(header.offset + header.buf_size)
        at += _HEAD + header.buf_size
    return False
