"""A guest's pages with its page tables rewritten, on the fly."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.canonical.entries import ENTRIES
from dumpxlate.codecs import batch as batches
from dumpxlate.pages import STORED, damage_of, lost_pages

if TYPE_CHECKING:
    from dumpxlate.arrays import Bools, Int64s, UInt8s
    from dumpxlate.canonical.entries import Rule
    from dumpxlate.canonical.walk import Rewritten, Tables
    from dumpxlate.pages import PageBatch, PageStore, PageTable
    from dumpxlate.pageset import PageSet

__all__ = ["CanonicalStore"]


class CanonicalStore:
    """A store whose page tables hold the guest's own frames. Other pages pass as they are, compressed ones too.

    Args:
        inner: the guest's pages by pfn, with tables that hold machine frames.
        rule: how they are rewritten.
        tables: which pages are tables.
    """

    def __init__(self, inner: PageStore, rule: Rule, tables: Tables) -> None:
        self.page_size = inner.page_size
        self.read_at = None  # a table must pass through ``fetch``; other pages are the inner store's
        self.inner = inner
        self._rule = rule
        self._tables = tables

    @property
    def ram(self) -> PageSet:
        """Every RAM page that the dump knows of."""
        return self.inner.ram

    @property
    def stored(self) -> PageSet:
        """Those of them that it has content for."""
        return self.inner.stored

    @property
    def lost(self) -> PageSet:
        """Those that the file promises, and has no bytes for."""
        return lost_pages(self.inner)

    @property
    def damage(self) -> tuple[str, ...]:
        """What is missing or broken, as the index shows."""
        return damage_of(self.inner)

    def rewritten(self) -> Rewritten:
        """Say what becomes of the tables."""
        return self._tables.rewritten()

    def passes(self, pfn: Int64s) -> Bools:
        """Tell which pages are no tables, and so the inner store's as they are."""
        passing: Bools = self._tables.level(self._rule.frames.first(pfn)) == 0
        return passing

    def locate(self, pfn: Int64s) -> PageTable:
        """Say for each pfn what is known and where."""
        return self.inner.locate(pfn)

    def fetch(self, table: PageTable) -> PageBatch:
        """Bring the bytes of located pages; tables are decoded and rewritten."""
        batch = self.inner.fetch(table)
        first = self._rule.frames.first(table.pfn)
        level = self._tables.level(first)
        rows = np.flatnonzero((level > 0) & (batch.table.state == STORED))
        if not len(rows):
            return batch
        found = batches.decode(replace(batch, table=batch.table.where(rows)), self.page_size)
        held = np.flatnonzero(found.table.state == STORED)  # one that does not decode stays as it is
        _, body = batches.peek(found, 0, self.page_size, self.page_size)
        rows = rows[held]
        return batches.substitute(batch, rows, self._rewritten(body, first[rows], level[rows]))

    def _rewritten(self, body: UInt8s, pfn: Int64s, level: Int64s) -> UInt8s:
        """Rewrite tables of several levels, shape (n, page size)."""
        out = np.empty((len(pfn), ENTRIES), "<u8")
        for each in np.unique(level).tolist():
            rows = np.flatnonzero(level == each)
            words = body[rows].view("<u8").astype(np.uint64)
            out[rows], _ = self._rule.apply(words, each, self._tables.xen.contains(pfn[rows]))
        return out.view(np.uint8).reshape(-1, self.page_size)

    def place(self, table: PageTable) -> Int64s:
        """Say where in the file the bytes of located pages are; those of tables are nowhere as they are."""
        level = self._tables.level(self._rule.frames.first(table.pfn))
        return np.where(level > 0, -1, self.inner.place(table))
