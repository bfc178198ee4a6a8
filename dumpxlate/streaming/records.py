"""A container in one pass: the file inside is written as it is, each byte in its place."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.errors import CorruptPageError
from dumpxlate.io.sink import FileSink
from dumpxlate.pages import BAD, PageState, windows
from dumpxlate.registry import open_from
from dumpxlate.writing.refusals import refuse_damage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dumpxlate.io.sink import Sink
    from dumpxlate.pages import PageStore
    from dumpxlate.streaming.job import Job
    from dumpxlate.writing.report import Report

__all__ = ["convert_records"]

_COUNTED = 64 << 20
"""Guest memory whose pages are counted at once: only the index is read."""


def convert_records(job: Job, batches: Iterator[Sequence[tuple[int, memoryview]]]) -> Report:
    """Write the file inside a container as its records come.

    A file that was written is opened before it gets its name: its headers and index must make sense.

    Args:
        job: what is asked.
        batches: records, as ``OnePassWrapper`` gives them.

    Raises:
        CorruptDumpError: the container is broken or ends too early, or what is inside is no whole dump.
    """
    with job.drawn(batches) as drawn, job.destination() as where:
        meter = job.meter()
        for records in drawn:
            _put(where.sink, records)
            meter.add(sum(len(data) for _, data in records))
        where.sink.complete()
        report = replace(job.report(), bytes_written=where.outer.position, counted=False)
        if isinstance(where.outer, FileSink):
            report = _looked_into(where.outer, report)
        where.sink.commit()
    return replace(report, seconds=meter.seconds)


def _put(sink: Sink, records: Sequence[tuple[int, memoryview]]) -> None:
    """Write records in their order, so that of several over a byte the last one counts."""
    follows: list[memoryview] = []
    end = sink.position
    for offset, data in records:
        if offset != end:
            sink.append(follows)
            follows, end = [], sink.position
        if offset < end:
            low = data[: end - offset]
            sink.write_at(offset, low)
            data = data[len(low) :]
        elif offset > end:
            sink.skip(offset - end)
        follows += [data] if data else []
        end = max(offset, end) + len(data)
    sink.append(follows)


def _looked_into(file: FileSink, report: Report) -> Report:
    """Open what was written, and count its pages.

    Raises:
        FormatError: it is no dump of the format that is wanted.
        CorruptDumpError: parts of it are missing.
    """
    with file.opened() as source, open_from([source], report.format) as dump:
        refuse_damage(dump, salvage=False)
        ram, stored = dump.pages.ram, dump.pages.stored
        counts = _count(dump.pages)
        return replace(
            report,
            counted=True,
            page_size=dump.pages.page_size,
            pages_in=ram.count,
            pages_out=counts | {"excluded": counts["excluded"] + ram.count - stored.count},
            runs=len(ram.runs()[0]),
        )


def _count(pages: PageStore) -> Counter[str]:
    """Count pages with content by state.

    Raises:
        CorruptPageError: the index makes no sense for one of them.
    """
    counts: Counter[str] = Counter()
    for window in windows(pages.stored, pages.page_size, size=_COUNTED):
        table = pages.locate(pages.stored.select(*window))
        bad = table.pfn[table.state == BAD]
        if len(bad):
            raise CorruptPageError("its entry in the index makes no sense", pfn=int(bad[0]))
        for state, count in enumerate(np.bincount(table.state).tolist()):
            counts[PageState(state).name.lower()] += count
    return counts
