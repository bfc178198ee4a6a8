"""All mappings of a tree of page tables, found by reading whole tables: a thousand at once, an array each level.

Real trees are small: one table for each 512 pages or so that are mapped. A hostile guest's tables may lead back to
themselves, share one subtree a thousand million times, or fill the whole memory. So a table is walked once on each
level, and beyond that only ``REPEATS`` times in all; and no more than ``TABLES``, or a sixteenth of the dump, are
walked altogether. What was skipped is counted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.arrays import expand
from dumpxlate.pages import BATCH_BYTES
from dumpxlate.paging.format import Entry
from dumpxlate.paging.mappings import MAPPINGS_LIMIT, UNLISTED, Mappings, in_order

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from dumpxlate.arrays import Int64s, UInt8s
    from dumpxlate.memory import PhysicalMemory
    from dumpxlate.paging.format import Level, Paging

    ReadEntries: TypeAlias = Callable[[Level, Int64s, Int64s], tuple[UInt8s, Int64s]]

__all__ = ["REPEATS", "TABLES", "walk_tree"]

REPEATS = 1 << 16
"""Walks of tables that were walked on the same level before. Linux shares one for the unused part of a PV guest's p2m,
512 times; KASAN's empty shadow, which millions of entries share, is cut off."""

TABLES = 1 << 18
"""Tables that are walked in any case: 1 GiB of them, for 512 GiB mapped page by page."""

_SKIPPED = "skipped tables"
_FAULTS = {Entry.RESERVED: "reserved entries", Entry.UNKNOWN_FRAME: "unknown frames"}
_NOT_HELD = "tables not held"


def walk_tree(memory: PhysicalMemory, root: int, mode: Paging, read_entries: ReadEntries) -> Mappings:
    """Find everything that a tree of page tables maps, devices included.

    Args:
        memory: holds the tables.
        root: address of the first one there.
        mode: their format.
        read_entries: tells of entries of a level, given them and the addresses that they are for, what each says
            and where it leads.
    """
    return _Walk(memory, mode, read_entries).run(root)


@dataclass(slots=True)
class _Walk:
    memory: PhysicalMemory
    mode: Paging
    read_entries: ReadEntries
    todo: list[tuple[int, Int64s, Int64s]] = field(default_factory=list)
    """Tables to walk: their level, as an index, their addresses, and the first address that each is for."""
    found: list[tuple[Int64s, Int64s, Int64s]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    tables: int = 0
    listed: int = 0
    repeats: int = field(default_factory=lambda: REPEATS)
    seen: UInt8s = field(init=False)
    """For each block of memory that can be a table, a bit for each level that it was walked on."""

    def __post_init__(self) -> None:
        self.seen = np.zeros(self.memory.held.count * self._blocks_a_page, np.uint8)

    @property
    def _block(self) -> int:
        """Bytes of tables that are read as one: a whole table, unless it is larger than a page of the dump."""
        last = self.mode.levels[-1]
        return min(self.mode.entry_bytes << last.bits, self.memory.page_size)

    @property
    def _blocks_a_page(self) -> int:
        return self.memory.page_size // self._block

    def run(self, root: int) -> Mappings:
        """Walk from the root, depth first, so that only few tables wait at any time."""
        top = self.mode.levels[0]
        index = np.arange(1 << top.bits, dtype=np.int64)
        words, held = self.memory.read_words(root + index * self.mode.entry_bytes, self.mode.entry_bytes)
        self.tables += 1
        self.counts[_NOT_HELD] += not held.any()
        self._take(0, words.astype(np.int64), self._extended(index << top.shift))
        while self.todo:
            depth, table, virtual = self.todo.pop()
            step = max(BATCH_BYTES // self.memory.page_size, 1)
            if len(table) > step:
                self.todo.append((depth, table[step:], virtual[step:]))
            self._walk(depth, table[:step], virtual[:step])
        empty = np.empty(0, np.int64)
        virtual, physical, length = (
            np.concatenate([empty, *(part[column] for part in self.found)]) for column in range(3)
        )
        faults = {name: count for name, count in self.counts.items() if count}
        return in_order(Mappings(virtual, physical, length, self.tables, faults))

    def _extended(self, virtual: Int64s) -> Int64s:
        """Give the bits above those that the tables translate."""
        above = 64 - self.mode.va_bits
        if self.mode.half == "both":
            return virtual << above >> above
        return virtual | -(1 << self.mode.va_bits) if self.mode.half == "high" else virtual

    def _walk(self, depth: int, table: Int64s, virtual: Int64s) -> None:
        """Read tables of one level."""
        blocks, held = self.memory.read_blocks(table, self._block)
        self.tables += int(held.sum())
        self.counts[_NOT_HELD] += int((~held).sum())
        words = blocks.view(f"{self.memory.endian}u{self.mode.entry_bytes}").reshape(-1)
        used = np.flatnonzero(words)
        row, index = np.divmod(used, self._block // self.mode.entry_bytes)
        self._take(depth, words[used].astype(np.int64), virtual[row] + (index << self.mode.levels[depth].shift))

    def _take(self, depth: int, value: Int64s, virtual: Int64s) -> None:
        """Take the entries of one level, each with the first address that it is for."""
        level = self.mode.levels[depth]
        kind, target = self.read_entries(level, value, virtual)
        for entry, fault in _FAULTS.items():
            self.counts[fault] += int((kind == entry).sum())
        page, down = np.flatnonzero(kind == Entry.PAGE), np.flatnonzero(kind == Entry.TABLE)
        self._map(virtual[page], target[page], 1 << level.shift)
        if len(down):
            self._descend(depth + 1, target[down], virtual[down])

    def _map(self, virtual: Int64s, physical: Int64s, size: int) -> None:
        """Keep the pages of one size, as runs."""
        apart = (np.diff(virtual) != size) | (np.diff(physical) != size)
        first = np.flatnonzero(np.append(True, apart)[: len(virtual)])
        length = np.diff(first, append=len(virtual)) * size
        kept = first[: MAPPINGS_LIMIT - self.listed]
        self.listed += len(kept)
        self.counts[UNLISTED] += len(first) - len(kept)
        if len(kept):
            self.found.append((virtual[kept], physical[kept], length[: len(kept)]))

    def _descend(self, depth: int, table: Int64s, virtual: Int64s) -> None:
        """Let tables of the next level wait for their turn: those that are in the dump, and not known too well."""
        level = self.mode.levels[depth]
        blocks = (self.mode.entry_bytes << level.bits) // self._block
        if blocks > 1:
            each = np.full(len(table), blocks)
            table = expand(table, each, step=self._block)
            virtual = expand(virtual, each, step=self._block // self.mode.entry_bytes << level.shift)
        held = self.memory.held.contains(table // self.memory.page_size)
        self.counts[_NOT_HELD] += int((~held).sum())
        table, virtual = table[held], virtual[held]
        admitted = self._admit(depth, table)
        self.counts[_SKIPPED] += len(table) - len(admitted)
        if len(admitted):
            self.todo.append((depth, table[admitted], virtual[admitted]))

    def _admit(self, depth: int, table: Int64s) -> Int64s:
        """Choose the tables to walk, by their rows."""
        page, offset = np.divmod(table, self.memory.page_size)
        slot = self.memory.held.rank(page) * self._blocks_a_page + offset // self._block
        unseen = np.flatnonzero(self.seen[slot] >> depth & 1 == 0)
        unseen = unseen[np.unique(slot[unseen], return_index=True)[1]]
        again = np.ones(len(table), bool)
        again[unseen] = False
        repeated = np.flatnonzero(again)[: self.repeats]
        waiting = sum(len(each) for _, each, _ in self.todo)
        room = max(TABLES, len(self.seen) // 16) - self.tables - waiting
        admitted = np.sort(np.concatenate((unseen, repeated)))[: max(room, 0)]
        self.repeats -= len(repeated)
        self.seen[slot[admitted]] |= np.uint8(1 << depth)
        return admitted
