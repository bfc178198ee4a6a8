"""From one address space to another: page tables, linear maps, frame maps, and one after the other.

Virtual addresses are words of 64 bits. In arrays they are int64 like every address here, so the upper half of the
space is negative (``signed``); everything that takes single addresses takes them as unsigned or signed integers.

A guest writes its own tables, so nothing in them is believed: a walk takes each level once at most, a table outside
the dump ends it, and what a processor would refuse is unmapped. An entry may lead to memory that is not in the dump,
a device for instance: that is a translation all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from dumpxlate.paging.format import Entry
from dumpxlate.paging.mappings import Mappings, first_mapping
from dumpxlate.paging.tree import walk_tree

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dumpxlate.arrays import Bools, Int64s, UInt8s, UInt64s
    from dumpxlate.memory import PhysicalMemory
    from dumpxlate.p2m.map import P2M
    from dumpxlate.paging.format import Level, Paging

__all__ = [
    "PageWalk",
    "Step",
    "Trace",
    "Translation",
    "as_addresses",
    "first_of",
    "frame_map",
    "linear",
    "page_walk",
    "signed",
]


_XEN_START, _XEN_END = 0xFFFF_8000_0000_0000 - (1 << 64), 0xFFFF_8800_0000_0000 - (1 << 64)
"""Xen's part of a 64-bit PV guest's address space (xen/include/public/arch-x86/xen-x86_64.h)."""


@dataclass(frozen=True, slots=True)
class Step:
    """One entry that a walk looked at.

    Attributes:
        level: number of the level, as the architecture counts.
        name: the level's name.
        address: where the entry lies, in the space that the memory is keyed by.
        value: the entry.
        frame: address it leads to, in the same space; -1 if nowhere.
        size: bytes that it covers.
        kind: what it says.
    """

    level: int
    name: str
    address: int
    value: int
    frame: int
    size: int
    kind: Entry


@dataclass(frozen=True, slots=True)
class Trace:
    """How an address was translated.

    Attributes:
        by: name of the translation.
        root: address of its first table, -1 if it has none.
        steps: entries, from the root down.
        physical: the outcome, -1 if the address is unmapped.
        fault: why it is unmapped; empty if it is not.
    """

    by: str
    root: int
    steps: tuple[Step, ...]
    physical: int
    fault: str = ""

    @property
    def level(self) -> int:
        """The level that said the last word, 0 if no table did."""
        return self.steps[-1].level if self.steps else 0


class Translation(Protocol):
    """A map from addresses to addresses."""

    def physical(self, address: Int64s) -> Int64s:
        """Translate addresses; -1 where one is unmapped."""
        ...

    def trace(self, address: int) -> Trace:
        """Translate one address and tell how."""
        ...

    def steps(self, address: int) -> tuple[Step, ...]:
        """Give the entries that decide about one address."""
        ...

    def mappings(self) -> Mappings:
        """Give all addresses that are mapped, by virtual address."""
        ...


def signed(address: int) -> int:
    """Give an address as a signed word.

    Raises:
        ValueError: it has more than 64 bits.
    """
    if not -(1 << 63) <= address < 1 << 64:
        raise ValueError(f"address {address:#x} has more than 64 bits")
    return address - (1 << 64) if address >= 1 << 63 else address


def as_addresses(address: Int64s | UInt64s | Iterable[int]) -> Int64s:
    """Give addresses as signed words."""
    if isinstance(address, np.ndarray):
        return address.astype(np.int64)  # uint64 wraps
    return np.array([signed(each) for each in address], np.int64)


def page_walk(memory: PhysicalMemory, root: int, mode: Paging, *, p2m: P2M | None = None) -> PageWalk:
    """Translate by page tables.

    Args:
        memory: holds the tables.
        root: address of the first one there.
        mode: their format.
        p2m: the map of a PV guest, whose entries hold machine frames while the memory is keyed by pfn.
    """
    return PageWalk(memory, root, mode, p2m)


def linear(start: int, length: int, physical: int, *, name: str = "linear") -> Linear:
    """Translate ``length`` addresses from ``start`` on to those from ``physical`` on."""
    return Linear(signed(start), length, physical, name)


def frame_map(p2m: P2M, page_size: int) -> FrameMap:
    """Translate machine addresses of a PV guest to its own."""
    return FrameMap(p2m, page_size)


def first_of(*translations: Translation) -> FirstOf:
    """Ask translations in turn; the first that maps an address counts."""
    if not translations:
        raise ValueError("no translation is given")
    return FirstOf(translations)


@dataclass(frozen=True, slots=True)
class PageWalk:
    """Made by ``page_walk``."""

    memory: PhysicalMemory
    root: int
    mode: Paging
    p2m: P2M | None = None

    def physical(self, address: Int64s) -> Int64s:
        """Translate addresses; -1 where one is unmapped."""
        address = as_addresses(address)
        result = np.full(len(address), -1, np.int64)
        rows = np.flatnonzero(self.mode.accepts(address))
        table = np.full(len(rows), self.root, np.int64)
        for level in self.mode.levels:
            if not len(rows):
                break
            _, _, kind, target = self._look(level, table, address[rows])
            page, down = kind == Entry.PAGE, kind == Entry.TABLE
            result[rows[page]] = target[page]
            rows, table = rows[down], target[down]
        return result

    def reaches(self, address: Int64s, span: int) -> Bools:
        """Tell for which addresses there is an entry at every level whose entries span at least so many bytes.

        Where there is none, nothing is mapped in the whole of the aligned span, which need not be looked at by page.
        """
        address = as_addresses(address)
        found = self.mode.accepts(address)
        rows = np.flatnonzero(found)
        table = np.full(len(rows), self.root, np.int64)
        for level in self.mode.levels:
            if 1 << level.shift < span:
                break
            _, _, kind, target = self._look(level, table, address[rows])
            down = kind == Entry.TABLE
            found[rows[~down & (kind != Entry.PAGE)]] = False
            rows, table = rows[down], target[down]
        return found

    def trace(self, address: int) -> Trace:
        """Translate one address and tell how."""
        wanted = as_addresses([address])
        if not self.mode.accepts(wanted)[0]:
            return Trace(self.mode.name, self.root, (), -1, f"not canonical for {self.mode.name} paging")
        steps: list[Step] = []
        table = np.array([self.root], np.int64)
        kind = Entry.TABLE
        for level in self.mode.levels:
            at, value, found, table = self._look(level, table, wanted)
            kind = Entry(int(found[0]))
            word = int(value[0]) & ((1 << 8 * self.mode.entry_bytes) - 1)
            unit = self.memory.page_size if self.p2m is not None else 1 << level.shift
            frame = int(table[0]) & -unit if kind == Entry.PAGE else int(table[0])
            steps.append(Step(level.number, level.name, int(at[0]), word, frame, 1 << level.shift, kind))
            if kind != Entry.TABLE:
                break
        mapped = kind == Entry.PAGE
        fault = "" if mapped else f"unmapped: {steps[-1].name} entry at {steps[-1].address:#x} is {kind.words}"
        return Trace(self.mode.name, self.root, tuple(steps), int(table[0]) if mapped else -1, fault)

    def steps(self, address: int) -> tuple[Step, ...]:
        """Give the entries that decide about one address."""
        return self.trace(address).steps

    def mappings(self) -> Mappings:
        """Give all addresses that the tables map, by virtual address; bounded, whatever the tables say."""
        return walk_tree(self.memory, self.root, self.mode, self._read_whole)

    def _look(self, level: Level, table: Int64s, address: Int64s) -> tuple[Int64s, Int64s, UInt8s, Int64s]:
        """Look addresses up in a table each: where the entry lies, the entry, what it says, where it leads."""
        index = address >> level.shift & ((1 << level.bits) - 1)
        at = table + index * self.mode.entry_bytes
        words, held = self.memory.read_words(at, self.mode.entry_bytes)
        value = words.astype(np.int64)
        kind, target = self._read(level, value, address)
        kind[~held] = Entry.NOT_HELD
        target[(kind != Entry.PAGE) & (kind != Entry.TABLE)] = -1
        return at, value, kind, target

    def _read(self, level: Level, value: Int64s, address: Int64s) -> tuple[UInt8s, Int64s]:
        """Read entries that addresses are looked up in: what they say, where they lead."""
        kind, target = self.mode.decode(level, value)
        page = kind == Entry.PAGE
        target[page] |= address[page] & ((1 << level.shift) - 1)
        if self.p2m is not None:
            target = _own_address(self.p2m, target, self.memory.page_size)
            kind[(target < 0) & (page | (kind == Entry.TABLE))] = Entry.UNKNOWN_FRAME
        return kind, target

    def _read_whole(self, level: Level, value: Int64s, address: Int64s) -> tuple[UInt8s, Int64s]:
        """Read entries of whole tables.

        Of a PV guest's, those that are Xen's own are passed over, as are large pages: Xen gives it none.
        """
        kind, target = self._read(level, value, address)
        if self.p2m is not None:
            if 1 << level.shift > self.memory.page_size:
                kind[kind == Entry.PAGE] = Entry.RESERVED
            if self.mode.va_bits > 32:
                kind[(address >= _XEN_START) & (address < _XEN_END)] = Entry.NOT_PRESENT
        return kind, target


@dataclass(frozen=True, slots=True)
class Linear:
    """Made by ``linear``; ``start`` is a signed word."""

    start: int
    length: int
    target: int
    name: str

    def physical(self, address: Int64s) -> Int64s:
        """Translate addresses; -1 where one is unmapped."""
        address = as_addresses(address)
        delta = address - self.start
        inside = (address >= self.start) & (delta >= 0) & (delta < self.length) & (delta >= -self.target)
        return np.where(inside, delta + self.target, -1)

    def trace(self, address: int) -> Trace:
        """Translate one address and tell how."""
        found = int(self.physical(as_addresses([address]))[0])
        return Trace(self.name, -1, (), found, "" if found >= 0 else f"outside the {self.name}")

    def steps(self, address: int) -> tuple[Step, ...]:
        """No table decides."""
        return ()

    def mappings(self) -> Mappings:
        """Give all addresses that are mapped: one run."""
        skip = min(max(-self.target, 0), self.length)
        row = (self.start + skip, self.target + skip, self.length - skip)
        return Mappings(*np.array([row], np.int64).T[:, : int(self.length > skip)])


@dataclass(frozen=True, slots=True)
class FrameMap:
    """Made by ``frame_map``."""

    p2m: P2M
    page_size: int

    def physical(self, address: Int64s) -> Int64s:
        """Translate addresses; -1 where one is unmapped."""
        return _own_address(self.p2m, as_addresses(address), self.page_size)

    def trace(self, address: int) -> Trace:
        """Translate one address and tell how."""
        found = int(self.physical(as_addresses([address]))[0])
        return Trace("p2m map", -1, (), found, "" if found >= 0 else "machine frame is not in the p2m map")

    def steps(self, address: int) -> tuple[Step, ...]:
        """No table decides."""
        return ()

    def mappings(self) -> Mappings:
        """Give all machine addresses that the map has."""
        runs = self.p2m.runs
        order = np.argsort(runs.frame, kind="stable")
        machine, own, length = (column[order] * self.page_size for column in (runs.frame, runs.pfn, runs.count))
        return first_mapping([Mappings(machine, own, length)])


def _own_address(p2m: P2M, address: Int64s, page_size: int) -> Int64s:
    pfn = p2m.pfn(address // page_size)
    return np.where((pfn >= 0) & (address >= 0), pfn * page_size + address % page_size, -1)


@dataclass(frozen=True, slots=True)
class FirstOf:
    """Made by ``first_of``."""

    translations: tuple[Translation, ...]

    def physical(self, address: Int64s) -> Int64s:
        """Translate addresses; -1 where one is unmapped."""
        address = as_addresses(address)
        result = self.translations[0].physical(address)
        for other in self.translations[1:]:
            left = np.flatnonzero(result < 0)
            result[left] = other.physical(address[left])
        return result

    def trace(self, address: int) -> Trace:
        """Translate one address and tell how: by the one that maps it, else by the first that looked into a table."""
        traces = [each.trace(address) for each in self.translations]
        return min(traces, key=lambda trace: (trace.physical < 0, not trace.steps))

    def steps(self, address: int) -> tuple[Step, ...]:
        """Give the entries that decide about one address."""
        return self.trace(address).steps

    def mappings(self) -> Mappings:
        """Give all addresses that are mapped, each as the first translation that maps it says."""
        return first_mapping(each.mappings() for each in self.translations)
