"""A model guest's pages as machine memory, for what is read by machine frame."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.extents import Extents
from dumpxlate.io.source import BytesSource
from dumpxlate.memory import PhysicalMemory
from dumpxlate.pageset import PageRuns
from dumpxlate.stores import IndexedStore

if TYPE_CHECKING:
    from tests.builders.guest import Guest

__all__ = ["machine_memory", "machine_store"]


def machine_store(guest: Guest, *, zero: range = range(0)) -> IndexedStore:
    """The guest's pages keyed by mfn, and frames that are known to be zero without any bytes."""
    body = b"".join(guest.pages[pfn] for pfn in guest.stored)
    mfn = np.array([guest.mfns[pfn] for pfn in guest.stored], np.int64)
    offset = np.arange(len(mfn), dtype=np.int64) * guest.page_size
    extents, _ = Extents.from_pairs(mfn, offset, guest.page_size, last_wins=False)
    return IndexedStore(BytesSource(body), guest.page_size, extents, zero=PageRuns.from_pfns(np.array(zero, np.int64)))


def machine_memory(guest: Guest) -> PhysicalMemory:
    """The same as bytes at machine addresses."""
    return PhysicalMemory(machine_store(guest))
