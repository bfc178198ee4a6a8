"""Memory in one pass: each piece is converted by itself, and the results stand one behind the other."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.extents import Extents
from dumpxlate.format import WriteOptions
from dumpxlate.io.source import BytesSource
from dumpxlate.pages import lost_pages
from dumpxlate.registry import find_format
from dumpxlate.stores import IndexedStore
from dumpxlate.writing.pump import Pump
from dumpxlate.writing.refusals import declared, lost_beside, refuse_damage
from dumpxlate.writing.report import completed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dumpxlate.dump import Dump
    from dumpxlate.format import Writer
    from dumpxlate.io.sink import Sink
    from dumpxlate.streaming.job import Job
    from dumpxlate.writing.report import Report

__all__ = ["convert_pieces"]


def convert_pieces(job: Job, pieces: Iterator[Dump]) -> Report:
    """Write memory as it comes.

    Args:
        job: what is asked.
        pieces: at least one, as ``OnePass`` gives them.

    Raises:
        LossyConversionError: the target cannot carry something, and no loss is allowed.
        CorruptDumpError: the input is broken or ends too early, and what there is will not do.
    """
    passing = _Passing(job)
    with job.drawn(pieces) as drawn:
        first = next(drawn)
        with job.destination(passing.plan(first)) as where:
            meter = job.meter()
            for piece in chain((first,), drawn):
                passing.write(piece, where.sink)
                meter.add(piece.pages.stored.count * piece.pages.page_size)
            job.pipe.drain()
            whole, pump = passing.whole(first)
            where.complete(pump.writer)
            where.commit()
    losses = pump.writer.losses + lost_beside(pump.writer, job.target)
    report = replace(job.report(), losses=losses, bytes_written=where.outer.position, seconds=meter.seconds)
    return completed(whole, pump, report)


class _Passing:
    """Writes pieces, and remembers of them what a report, or a file beside the output, tells of them all."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._format = find_format(job.format)
        self._counts: Counter[str] = Counter()
        self._runs = array("q")
        self._last: Dump | None = None
        self._begin = 0

    def plan(self, piece: Dump) -> Writer:
        """Plan to write a piece: the window of memory that begins where the last piece ended."""
        refuse_damage(piece, salvage=self._job.salvage)
        writer = self._format.writer(piece, WriteOptions(begin=self._begin))
        declared(piece, writer.losses + lost_beside(writer, self._job.target), None, allowed=self._job.allow_loss)
        return writer

    def write(self, piece: Dump, sink: Sink) -> None:
        """Write the next piece."""
        refuse_damage(piece, salvage=self._job.salvage)
        if piece.pages.ram.count:
            pump = Pump(piece.pages, self.plan(piece), "stop", self._counts)
            pump.writer.begin(sink)
            if pump.writer.pages.count:
                pump.write(pump.prepare((0, pump.writer.pages.count)))
            pump.writer.finish()
            self._begin = piece.pages.ram.stop * piece.pages.page_size
        for start, count in zip(*(each.tolist() for each in piece.pages.stored.runs()), strict=True):
            if self._runs and start == self._runs[-2] + self._runs[-1]:
                self._runs[-1] += count
            else:
                self._runs.extend((start, count))
        self._last = piece

    def whole(self, first: Dump) -> tuple[Dump, Pump]:
        """Give a dump that knows which pages have passed, without their bytes, and what was counted of them."""
        last = self._last or first
        start, count = np.array(self._runs, np.int64).reshape(-1, 2).T
        gone = BytesSource(b"", first.name)
        extents = Extents(start, count, np.zeros(len(start), np.int64))
        pages = IndexedStore(gone, first.pages.page_size, extents, lost=lost_pages(last.pages))
        dump = replace(first, pages=pages, damage=last.damage)
        return dump, Pump(pages, self._format.writer(dump, WriteOptions()), "stop", self._counts)
