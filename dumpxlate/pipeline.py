"""The pipeline: pages of one dump into the file of another format.

Batches are located, fetched, decoded and searched for zeros side by side, and written in order: by processes that take
turns where that can be (:mod:`dumpxlate.writing.ring`), else by the caller's thread, while a few others prepare them. A
few batches for each are on their way, so memory does not grow with the dump.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from dumpxlate.codecs.workers import default_threads
from dumpxlate.errors import CorruptDumpError, DumpxlateError, OutputError
from dumpxlate.format import WriteOptions
from dumpxlate.io.sink import FileSink, PipeSink
from dumpxlate.progress import Meter, Progress
from dumpxlate.registry import find_format
from dumpxlate.writing.destination import FLATTENED, Named, open_destination
from dumpxlate.writing.inputs import changed, states
from dumpxlate.writing.pump import BadPages, Pump
from dumpxlate.writing.refusals import declared, lost_beside, refuse_damage
from dumpxlate.writing.report import Report, completed

if TYPE_CHECKING:
    from collections.abc import Callable

    from dumpxlate.dump import Dump
    from dumpxlate.writing.destination import Destination
    from dumpxlate.writing.resume import Resumption

__all__ = ["FLATTENED", "BadPages", "Report", "convert", "convert_set"]


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
    verify: bool = False,
    resume: bool = False,
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
        salvage: write although parts of the input are missing or broken, or it changes meanwhile.
        overwrite: replace an existing file.
        flattened: wrap the output into makedumpfile's records for pipes; done unasked where a pipe needs it.
        bad_pages: what to do with pages that do not decode.
        canonical: write a paravirtual guest's page tables and cr3 with its own frames, as an ordinary guest's.
        threads: workers, forks of this process where it has no other thread; 0 for none, None for one a processor.
        verify: read the output again and compare it with the dump before it gets its name.
        resume: leave what was written when interrupted, and go on with what an earlier call left.
        progress: called after each batch.

    Raises:
        LossyConversionError: the target cannot carry something, and ``allow_loss`` is not given.
        MapError: the p2m map is missing, or does not fit the dump.
        CorruptDumpError: the input is damaged or changes, and ``salvage`` is not given.
        OutputError: the target exists, is the input, or is no regular file.
        VerificationError: the output does not hold what the dump holds.
    """
    refuse_damage(dump, salvage=salvage)
    if canonical:
        dump = dump.canonical(progress=progress, threads=threads)
    if format == FLATTENED:
        format, flattened = "kdump", True
    options = options or WriteOptions()
    writer = find_format(format).writer(dump, options)
    fit = dump.fit()
    losses = declared(dump, writer.losses + lost_beside(writer, target), fit, allowed=allow_loss)
    flattened = flattened or (writer.seeks and isinstance(target, PipeSink))
    name = target.name if isinstance(target, PipeSink) else str(target)
    report = Report(dump.name, name, format, container=FLATTENED if flattened else None, losses=losses, fit=fit)
    pump = Pump(dump.pages, writer, bad_pages)
    run = _Run(dump, pump, options, threads=default_threads() if threads is None else threads, progress=progress)
    return run.write(report, target, overwrite=overwrite, salvage=salvage, verify=verify, resume=resume)


class _Run(NamedTuple):
    """One conversion that was found to be possible.

    Attributes:
        dump: what is converted.
        pump: what moves its pages.
        options: what was asked of the writer.
        threads: workers.
        progress: called after each batch.
    """

    dump: Dump
    pump: Pump
    options: WriteOptions
    threads: int
    progress: Callable[[Progress], None] | None

    def write(
        self,
        report: Report,
        target: str | os.PathLike[str] | PipeSink,
        *,
        overwrite: bool,
        salvage: bool,
        verify: bool,
        resume: bool,
    ) -> Report:
        """Write the output and give the report of it; the output gets its name last of all."""
        dump, writer, flattened = self.dump, self.pump.writer, report.container is not None
        inputs = states(dump)
        named = _named(target) if verify else None
        with contextlib.ExitStack() as opened:
            resumption = None
            if resume:
                resumption = opened.enter_context(self._resumption(report.format, target, flattened=flattened))
                named = resumption.named
            where = opened.enter_context(
                open_destination(
                    target,
                    writer,
                    flattened=flattened,
                    overwrite=overwrite,
                    inputs=dump.files,
                    named=named,
                )
            )
            meter = Meter("convert", writer.pages.count * dump.pages.page_size, self.progress)
            done = self._begin(where, resumption)
            self.pump.run(where.sink, meter, self.threads, resumption)
            where.complete(writer)
            report = completed(dump, self.pump, replace(report, bytes_written=where.outer.position, resumed=done))
            report = self._checked(report, changed(inputs), salvage=salvage)
            if verify:
                self._verify(where, report)
            where.commit()
            if resumption:
                resumption.remove()
        return replace(report, seconds=meter.seconds, verified=verify)

    def _resumption(self, format: str, target: str | os.PathLike[str] | PipeSink, *, flattened: bool) -> Resumption:
        """Prepare to go on with what an earlier call left, or to leave something."""
        from dumpxlate.writing.identity import identity
        from dumpxlate.writing.resume import resumption

        dump, writer = self.dump, self.pump.writer
        work = identity(dump, writer, self.options, format=format, canonical=dump.machine.canonical)
        return resumption(target, writer, work, flattened=flattened)

    def _begin(self, where: Destination, resumption: Resumption | None) -> int:
        """Write what stands before the pages, or go on; gives the pages that are written already."""
        if resumption and isinstance(where.outer, FileSink):
            done = resumption.start(where.outer)
            self.pump.counts = resumption.counts
            return done
        self.pump.writer.begin(where.sink)
        return 0

    def _checked(self, report: Report, change: str | None, *, salvage: bool) -> Report:
        """Refuse an output of which nobody knows what it is, unless the user takes what there is."""
        if change is None:
            return report
        if not salvage:
            raise CorruptDumpError(f"{change} (--salvage keeps it)", format=self.dump.format)
        return replace(report, damage=(*report.damage, change))

    def _verify(self, where: Destination, report: Report) -> None:
        """Compare the output with the dump; one that is wrong is not kept, whatever was asked."""
        from dumpxlate.verify.output import Written
        from dumpxlate.verify.output import verify as check_output

        assert isinstance(where.outer, FileSink)
        assert where.outer.partial
        bad = report.pages_out.get("bad", 0)
        pages = self.pump.writer.pages
        written = Written(where.outer.partial, report.format, report.container, pages, self.options, bad)
        try:
            check_output(self.dump, written, threads=self.threads, progress=self.progress)
        except DumpxlateError:
            where.outer.abort(keep=False)
            raise


def _named(target: str | os.PathLike[str] | PipeSink) -> Named:
    """Name an output that must be read before it is complete.

    Raises:
        OutputError: it is a pipe.
    """
    if isinstance(target, PipeSink):
        raise OutputError("--verify needs a file: what went into a pipe cannot be read again", path=target.name)
    return Named.fresh(target)


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
        ValueError: a part outside the set, or a whole set to go on with.
        OutputError: a set into a pipe.
    """
    if split is not None and part is None and how.get("resume"):
        raise ValueError("--resume goes on in one file: give the --part of the set")
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
