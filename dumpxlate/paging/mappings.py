"""What is mapped where: runs of virtual addresses, joined and cut, without an object a page.

Virtual addresses are signed words, as everywhere (``dumpxlate.paging.addrxlat``), but stand in their unsigned order.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.arrays import expand
from dumpxlate.errors import UnsupportedFeatureError
from dumpxlate.extents import first_wins, merge, same_place

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dumpxlate.arrays import Bools, Int64s
    from dumpxlate.pageset import PageRuns

__all__ = ["MAPPINGS_LIMIT", "UNLISTED", "Mappings", "by_memory", "cut", "first_mapping", "in_order"]

UNLISTED = "runs not listed"
MAPPINGS_LIMIT = 1 << 21
"""Runs that are kept at most, whatever a guest's tables say: 48 MiB of arrays, for 8 GiB mapped page by page."""


@dataclass(frozen=True, slots=True)
class Mappings:
    """Runs of addresses that are contiguous virtually and physically, shape (n,) each.

    Attributes:
        virtual: first virtual address of each, a signed word.
        physical: where it leads to; not necessarily RAM.
        length: bytes of each.
        tables: page tables that were walked for them, each time; one larger than a page of the dump counts by page.
        faults: what the walk met and did not believe, counted over all tables: "reserved entries", which a processor
            would refuse; "tables not held" by the dump, which entries lead to; "unknown frames", which a PV guest's
            map does not have; "skipped tables" (loops and shared subtrees beyond a limit); "runs not listed", beyond
            ``MAPPINGS_LIMIT``.
    """

    virtual: Int64s
    physical: Int64s
    length: Int64s
    tables: int = 0
    faults: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.virtual)

    def where(self, rows: Bools | Int64s | slice) -> Mappings:
        """Keep the runs that a mask, an index or a slice selects."""
        return Mappings(self.virtual[rows], self.physical[rows], self.length[rows], self.tables, self.faults)


def in_order(found: Mappings) -> Mappings:
    """Sort disjoint runs by virtual address, and join those that continue each other."""
    found = found.where(np.argsort(found.virtual.view(np.uint64), kind="stable"))
    virtual, length, physical = merge(found.virtual, found.length, found.physical)
    return Mappings(virtual, physical, length, found.tables, found.faults)


def first_mapping(parts: Iterable[Mappings]) -> Mappings:
    """Put the mappings of several translations together; of several for an address the first counts."""
    joined = _joined(parts)
    virtual, length, physical = first_wins(joined.virtual, joined.length, joined.physical)
    return in_order(Mappings(virtual, physical, length, joined.tables, joined.faults))


def by_memory(parts: Iterable[Mappings]) -> Mappings:
    """Put the mappings of several processors together as QEMU's ``dump-guest-memory`` does.

    Runs that overlap or touch, physically and virtually at once, become one; aliases of the same memory stay. They
    stand in the order of their physical addresses, of several from one on the highest virtual address first.
    """
    joined = _joined(parts)
    start, length, virtual = same_place(joined.physical, joined.length, joined.virtual)
    order = np.lexsort((~virtual.view(np.uint64), start))
    kept = order[:MAPPINGS_LIMIT]
    if len(kept) < len(order):
        unlisted = joined.faults.get(UNLISTED, 0) + len(order) - len(kept)
        joined = replace(joined, faults={**joined.faults, UNLISTED: unlisted})
    return Mappings(virtual[kept], start[kept], length[kept], joined.tables, joined.faults)


def cut(mappings: Mappings, memory: PageRuns) -> Mappings:
    """Cut mappings where the memory that they lead to begins and ends.

    Args:
        mappings: any.
        memory: runs of bytes, not pages.

    Raises:
        UnsupportedFeatureError: that makes more pieces than any real guest has.
    """
    start, count = memory.runs()
    stop = start + count
    low = np.searchsorted(stop, mappings.physical, side="right")
    high = np.searchsorted(start, mappings.physical + mappings.length, side="left")
    pieces = np.maximum(high - low, 0)
    if int(pieces.sum()) > MAPPINGS_LIMIT:
        raise UnsupportedFeatureError(
            f"the page tables map memory in {int(pieces.sum()):,} pieces, at most {MAPPINGS_LIMIT:,} are written",
            feature="paging",
        )
    run, owner = expand(low, pieces), np.repeat(np.arange(len(mappings)), pieces)
    begin = np.maximum(start[run], mappings.physical[owner])
    end = np.minimum(stop[run], (mappings.physical + mappings.length)[owner])
    virtual = mappings.virtual[owner] + begin - mappings.physical[owner]
    return Mappings(virtual, begin, end - begin, mappings.tables, mappings.faults)


def _joined(parts: Iterable[Mappings]) -> Mappings:
    """Put runs behind one another, and add up what was counted."""
    parts = list(parts)
    faults: dict[str, int] = {}
    for part in parts:
        for name, count in part.faults.items():
            faults[name] = faults.get(name, 0) + count
    virtual, physical, length = (
        np.concatenate([np.empty(0, np.int64), *(getattr(part, name) for part in parts)])
        for name in ("virtual", "physical", "length")
    )
    return Mappings(virtual, physical, length, sum(part.tables for part in parts), faults)
