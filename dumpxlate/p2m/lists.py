"""A paravirtual guest's own lists of its frames, read out of machine memory.

Every PV guest keeps its p2m as an array in its own pages and tells Xen where, in either of two ways
(xen/include/public/arch-x86/xen.h; the toolstack reads them in tools/libs/guest/xg_sr_save_x86_pv.c):

* the *frame lists*: a page of mfns, of pages of mfns, of the pages that hold the array. Three levels, since Xen 3.0;
* the *linear list*: the virtual address of the array, and the page tables to reach it by. Since Xen 4.6.

A page here holds 512 words of a 64-bit guest, 1024 of a 32-bit one. Ranges without a page of the array have an entry
of zero or all ones, or share one page that says the same of all: Linux has one for pfns without memory, and one for
pfns that show the machine's own frames.

The guest wrote all of this, so nothing is followed that a guest could not have: a level is entered once, a page that
stands for several ranges must hold no memory, and the number of entries is bounded. What breaks these rules is torn,
circular, or no list at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from dumpxlate.arch.xen_vcpu import unfold_cr3
from dumpxlate.errors import MapError, PageUnavailableError
from dumpxlate.p2m.map import P2M
from dumpxlate.paging.addrxlat import page_walk, signed
from dumpxlate.paging.x86 import LEVEL_4, PAE
from dumpxlate.xen import MAX_FRAME, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from dumpxlate.arch.xen_vcpu import WordBits
    from dumpxlate.arrays import Int64s
    from dumpxlate.memory import PhysicalMemory
    from dumpxlate.paging.format import Paging

__all__ = [
    "MAX_PFNS",
    "check_size",
    "entries_per_page",
    "frame_list_leaves",
    "frame_lists_reach",
    "linear_leaves",
    "read_frame_lists",
    "read_leaves",
    "read_linear_list",
    "tables_of",
]

MAX_PFNS = 1 << 30
"""Entries that a list has at most: 4 TiB of memory, twice of what Xen supports for a PV guest (SUPPORT.md)."""

_BATCH = 2048
"""Pages of a list that are read in one go, 8 MiB."""

_HYPERVISOR: dict[WordBits, tuple[int, int]] = {
    64: (0xFFFF_8000_0000_0000, 0xFFFF_8800_0000_0000),
    32: (0xF580_0000, 1 << 32),
}
"""Virtual addresses that are Xen's own in every guest: no list of the guest lies there."""


def entries_per_page(word_bits: WordBits) -> int:
    """Give how many entries of a list a page holds."""
    return PAGE_SIZE * 8 // word_bits


def tables_of(word_bits: WordBits) -> Paging:
    """Give the format of a PV guest's page tables; 32-bit guests have PAE, and nothing else since Xen 3.4."""
    return LEVEL_4 if word_bits == 64 else PAE


def read_frame_lists(memory: PhysicalMemory, top_mfn: int, max_pfn: int, word_bits: WordBits) -> P2M:
    """Read a guest's array through its three levels of frame lists.

    Args:
        memory: machine memory: addresses are mfns times 4096. A whole host's, or the pages of the guest alone.
        top_mfn: frame of the list of lists, ``pfn_to_mfn_frame_list_list``.
        max_pfn: entries of the array.
        word_bits: width of the guest.

    Raises:
        MapError: there is no such list: a page of it is not in memory, levels share pages, or the size is absurd.
    """
    _, leaves = frame_list_leaves(memory, top_mfn, max_pfn, word_bits)
    return read_leaves(memory, leaves, max_pfn, word_bits)


def frame_list_leaves(memory: PhysicalMemory, top_mfn: int, max_pfn: int, word_bits: WordBits) -> tuple[Int64s, Int64s]:
    """Find the frames of a guest's array through its frame lists.

    Returns:
        The frames of the lists themselves, and those of the array, -1 where a range of it has none.

    Raises:
        MapError: as ``read_frame_lists``.
    """
    per = entries_per_page(word_bits)
    check_size(max_pfn, min(MAX_PFNS, per**3))
    top = _top_list(top_mfn)
    middle = _follow(memory, top, -(-max_pfn // per**2), word_bits, "list of frame lists")
    leaves = _follow(memory, middle, -(-max_pfn // per), word_bits, "frame list")
    _refuse_shared(top, np.concatenate((middle, leaves)), "list of frame lists")
    _refuse_shared(middle, leaves, "frame list")
    return np.unique(np.concatenate((top, middle[middle >= 0]))), leaves


def frame_lists_reach(memory: PhysicalMemory, top_mfn: int, word_bits: WordBits) -> int:
    """Give how many entries frame lists lead to, up to their first empty slot, where nobody tells ``max_pfn``.

    Linux fills its lists up with pages that say "no memory", so this is a bound: far beyond the last page, often.

    Raises:
        MapError: there is no such list.
    """
    per = entries_per_page(word_bits)
    top = _top_list(top_mfn)
    middle = _leading(_follow(memory, top, per, word_bits, "list of frame lists"))
    if not len(middle):
        raise MapError(f"list of frame lists at machine frame {top_mfn:#x}: empty")
    last = _leading(_follow(memory, middle[-1:], per, word_bits, "frame list"))
    return min((len(middle) - 1) * per**2 + len(last) * per, MAX_PFNS)


def _top_list(mfn: int) -> Int64s:
    """Take the frame of the list of frame lists: a guest's word, or a note's, which may be any number."""
    if not 0 <= mfn < MAX_FRAME:
        raise MapError(f"list of frame lists: entry 0 is {mfn & (1 << 64) - 1:#x}, no machine frame")
    return np.array([mfn], np.int64)


def _leading(frames: Int64s) -> Int64s:
    """Keep what is before the first empty slot."""
    empty = np.flatnonzero(frames < 0)
    return frames[: empty[0]] if len(empty) else frames


def read_linear_list(memory: PhysicalMemory, cr3: int, vaddr: int, max_pfn: int, word_bits: WordBits) -> P2M:
    """Read a guest's array at its virtual address, walking page tables that hold mfns.

    Args:
        memory: machine memory.
        cr3: ``p2m_cr3``: the page tables as Xen folds their frame, or a vcpu's own cr3.
        vaddr: ``p2m_vaddr``: where the array begins.
        max_pfn: entries of the array.
        word_bits: width of the guest, whose page tables have four levels with 64 bits and three with 32.

    Raises:
        MapError: there is no such list: part of it is unmapped or not in memory, or place or size are absurd.
    """
    return read_leaves(memory, linear_leaves(memory, cr3, vaddr, max_pfn, word_bits), max_pfn, word_bits)


def linear_leaves(memory: PhysicalMemory, cr3: int, vaddr: int, max_pfn: int, word_bits: WordBits) -> Int64s:
    """Find the frames of a guest's array at its virtual address.

    Raises:
        MapError: as ``read_linear_list``.
    """
    check_size(max_pfn)
    first, pages = _place(vaddr, max_pfn, word_bits)
    walk = page_walk(memory, unfold_cr3(cr3, word_bits) * PAGE_SIZE, tables_of(word_bits))
    leaves = np.empty(pages, np.int64)
    for at in range(0, pages, _BATCH):
        address = first + np.arange(at, min(at + _BATCH, pages), dtype=np.int64) * PAGE_SIZE
        found = walk.physical(address)
        lacking = np.flatnonzero(found < 0)
        if len(lacking):
            trace = walk.trace(int(address[lacking[0]]))
            where = (vaddr & -PAGE_SIZE) + (at + int(lacking[0])) * PAGE_SIZE
            raise MapError(f"linear p2m list: page {where:#x} of {pages:,} from {vaddr:#x} on is {trace.fault}")
        leaves[at : at + len(found)] = found // PAGE_SIZE
    return leaves


def _place(vaddr: int, max_pfn: int, word_bits: WordBits) -> tuple[int, int]:
    """Give the signed address of a list's first page and the number of pages.

    Raises:
        MapError: a guest can have no list there.
    """
    length = max_pfn * word_bits // 8
    low, high = _HYPERVISOR[word_bits]
    canonical = vaddr + length <= 1 << word_bits and (word_bits == 32 or (vaddr + (1 << 47)) % (1 << 64) < 1 << 48)
    if vaddr % PAGE_SIZE or vaddr <= 0 or not canonical or not (vaddr + length <= low or vaddr >= high):
        raise MapError(
            f"linear p2m list: {max_pfn:,} entries at {vaddr:#x}, where no guest of {word_bits} bits has one"
        )
    return signed(vaddr), -(-max_pfn // entries_per_page(word_bits))


def check_size(max_pfn: int, most: int = MAX_PFNS) -> None:
    """Refuse a size that no list has.

    Raises:
        MapError: it is zero, or beyond ``most``.
    """
    if not 0 < max_pfn <= most:
        raise MapError(f"a p2m list of {max_pfn:,} entries: expected 1 to {most:,}")


def read_leaves(memory: PhysicalMemory, leaves: Int64s, max_pfn: int, word_bits: WordBits) -> P2M:
    """Read a guest's array from the frames that hold it.

    Args:
        memory: the space that the frames are of.
        leaves: frame of each page of the array, -1 where a range has none; as many as ``max_pfn`` takes.
        max_pfn: entries of the array.
        word_bits: width of the guest.

    Raises:
        MapError: a page is not in memory, or stands for several ranges although it names memory; or none names any.
    """
    width: Literal[4, 8] = 8 if word_bits == 64 else 4
    leaves = _without_blank(memory, leaves, word_bits)
    found = P2M.from_pieces(_pieces(memory, leaves, max_pfn, word_bits), width, max_pfn)
    if not found.runs.total:
        raise MapError(f"p2m list: {max_pfn:,} entries, and none of them names memory")
    return found


def _pieces(
    memory: PhysicalMemory, leaves: Int64s, max_pfn: int, word_bits: WordBits
) -> Iterator[tuple[int, NDArray[np.unsignedinteger]]]:
    """Read the array, some MiB at a time; ranges without a page are left out where they fill a piece."""
    per = entries_per_page(word_bits)
    for at in range(0, len(leaves), _BATCH):
        part = leaves[at : at + _BATCH]
        there = part >= 0
        if there.any():
            entries = np.zeros((len(part), per), f"<u{word_bits // 8}")  # zero is "no page", too
            entries[there] = _words(memory, part[there], word_bits, "p2m list")
            yield at * per, entries.reshape(-1)[: max_pfn - at * per]


def _words(memory: PhysicalMemory, frames: Int64s, word_bits: WordBits, what: str) -> NDArray[np.unsignedinteger]:
    """Read pages of words, shape (n, words a page).

    Raises:
        MapError: one has no content.
    """
    try:
        return memory.read_pages(frames).view(f"<u{word_bits // 8}")
    except PageUnavailableError as error:
        raise MapError(f"{what}: its page at machine frame {error.pfn:#x} is {error.state}") from None


def _follow(memory: PhysicalMemory, frames: Int64s, count: int, word_bits: WordBits, what: str) -> Int64s:
    """Read the first ``count`` words of pages of mfns: the frames of the next level, -1 for none."""
    per = entries_per_page(word_bits)
    out = np.full(len(frames) * per, -1, np.int64)
    for at in range(0, len(frames), _BATCH):
        part = frames[at : at + _BATCH]
        there = np.flatnonzero(part >= 0)
        words = _words(memory, part[there], word_bits, what).astype(np.int64)  # all ones become -1, or 32 bits of them
        words[(words == 0) | (words == (1 << word_bits) - 1)] = -1
        out.reshape(-1, per)[at + there] = words
    used = out[:count]
    _refuse_beyond(used, what)
    return used


def _refuse_beyond(frames: Int64s, what: str) -> None:
    """Refuse frames that no machine has; -1 is none."""
    wrong = np.flatnonzero((frames < -1) | (frames >= MAX_FRAME))
    if len(wrong):
        raise MapError(
            f"{what}: entry {int(wrong[0]):,} is {int(frames[wrong[0]]) & (1 << 64) - 1:#x}, no machine frame"
        )


def _refuse_shared(upper: Int64s, lower: Int64s, what: str) -> None:
    """Refuse a page of one level that is one of a lower level too."""
    both = np.intersect1d(upper[upper >= 0], lower[lower >= 0])
    if len(both):
        raise MapError(f"{what}: machine frame {int(both[0]):#x} is on two of its levels: circular")


def _without_blank(memory: PhysicalMemory, leaves: Int64s, word_bits: WordBits) -> Int64s:
    """Drop pages that stand for several ranges and say nothing of them; refuse those that hold memory.

    No two ranges of pfns share their memory. Linux fills its lists up to 512 GiB with a page that is all ones, so
    dropping it bounds what is read by what there is.
    """
    frame, count = np.unique(leaves[leaves >= 0], return_counts=True)
    repeated = frame[count > 1]
    blank = np.zeros(len(repeated), bool)
    for at in range(0, len(repeated), _BATCH):
        words = _words(memory, repeated[at : at + _BATCH], word_bits, "p2m list")
        # The two highest bits mark what is no memory of the guest; all ones, which is nothing, has them too.
        plain = ((words >> (word_bits - 2) == 0) & (words != 0)).any(axis=1)
        if plain.any():
            torn = int(repeated[at + int(np.flatnonzero(plain)[0])])
            raise MapError(
                f"p2m list: the page at machine frame {torn:#x} stands for several ranges of pfns and names memory: "
                "torn or circular"
            )
        blank[at : at + len(words)] = ((words == 0) | (words == (1 << word_bits) - 1)).all(axis=1)
    return np.where(np.isin(leaves, repeated[blank]), -1, leaves)
