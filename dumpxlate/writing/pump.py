"""Moves pages from a store to a writer: what the pipeline does with each batch."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from dumpxlate.codecs import batch as batches
from dumpxlate.codecs.workers import ordered_map
from dumpxlate.errors import CorruptPageError
from dumpxlate.io import aio
from dumpxlate.io.sink import FileSink
from dumpxlate.pages import BAD, BATCH_BYTES, STORED, CodecId, PageBatch, PageState, PageTable
from dumpxlate.verify.missing import BadRuns, bad_runs
from dumpxlate.writing.ring import can_share, share

if TYPE_CHECKING:
    from dumpxlate.format import Writer
    from dumpxlate.io.sink import Sink
    from dumpxlate.pages import PageStore
    from dumpxlate.progress import Meter
    from dumpxlate.writing.resume import Resumption

__all__ = ["BadPages", "Pump"]

BadPages: TypeAlias = Literal["stop", "skip", "zero"]
"""What to do with a page that does not decode: stop, count it as left out, or write zeros in its place."""

_LISTED = 1000
"""Runs of missing pages that a report lists."""

_FEW_SPANS = 16
"""Up to so many pieces a batch is written straight from the input; beyond, gathering them first is faster."""

_WIDE_BYTES = 2 * BATCH_BYTES
"""Guest memory in a batch whose pages are not encoded: little is done for a batch but look it up."""

_LEAST_BATCHES = 2
"""For less than so many a process is not worth while."""


@dataclass(slots=True)
class Pump:
    """Moves pages from a store to a writer."""

    store: PageStore
    writer: Writer
    bad_pages: BadPages
    counts: Counter[str] = field(default_factory=Counter)
    bad: BadRuns = field(default_factory=lambda: BadRuns(_LISTED))

    def run(self, sink: Sink, meter: Meter, workers: int, resumption: Resumption | None) -> None:
        """Write everything that the writer wants and has not yet.

        Args:
            sink: what the writer writes to.
            meter: told how far it is.
            workers: processes or threads to use; 0 for this thread alone.
            resumption: knows how many pages are written already; None where none are, and nobody will go on.
        """
        done = resumption.pages if resumption else 0
        meter.add(done * self.store.page_size)
        size = BATCH_BYTES if resumption or self._encodes else _WIDE_BYTES
        starts = range(done, self.writer.pages.count, max(size // self.store.page_size, 1))
        if resumption or not self._shared(sink, starts, meter, workers):
            self._threaded(starts, meter, workers, resumption)
        self.writer.finish()

    @property
    def _encodes(self) -> bool:
        """Whether pages are encoded: beside raw ones those of the source's codecs are accepted where there are any."""
        return bool(self.writer.codec) and self.writer.accepts <= {CodecId.RAW}

    def _shared(self, sink: Sink, starts: range, meter: Meter, workers: int) -> bool:
        """Write with several processes, if that can be; tells whether it could."""
        processes = min(workers, len(starts) // _LEAST_BATCHES)
        if processes < 2 or not isinstance(sink, FileSink):
            return False
        sink.rest()
        if not can_share(self.writer):
            return False
        aio.expect(self._pieces(starts) * len(starts) // processes)
        return share(self, sink, starts, processes, lambda pages: meter.reach(pages * self.store.page_size))

    def _pieces(self, starts: range) -> int:
        """Count the pieces of the input that the first batch is in."""
        pfn = self.writer.pages.select(starts.start, starts.start + starts.step)
        return len(self.store.locate(pfn).spans()[0])

    def _threaded(self, starts: range, meter: Meter, threads: int, resumption: Resumption | None) -> None:
        """Write what threads have prepared."""
        todo = ((first, min(first + starts.step, starts.stop)) for first in starts)
        done = starts.start
        with contextlib.closing(ordered_map(self.prepare, todo, threads=threads)) as prepared:
            for batch in prepared:
                self.write(batch)
                done += len(batch.table)
                if resumption:
                    resumption.wrote(done, batch.table.state, self.counts)
                meter.reach(done * self.store.page_size)

    def prepare(self, window: tuple[int, int]) -> PageBatch:
        """Bring the pages of a window of ranks into a form that the writer takes; runs in a worker."""
        pfn = self.writer.pages.select(*window)
        found = self.store.fetch(self.store.locate(pfn))
        if self._passes(found.table):
            return found
        size = self.store.page_size
        raw = batches.decode(found, size)
        if len(raw.table.spans()[0]) > _FEW_SPANS:
            raw = batches.gather(raw, size)
        raw = batches.mark_zero(raw, size)
        return batches.encode(raw, self.writer.codec, size) if self.writer.codec else raw

    def _passes(self, table: PageTable) -> bool:
        """Whether compressed pages may go on as they are."""
        if self.writer.accepts <= {CodecId.RAW}:
            return False
        used = np.bincount(table.codec[table.state == STORED]).nonzero()[0]
        return all(CodecId(codec) in self.writer.accepts for codec in used.tolist())

    def write(self, ready: PageBatch) -> None:
        """Count a batch by state and hand it to the writer."""
        table = ready.table
        counts = np.bincount(table.state, minlength=BAD + 1).tolist()
        if counts[BAD]:
            bad = np.flatnonzero(table.state == BAD)
            found = self.store.locate(table.pfn[bad])
            self.bad.add(bad_runs(self.store, found, np.arange(len(bad))))
            if self.bad_pages == "stop":
                raise CorruptPageError(
                    "does not decode (--bad-pages skip or zero goes on without it)", pfn=int(table.pfn[bad[0]])
                )
        for state, count in enumerate(counts):
            if count:
                self.counts[PageState(state).name.lower()] += count
        self.writer.write(ready)
