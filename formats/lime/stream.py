"""Reads LiME files in one pass: each header tells where the bytes behind it belong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dumpxlate.bare import assumed_machine
from dumpxlate.dump import Dump
from dumpxlate.errors import FormatError, UnsupportedFeatureError
from dumpxlate.io.source import BytesSource
from dumpxlate.lime import LIME_MAGIC, RECORD, LimeHeader, check_record
from dumpxlate.pageset import EMPTY, pages_between
from dumpxlate.pieces import Gathering
from dumpxlate.stores import IndexedStore
from dumpxlate.structs import parse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dumpxlate.io.pipe import Pipe
    from dumpxlate.pageset import PageSet
    from dumpxlate.segments import SegmentIndex

__all__ = ["lime_pieces"]

_MACHINE = assumed_machine()


def lime_pieces(pipe: Pipe) -> Iterator[Dump]:
    """Give memory as it comes; what is missing at the end is the damage of the last piece.

    Raises:
        UnsupportedFeatureError: another version, ranges that do not ascend, or AVML's records among them.
        CorruptDumpError: the first range makes no sense.
    """
    gathering, number = Gathering(pipe, _MACHINE.page_size), 0
    lost: PageSet = EMPTY
    damage: tuple[str, ...] = ()
    while not damage and pipe.peek(1):
        at = pipe.position
        try:
            header = parse(LimeHeader, pipe.take(RECORD), 0, "<", what="range header")
            check_record(header, at)
        except FormatError as error:
            if not number:
                raise
            damage = (f"range {number} at {at:#x}: {error}; what follows is left out",)
            break
        if header.magic != LIME_MAGIC:
            raise UnsupportedFeatureError(
                f"range header at {at:#x}: AVML's records among LiME's are not read in one pass (--spool)",
                feature="AVML",
            )
        stop, number = header.e_addr + 1, number + 1
        for piece in gathering.take(header.s_addr, stop - header.s_addr):
            yield _dump(pipe, piece)
        if gathering.end < stop:
            lost = pages_between(gathering.end, stop, _MACHINE.page_size)
            there = f"{gathering.end - header.s_addr:,} are there"
            damage = (
                f"truncated: the last range, from {header.s_addr:#x}, has {stop - header.s_addr:,} bytes, {there}",
            )
    yield _dump(pipe, gathering.rest(), lost, damage)


def _dump(pipe: Pipe, index: SegmentIndex, lost: PageSet = EMPTY, damage: tuple[str, ...] = ()) -> Dump:
    return Dump(
        format="lime",
        variant="version 1",
        machine=_MACHINE,
        pages=IndexedStore(index.source, _MACHINE.page_size, index.extents, lost=lost),
        sources=(BytesSource(b"", pipe.name),),
        damage=damage,
    )
