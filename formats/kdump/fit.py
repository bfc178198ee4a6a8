"""Whether bitmap and descriptors speak of the same number of pages: a lost bit moves every page behind it.

The bytes of pages begin right behind the descriptors (in a part of a split dump: behind room for those of all parts),
first of all the block that zero pages share. So the first descriptor, which is that of the first page or of a zero
page, tells where the table ends.

Where the numbers differ, another bitmap that fits is taken: that of another part, that of RAM if nothing was left out,
or the pages in both. Otherwise only what is proven counts: the kernel's own name stands at an address that VMCOREINFO
tells. If the page is where the bitmap says, the bits before it are right; if it is where it would be counted from the
end, those behind it are. A page that nothing proves is left out.

Sources: makedumpfile.c (write_kdump_pages_cyclic), QEMU's dump.c (write_dump_pages).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from dumpxlate.errors import CorruptDumpError
from dumpxlate.formats.kdump.bitmaps import bitmaps_differ, ram_bitmap, stored_bitmap
from dumpxlate.formats.kdump.layout import INVALID_CODEC, PageDesc, codecs_of_flags
from dumpxlate.formats.kdump.table import ROW
from dumpxlate.structs import parse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dumpxlate.bitmap import PageBitmap
    from dumpxlate.formats.kdump.header import Part

__all__ = ["Fit", "Known", "Stretch", "fit"]

Stretch = tuple[int, int, int]
"""Descriptors that follow each other: rank of the first page, number, and rows that the table has more before them."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Which bitmap counts, and how descriptors belong to it.

    Attributes:
        part: the file whose bitmaps count.
        bitmap: pages that have a descriptor.
        complaint: what is wrong; empty if nothing is.
        certain: descriptors that belong to their pages for sure; None for all.
    """

    part: Part
    bitmap: PageBitmap
    complaint: str = ""
    certain: tuple[Stretch, ...] | None = None


class Known(Protocol):
    """A page of known content."""

    @property
    def pfn(self) -> int:
        """Its number."""
        ...

    def proves(self, bitmap: PageBitmap, stretch: Stretch) -> bool:
        """Tell whether it has that content, if descriptors belong to pages so."""
        ...


def fit(parts: Sequence[Part], known: Known | None = None) -> Fit:
    """Find the bitmap that fits the descriptors of a file, or of the parts of a split dump.

    Args:
        parts: the files, in order.
        known: a page of known content, if there is one.

    Raises:
        CorruptDumpError: bitmaps of parts differ, and nothing tells which one is right.
    """
    other = next((part for part in parts[1:] if bitmaps_differ(parts[0], part)), None)
    if other:
        return _of_set(parts, other)
    part, bitmap = parts[0], stored_bitmap(parts[0])
    odd = next((each for each in parts if not _fits(each, bitmap)), None)
    held, rows = bitmap.count, (_counts(odd) if odd else [0])[0]
    if odd is None or (not part.is_split and rows > held and _row(part, held) is None):
        return Fit(part, bitmap)
    told = f"the bitmap of pages at {part.stored_bitmap_at:#x} has {held:,} bits, but there are {rows:,} descriptors"
    ram = ram_bitmap(part)
    if ram.count == rows:
        return Fit(part, ram, f"{told}: the bitmap of RAM, which has as many, is taken instead")
    both = bitmap.common(ram)
    if both.count == rows:
        return Fit(part, both, f"{told}: the pages in RAM, which are as many, are taken instead")
    if part.is_split:
        return Fit(part, bitmap, f"{told}: nothing tells where the defect is, and no page has an address", ())
    return _proven(part, bitmap, rows - held, told, known)


def _proven(part: Part, bitmap: PageBitmap, more: int, told: str, known: Known | None) -> Fit:
    """Keep what a page of known content proves: the pages before it, or those behind it."""
    if known and bitmap.contains(np.array([known.pfn]))[0]:
        rank, held = int(bitmap.rank(np.array([known.pfn]))[0]), bitmap.count
        found = f"{told}; the kernel's name at {known.pfn * part.block_size:#x} proves that the defect is"
        if known.proves(bitmap, (0, rank + 1, 0)):
            return Fit(part, bitmap, f"{found} behind it: pages from there on are left out", ((0, rank + 1, 0),))
        behind = (rank, held - rank, more)
        if rank + more >= 0 and known.proves(bitmap, behind):
            return Fit(part, bitmap, f"{found} before it: pages up to there are left out", (behind,))
    return Fit(part, bitmap, f"{told}: nothing tells where the defect is, and no page has an address", ())


def _of_set(parts: Sequence[Part], odd: Part) -> Fit:
    """Take the bitmap that fits the descriptors where those of the parts differ."""
    fitting = [part for part in parts if _counts(part) and _fits(part, stored_bitmap(part))]
    if not fitting or any(bitmaps_differ(fitting[0], part) for part in fitting[1:]):
        raise CorruptDumpError(
            f"a part of another dump than {parts[0].source.name}: bitmap differs",
            path=odd.source.name,
            offset=odd.stored_bitmap_at,
        )
    wrong = ", ".join(part.source.name for part in parts if bitmaps_differ(fitting[0], part))
    told = f"the bitmap of pages in {wrong} differs from that in {fitting[0].source.name}"
    return Fit(
        fitting[0], stored_bitmap(fitting[0]), f"{told}, which has as many bits as there are descriptors: it counts"
    )


def _fits(part: Part, bitmap: PageBitmap) -> bool:
    """Tell whether a bitmap has as many bits as a file has descriptors, or room for them; so too if nothing tells.

    makedumpfile leaves room in each part for the descriptors of all, this program for those that it has.
    """
    counts = _counts(part)
    low, high = bitmap.rank(np.array(part.pfns, np.int64)).tolist()
    return not counts or bitmap.count in counts or (part.is_split and high - low in counts)


def _counts(part: Part) -> list[int]:
    """Count the descriptors by where the data begin; none where they begin somewhere else than right behind.

    Whether the first bytes are those of zero pages is seen by the block before; behind the descriptors of a part, room
    for those of others is zero too, so that there can be two answers.
    """
    first, found = _row(part, 0), list[int]()
    if first is None:
        return found
    shared = first.size == part.block_size and _is_zero(part, first.offset)
    for data in (first.offset,) if shared else (first.offset - part.block_size, first.offset):
        count, rest = divmod(data - part.table_at, ROW)
        if count > 0 and not rest and (data == first.offset or _is_zero(part, data)):
            found.append(count)
    return found if part.is_split else found[:1]


def _row(part: Part, number: int) -> PageDesc | None:
    """Read a descriptor; None where there is nothing that could be one."""
    at = part.table_at + number * ROW
    if at + ROW > part.source.size:
        return None
    row = parse(PageDesc, part.source.view(at, ROW), 0, part.endian)
    codec = int(codecs_of_flags(np.array([row.flags], np.int64))[0])
    fits = part.table_at < row.offset < part.source.size and 0 < row.size <= part.block_size
    return row if fits and codec != INVALID_CODEC else None


def _is_zero(part: Part, at: int) -> bool:
    return at >= 0 and not any(part.source.view(at, min(part.block_size, part.source.size - at)))
