"""The pipeline: pages of one dump into the file of another format.

Batches are located, fetched, decoded and searched for zeros by a few threads, and written in order by the caller's;
at most two batches a thread are on their way, so memory does not grow with the dump.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from dumpxlate.canonical.store import CanonicalStore
from dumpxlate.codecs import batch as batches
from dumpxlate.codecs.workers import default_threads, ordered_map
from dumpxlate.errors import CorruptDumpError, CorruptPageError, LossyConversionError, MapError, OutputError
from dumpxlate.format import Accompanied, Loss, Remarking, WriteOptions
from dumpxlate.io.sink import FileSink, PipeSink
from dumpxlate.pages import CodecId, PageBatch, PageState, PageTable, windows
from dumpxlate.progress import Meter, Progress
from dumpxlate.registry import find_format, find_wrapper
from dumpxlate.stores import MISS_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from dumpxlate.canonical.walk import Rewritten
    from dumpxlate.dump import Dump
    from dumpxlate.format import Writer
    from dumpxlate.io.sink import Output, Sink
    from dumpxlate.pages import PageStore
    from dumpxlate.stores import MapFit

__all__ = ["FLATTENED", "BadPages", "Report", "convert", "convert_set"]

BadPages: TypeAlias = Literal["stop", "skip", "zero"]
"""What to do with a page that does not decode: stop, count it as left out, or write zeros in its place."""

FLATTENED = "flattened"

_FEW_SPANS = 16
"""Up to so many pieces a batch is written straight from the input; beyond, gathering them first is faster."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a conversion did.

    Attributes:
        source: name of the input.
        target: name of the output.
        format: what was written.
        container: what it was wrapped in ("flattened"), if anything.
        pages_in: pages of RAM that the input knows of.
        pages_out: written pages by state ("stored", "zero"), and those not written ("excluded", "bad").
        runs: runs of RAM, so that there are one fewer holes between them.
        bytes_written: size of the output.
        seconds: from the first page to the last.
        losses: what the target could not carry.
        damage: what the input lacked.
        remarks: what is to be said of the output.
        fit: how the p2m map and the dump fitted, where one was applied.
        page_size: bytes a page.
        rewritten: what became of a paravirtual guest's page tables, where they were made canonical.
    """

    source: str
    target: str
    format: str
    container: str | None = None
    pages_in: int = 0
    pages_out: Mapping[str, int] = field(default_factory=dict)
    runs: int = 0
    bytes_written: int = 0
    seconds: float = 0.0
    page_size: int = 0
    losses: tuple[Loss, ...] = ()
    damage: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    fit: MapFit | None = None
    rewritten: Rewritten | None = None

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

    def run(self, sink: Sink, meter: Meter, threads: int) -> None:
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
        used = np.bincount(table.codec[table.state == PageState.STORED]).nonzero()[0]
        return all(CodecId(codec) in self.writer.accepts for codec in used.tolist())

    def write(self, ready: PageBatch) -> None:
        """Count a batch by state and hand it to the writer."""
        table = ready.table
        bad = np.flatnonzero(table.state == PageState.BAD)
        if len(bad) and self.bad_pages == "stop":
            raise CorruptPageError(
                "does not decode (--bad-pages skip or zero goes on without it)", pfn=int(table.pfn[bad[0]])
            )
        for state, count in enumerate(np.bincount(table.state).tolist()):
            if count:
                self.counts[PageState(state).name.lower()] += count
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
    flattened: bool = False,
    bad_pages: BadPages = "stop",
    canonical: bool = False,
    threads: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Write a dump in another format.

    The target appears under its name only when it is complete, with mode 0600.

    Args:
        dump: what to convert; a PV dump keyed by mfn needs its map first (``dump.with_p2m``).
        target: path of the output, or a pipe.
        format: name of the format to write; ``flattened`` is kdump, flattened.
        options: what the format may be asked for.
        allow_loss: write although the target cannot carry something, or the p2m map does not fit.
        salvage: write although parts of the input are missing or broken.
        overwrite: replace an existing file.
        flattened: wrap the output into makedumpfile's records for pipes. What goes to a pipe, of a format that must
            go back in its file, is wrapped unasked.
        bad_pages: what to do with pages that do not decode.
        canonical: write a paravirtual guest's page tables and cr3 with its own frames, as an ordinary guest's.
        threads: workers; 0 does all in this thread, None takes one for each processor, up to 8.
        progress: called after each batch.

    Raises:
        LossyConversionError: the target cannot carry something, and ``allow_loss`` is not given.
        MapError: the p2m map is missing, or does not fit the dump.
        CorruptDumpError: the input is damaged, and ``salvage`` is not given.
        OutputError: the target exists, is the input, or is no regular file.
    """
    _refuse_damage(dump, salvage=salvage)
    if canonical:
        dump = dump.canonical(progress=progress, threads=threads)
    if format == FLATTENED:
        format, flattened = "kdump", True
    writer = find_format(format).writer(dump, options or WriteOptions())
    fit = dump.fit()
    losses = writer.losses + _lost_beside(writer, target)
    if not allow_loss:
        _refuse_loss(dump, losses, fit)
    flattened = flattened or (writer.seeks and isinstance(target, PipeSink))
    pump = _Pump(dump.pages, writer, bad_pages)
    meter = Meter("convert", writer.pages.count * dump.pages.page_size, progress)
    with _output(dump, target, writer, overwrite=overwrite) as outer:
        sink = _wrapped(outer) if flattened else outer
        pump.run(sink, meter, default_threads() if threads is None else threads)
        sink.commit()
    name = target.name if isinstance(target, PipeSink) else str(target)
    report = Report(dump.name, name, format, container=FLATTENED if flattened else None, losses=losses)
    return _report(dump, pump, replace(report, fit=fit, bytes_written=outer.position, seconds=meter.seconds))


def convert_set(
    dump: Dump,
    target: str | os.PathLike[str] | PipeSink,
    format: str,
    options: WriteOptions,
    *,
    split: int | None = None,
    part: int | None = None,
    canonical: bool = False,
    **how: Any,
) -> list[Report]:
    """Write a dump as a set of files, or as one.

    Args:
        dump: what to convert.
        target: path of the output; a set's files have ``.1`` to ``.N`` behind it.
        format: name of the format.
        options: what the format may be asked for.
        split: number of files in the set; None for one plain file.
        part: write only this file of the set: parts are independent, so that machines can share the work.
        canonical: as for ``convert``; tables are searched once for all files.
        how: as for ``convert``.

    Raises:
        ValueError: a part outside the set.
        OutputError: a set into a pipe.
    """
    if split is None:
        if part is not None:
            raise ValueError("--part needs --split: it names one file of a set")
        return [convert(dump, target, format, options, canonical=canonical, **how)]
    if isinstance(target, PipeSink):
        raise OutputError("is one pipe, a set has several files", path=target.name)
    if part is not None and not 1 <= part <= split:
        raise ValueError(f"there is no part {part} in a set of {split}")
    if canonical:
        dump = dump.canonical(progress=how.get("progress"), threads=how.get("threads"))
    return [
        convert(dump, f"{os.fspath(target)}.{number}", format, replace(options, part=(number, split)), **how)
        for number in ([part] if part is not None else range(1, split + 1))
    ]


def _report(dump: Dump, pump: _Pump, report: Report) -> Report:
    """Complete a report with what was counted."""
    ram, writer = dump.pages.ram, pump.writer
    excluded = pump.counts["excluded"] + ram.count - writer.pages.count
    rewritten = dump.pages.rewritten() if isinstance(dump.pages, CanonicalStore) else None
    said = writer.remarks if isinstance(writer, Remarking) else ()
    return replace(
        report,
        pages_in=ram.count,
        pages_out=dict(pump.counts) | {"excluded": excluded},
        runs=len(ram.runs()[0]),
        page_size=dump.pages.page_size,
        damage=dump.damage,
        remarks=said + (rewritten.remarks if rewritten else ()),
        rewritten=rewritten,
    )


@contextlib.contextmanager
def _output(
    dump: Dump, target: str | os.PathLike[str] | PipeSink, writer: Writer, *, overwrite: bool
) -> Iterator[FileSink | PipeSink]:
    """Open the output, and the file that goes beside it where the format has one, which is completed behind it."""
    if isinstance(target, PipeSink):
        yield target
        return
    with FileSink(target, overwrite=overwrite, inputs=[source.name for source in dump.sources]) as sink:
        if not isinstance(writer, Accompanied):
            yield sink
            return
        with FileSink(os.fspath(target) + writer.companion_suffix, overwrite=overwrite) as beside:
            yield sink
            beside.append([writer.companion()])
            beside.commit()


def _lost_beside(writer: Writer, target: str | os.PathLike[str] | PipeSink) -> tuple[Loss, ...]:
    """Say what stands in the file beside the output, where there is no place beside it."""
    if isinstance(target, PipeSink) and isinstance(writer, Accompanied):
        return (Loss(writer.companion_holds, f"there is no place for {writer.companion_suffix} beside a pipe"),)
    return ()


def _wrapped(sink: FileSink | PipeSink) -> Output:
    """Put the container for pipes around an output."""
    wrapped = find_wrapper(FLATTENED).wrap(sink)
    assert wrapped is not None
    return wrapped


def _refuse_damage(dump: Dump, *, salvage: bool) -> None:
    """Stop where parts of the input are missing or broken, unless what is there will do."""
    if dump.damage and not salvage:
        raise CorruptDumpError(
            f"{'; '.join(dump.damage)} (--salvage converts what is there)", path=dump.name, format=dump.format
        )


def _refuse_loss(dump: Dump, losses: Sequence[Loss], fit: MapFit | None) -> None:
    """Stop before a byte is written where the result would not hold what the dump holds."""
    if fit and not fit.fits:
        raise MapError(
            f"{dump.name}: the p2m map does not fit this dump: {fit}; up to {MISS_LIMIT:.0%} of either is accepted "
            "(--allow-loss goes on all the same)"
        )
    if losses:
        raise LossyConversionError(
            f"{dump.name}: the target cannot carry {', '.join(map(str, losses))} (--allow-loss leaves it out)", losses
        )
