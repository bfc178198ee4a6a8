"""Writes LiME files, one range for each run of pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dumpxlate.bare import chosen_pages, lost_facts, lost_pages
from dumpxlate.emit import append_pages, by_run
from dumpxlate.lime import LIME_MAGIC, LIME_VERSION, record
from dumpxlate.pages import CodecId

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dumpxlate.dump import Dump
    from dumpxlate.format import WriteOptions
    from dumpxlate.io.sink import Sink
    from dumpxlate.pages import PageBatch

__all__ = ["LimeWriter"]


class LimeWriter:
    """Plans and writes one LiME file; zero pages are holes of the file, not missing memory.

    Raises:
        MapError: the dump is keyed by machine frames.
    """

    accepts = frozenset({CodecId.RAW})
    seeks = False
    codec = None

    def __init__(self, dump: Dump, options: WriteOptions) -> None:
        ram, self.pages = chosen_pages(dump, options, "lime")
        self.losses = lost_facts(dump, "lime") + lost_pages(ram, self.pages, "lime")
        self._page_size = dump.pages.page_size
        self._start, self._count = self.pages.runs()
        self._sink: Sink

    def begin(self, sink: Sink) -> None:
        """Nothing stands before the first range."""
        self._sink = sink

    def write(self, batch: PageBatch) -> None:
        """Write the next pages, and a header where a range begins."""
        for run in by_run(batch):
            first = int(run.table.pfn[0])
            at = int(np.searchsorted(self._start, first))
            if at < len(self._start) and self._start[at] == first:
                length = int(self._count[at]) * self._page_size
                self._sink.append([record(LIME_MAGIC, LIME_VERSION, first * self._page_size, length)])
            append_pages(self._sink, run, self._page_size)

    def state(self) -> Mapping[str, Any]:
        """Nothing has to be known again."""
        return {}

    def restore(self, sink: Sink, done: int, state: Mapping[str, Any]) -> None:
        """Go on behind ``done`` pages."""
        self._sink = sink

    def finish(self) -> None:
        """A LiME file has no end mark."""
