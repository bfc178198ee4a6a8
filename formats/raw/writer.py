"""Writes raw images, and the map that goes beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dumpxlate.arrays import expand
from dumpxlate.bare import chosen_pages, lost_facts
from dumpxlate.emit import append_pages, by_run
from dumpxlate.formats.raw.map_file import SUFFIX, RawMap, pack_map
from dumpxlate.pages import BAD, CodecId
from dumpxlate.pageset import PageRuns, difference, union

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dumpxlate.arrays import Int64s
    from dumpxlate.dump import Dump
    from dumpxlate.format import WriteOptions
    from dumpxlate.io.sink import Sink
    from dumpxlate.pages import PageBatch

__all__ = ["RawWriter"]


class RawWriter:
    """Plans and writes one raw image: every page at its address, counted from the first one asked for.

    Zero pages, holes and pages without content are holes of the file. Which is which stands in the map.

    Raises:
        MapError: the dump is keyed by machine frames.
    """

    accepts = frozenset({CodecId.RAW})
    seeks = False
    codec = None
    companion_suffix = SUFFIX
    companion_holds = "which pages are RAM, and of what machine"

    def __init__(self, dump: Dump, options: WriteOptions) -> None:
        self._ram, self.pages = chosen_pages(dump, options, "raw")
        self.losses = lost_facts(dump, "raw", machine=False)
        self._machine = dump.machine
        self._page_size = dump.pages.page_size
        self._first = options.begin // self._page_size
        self._base = 0
        self._bad: list[Int64s] = []
        self._sink: Sink

    def begin(self, sink: Sink) -> None:
        """Nothing stands before the first page."""
        self._sink, self._base = sink, sink.position

    def write(self, batch: PageBatch) -> None:
        """Write the next pages, each at its address."""
        for run in by_run(batch):
            self._pad(int(run.table.pfn[0]))
            append_pages(self._sink, run, self._page_size)
        self._bad.append(batch.table.pfn[batch.table.state == BAD])

    def state(self) -> Mapping[str, Any]:
        """Pages that did not decode, as runs."""
        return {"bad": [each.tolist() for each in self._bad_pages().runs()]}

    def restore(self, sink: Sink, done: int, state: Mapping[str, Any]) -> None:
        """Go on behind ``done`` pages."""
        self._sink = sink
        start, count = (np.array(each, np.int64) for each in state["bad"])
        self._bad = [expand(start, count)]

    def _bad_pages(self) -> PageRuns:
        return PageRuns.from_pfns(np.concatenate([np.empty(0, np.int64), *self._bad]))

    def finish(self) -> None:
        """Make the file as long as memory reaches."""
        self._pad(self._ram.stop)

    def _pad(self, pfn: int) -> None:
        """Leave a hole up to a page."""
        self._sink.skip(self._base + (pfn - self._first) * self._page_size - self._sink.position)

    def companion(self) -> bytes:
        """Give the map, which goes beside the image."""
        content = RawMap(
            size=(self._ram.stop - self._first) * self._page_size,
            base=self._first * self._page_size,
            machine=self._machine,
            ram=self._ram,
            missing=union(difference(self._ram, self.pages), self._bad_pages()),
        )
        return pack_map(content)
