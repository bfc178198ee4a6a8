"""Writes AVML files: blocks of at most 16 MiB, compressed."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from dumpxlate.bare import chosen_pages, lost_facts, lost_pages
from dumpxlate.codecs.batch import gather
from dumpxlate.emit import by_run
from dumpxlate.formats.avml.frames import pack_frames
from dumpxlate.lime import AVML_MAGIC, AVML_VERSION, record
from dumpxlate.pages import STORED, CodecId, PageBatch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dumpxlate.dump import Dump
    from dumpxlate.format import WriteOptions
    from dumpxlate.io.sink import Sink

__all__ = ["AvmlWriter"]

_BLOCK = 16 << 20


class AvmlWriter:
    """Plans and writes one AVML file.

    Blocks of zeros are written too, a few per cent of their size: avml leaves them out, and then nobody can tell zero
    pages from no memory.

    Raises:
        MapError: the dump is keyed by machine frames.
    """

    accepts = frozenset({CodecId.RAW})
    seeks = False
    codec = None

    def __init__(self, dump: Dump, options: WriteOptions) -> None:
        ram, self.pages = chosen_pages(dump, options, "avml")
        self.losses = lost_facts(dump, "avml") + lost_pages(ram, self.pages, "avml")
        self._block = np.zeros((_BLOCK // dump.pages.page_size, dump.pages.page_size), np.uint8)
        self._first = self._filled = 0
        self._sink: Sink

    def begin(self, sink: Sink) -> None:
        """Nothing stands before the first block."""
        self._sink = sink

    def write(self, batch: PageBatch) -> None:
        """Take the next pages, and write every block that is full."""
        for run in by_run(batch):
            if int(run.table.pfn[0]) != self._first + self._filled:
                self._flush()
            done = 0
            while done < len(run.table):
                done += self._take(PageBatch(run.table.where(slice(done, None)), run.body))

    def _take(self, run: PageBatch) -> int:
        """Put pages into the block, as many as have room; gives their number."""
        if not self._filled:
            self._first = int(run.table.pfn[0])
        rows = self._block[self._filled : self._filled + len(run.table)]
        packed = gather(PageBatch(run.table.where(slice(0, len(rows))), run.body), self._block.shape[1])
        stored = np.flatnonzero(packed.table.state == STORED)
        if len(stored):
            body = np.frombuffer(packed.body, np.uint8, len(stored) * rows.shape[1], packed.table.offset[stored[0]])
            rows[stored] = body.reshape(-1, rows.shape[1])
        self._filled += len(rows)
        if self._filled == len(self._block):
            self._flush()
        return len(rows)

    def _flush(self) -> None:
        """Write the block, if there is any, and begin a new one."""
        if self._filled:
            size = self._block.shape[1]
            data = self._block[: self._filled].reshape(-1).data
            frames = pack_frames(data)
            header = record(AVML_MAGIC, AVML_VERSION, self._first * size, len(data))
            self._sink.append([header, frames, struct.pack("<Q", len(frames))])
            self._block[: self._filled] = 0
        self._first += self._filled
        self._filled = 0

    @property
    def waiting(self) -> int:
        """Pages in the block that is not full yet: they are asked for again."""
        return self._filled

    def state(self) -> Mapping[str, Any]:
        """Nothing has to be known again."""
        return {}

    def restore(self, sink: Sink, done: int, state: Mapping[str, Any]) -> None:
        """Go on behind ``done`` pages."""
        self._sink = sink
        self._first = self._filled = 0

    def finish(self) -> None:
        """Write the last block."""
        self._flush()
