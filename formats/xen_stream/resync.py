"""Finds the next record with pages behind a defect of a stream.

Records begin at multiples of 8 bytes from the first one. One with pages has its type and length, the number of its
entries, entries of known types, and as many pages as those say; behind it comes another record, or the end of the
file. Nothing else looks so by chance, and its entries say which pages they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.formats.xen_stream import layout
from dumpxlate.xen import MAX_FRAME, PAGE_SIZE

if TYPE_CHECKING:
    from dumpxlate.io.source import Source

__all__ = ["is_header", "next_pages"]

_FIRST_WINDOW, _LARGEST_WINDOW = 64 << 10, 16 << 20
_MOST_TRIES = 256
"""Places that are looked at closely."""
_MOST_ENTRIES = 1 << 12
"""Entries of a record that is believed behind a defect; Xen's tools put 1024 into one."""
_HEAD = 16
_SHORTEST = 8 + 8
_LONGEST = 8 + (8 + PAGE_SIZE) * _MOST_ENTRIES
_PAGE_BITS = np.uint64((1 << 60) - 1)
_WITH_PAGE = np.isin(np.arange(16), layout.PAGES_WITH_CONTENT)
_KNOWN = np.isin(np.arange(16), (*layout.PAGES_WITH_CONTENT, *layout.PAGES_WITHOUT))


def next_pages(source: Source, at: int) -> int | None:
    """Give where the next record with pages is, from one that makes no sense on; None if there is none."""
    start, window, tries = at + 8, _FIRST_WINDOW, _MOST_TRIES
    while start < source.size - _HEAD and tries:
        length = min(window + 8, source.size - start) & -8
        words = np.frombuffer(source.view(start, length), "<u4").astype(np.int64).reshape(-1, 2)
        head, body = words[:-1], words[1:]
        count = body[:, 0]
        likely = (head[:, 0] == layout.PAGE_DATA) & (head[:, 1] >= _SHORTEST) & (head[:, 1] <= _LONGEST)
        likely &= (count > 0) & (count <= _MOST_ENTRIES) & ((head[:, 1] - 8 - 8 * count) % PAGE_SIZE == 0)
        for row in np.flatnonzero(likely)[:tries].tolist():
            place: int = start + 8 * row
            tries -= 1
            if _is_record(source, place, int(head[row, 1]), int(count[row])):
                return place
        start, window = start + window, min(2 * window, _LARGEST_WINDOW)
    return None


def _is_record(source: Source, at: int, length: int, count: int) -> bool:
    """Look closely at what may be a record."""
    behind = at + 8 + length
    if behind > source.size or 8 + 8 * count > length:
        return False
    entry = np.frombuffer(source.view(at + 16, 8 * count), "<u8")
    kind = (entry >> np.uint64(60)).astype(np.int64)
    if not _KNOWN[kind].all() or (entry & _PAGE_BITS >= MAX_FRAME).any():
        return False
    if length != 8 + 8 * count + PAGE_SIZE * int(_WITH_PAGE[kind].sum()):
        return False
    return behind + 8 > source.size or is_header(source, behind, last=True)


def is_header(source: Source, at: int, *, last: bool = False) -> bool:
    """Tell whether a known record begins at a place; that of the END, which is all zeros, only if it may."""
    if at + 8 > source.size:
        return False
    kind, length = (int.from_bytes(source.view(at + each, 4), "little") for each in (0, 4))
    if kind == layout.PAGE_DATA:
        count = int.from_bytes(source.view(at + 8, min(4, source.size - at - 8)), "little")
        return 0 < count <= layout.PAGES_LIMIT and 8 + 8 * count <= length <= layout.RECORD_LIMIT
    return kind in layout.NAMES and length <= layout.RECORD_LIMIT and (last or kind != layout.END)
