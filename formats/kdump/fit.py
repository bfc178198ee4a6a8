"""Whether bitmap and descriptors speak of the same number of pages: a lost bit moves every page behind it.

The bytes of pages begin right behind the descriptors, first of all the block that zero pages share. So the first
descriptor, which is that of the first page or of a zero page, tells where the table ends.

Sources: makedumpfile.c (write_kdump_pages_cyclic), QEMU's dump.c (write_dump_pages).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.formats.kdump.bitmaps import ram_bitmap, stored_bitmap
from dumpxlate.formats.kdump.layout import INVALID_CODEC, PageDesc, codecs_of_flags
from dumpxlate.formats.kdump.table import ROW
from dumpxlate.structs import parse

if TYPE_CHECKING:
    from dumpxlate.bitmap import PageBitmap
    from dumpxlate.formats.kdump.header import Part

__all__ = ["fitting_bitmap"]


def fitting_bitmap(part: Part) -> tuple[PageBitmap, str]:
    """Give the bitmap of the pages in a file, and a complaint if its descriptors are more or fewer.

    Where the bitmap of RAM has as many bits as there are descriptors, nothing was left out of the dump, and it is
    taken instead.
    """
    bitmap = stored_bitmap(part)
    if part.is_split:  # the table of a part has room for the pages of all
        return bitmap, ""
    held, rows = bitmap.count, _rows(part)
    if rows in (None, held) or (rows > held and _row(part, held) is None):
        return bitmap, ""
    told = f"the bitmap of pages at {part.stored_bitmap_at:#x} has {held:,} bits, but there are {rows:,} descriptors"
    ram = ram_bitmap(part)
    if ram.count == rows:
        return ram, f"{told}: the bitmap of RAM, which has as many, is taken instead"
    return bitmap, f"{told}: nothing tells where the defect is, and pages behind it are given wrong addresses"


def _rows(part: Part) -> int | None:
    """Count the descriptors by where the data begin; None where they begin somewhere else than right behind."""
    first = _row(part, 0)
    if first is None:
        return None
    for data in (first.offset - part.block_size, first.offset):
        count, rest = divmod(data - part.table_at, ROW)
        if count > 0 and not rest and (data == first.offset or _is_zero(part, data)):
            return count
    return None


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
