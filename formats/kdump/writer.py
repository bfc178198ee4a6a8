"""Writes kdump-compressed dumps that crash, drgn, makedumpfile and libkdumpfile open."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from dumpxlate.codecs import codec_for, parse_codec
from dumpxlate.errors import UnsupportedFeatureError
from dumpxlate.format import require_physical
from dumpxlate.formats.kdump.bitmaps import packed
from dumpxlate.formats.kdump.layout import FLAG_OF_CODEC, PageDesc
from dumpxlate.formats.kdump.plan import Extent, make_plan
from dumpxlate.formats.kdump.table import ROW
from dumpxlate.pages import STORED, ZERO, CodecId
from dumpxlate.pageset import between
from dumpxlate.structs import dtype_of
from dumpxlate.window import Window

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dumpxlate.codecs import Codec
    from dumpxlate.dump import Dump
    from dumpxlate.format import Loss, WriteOptions
    from dumpxlate.io.sink import Sink
    from dumpxlate.pages import PageBatch, PageStore, PageTable
    from dumpxlate.pageset import PageSet

__all__ = ["KdumpWriter"]

_FLAGS = np.zeros(256, np.uint32)  # pages without content may have any codec
for _codec, _flag in FLAG_OF_CODEC.items():
    _FLAGS[_codec] = _flag


_SAMPLES, _SAMPLE = 8, 256


class KdumpWriter:
    """Plans and writes one kdump-compressed file of version 6.

    Pages that the source keeps compressed go over as they are, unless another codec, or a level, is asked for. Pages
    of other sources are compressed with zlib, which every reader knows. Zero pages share one block. A window of
    physical memory leaves the pages outside it out, as makedumpfile leaves out what it filters: their RAM is known,
    their content is not in the file.

    Raises:
        MapError: the dump is keyed by machine frames.
        UnsupportedFeatureError: a codec that the format does not have, or no RAM.
        ValueError: no such codec, or no such part.
    """

    seeks = True
    losses: tuple[Loss, ...] = ()

    def __init__(self, dump: Dump, options: WriteOptions) -> None:
        require_physical(dump, "kdump")
        self._ram = dump.pages.ram
        self._stored = Window.of(dump.pages, options).cut(dump.pages.stored)
        self.codec, self.accepts = _choose_codec(dump.pages, options.compress)
        max_mapnr = max(self._ram.stop, self._stored.stop)
        part = _part(self._stored, options.part, max_mapnr) if options.part else None
        self.pages: PageSet = between(self._stored, *part) if part else self._stored
        codec = self.codec.id if self.codec else CodecId.RAW
        self._plan = make_plan(dump, Extent(max_mapnr, self.pages.count, part), codec)
        self._row = 0
        self._incomplete = False
        self._sink: Sink

    def begin(self, sink: Sink) -> None:
        """Write headers, notes and bitmaps, room for the descriptors, and the page that all zero pages share."""
        self._sink = sink
        plan = self._plan
        sink.append([plan.head()])
        for pages in (self._ram, self._stored):
            end = sink.position + plan.bitmap_bytes
            for words in packed(pages):
                if words.any():
                    sink.append([words.astype("<u8", copy=False).view(np.uint8).data])
                else:
                    sink.skip(words.nbytes)
            sink.skip(end - sink.position)
        sink.skip(plan.data_at - plan.table_at)
        sink.append([bytes(plan.header.block_size)])

    def write(self, batch: PageBatch) -> None:
        """Write the next pages; one without content gets a descriptor of zeros, as makedumpfile gives it."""
        table = batch.table
        rows = self._rows(table)
        start, length = table.spans()
        spans = [batch.body[at : at + size] for at, size in zip(start.tolist(), length.tolist(), strict=True)]
        self._sink.append(spans)
        self._sink.write_at(self._plan.table_at + self._row * ROW, rows)
        self._row += len(table)

    def _rows(self, table: PageTable) -> bytes:
        """Make the descriptors of the next pages."""
        plan = self._plan
        stored, zero = table.state == STORED, table.state == ZERO
        self._incomplete |= not (stored | zero).all()
        size = np.where(stored, table.size, 0)
        start = np.cumsum(size, dtype=np.int64) - size + self._sink.position
        rows = np.zeros(len(table), dtype_of(PageDesc, plan.endian))
        rows["offset"] = np.where(stored, start, np.where(zero, plan.data_at, 0))
        rows["size"] = np.where(stored, size, np.where(zero, plan.header.block_size, 0))
        rows["flags"] = np.where(stored, _FLAGS[table.codec], 0)
        return rows.tobytes()

    def state(self) -> Mapping[str, Any]:
        """Whether a page without content was among those before."""
        return {"incomplete": bool(self._incomplete)}

    def restore(self, sink: Sink, done: int, state: Mapping[str, Any]) -> None:
        """Go on behind ``done`` pages: so many descriptors are filled in."""
        self._sink = sink
        self._row, self._incomplete = done, bool(state["incomplete"])

    def finish(self) -> None:
        """Write what makedumpfile erased behind the pages, and the headers again where they tell of it."""
        plan = self._plan.finished(end=self._sink.position, incomplete=self._incomplete)
        if plan.eraseinfo:
            self._sink.append([plan.eraseinfo])
        if plan != self._plan:
            self._sink.write_at(0, plan.head())


def _part(pages: PageSet, part: tuple[int, int], max_mapnr: int) -> tuple[int, int]:
    """Give the pfns of the k-th of n parts that hold as many pages each.

    Raises:
        ValueError: there is no such part.
    """
    number, parts = part
    if not 1 <= number <= parts:
        raise ValueError(f"part {number} of {parts}, expected 1 to {parts}")
    edges = []
    for rank in (pages.count * (number - 1) // parts, pages.count * number // parts):
        at = pages.select(rank, rank + 1)
        edges.append(int(at[0]) if len(at) else max_mapnr)
    return (0 if number == 1 else edges[0]), (max_mapnr if number == parts else edges[1])


def _choose_codec(pages: PageStore, text: str | None) -> tuple[Codec | None, frozenset[CodecId]]:
    """Choose what to compress with, and what may pass as it is.

    Raises:
        UnsupportedFeatureError: a codec that descriptors have no flag for.
    """
    kept = _codecs_of(pages)
    id, level = parse_codec("raw" if text == "none" else text) if text else (next(iter(kept), CodecId.ZLIB), None)
    if id not in FLAG_OF_CODEC:
        raise UnsupportedFeatureError(
            f"kdump pages are not compressed with {id.name.lower()}", format="kdump", feature=f"compress {text}"
        )
    if id is CodecId.RAW:
        return None, frozenset({CodecId.RAW})
    codec = codec_for(id, level)
    if level is not None:
        return codec, frozenset()
    # Raw pages pass beside compressed ones: they are those that did not shrink.
    accepts = {CodecId.RAW, *(kept if text is None else [id])} if id in kept else {id}
    return codec, frozenset(accepts)


def _codecs_of(pages: PageStore) -> list[CodecId]:
    """Look at some descriptors for the codecs of a source, and give those that kdump has too, the most used first."""
    count = pages.stored.count
    used: Counter[int] = Counter()
    for first in range(0, count, max(count // _SAMPLES, _SAMPLE)):
        table = pages.locate(pages.stored.select(first, first + _SAMPLE)).stored()
        used.update(table.codec.tolist())
    return [CodecId(id) for id, _ in used.most_common() if id != CodecId.RAW and CodecId(id) in FLAG_OF_CODEC]
