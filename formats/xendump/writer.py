"""Writes old Xen dumps: for tools of that time, and to test what reads them."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from dumpxlate.dump import Space
from dumpxlate.emit import append_pages
from dumpxlate.errors import MapError, UnsupportedFeatureError
from dumpxlate.format import Loss, require_physical
from dumpxlate.formats.xendump import layout
from dumpxlate.formats.xendump.layout import PAGE_SIZE, XcCoreHeader
from dumpxlate.pages import CodecId, PageBatch
from dumpxlate.pageset import PageRuns, difference, intersection, mask
from dumpxlate.structs import pack, size_of
from dumpxlate.xen import uncarried, xen_contexts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dumpxlate.arch.xen_vcpu import WordBits
    from dumpxlate.arrays import Int64s
    from dumpxlate.dump import Dump
    from dumpxlate.format import WriteOptions
    from dumpxlate.io.sink import Sink
    from dumpxlate.p2m.map import P2M
    from dumpxlate.pageset import PageSet

__all__ = ["XenDumpWriter"]

_CHUNK = 1 << 20
_WHY = "an old Xen dump has no place for it"


class _Order(Protocol):
    """Which page stands in which row of the file."""

    @property
    def pages(self) -> PageSet:
        """The pages that are written."""
        ...

    @property
    def rows(self) -> int:
        """Entries of the index, and pages in the file."""
        ...

    @property
    def losses(self) -> tuple[Loss, ...]:
        """What finds no row."""
        ...

    def entries(self, first: int, last: int) -> Int64s:
        """Give the index entries of rows ``first`` up to ``last``, -1 where there is no page."""
        ...

    def row(self, frame: Int64s) -> Int64s:
        """Give the row of each page."""
        ...


class _ByFrame:
    """A paravirtual guest: the entry is the machine frame, and there is no row without a page."""

    def __init__(self, dump: Dump) -> None:
        stored = dump.pages.stored
        self._frames: P2M | None = None
        self.losses: tuple[Loss, ...] = ()
        if dump.space is Space.PHYSICAL:
            self._frames = _require_map(dump)
            stored, left_out = _unique(stored, self._frames)
            self.losses = (Loss("the p2m map", f"{_WHY}: keep it in a file of its own"),)
            if left_out:
                self.losses += (Loss(f"{left_out:,} pages without a machine frame", _WHY),)
        self.pages: PageSet = stored
        self.rows = stored.count

    def entries(self, first: int, last: int) -> Int64s:
        pfn = self.pages.select(first, last)
        return pfn if self._frames is None else self._frames.mfn(pfn)

    def row(self, frame: Int64s) -> Int64s:
        return self.pages.rank(frame)


class _ByPosition:
    """A fully virtualised guest: row and pfn are the same, without the hole below 4 GiB; the entry tells holes."""

    def __init__(self, dump: Dump) -> None:
        hole = PageRuns(np.array([layout.HVM_MMIO_START]), np.array([layout.HVM_MMIO_PAGES]))
        stored = dump.pages.stored
        self.pages: PageSet = difference(stored, hole)
        self._frames = dump.p2m
        self.losses: tuple[Loss, ...] = ()
        lost = intersection(stored, hole).count
        if lost:
            self.losses = (Loss(f"{lost:,} pages from 3.75 to 4 GiB", "an old Xen dump has no rows for them"),)
        last = self.pages.stop
        self.rows = last if last <= layout.HVM_MMIO_START else last - layout.HVM_MMIO_PAGES

    def entries(self, first: int, last: int) -> Int64s:
        row = np.arange(first, last, dtype=np.int64)
        pfn = np.where(row < layout.HVM_MMIO_START, row, row + layout.HVM_MMIO_PAGES)
        frame = pfn if self._frames is None else self._frames.mfn(pfn)
        # A page that a map leaves out has still to be told from a hole: its own number does.
        frame = np.where(frame < 0, pfn, frame)
        return np.where(mask(self.pages, int(pfn[0]), int(pfn[-1]) + 1)[pfn - pfn[0]], frame, -1)

    def row(self, frame: Int64s) -> Int64s:
        return np.where(frame < layout.HVM_MMIO_START, frame, frame - layout.HVM_MMIO_PAGES)


class XenDumpWriter:
    """Plans and writes one old Xen dump.

    ::

        header | vcpu contexts | index | zeros to a multiple of 4096 | pages

    A paravirtual guest's pages are written in the order of their pfns, each with its machine frame in the index; pfns
    that share a frame are written once. A fully virtualised guest is written as a flat image from pfn 0 on, holes as
    zeros that their index entry (all ones) tells from memory.

    Raises:
        MapError: a paravirtual guest whose machine frames are not known.
        UnsupportedFeatureError: not an x86 guest, or more than the 32-bit offsets of the header can hold.
    """

    accepts = frozenset({CodecId.RAW})
    seeks = False
    codec = None

    def __init__(self, dump: Dump, options: WriteOptions) -> None:
        _require_x86(dump)
        paravirtual = dump.machine.paravirtual
        if not paravirtual:
            require_physical(dump, "xendump")
        self._order: _Order = _ByFrame(dump) if paravirtual else _ByPosition(dump)
        self.pages = self._order.pages
        self._bits: WordBits = dump.machine.word_bits
        self._contexts = xen_contexts(dump, self._bits)
        self._magic = layout.XC_CORE_MAGIC if paravirtual else layout.XC_CORE_MAGIC_HVM
        self.losses = self._order.losses + tuple(Loss(what, _WHY) for what in uncarried(dump))
        self._done = 0
        self._sink: Sink
        self._header = self._plan()

    @cached_property
    def _entry_size(self) -> Literal[4, 8]:
        """32-bit tools wrote entries of 4 bytes; they do unless a frame is too high."""
        rows = self._order.rows
        if self._bits == 64 or any(
            int(self._order.entries(first, min(first + _CHUNK, rows)).max()) >= 0xFFFFFFFF
            for first in range(0, rows, _CHUNK)
        ):
            return 8
        return 4

    def _plan(self) -> XcCoreHeader:
        rows = self._order.rows
        if not 0 < rows <= layout.MAX_PAGES or len(self._contexts) > layout.MAX_VCPUS:
            raise UnsupportedFeatureError(
                f"xendump output holds 1 to {layout.MAX_PAGES:,} pages and at most {layout.MAX_VCPUS:,} vcpus, this "
                f"would have {rows:,} pages, holes included, and {len(self._contexts):,} vcpus",
                format="xendump",
                feature="size",
            )
        contexts = size_of(XcCoreHeader)
        index = contexts + sum(map(len, self._contexts))
        pages = -(-(index + rows * self._entry_size) // PAGE_SIZE) * PAGE_SIZE
        return XcCoreHeader(self._magic, len(self._contexts), rows, contexts, index, pages)

    def begin(self, sink: Sink) -> None:
        """Write header, contexts and index."""
        self._sink = sink
        sink.append([pack(self._header, "<"), *self._contexts])
        rows = self._order.rows
        for first in range(0, rows, _CHUNK):
            entries = self._order.entries(first, min(first + _CHUNK, rows))
            sink.append([entries.astype(f"<u{self._entry_size}").tobytes()])
        sink.append([bytes(self._header.xch_pages_offset - sink.position)])

    def write(self, batch: PageBatch) -> None:
        """Write the next pages, each run of rows at its place."""
        row = self._order.row(batch.table.pfn)
        opens = np.flatnonzero(np.append(True, np.diff(row) != 1)) if len(row) else row
        for start, stop in zip(opens.tolist(), [*opens[1:].tolist(), len(row)], strict=False):
            self._sink.skip((int(row[start]) - self._done) * PAGE_SIZE)
            append_pages(self._sink, PageBatch(batch.table.where(slice(start, stop)), batch.body), PAGE_SIZE)
            self._done = int(row[start]) + stop - start

    def state(self) -> Mapping[str, Any]:
        """Nothing has to be known again."""
        return {}

    def restore(self, sink: Sink, done: int, state: Mapping[str, Any]) -> None:
        """Go on behind ``done`` pages."""
        self._sink = sink
        last = self.pages.select(done - 1, done) if done else np.empty(0, np.int64)
        self._done = int(self._order.row(last)[0]) + 1 if len(last) else 0

    def finish(self) -> None:
        """Nothing is left to write: the last row has a page."""


def _require_x86(dump: Dump) -> None:
    name = dump.machine.arch.name
    if name not in ("x86_64", "i386") or dump.pages.page_size != PAGE_SIZE:
        raise UnsupportedFeatureError(
            f"xendump output is for x86 guests with pages of {PAGE_SIZE} bytes, this is one of {name} with "
            f"{dump.pages.page_size}",
            format="xendump",
            feature=f"architecture {name}",
        )


def _require_map(dump: Dump) -> P2M:
    if dump.p2m is None:
        raise MapError(
            f"{dump.name}: a paravirtual guest, whose old dump is keyed by machine frames: this {dump.format} dump has "
            "no p2m map"
        )
    return dump.p2m


def _unique(stored: PageSet, frames: P2M) -> tuple[PageSet, int]:
    """Keep the pages that have a machine frame, one of those that share one; and count those that have none."""
    known = intersection(stored, frames.pages())
    if not frames.aliases:
        return known, stored.count - known.count
    pfn = known.select(0, known.count)
    first = np.sort(np.unique(frames.mfn(pfn), return_index=True)[1])
    return PageRuns.from_pfns(pfn[first]), stored.count - known.count
