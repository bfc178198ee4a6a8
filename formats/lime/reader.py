"""Reads LiME files: the headers of all ranges, one after the other."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.bare import ASSUMED, assumed_machine
from dumpxlate.dump import Dump
from dumpxlate.errors import FormatError
from dumpxlate.io.windowed import WindowedReader
from dumpxlate.lime import RECORD, LimeHeader, check_record
from dumpxlate.pageset import pages_between
from dumpxlate.segments import index_segments
from dumpxlate.stores import IndexedStore
from dumpxlate.structs import parse

if TYPE_CHECKING:
    from dumpxlate.io.source import Source

__all__ = ["open_lime"]


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
    from memory that holds one: the walk ends there.
    """
    found = array("q")
    reader, at = WindowedReader(source), 0
    while at < source.size:
        try:
            header = parse(LimeHeader, reader.read(at, RECORD), 0, "<", what="range header")
            check_record(header, at)
        except FormatError as error:
            if not found:
                raise
            return found, (0, 0), [f"range {len(found) // 3} at {at:#x}: {error}; what follows is left out"]
        length = header.e_addr - header.s_addr + 1
        there = min(length, source.size - at - RECORD)
        found.extend((header.s_addr, there, at + RECORD))
        if there < length:
            return (
                found,
                (header.s_addr, header.e_addr + 1),
                [f"truncated: the last range, from {header.s_addr:#x}, has {length:,} bytes, {there:,} are there"],
            )
        at += RECORD + length
    return found, (0, 0), []
