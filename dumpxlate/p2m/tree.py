"""A Linux guest's p2m by its kernel's own variables, for dumps that do not have shared_info.

============================  ======================================================================================
kernel                        variables
============================  ======================================================================================
since 3.19                    ``xen_p2m_addr`` points to a flat array
2.6.37 to 3.18                ``p2m_top`` points to a page of pointers to pages of pointers to pages of the array
2.6.32 to 2.6.36              ``p2m_top`` is an array of pointers to pages of the array
Xen's own kernels (2.6.18)    ``phys_to_machine_mapping`` points to a flat array
============================  ======================================================================================

(arch/x86/xen/p2m.c and mmu.c; crash reads the same in x86.c, x86_64.c and kernel.c.) All pointers are virtual, so a
vcpu's page tables are walked, and these hold machine frames: nothing is needed to know where they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.arch.xen_vcpu import fold_cr3
from dumpxlate.errors import MapError, PageUnavailableError, TranslationError
from dumpxlate.p2m.lists import MAX_PFNS, check_size, entries_per_page, linear_leaves, read_leaves, tables_of
from dumpxlate.paging.addrxlat import as_addresses, page_walk
from dumpxlate.paging.virtual import TranslatedMemory
from dumpxlate.xen import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dumpxlate.arch.xen_vcpu import WordBits
    from dumpxlate.arrays import Int64s
    from dumpxlate.elf.symbols import Symbols
    from dumpxlate.memory import PhysicalMemory
    from dumpxlate.p2m.map import P2M

__all__ = ["from_symbols"]

_SIZES = ("xen_max_p2m_pfn", "max_pfn", "end_pfn")
"""Variables with the number of entries, the best first."""


def from_symbols(
    memory: PhysicalMemory, roots: Iterable[int], symbols: Symbols, word_bits: WordBits
) -> tuple[P2M, str]:
    """Read a guest's array by the variables of its kernel.

    Args:
        memory: machine memory.
        roots: machine addresses of page tables, the first table of each; the first that maps the kernel is taken.
        symbols: where the kernel's variables are.
        word_bits: width of the guest.

    Returns:
        The map, and by which variable it was found.

    Raises:
        MapError: the kernel has no such variables, or they do not lead to a p2m: it is another kernel.
    """
    for name, read in _WAYS.items():
        at = symbols.address(name)
        if at is not None:
            kernel = _Kernel(memory, _root(memory, roots, at, word_bits), symbols, word_bits)
            try:
                leaves, size = read(kernel, at)
                return read_leaves(memory, leaves, size, word_bits).trimmed(), f"{name} at {at:#x}"
            except (MapError, TranslationError, PageUnavailableError) as error:
                raise MapError(f"{name} at {at:#x} leads to no p2m, are these this kernel's symbols? {error}") from None
    raise MapError(f"the symbols have none of {', '.join(_WAYS)}: not those of a kernel that runs as a PV guest")


def _root(memory: PhysicalMemory, roots: Iterable[int], address: int, word_bits: WordBits) -> int:
    """Choose the page tables that map an address.

    Raises:
        MapError: none of them does.
    """
    wanted = as_addresses([address])
    for root in roots:
        if page_walk(memory, root, tables_of(word_bits)).physical(wanted)[0] >= 0:
            return root
    raise MapError(f"no vcpu's page tables map {address:#x}, are these this kernel's symbols?")


@dataclass(frozen=True, slots=True)
class _Kernel:
    """A kernel's memory by virtual address, and its variables."""

    memory: PhysicalMemory
    root: int
    symbols: Symbols
    word_bits: WordBits

    @property
    def virtual(self) -> TranslatedMemory:
        return TranslatedMemory(self.memory, page_walk(self.memory, self.root, tables_of(self.word_bits)))

    def words(self, address: int, count: int) -> Int64s:
        """Read words of the guest's width; addresses of its upper half become negative."""
        body = self.virtual.read(address, count * self.word_bits // 8)
        return np.frombuffer(body, f"<u{self.word_bits // 8}").astype(np.int64)

    def word(self, address: int) -> int:
        """Read one word, unsigned."""
        return int(self.words(address, 1)[0]) & (1 << self.word_bits) - 1

    def size(self) -> int:
        """Give the number of the array's entries by what variable there is.

        Raises:
            MapError: none has a sensible one.
        """
        places = [at for name in _SIZES if (at := self.symbols.address(name)) is not None]
        sizes = [self.word(at) for at in places]
        return next((size for size in sizes if 0 < size <= MAX_PFNS), 0) or _no_size(sizes)

    def frames(self, pointers: Int64s) -> Int64s:
        """Give the machine frames of pages by their virtual addresses, -1 for null pointers.

        Raises:
            MapError: a pointer is not to a page that is mapped.
        """
        found = self.virtual.physical(pointers)
        wrong = np.flatnonzero((pointers != 0) & ((found < 0) | (found % PAGE_SIZE != 0)))
        if len(wrong):
            value = int(pointers[wrong[0]]) & (1 << self.word_bits) - 1
            raise MapError(f"pointer {int(wrong[0]):,} is {value:#x}, where no page is")
        return np.where(pointers == 0, -1, found // PAGE_SIZE)

    def pages(self, pointers: Int64s) -> Int64s:
        """Read the pages of words that pointers lead to, one behind the other; zeros for null pointers."""
        frames = self.frames(pointers)
        out = np.zeros((len(frames), entries_per_page(self.word_bits)), np.int64)
        content = self.memory.read_pages(frames[frames >= 0]).view(f"<u{self.word_bits // 8}")
        out[frames >= 0] = content.astype(np.int64)
        return out.reshape(-1)


def _no_size(sizes: list[int]) -> int:
    raise MapError(f"{' and '.join(_SIZES)} say {sizes or 'nothing'}: expected 1 to {MAX_PFNS:,} entries")


def _by_address(kernel: _Kernel, at: int) -> tuple[Int64s, int]:
    """Follow a pointer to the flat array of Linux since 3.19."""
    last, reserved = (kernel.symbols.address(name) for name in ("xen_p2m_last_pfn", "xen_p2m_size"))
    # The array is made for as much memory as may ever be plugged in; 512 GiB, as distributions configure it.
    size = kernel.word(reserved) if reserved is not None else kernel.size()
    if last is not None:
        size = min(size, kernel.word(last) + 1)
    return _flat(kernel, kernel.word(at), size), size


def _by_mapping(kernel: _Kernel, at: int) -> tuple[Int64s, int]:
    """Follow a pointer to the flat array of Xen's own kernels."""
    size = kernel.size()
    return _flat(kernel, kernel.word(at), size), size


def _flat(kernel: _Kernel, vaddr: int, size: int) -> Int64s:
    return linear_leaves(
        kernel.memory, fold_cr3(kernel.root // PAGE_SIZE, kernel.word_bits), vaddr, size, kernel.word_bits
    )


def _by_top(kernel: _Kernel, at: int) -> tuple[Int64s, int]:
    """Walk the tree of two or, where the kernel has a middle page to share, of three levels."""
    size, per = kernel.size(), entries_per_page(kernel.word_bits)
    count = -(-size // per)
    if kernel.symbols.address("p2m_mid_missing") is None:
        return kernel.frames(kernel.words(at, count)), size
    check_size(size, min(MAX_PFNS, per**3))
    middle = kernel.words(kernel.word(at), -(-size // per**2))
    return kernel.frames(kernel.pages(middle)[:count]), size


_WAYS = {"xen_p2m_addr": _by_address, "p2m_top": _by_top, "phys_to_machine_mapping": _by_mapping}
"""How to read the p2m by each variable; a kernel has one of them."""
