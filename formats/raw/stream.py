"""Reads raw images in one pass: nobody knows how much memory there is until it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dumpxlate.bare import assumed_machine
from dumpxlate.dump import Dump
from dumpxlate.io.source import BytesSource
from dumpxlate.pieces import Gathering
from dumpxlate.stores import IndexedStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dumpxlate.io.pipe import Pipe
    from dumpxlate.segments import SegmentIndex

__all__ = ["raw_pieces"]

_MACHINE = assumed_machine()
_MAX_ADDRESS = 1 << 62


def raw_pieces(pipe: Pipe) -> Iterator[Dump]:
    """Give memory as it comes, from address 0 on; what there is of a last page is filled up with zeros."""
    gathering = Gathering(pipe, _MACHINE.page_size)
    for piece in gathering.take(0, _MAX_ADDRESS):
        yield _dump(pipe, piece)
    yield _dump(pipe, gathering.rest())


def _dump(pipe: Pipe, index: SegmentIndex) -> Dump:
    return Dump(
        format="raw",
        variant="without a map",
        machine=_MACHINE,
        pages=IndexedStore(index.source, _MACHINE.page_size, index.extents),
        sources=(BytesSource(b"", pipe.name),),
    )
