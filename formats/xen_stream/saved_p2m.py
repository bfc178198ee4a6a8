"""The p2m that a PV guest had when it was saved: a stream lists the pages that held it, and carries them unchanged."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.memory import PhysicalMemory
from dumpxlate.p2m.lists import check_size, entries_per_page, read_leaves
from dumpxlate.p2m.map import P2M, DeferredP2M

if TYPE_CHECKING:
    from dumpxlate.formats.xen_stream.libxc import Libxc
    from dumpxlate.pages import PageStore

__all__ = ["saved_p2m"]


def saved_p2m(stream: Libxc, pages: PageStore) -> P2M | None:
    """Give the map, which is read when it is first needed; None where the stream does not list its pages."""
    if stream.p2m_pages is None:
        return None
    _, end, _ = stream.p2m_pages
    return DeferredP2M(partial(_load, stream, pages), end)


def _load(stream: Libxc, pages: PageStore) -> P2M:
    """Read the map.

    Raises:
        MapError: a page of it is not in the stream, or the list of them is none.
    """
    assert stream.p2m_pages is not None
    first, end, offset = stream.p2m_pages
    check_size(end)
    before = first // entries_per_page(stream.bits)
    count = (end - 1) // entries_per_page(stream.bits) - before + 1
    listed = np.frombuffer(stream.source.view(offset, 8 * count), "<u8").astype(np.int64)
    leaves = np.concatenate((np.full(before, -1, np.int64), listed))
    return read_leaves(PhysicalMemory(pages), leaves, end, stream.bits)
