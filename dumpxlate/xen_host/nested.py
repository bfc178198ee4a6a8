"""The tables by which a processor maps a hardware guest's memory: Intel's EPT and AMD's nested page tables.

As Xen fills them (xen/arch/x86/mm/p2m-ept.c, p2m-pt.c), both have four levels of 512 entries, the frame in bits 51:12,
bit 7 for large pages, and the type of a page in bits 57:52. In an EPT entry the lowest three bits grant rights, in the
other the lowest says "present"; neither has any of them set where nothing is mapped. So one reader does for both, and
for the tables that Xen keeps for guests with shadow paging, which are like AMD's.

Nothing in a table is believed: each is entered once, and must be in the host's memory, so no more are read than that
has pages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.errors import CorruptDumpError, PageUnavailableError
from dumpxlate.p2m.map import P2M, FrameRuns
from dumpxlate.xen import PAGE_SIZE

if TYPE_CHECKING:
    from dumpxlate.arrays import Bools, Int64s
    from dumpxlate.memory import PhysicalMemory

__all__ = ["read_nested_tables"]

_LEVELS = 4
_BITS = 9
_PRESENT, _LARGE = 7, 1 << 7
_FRAME = (1 << 52) - PAGE_SIZE
_TYPE_SHIFT, _TYPE_MASK = 52, 63
_RAM = (0, 2, 3, 12, 13, 15)
"""p2m_ram_rw, p2m_ram_logdirty, p2m_ram_ro, p2m_ram_shared, p2m_ram_broken, p2m_ioreq_server (asm/p2m.h)."""
_OTHERS = (7, 8, 14)
"""p2m_grant_map_rw, p2m_grant_map_ro, p2m_map_foreign: pages of another domain."""
_BATCH = 2048
_WHAT = "nested page tables"
_TABLES_LIMIT = 1 << 24
"""Tables that are read at most: they map 32 TiB by pages of 4 KiB, more than Xen gives to any guest."""


def read_nested_tables(memory: PhysicalMemory, root: int, frames: int) -> P2M:
    """Read a hardware guest's memory map.

    Args:
        memory: machine memory.
        root: frame of the first table, ``p2m_domain.phys_table``.
        frames: machine frames of the host.

    Raises:
        CorruptDumpError: tables are torn or circular, or map more than there can be.
    """
    parts: list[tuple[Int64s, Int64s, Int64s, Int64s]] = []
    table, base = np.array([root], np.int64), np.zeros(1, np.int64)
    seen = table
    for level in range(_LEVELS - 1, -1, -1):
        table, base, found = _level(memory, table, base, level, frames)
        parts += found
        repeated = len(table) - len(np.unique(table)) + len(np.intersect1d(table, seen))
        if repeated or len(seen) + len(table) > _TABLES_LIMIT:
            raise CorruptDumpError(f"{repeated:,} tables are entered twice, of {len(table):,}: circular", what=_WHAT)
        seen = np.concatenate((seen, table))
    gfn, mfn, count, kind = (np.concatenate([np.empty(0, np.int64), *column]) for column in zip(*parts, strict=True))
    return _map(gfn, mfn, count, kind, frames)


def _level(
    memory: PhysicalMemory, table: Int64s, base: Int64s, level: int, frames: int
) -> tuple[Int64s, Int64s, list[tuple[Int64s, Int64s, Int64s, Int64s]]]:
    """Read all tables of a level: the tables below, the gfns that those begin at, and what is mapped, in runs."""
    below, begins, parts = [], [], []
    for at in range(0, len(table), _BATCH):
        try:
            words = memory.read_pages(table[at : at + _BATCH]).view("<i8")
        except PageUnavailableError as error:
            raise CorruptDumpError(f"the table at machine frame {error.pfn:#x} is {error.state}", what=_WHAT) from None
        used = words & _PRESENT != 0
        if level == _LEVELS - 1:
            used &= words & _LARGE == 0  # a processor has no pages of 512 GiB
        row, index = np.nonzero(used)
        entry = words[row, index]
        gfn = base[at + row] + (index << _BITS * level)
        leaf: Bools = np.full(len(entry), level == 0) | ((entry & _LARGE) != 0)
        frame = (entry & _FRAME) // PAGE_SIZE
        _refuse_beyond(frame[~leaf], frames)
        below.append(frame[~leaf])
        begins.append(gfn[~leaf])
        parts.append(
            _runs(gfn[leaf], frame[leaf] & -(1 << _BITS * level), entry[leaf] >> _TYPE_SHIFT & _TYPE_MASK, level)
        )
    empty = np.empty(0, np.int64)
    return np.concatenate([empty, *below]), np.concatenate([empty, *begins]), parts


def _refuse_beyond(table: Int64s, frames: int) -> None:
    wrong = np.flatnonzero(table >= frames)
    if len(wrong):
        raise CorruptDumpError(
            f"a table at machine frame {int(table[wrong[0]]):#x}, the host's memory ends at {frames:#x}", what=_WHAT
        )


def _runs(gfn: Int64s, mfn: Int64s, kind: Int64s, level: int) -> tuple[Int64s, Int64s, Int64s, Int64s]:
    """Join entries that follow each other: first gfn, its frame, pages, and type of each run."""
    step = 1 << _BITS * level
    joined = (np.diff(gfn) == step) & (np.diff(mfn) == step) & (np.diff(kind) == 0)
    first = np.flatnonzero(np.append(True, ~joined)[: len(gfn)])
    return gfn[first], mfn[first], np.diff(first, append=len(gfn)) * step, kind[first]


def _map(gfn: Int64s, mfn: Int64s, count: Int64s, kind: Int64s, frames: int) -> P2M:
    """Make the map of runs in any order; each table was entered once, so they are disjoint."""
    order = np.argsort(gfn, kind="stable")
    gfn, mfn, count, kind = gfn[order], mfn[order], count[order], kind[order]
    count = np.minimum(count, frames - mfn)  # a large page may be mapped over the end of memory
    ram, other = (np.isin(kind, kinds) & (count > 0) for kinds in (_RAM, _OTHERS))
    size = int(gfn[-1] + count[-1]) if len(gfn) else 0
    pages, foreign = (FrameRuns(gfn[each], mfn[each], count[each]) for each in (ram, other))
    return P2M(pages, size, foreign=foreign)
