"""The pipeline: pages of one dump into the file of another format.

Batches are located, fetched, decoded and searched for zeros by a few threads, and written in order by the caller's;
at most two batches a thread are on their way, so memory does not grow with the dump.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from dumpxlate.codecs import batch as batches
from dumpxlate.codecs.workers import default_threads, ordered_map
from dumpxlate.errors import CorruptDumpError, CorruptPageError, LossyConversionError, MapError
from dumpxlate.format import WriteOptions
from dumpxlate.pages import MISS_LIMIT, CodecId, PageBatch, PageState, PageTable, RemappedStore, windows
from dumpxlate.progress import Meter, Progress
from dumpxlate.registry import find_format
from dumpxlate.sink import FileSink, PipeSink

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    from dumpxlate.dump import Dump
    from dumpxlate.format import Loss, Writer
    from dumpxlate.pages import MapFit, PageStore

__all__ = ["BadPages", "Report", "convert"]

BadPages: TypeAlias = Literal["stop", "skip", "zero"]
"""What to do with a page that does not decode: stop, count it as left out, or write zeros in its place."""

_FEW_SPANS = 16
"""Up to so many pieces a batch is written straight from the input; beyond, gathering them first is faster."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a conversion did.

    Attributes:
        source: name of the input.
        target: name of the output.
        format: what was written.
        pages_in: pages of RAM that the input knows of.
        pages_out: written pages by state ("stored", "zero"), and those not written ("excluded", "bad").
        runs: runs of RAM, so that there are one fewer holes between them.
        bytes_written: size of the output.
        seconds: from the first page to the last.
        losses: what the target could not carry.
        damage: what the input lacked.
        fit: how the p2m map and the dump fitted, where one was applied.
        page_size: bytes a page.
    """

    source: str
    target: str
    format: str
    pages_in: int = 0
    pages_out: Mapping[str, int] = field(default_factory=dict)
    runs: int = 0
    bytes_written: int = 0
    seconds: float = 0.0
    page_size: int = 0
    losses: tuple[Loss, ...] = ()
    damage: tuple[str, ...] = ()
    fit: MapFit | None = None

    @property
    def complete(self) -> bool:
        """Whether everything that the input promises is in the output."""
        return not self.damage and not self.pages_out.get("bad")


@dataclass(slots=True)
class _Pump:
    """Moves pages from a store to a writer."""

    store: PageStore
    writer: Writer
    bad_pages: BadPages
    counts: Counter[str] = field(default_factory=Counter)

    def run(self, sink: FileSink | PipeSink, meter: Meter, threads: int) -> None:
        """Write everything that the writer wants."""
        self.writer.begin(sink)
        size = self.store.page_size
        with contextlib.closing(
            ordered_map(self.prepare, windows(self.writer.pages, size), threads=threads)
        ) as prepared:
            for batch in prepared:
                self.write(batch)
                meter.add(len(batch.table) * size)
        self.writer.finish()

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
        used = np.unique(table.codec[table.state == PageState.STORED])
        return all(CodecId(codec) in self.writer.accepts for codec in used.tolist())

    def write(self, ready: PageBatch) -> None:
        """Count a batch by state and hand it to the writer."""
        table = ready.table
        bad = np.flatnonzero(table.state == PageState.BAD)
        if len(bad) and self.bad_pages == "stop":
            raise CorruptPageError(
                "does not decode (--bad-pages skip or zero goes on without it)", pfn=int(table.pfn[bad[0]])
            )
        for state, count in zip(*np.unique(table.state, return_counts=True), strict=True):
            self.counts[PageState(state).name.lower()] += int(count)
        self.writer.write(ready)


def convert(
    dump: Dump,
    target: str | os.PathLike[str] | PipeSink,
    format: str = "elf",
    options: WriteOptions | None = None,
    *,
    allow_loss: bool = False,
    salvage: bool = False,
    overwrite: bool = False,
    bad_pages: BadPages = "stop",
    threads: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Write a dump in another format.

    The target appears under its name only when it is complete, with mode 0600.

    Args:
        dump: what to convert; a PV dump keyed by mfn needs its map first (``dump.with_p2m``).
        target: path of the output, or a pipe.
        format: name of the format to write.
        options: what the format may be asked for.
        allow_loss: write although the target cannot carry something, or the p2m map does not fit.
        salvage: write although parts of the input are missing or broken.
        overwrite: replace an existing file.
        bad_pages: what to do with pages that do not decode.
        threads: workers; 0 does all in this thread, None takes one for each processor, up to 8.
        progress: called after each batch.

    Raises:
        LossyConversionError: the target cannot carry something, and ``allow_loss`` is not given.
        MapError: the p2m map is missing, or does not fit the dump.
        CorruptDumpError: the input is damaged, and ``salvage`` is not given.
        OutputError: the target exists, is the input, or is no regular file.
    """
    if dump.damage and not salvage:
        raise CorruptDumpError(
            f"{'; '.join(dump.damage)} (--salvage converts what is there)", path=dump.name, format=dump.format
        )
    writer = find_format(format).writer(dump, options or WriteOptions())
    fit = dump.pages.fit() if isinstance(dump.pages, RemappedStore) else None
    if not allow_loss:
        _refuse_loss(dump, writer, fit)
    pump = _Pump(dump.pages, writer, bad_pages)
    meter = Meter("convert", writer.pages.count * dump.pages.page_size, progress)
    with _open_sink(dump, target, overwrite=overwrite) as sink:
        pump.run(sink, meter, default_threads() if threads is None else threads)
        sink.commit()
        written = sink.position
    name = target.name if isinstance(target, PipeSink) else str(target)
    return _report(dump, pump, Report(dump.name, name, format, fit=fit, bytes_written=written, seconds=meter.seconds))


def _report(dump: Dump, pump: _Pump, report: Report) -> Report:
    """Complete a report with what was counted."""
    ram, writer = dump.pages.ram, pump.writer
    excluded = pump.counts["excluded"] + ram.count - writer.pages.count
    return replace(
        report,
        pages_in=ram.count,
        pages_out=dict(pump.counts) | {"excluded": excluded},
        runs=len(ram.runs()[0]),
        page_size=dump.pages.page_size,
        losses=writer.losses,
        damage=dump.damage,
    )


def _open_sink(dump: Dump, target: str | os.PathLike[str] | PipeSink, *, overwrite: bool) -> FileSink | PipeSink:
    if isinstance(target, PipeSink):
        return target
    return FileSink(target, overwrite=overwrite, inputs=[source.name for source in dump.sources])


def _refuse_loss(dump: Dump, writer: Writer, fit: MapFit | None) -> None:
    """Stop before a byte is written where the result would not hold what the dump holds."""
    if fit and not fit.fits:
        raise MapError(
            f"{dump.name}: the p2m map does not fit this dump: {fit}; up to {MISS_LIMIT:.0%} of either is accepted "
            "(--allow-loss goes on all the same)"
        )
    if writer.losses:
        raise LossyConversionError(
            f"{dump.name}: the target cannot carry {', '.join(map(str, writer.losses))} (--allow-loss leaves it out)",
            writer.losses,
        )
