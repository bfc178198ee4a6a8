"""Finds the page tables of processes that no processor is in.

Xen puts itself into every top-level table that it has accepted, before a processor may use it. So such a table shows
by what a guest cannot write there itself: in a 64-bit guest, slot 258 of level 4 leads back to the very table
(LINEAR_PT_VIRT_START of Xen's asm-x86/config.h); in a 32-bit guest, the tables of level 2 for the highest GiB have the
same entries of Xen's as the one in use, and a table of level 3 has one of them in its fourth entry and nothing behind.

A page that was a table once, and has not been overwritten since, looks alike. But Xen lets no guest map a table
writable, and the guest's kernel maps all its other memory so: what the tables in use map writable is no table now.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from dumpxlate.canonical.entries import PRESENT, frames_of
from dumpxlate.canonical.marks import Marks
from dumpxlate.codecs import batch as batches
from dumpxlate.codecs.workers import default_threads, ordered_map
from dumpxlate.pages import windows
from dumpxlate.progress import Meter, Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from dumpxlate.arrays import Int64s, UInt64s
    from dumpxlate.canonical.entries import Frames, Rule
    from dumpxlate.canonical.walk import Tables
    from dumpxlate.p2m.map import P2M
    from dumpxlate.pages import PageBatch, PageStore

__all__ = ["other_roots"]

_LINEAR_SLOT = 258
_HIGH_GIB = 3
_PART = 1024


def other_roots(
    store: PageStore,
    p2m: P2M,
    rule: Rule,
    tables: Tables,
    *,
    progress: Callable[[Progress], None] | None = None,
    threads: int | None = None,
) -> Int64s:
    """Search all pages for top-level tables besides those that are known.

    Args:
        store: the guest's pages by pfn.
        p2m: its map.
        rule: how its tables are rewritten.
        tables: those that its processors use.
        progress: called after each batch.
        threads: workers; 0 does all in this thread, None takes one for each processor, up to 8.

    Returns:
        Their pfns, ascending.
    """
    search = _Long(p2m) if rule.top == 4 else _Pae(rule, _xen_entries(store, rule, tables))
    scan = _Scan(store, search, rule.frames, tables.writable)
    meter = Meter("search tables", store.stored.count * store.page_size, progress)
    threads = default_threads() if threads is None else threads
    found, marks = [np.empty((2, 0), np.int64)], Marks(store.stored)
    with contextlib.closing(ordered_map(scan.look, windows(store.stored, store.page_size), threads=threads)) as parts:
        for pages, roots, high in parts:
            found.append(roots)
            marks.add(high)
            meter.add(pages * store.page_size)
    every = np.concatenate(found, axis=1)
    chosen: Int64s = every[0, marks.contains(every[1])]
    return chosen


class _Signs(Protocol):
    """What a top-level table shows by."""

    @property
    def span(self) -> tuple[int, int]:
        """First slot to look at, and how many."""
        ...

    def roots(self, pfn: Int64s, words: UInt64s) -> Int64s:
        """Give the pages that may be one, and the page that each must lead to; shape (2, n)."""
        ...

    @property
    def high_slot(self) -> int:
        """Slot that tells the page led to."""
        ...

    def high(self, pfn: Int64s, word: UInt64s) -> Int64s:
        """Give the pages that may be led to."""
        ...


@dataclass(frozen=True, slots=True)
class _Scan:
    """Looks for signs in those pages of a store that nobody may write to; only they are read."""

    store: PageStore
    signs: _Signs
    frames: Frames
    writable: Marks

    def look(self, window: tuple[int, int]) -> tuple[int, Int64s, Int64s]:
        """Look at a window of ranks: its pages, and what the signs give; runs in a worker."""
        store, size = self.store, self.store.page_size
        pfn = store.stored.select(*window)
        pfn = pfn[~self.writable.contains(pfn) & (self.frames.first(pfn) == pfn)]
        batch = batches.decode(store.fetch(store.locate(pfn)), size)
        first, count = self.signs.span
        pfn, words = _slots(batch, first, count, size)
        roots = self.signs.roots(pfn, words)
        high = self.signs.high(*_slots(batch, self.signs.high_slot, 1, size))
        return window[1] - window[0], roots, high


def _slots(batch: PageBatch, first: int, count: int, page_size: int) -> tuple[Int64s, UInt64s]:
    """Give some entries of every page."""
    pfn, body = batches.peek(batch, 8 * first, 8 * count, page_size)
    return pfn, body.view("<u8").reshape(-1, count).astype(np.uint64)


@dataclass(frozen=True, slots=True)
class _Long:
    """A 64-bit guest: the table leads to itself."""

    p2m: P2M
    span = (_LINEAR_SLOT, 1)
    high_slot = _LINEAR_SLOT

    def roots(self, pfn: Int64s, words: UInt64s) -> Int64s:
        """Give the tables that lead to themselves."""
        own = self.high(pfn, words)
        return np.stack((own, own))

    def high(self, pfn: Int64s, word: UInt64s) -> Int64s:
        """Give them again."""
        used = word[:, 0] & PRESENT != 0
        own: Int64s = pfn[used & (self.p2m.mfn(pfn) == frames_of(word[:, 0]))]
        return own


@dataclass(frozen=True, slots=True)
class _Pae:
    """A 32-bit guest: the table leads to one of level 2 with the entries of Xen's in use, and has four entries only."""

    rule: Rule
    entries: UInt64s
    span = (0, 8)

    @property
    def high_slot(self) -> int:
        """The first of Xen's slots."""
        return self.rule.xen_slots[0]

    def roots(self, pfn: Int64s, words: UInt64s) -> Int64s:
        """Give tables whose fourth entry, and none behind, leads to memory of the guest."""
        used = (words[:, _HIGH_GIB] & PRESENT != 0) & ~words[:, _HIGH_GIB + 1 :].any(axis=1)
        leads_to = self.rule.frames.find(frames_of(words[used, _HIGH_GIB]))[0]
        return np.stack((pfn[used], leads_to))

    def high(self, pfn: Int64s, word: UInt64s) -> Int64s:
        """Give pages with the same entry of Xen's."""
        return pfn[np.isin(word[:, 0], self.entries)]


def _xen_entries(store: PageStore, rule: Rule, tables: Tables) -> UInt64s:
    """Give what the tables in use have in the first of Xen's slots."""
    found = [np.empty(0, np.uint64)]
    for pfn in tables.xen.parts(_PART):
        body = np.zeros((len(pfn), store.page_size), np.uint8)
        batches.read_pages(store, pfn, body)
        found.append(np.unique(body.view("<u8")[:, rule.xen_slots[0]].astype(np.uint64)))
    entries: UInt64s = np.unique(np.concatenate(found))
    used: UInt64s = entries[entries & PRESENT != 0]
    return used
