"""Finds a guest's page tables: from the tables of its processors down, level by level.

A guest writes its own tables, so nothing in them is believed: a level is walked once, each of its tables is read once,
and where a table leads back to itself or to one above, the walk ends at the lowest level all the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.canonical.entries import ENTRIES, WRITABLE, Counts, frames_of
from dumpxlate.canonical.marks import Marks
from dumpxlate.codecs.batch import read_pages
from dumpxlate.pages import STORED, ZERO

if TYPE_CHECKING:
    from dumpxlate.arrays import Bools, Int64s, UInt64s
    from dumpxlate.canonical.entries import Rule
    from dumpxlate.pages import PageStore

__all__ = ["PAGE", "Rewritten", "Tables", "walk"]

PAGE = 4096
_PART = 1024
"""Tables that are read together: 4 MiB of them."""


@dataclass(frozen=True, slots=True)
class Rewritten:
    """What became of page tables.

    Attributes:
        roots: top-level tables, of which processors use some and the others belong to processes that wait.
        tables: page-table pages in all.
        missing: entries that lead to a table which the dump does not hold.
        counts: entries, by what became of them.
    """

    roots: int = 0
    tables: int = 0
    missing: int = 0
    counts: Counts = field(default_factory=Counts)

    @property
    def remarks(self) -> tuple[str, ...]:
        """Say what is not as the guest had it, for people."""
        counts = self.counts
        said = (
            (counts.unknown, "page-table entries lead to machine frames that are not in the guest's map: cleared"),
            (counts.large, "page-table entries lead to large pages in pieces: cleared"),
            (self.missing, "page-table entries lead to tables that the dump does not hold"),
        )
        return tuple(f"{number:,} {words}" for number, words in said if number)


@dataclass(slots=True)
class Tables:
    """The page tables of a guest.

    Attributes:
        levels: marks of the tables of each level, by level.
        xen: marks of those that have slots of Xen's own.
        writable: marks of the pages that a table maps writable.
        missing: entries that lead to a table which the dump does not hold.
        counts: what rewriting the tables does to their entries.
    """

    levels: dict[int, Marks]
    xen: Marks
    writable: Marks
    missing: int = 0
    counts: Counts = field(default_factory=Counts)

    def level(self, pfn: Int64s) -> Int64s:
        """Give the level of each page; the highest if it is a table of several, 0 if it is none."""
        found = np.zeros(len(pfn), np.int64)
        for level in sorted(self.levels):
            found[self.levels[level].contains(pfn)] = level
        return found

    def rewritten(self) -> Rewritten:
        """Sum up; a table of several levels counts for each."""
        return Rewritten(
            roots=self.levels[max(self.levels)].count,
            tables=sum(marks.count for marks in self.levels.values()),
            missing=self.missing,
            counts=self.counts,
        )


def walk(store: PageStore, rule: Rule, roots: Int64s) -> Tables:
    """Walk down from top-level tables.

    Args:
        store: the guest's pages by pfn.
        rule: how its tables are rewritten.
        roots: pfns of its top-level tables.

    Raises:
        MissingCodecError: the library of a codec is not installed.
    """
    pages = store.stored
    tables = Tables({level: Marks(pages) for level in range(1, rule.top + 1)}, Marks(pages), Marks(pages))
    tables.levels[rule.top].add(roots)
    if rule.xen_level == rule.top:
        tables.xen.add(roots)
    for level in range(rule.top, 0, -1):
        for pfn in tables.levels[level].parts(_PART):
            _step(store, rule, tables, level, pfn)
    return tables


def _step(store: PageStore, rule: Rule, tables: Tables, level: int, pfn: Int64s) -> None:
    """Read some tables of one level, and mark what they lead to."""
    pfn, found = _read(store, pfn, tables)
    xen = tables.xen.contains(pfn)
    words, counts = rule.apply(found, level, xen)
    first = tables.level(pfn) == level  # a table counts at its highest level only
    tables.counts += counts if first.all() else rule.apply(found[first], level, xen[first])[1]
    if level == 1:
        tables.writable.add(frames_of(words[rule.present(words, 1) & (words & WRITABLE != 0)]))
        return
    children, high = rule.children(words, level)
    tables.missing += tables.levels[level - 1].add(children)
    tables.xen.add(children[high])


def _read(store: PageStore, pfn: Int64s, tables: Tables) -> tuple[Int64s, UInt64s]:
    """Read tables; those that do not decode are left out."""
    body = np.zeros((len(pfn), PAGE), np.uint8)
    state = read_pages(store, pfn, body)
    held: Bools = (state == STORED) | (state == ZERO)
    tables.missing += len(pfn) - int(held.sum())
    return pfn[held], body.view("<u8").reshape(-1, ENTRIES)[held].astype(np.uint64)
