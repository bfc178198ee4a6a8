"""Raw images: file offset is physical address, or (LiME's raw mode) RAM without its holes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .guest import Guest, pages_of
from .packing import place, write_sparse

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["build", "concatenated", "sparse"]


def build(
    guest: Guest | Mapping[int, bytes], *, base: int = 0, size: int | None = None, fill: int = 0, page_size: int = 4096
) -> bytes:
    """The image from the pfn ``base`` on; whatever is not stored is ``fill``; ``size`` cuts or lengthens it."""
    step = guest.page_size if isinstance(guest, Guest) else page_size
    pages = {pfn - base: data for pfn, data in pages_of(guest).items() if pfn >= base}
    blank = [] if fill == 0 else [(0, bytes([fill]) * (max(pages, default=-1) + 1) * step)]
    image = place([*blank, *((pfn * step, data) for pfn, data in pages.items())])
    return image if size is None else image[:size].ljust(size, bytes([fill]))


def concatenated(guest: Guest) -> bytes:
    """RAM ranges one behind the other, holes left out: where a page belongs cannot be told from the file."""
    return b"".join(guest.pages.get(pfn, bytes(guest.page_size)) for pfn in guest.ram)


def sparse(
    path: Path, guest: Guest | Mapping[int, bytes], *, nr_pages: int | None = None, page_size: int = 4096
) -> Path:
    """The image as a sparse file: holes take no disk space."""
    step = guest.page_size if isinstance(guest, Guest) else page_size
    pages = pages_of(guest)
    end = max(pages, default=-1) + 1 if nr_pages is None else nr_pages
    return write_sparse(path, end * step, ((pfn * step, data) for pfn, data in pages.items()))
