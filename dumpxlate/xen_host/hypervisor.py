"""A hypervisor's own address space, found in a dump of its host.

Every page table on a Xen host, its own and those of paravirtual guests, has Xen's mappings in the same slots of the
first level, unchanged since Xen 4.3 (xen/arch/x86/include/asm/config.h)::

    ffff8000 00000000  slot 256   machine-to-phys table, read-only for guests
    ffff8100 00000000  slot 258   the page tables themselves: the slot leads back to its own page
    ffff8280 00000000  slot 261   machine-to-phys table, writable; then Xen's image and the frame table
    ffff82e0 00000000             frame table (128 GiB up to the direct map)
    ffff8300 00000000  slot 262   direct map of machine memory

So one processor's cr3 is enough; where that is a hardware guest's, or unknown, a page whose slot 258 leads to itself is
searched for. Xen built for more than 16 TiB (CONFIG_BIGMEM) has other places for the last two and is not handled.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.codecs.batch import decode, gather
from dumpxlate.codecs.workers import default_threads, ordered_map
from dumpxlate.elf.notes import NT_XEN_CRASH_REGS
from dumpxlate.errors import CorruptDumpError, PageUnavailableError, UnsupportedFeatureError
from dumpxlate.memory import PhysicalMemory
from dumpxlate.pages import windows
from dumpxlate.paging.addrxlat import page_walk, signed
from dumpxlate.paging.virtual import TranslatedMemory
from dumpxlate.paging.x86 import LEVEL_4
from dumpxlate.progress import Meter, Progress
from dumpxlate.xen import MAX_FRAME, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dumpxlate.arrays import Bools, Int64s, UInt64s
    from dumpxlate.dump import Dump
    from dumpxlate.pages import PageStore
    from dumpxlate.paging.addrxlat import PageWalk

__all__ = ["DIRECT_MAP", "FRAME_TABLE", "M2P", "Hypervisor", "find_hypervisor"]

M2P = 0xFFFF_8000_0000_0000
"""RO_MPT_VIRT_START: a u64 a machine frame."""
M2P_WRITABLE = 0xFFFF_8280_0000_0000
"""RDWR_MPT_VIRT_START: the same frames again."""
FRAME_TABLE = 0xFFFF_82E0_0000_0000
"""FRAMETABLE_VIRT_START."""
DIRECT_MAP = 0xFFFF_8300_0000_0000
"""DIRECTMAP_VIRT_START."""
_DIRECT_MAP_END = 0xFFFF_8880_0000_0000

_ENTRIES = PAGE_SIZE // 8
_SELF, _M2P_SLOT, _XEN_SLOT, _DIRECT_SLOT = 258, 256, 261, 262
_FRAME = (1 << 52) - PAGE_SIZE
_PLACES_LIMIT = 1 << 16
_GIB = 1 << 30
_SPAN = 2 << 20  # of one last-level table
_BATCH = 4
"""Such spans of Xen's tables that are read in one go, 8 MiB."""


@dataclass(frozen=True, slots=True)
class Hypervisor:
    """Xen's address space.

    Attributes:
        store: machine memory.
        walk: the page tables that it is seen through.
        virtual: bytes at Xen's virtual addresses.
    """

    store: PageStore
    walk: PageWalk
    virtual: TranslatedMemory
    _places: dict[int, int] = field(default_factory=dict, repr=False)

    def read(self, address: int, length: int, what: str) -> bytes:
        """Read bytes at a virtual address of Xen's.

        Raises:
            CorruptDumpError: it is unmapped, or not in the dump; names ``what`` was to be read.
        """
        parts = []
        while length > 0:
            inside = min(length, PAGE_SIZE - address % PAGE_SIZE)
            machine = self._place(address)
            if machine < 0:
                raise CorruptDumpError(f"address {address:#x} is unmapped", what=what)
            try:
                parts.append(self.virtual.memory.read(machine, inside))
            except PageUnavailableError as error:
                raise CorruptDumpError(f"address {address:#x}: {error}", what=what) from None
            address, length = address + inside, length - inside
        return b"".join(parts)

    def page(self, frame: int) -> bytes:
        """Read a machine frame; empty where it is not in the dump."""
        try:
            return self.virtual.memory.read(frame * PAGE_SIZE, PAGE_SIZE)
        except PageUnavailableError:
            return b""

    def frame_of(self, address: int) -> int:
        """Give the machine frame behind an address of the direct map; -1 where it is no such address."""
        return self._place(address) // PAGE_SIZE if DIRECT_MAP <= address < _DIRECT_MAP_END else -1

    def _place(self, address: int) -> int:
        """Translate an address, -1 where it is unmapped; structures lie together, so pages are kept in mind."""
        page = address // PAGE_SIZE
        if page not in self._places:
            if len(self._places) >= _PLACES_LIMIT:
                self._places.clear()
            inside = 0 <= address < 1 << 64
            self._places[page] = int(self.virtual.physical([page * PAGE_SIZE])[0]) if inside else -1
        found = self._places[page]
        return found + address % PAGE_SIZE if found >= 0 else -1

    def words(self, address: Int64s) -> tuple[UInt64s, Bools]:
        """Read u64 words at aligned virtual addresses, as signed words.

        Returns:
            The words, 0 where there is none, and which there are.
        """
        page, which = np.unique(address // PAGE_SIZE, return_inverse=True)
        machine = self.virtual.translation.physical(page * PAGE_SIZE)[which]
        return self.virtual.memory.read_words(np.where(machine < 0, -8, machine + address % PAGE_SIZE), 8)

    def table(self, address: int, length: int) -> Iterator[tuple[Int64s, UInt64s]]:
        """Read a table of Xen's, some MiB at a time, as far as it is mapped and in the dump.

        Args:
            address: virtual address of the table, a multiple of 1 GiB.
            length: bytes of it; what is not mapped costs nothing.

        Yields:
            Which pages of the table there are, counted from its start, and their words, shape (pages, 512).

        Raises:
            CorruptDumpError: more pages are mapped than the dump has: the page tables lead to the same ones again.
        """
        left = self.store.stored.count
        for number in self._mapped(signed(address), length):
            machine = self.walk.physical(signed(address) + number * PAGE_SIZE)
            held = self.virtual.memory.holds(machine // PAGE_SIZE)  # nothing is at -1
            left -= int(np.count_nonzero(held))
            if left < 0:
                raise CorruptDumpError("more pages are mapped there than the dump has", what=f"table at {address:#x}")
            yield number[held], self.virtual.memory.read_pages(machine[held] // PAGE_SIZE).view("<u8")

    def _mapped(self, address: int, length: int) -> Iterator[Int64s]:
        """Give the pages of a range that may be mapped, some MiB at a time, as numbers from its start."""
        pages = np.arange(_SPAN // PAGE_SIZE, dtype=np.int64)
        for low in range(0, length, _GIB):
            if not self.walk.reaches(np.array([address + low], np.int64), _GIB)[0]:
                continue
            spans = np.arange(low, min(low + _GIB, length), _SPAN, dtype=np.int64)
            spans = spans[self.walk.reaches(address + spans, _SPAN)]
            for first in range(0, len(spans), _BATCH):
                number = (spans[first : first + _BATCH, None] // PAGE_SIZE + pages).reshape(-1)
                yield number[number * PAGE_SIZE < length]


def find_hypervisor(
    dump: Dump, *, progress: Callable[[Progress], None] | None = None, threads: int | None = None
) -> Hypervisor:
    """Find a hypervisor's address space in a dump of its host.

    Args:
        dump: of machine memory.
        progress: called while memory is searched, which is done where no processor's page tables lead there.
        threads: workers of the search; 0 does all in this thread.

    Raises:
        UnsupportedFeatureError: there is none: this is no dump of a Xen host on x86-64.
        CorruptDumpError: the dump's index cannot be read.
    """
    if dump.machine.arch.name != "x86_64" or dump.machine.page_size != PAGE_SIZE:
        raise _no_host(dump, f"a dump of {dump.machine.arch.name} with pages of {dump.machine.page_size} bytes")
    memory = PhysicalMemory(dump.pages)
    for root in dict.fromkeys(_known_roots(dump)):
        found = _hypervisor(memory, dump.pages, root)
        if found:
            return found
    for root in _searched_roots(dump.pages, progress, threads):
        found = _hypervisor(memory, dump.pages, root)
        if found:
            return found
    raise _no_host(dump, "no page table in it has Xen's mappings")


def _no_host(dump: Dump, why: str) -> UnsupportedFeatureError:
    return UnsupportedFeatureError(
        f"not a dump of a Xen host: {why}", path=dump.name, format=dump.format, feature="xen host"
    )


def _known_roots(dump: Dump) -> Iterator[int]:
    """Give the page tables of the host's processors."""
    for cpu in dump.cpus:
        yield cpu.registers.get("cr3", 0) & _FRAME
    for note in dump.notes:
        if note.name == "Xen" and note.type == NT_XEN_CRASH_REGS and len(note.desc) >= 32:
            yield int.from_bytes(note.desc[16:24], "little") & _FRAME


def _hypervisor(memory: PhysicalMemory, store: PageStore, root: int) -> Hypervisor | None:
    """Look at memory through page tables: are Xen's mappings in them?

    The machine-to-phys table shows at two addresses, which no other system does.
    """
    if not 0 < root < MAX_FRAME * PAGE_SIZE:
        return None
    walk = page_walk(memory, root, LEVEL_4)
    places = np.array([signed(each) for each in (M2P, M2P_WRITABLE, FRAME_TABLE)], np.int64)
    table, writable, frames = walk.physical(places).tolist()
    if table < 0 or table != writable or frames < 0:
        return None
    return Hypervisor(store, walk, TranslatedMemory(memory, walk))


def _searched_roots(
    store: PageStore, progress: Callable[[Progress], None] | None, threads: int | None
) -> Iterator[int]:
    """Search all pages for first-level tables of Xen's."""
    meter = Meter("search", store.stored.count * store.page_size, progress)
    threads = default_threads() if threads is None else threads
    looked = ordered_map(_Search(store).look, windows(store.stored, store.page_size), threads=threads)
    with contextlib.closing(looked) as parts:
        for pages, roots in parts:
            yield from (int(root) * PAGE_SIZE for root in roots)
            meter.add(pages * store.page_size)


@dataclass(frozen=True, slots=True)
class _Search:
    """Looks for first-level tables among the pages of a store."""

    store: PageStore

    def look(self, window: tuple[int, int]) -> tuple[int, Int64s]:
        """Give the number of pages in a window of ranks, and which of them may be such tables; runs in a worker."""
        size = self.store.page_size
        batch = gather(decode(self.store.fetch(self.store.locate(self.store.stored.select(*window))), size), size)
        rows = batch.table.stored()
        if not len(rows):
            return window[1] - window[0], rows.pfn
        words = np.frombuffer(batch.body, "<u8", len(rows) * _ENTRIES, int(rows.offset[0])).reshape(-1, _ENTRIES)
        own = words[:, _SELF].astype(np.int64)
        found = (own & _FRAME == rows.pfn * PAGE_SIZE) & (own & 1 != 0)
        for slot in (_M2P_SLOT, _XEN_SLOT, _DIRECT_SLOT):
            found &= words[:, slot] & np.uint64(1) != 0
        return window[1] - window[0], rows.pfn[found]
