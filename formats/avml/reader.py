"""Reads AVML files: the index at once, chunks when their pages are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.arrays import expand
from dumpxlate.bare import ASSUMED, assumed_machine
from dumpxlate.dump import Dump
from dumpxlate.errors import CorruptDumpError
from dumpxlate.formats.avml.frames import unpack_frames
from dumpxlate.formats.avml.records import Blocks, find_blocks
from dumpxlate.io.source import Closing, check_range, ranges_inside
from dumpxlate.pageset import EMPTY, pages_between, union
from dumpxlate.segments import index_segments
from dumpxlate.stores import IndexedStore

if TYPE_CHECKING:
    from dumpxlate.arrays import Bools, Int32s, Int64s
    from dumpxlate.io.source import Source
    from dumpxlate.pageset import PageSet

__all__ = ["ChunkedSource", "open_avml"]


def open_avml(source: Source) -> Dump:
    """Open an AVML file.

    Raises:
        UnsupportedFeatureError: another version.
        CorruptDumpError: the first block makes no sense.
    """
    blocks = find_blocks(source)
    start, length, offset = np.array(blocks.ranges, np.int64).reshape(-1, 3).T
    machine = assumed_machine()
    index = index_segments(ChunkedSource(source, blocks), start, length, offset, machine.page_size)
    remarks = [ASSUMED, "AVML leaves out blocks of 16 MiB that are all zero: they cannot be told from holes"]
    remarks += index.remarks("blocks")
    return Dump(
        format="avml",
        variant="version 2",
        machine=machine,
        pages=IndexedStore(index.source, machine.page_size, index.extents, lost=_lost(blocks, machine.page_size)),
        sources=(source,),
        attributes={"blocks": len(start), "chunks": len(blocks.packed)},
        remarks=(*remarks, *blocks.remarks),
        damage=tuple(blocks.damage),
    )


def _lost(blocks: Blocks, page_size: int) -> PageSet:
    """Give the pages of blocks that are not there to their ends."""
    lost: PageSet = EMPTY
    for start, stop in blocks.broken:
        lost = union(lost, pages_between(start, stop, page_size))
    return lost


class ChunkedSource(Closing):
    """What the blocks of a file unpack to, one behind the other; chunks are unpacked each time they are asked for.

    Ranges in a chunk that does not unpack, or whose checksum is wrong, lie outside the body they are brought in.

    Args:
        outer: the file; closed with this one.
        blocks: its index.
    """

    def __init__(self, outer: Source, blocks: Blocks) -> None:
        self.name = outer.name
        self.size = blocks.size
        self._outer = outer
        self._length, self._at, self._there = np.array(blocks.chunks, np.int64).reshape(-1, 3).T
        self._packed = np.frombuffer(blocks.packed, bool)
        self._start = np.cumsum(self._length) - self._length

    def view(self, offset: int = 0, length: int | None = None) -> memoryview:
        """Unpack a range."""
        length = check_range(self.name, self.size, offset, length)
        body, moved = self.gather(np.array([offset], np.int64), np.array([length], np.int32))
        at = int(moved[0])
        if at + length > len(body):
            first = int(np.searchsorted(self._start, offset, side="right")) - 1
            raise CorruptDumpError(
                "it, or one soon after it, does not unpack",
                path=self.name,
                offset=int(self._at[first]),
                what="snappy chunk",
            )
        return body[at : at + length]

    def gather(self, offset: Int64s, size: Int32s) -> tuple[memoryview, Int64s]:
        """Unpack the chunks that ranges lie in, each once."""
        used = ranges_inside(self.size, offset, size)
        first = np.searchsorted(self._start, offset[used], side="right") - 1
        last = np.searchsorted(self._start, offset[used] + size[used], side="left")
        chunk = np.unique(expand(first, last - first))
        length = self._length[chunk]
        ends = np.cumsum(length)
        body, failed = self._unpack(chunk, ends - length)
        row = np.searchsorted(chunk, first)
        broken = np.cumsum(np.append(False, failed))
        whole = broken[np.searchsorted(chunk, last)] == broken[row]
        moved = np.where(offset < 0, np.int64(-1), np.int64(len(body)))
        moved[used] = np.where(whole, (ends - length)[row] + offset[used] - self._start[first], len(body))
        return body, moved

    def place(self, offset: Int64s) -> Int64s:
        """Say nothing: in the file are chunks, not pages."""
        return np.full(len(offset), -1, np.int64)

    def _unpack(self, chunk: Int64s, into: Int64s) -> tuple[memoryview, Bools]:
        """Unpack chunks into a new body; give it, and which chunks failed."""
        length, there, packed = self._length[chunk], self._there[chunk], self._packed[chunk]
        source, at = self._outer.gather(self._at[chunk], there.astype(np.int32))
        body = np.empty(int(length.sum()), np.uint8).data
        failed = np.zeros(len(chunk), bool)
        # Chunks that follow each other in both bodies are unpacked in one call, and only where that fails one by one.
        joined = (at[1:] == (at + there)[:-1]) & (packed[1:] == packed[:-1])
        opens = np.flatnonzero(np.append(True, ~joined)[: len(chunk)])
        low, high, to, stop = (column.tolist() for column in (at, at + there, into, into + length))
        for first, count in zip(opens.tolist(), np.diff(opens, append=len(chunk)).tolist(), strict=True):
            last = first + count - 1
            if _bring(source[low[first] : high[last]], body[to[first] : stop[last]], packed=bool(packed[first])):
                continue
            for row in range(first, last + 1):
                failed[row] = not unpack_frames(source[low[row] : high[row]], body[to[row] : stop[row]])
        return body.toreadonly(), failed


def _bring(chunks: memoryview, out: memoryview, *, packed: bool) -> bool:
    """Unpack or copy chunks; False if they do not unpack."""
    if packed:
        return unpack_frames(chunks, out)
    out[:] = chunks
    return True
