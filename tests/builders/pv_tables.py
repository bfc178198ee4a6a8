"""A paravirtual guest with page tables, in both forms: with machine frames, and as an ordinary guest would have them.

The tables are kept as the frames they mean (``Entry``), and written out twice. So what a conversion must give is known
without converting anything.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from .guest import Guest, page
from .xen_vcpu import fold_cr3

__all__ = ["Entry", "PvGuest", "scattered"]

XEN_MFN = 0x3FF00
"""Where the hypervisor's own frames begin, which no guest has."""
FLAGS, READ_ONLY = 0x67, 0x65


@dataclass(frozen=True)
class Entry:
    """A present entry: the pfn that it leads to, and the machine frame in it if that is no page of the guest."""

    pfn: int | None
    mfn: int = 0
    flags: int = FLAGS
    xen: bool = False


def scattered(pfn: int) -> int:
    """A machine frame for each pfn below 1021, in no order."""
    return 0x10000 + pfn * 7919 % 1021


@dataclass
class PvGuest:
    """Some pages, of which ``first_table`` and those behind are free for tables.

    Attributes:
        width: of a word: 8 with four levels of tables, 4 with three.
        size: pages of RAM.
        tables: slot -> entry of each table, by pfn.
        raw: slot -> word that is no present entry.
    """

    width: int = 8
    size: int = 96
    first_table: int = 48
    mfns: dict[int, int] = field(default_factory=dict)
    tables: dict[int, dict[int, Entry]] = field(default_factory=dict)
    raw: dict[tuple[int, int], int] = field(default_factory=dict)
    xen_slots: set[tuple[int, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.mfns = self.mfns or {pfn: scattered(pfn) for pfn in range(self.size)}
        self._free = self.first_table

    @property
    def levels(self) -> int:
        return 4 if self.width == 8 else 3

    def table(self) -> int:
        """A new empty table; gives its pfn."""
        self.tables[self._free] = {}
        self._free += 1
        return self._free - 1

    def root(self) -> int:
        """A new top-level table, with Xen's own entries as Xen makes them."""
        top = self.table()
        if self.width == 8:
            for slot in (256, 260, 261, 262):
                self.xen(top, slot)
            self.tables[top][258] = Entry(top, flags=0x63, xen=True)  # the table itself
            self.xen_slots.add((top, 258))
            return top
        for slot in range(4):  # a PAE guest always has all four of them
            self.tables[top][slot] = Entry(self.table(), flags=1)
        for slot in range(428, 432):
            self.xen(self.tables[top][3].pfn or 0, slot)
        return top

    def xen(self, table: int, slot: int) -> None:
        """An entry of the hypervisor's own."""
        self.tables[table][slot] = Entry(None, XEN_MFN + slot, 0xE3 if self.width == 4 else 0x63, xen=True)
        self.xen_slots.add((table, slot))

    def map(self, top: int, virtual: int, entry: Entry) -> int:
        """Map a page of 4 KiB; gives the pfn of the lowest table."""
        table = top
        for level in range(self.levels, 1, -1):
            slot = virtual >> 12 + 9 * (level - 1) & 511
            if slot not in self.tables[table]:
                self.tables[table][slot] = Entry(self.table())
            table = self.tables[table][slot].pfn or 0
        self.tables[table][virtual >> 12 & 511] = entry
        return table

    def direct_map(self, top: int, start: int) -> None:
        """Map all memory from an address on: tables read-only, as Xen wants them, the rest writable."""
        for pfn in range(self.size):  # makes the tables that this itself takes
            self.map(top, start + pfn * 4096, Entry(pfn))
        for pfn in self.tables:
            self.map(top, start + pfn * 4096, Entry(pfn, flags=READ_ONLY))

    def page(self, pfn: int, *, machine: bool) -> bytes:
        """Content of a page, in one form or the other."""
        if pfn not in self.tables:
            return page(pfn)
        words = [0] * 512
        for (table, slot), word in self.raw.items():
            if table == pfn:
                words[slot] = word
        for slot, entry in self.tables[pfn].items():
            if machine:
                words[slot] = (entry.mfn if entry.pfn is None else self.mfns[entry.pfn]) << 12 | entry.flags
            elif entry.pfn is not None and not entry.xen:
                words[slot] = entry.pfn << 12 | entry.flags
        for table, slot in self.xen_slots:
            if table == pfn and not machine:
                words[slot] = 0
        return struct.pack("<512Q", *words)

    def pages(self, *, machine: bool) -> dict[int, bytes]:
        """All pages."""
        return {pfn: self.page(pfn, machine=machine) for pfn in range(self.size)}

    def guest(self, *tops: int, user: int | None = None, **registers: int) -> Guest:
        """The guest with machine frames, one vcpu for each top-level table; ``user``: that of user mode."""
        base = {"cr0": 0x8005_0033, "cr1": 0, "cr4": 0x660, "gdt_ents": 0, **registers}
        if user is not None:
            base["cr1"] = self.mfns[user] << 12
        vcpus = tuple({**base, "cr3": fold_cr3(self.mfns[top], self.width)} for top in tops)
        return Guest(pages=self.pages(machine=True), mfns=dict(self.mfns), registers=vcpus)
