"""Reads LiME files: the headers of all ranges, one after the other."""

from __future__ import annotations

from array import array
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.bare import ASSUMED, assumed_machine
from dumpxlate.dump import Dump
from dumpxlate.errors import FormatError
from dumpxlate.io.windowed import WindowedReader
from dumpxlate.lime import LIME_MAGIC, RECORD, LimeHeader, check_record, next_record
from dumpxlate.pageset import pages_between
from dumpxlate.segments import index_segments
from dumpxlate.stores import IndexedStore
from dumpxlate.structs import parse

if TYPE_CHECKING:
    from dumpxlate.io.source import Source

__all__ = ["open_lime"]

_MOST_RANGES = 1 << 12
"""Ranges that are followed behind a defect: machines have some ten."""


def open_lime(source: Source) -> Dump:
    """Open a LiME file.

    Raises:
        UnsupportedFeatureError: another version.
        CorruptDumpError: the first range makes no sense.
    """
    found, promised, damage = _ranges(source)
    start, length, offset = np.array(found, np.int64).reshape(-1, 3).T
    machine = assumed_machine()
    index = index_segments(source, start, length, offset, machine.page_size)
    remarks = [ASSUMED]
    remarks += index.remarks("ranges")
    return Dump(
        format="lime",
        variant="version 1",
        machine=machine,
        pages=IndexedStore(
            index.source, machine.page_size, index.extents, lost=pages_between(*promised, machine.page_size)
        ),
        sources=(source,),
        attributes={"ranges": len(start)},
        remarks=tuple(remarks),
        damage=tuple(damage),
    )


def _ranges(source: Source) -> tuple[array[int], tuple[int, int], list[str]]:
    """Walk over the ranges: start, length and offset of each, where a cut one should reach, and what ended the walk.

    A range that was cut short (LiME after a failed read) makes the next header come too early, which nothing can tell
    from memory that holds one. The walk goes on with the next header from which ranges follow each other to the end.
    """
    found = array("q")
    damage: list[str] = []
    reader, at, lowest = WindowedReader(source), 0, 0
    while at < source.size:
        try:
            header = parse(LimeHeader, reader.read(at, RECORD), 0, "<", what="range header")
            check_record(header, at)
        except FormatError as error:
            if not found:
                raise
            further = next_record(source, at, lowest, (LIME_MAGIC,), partial(_reaches_the_end, source))
            if further is None:
                damage.append(f"range {len(found) // 3} at {at:#x}: {error}; what follows is left out")
                return found, (0, 0), damage
            damage.append(
                f"range {len(found) // 3} at {at:#x}: {error}; the next one is at {further:#x}, what is between has no "
                "address"
            )
            at = further
            continue
        length = header.e_addr - header.s_addr + 1
        there = min(length, source.size - at - RECORD)
        found.extend((header.s_addr, there, at + RECORD))
        if there < length:
            damage.append(
                f"truncated: the last range, from {header.s_addr:#x}, has {length:,} bytes, {there:,} are there"
            )
            return found, (header.s_addr, header.e_addr + 1), damage
        at += RECORD + length
        lowest = header.e_addr + 1
    return found, (0, 0), damage


def _reaches_the_end(source: Source, header: LimeHeader, at: int) -> bool:
    """Tell whether a header and those behind it lead to the end of the file, range by range."""
    reader = WindowedReader(source)
    for _ in range(_MOST_RANGES):
        at += RECORD + header.e_addr - header.s_addr + 1
        if at >= source.size:
            return at == source.size
        lowest = header.e_addr
        try:
            header = parse(LimeHeader, reader.read(at, RECORD), 0, "<")
            check_record(header, at)
        except FormatError:
            return False
        if header.s_addr <= lowest:
            return False
    return False
