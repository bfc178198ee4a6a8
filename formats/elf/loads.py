"""Which PT_LOAD segments a vmcore gets: one a run of memory, or one a mapping of the guest's page tables.

Memory is counted in bytes here: a window may begin inside a page, and a page of 64 KiB may be mapped in part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.elf.container import Segments
from dumpxlate.pageset import PageRuns, difference

if TYPE_CHECKING:
    from dumpxlate.arrays import Int64s
    from dumpxlate.paging.mappings import Mappings

__all__ = ["mapped_loads", "plain_loads"]


def plain_loads(held: PageRuns, missing: PageRuns) -> Segments:
    """Plan segments whose virtual address is the physical one, as QEMU has them.

    Args:
        held: runs of bytes that the file holds, one behind the other.
        missing: runs of bytes that are RAM, but not in the file.

    Returns:
        Segments by physical address; offsets count from the first byte of memory in the file.
    """
    (start, length), (gone, size) = held.runs(), missing.runs()
    return _sorted(_with_bytes(held, start, length, start), _without_bytes(gone, size, gone))


def mapped_loads(held: PageRuns, missing: PageRuns, mappings: Mappings, *, unmapped: bool) -> Segments:
    """Plan a segment for each mapping, as QEMU's ``dump-guest-memory`` with paging does, cut where memory ends.

    Several segments may show the same bytes of the file, each under another virtual address.

    Args:
        held: runs of bytes that the file holds, one behind the other.
        missing: runs of bytes that are RAM, but not in the file.
        mappings: what is mapped.
        unmapped: plan also segments for memory that nothing maps, with virtual address 0.
    """
    from dumpxlate.paging.mappings import cut  # few conversions have to do with page tables

    parts = []
    found, lost = cut(mappings, held), cut(mappings, missing)
    parts.append(_with_bytes(held, found.physical, found.length, found.virtual))
    parts.append(_without_bytes(lost.physical, lost.length, lost.virtual))
    if unmapped:
        mapped = PageRuns.from_runs(mappings.physical, mappings.length)
        (start, length), (gone, size) = (difference(each, mapped).runs() for each in (held, missing))
        parts.append(_with_bytes(held, start, length, np.zeros_like(start)))
        parts.append(_without_bytes(gone, size, np.zeros_like(gone)))
    return _sorted(*parts)


def _with_bytes(held: PageRuns, start: Int64s, length: Int64s, virtual: Int64s) -> Segments:
    return Segments.make(start, length, filesz=length, offset=held.rank(start), vaddr=virtual)


def _without_bytes(start: Int64s, length: Int64s, virtual: Int64s) -> Segments:
    nothing = np.zeros_like(start)
    return Segments.make(start, length, filesz=nothing, offset=nothing, vaddr=virtual)


def _sorted(*parts: Segments) -> Segments:
    """Order by physical address, and aliases from the highest virtual one down: kernels before processes."""
    names = Segments.__slots__
    joined = Segments(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
    return joined.where(np.lexsort((~joined.vaddr.view(np.uint64), joined.paddr)))
