"""LiME version 1, and the record that AVML shares with it."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from .guest import Guest, pages_of
from .packing import cut, fields, pack, runs

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["LIME", "build", "ranges", "record_header"]

HEADER = [*fields("magic version", "I"), *fields("s_addr e_addr reserved", "Q")]
LIME = 0x4C694D45

Range = tuple[int, bytes]


def record_header(magic: int, version: int, start: int, size: int, lies: Mapping[str, int] | None = None) -> bytes:
    """The 32 bytes before each range; e_addr is the last address, inclusive."""
    values = {"magic": magic, "version": version, "s_addr": start, "e_addr": start + size - 1}
    return pack("<", HEADER, values, lies)


def ranges(guest: Guest | Mapping[int, bytes], *, most: int | None = None, page_size: int = 4096) -> list[Range]:
    """(first address, bytes) of each run of stored pages, cut at ``most`` bytes."""
    model = guest if isinstance(guest, Guest) else Guest(pages=pages_of(guest), page_size=page_size)
    found = []
    for first, count in runs(model.pages):
        data = model.run(first, count)
        step = most or len(data)
        found += [(first * model.page_size + at, data[at : at + step]) for at in range(0, len(data), step)]
    return found


def build(
    source: Guest | Mapping[int, bytes] | Iterable[Range],
    *,
    most: int | None = None,
    skip_zero: bool = False,
    headers: Mapping[int, Mapping[str, int]] | None = None,
    cut_data: Mapping[int, int] | None = None,
    compressed: bool = False,
    truncate: int | None = None,
) -> bytes:
    """A LiME file.

    Args:
        source: a guest, pages, or (first address, bytes) ranges, which need not be page aligned or ascending.
        most: cut the guest's ranges at so many bytes (AVML without compression: 16 MiB).
        skip_zero: leave ranges of zeros out, as AVML does.
        headers: number of a record -> fields of its header that shall lie (magic, version, s_addr, e_addr, reserved).
        cut_data: number of a record -> bytes of it that were really written (LiME after a failed read).
        compressed: the whole output as one zlib stream.
        truncate: keep that many bytes.
    """
    found = ranges(source, most=most) if isinstance(source, Guest | Mapping) else list(source)
    out = []
    for number, (start, data) in enumerate(item for item in found if any(item[1]) or not skip_zero):
        out.append(record_header(LIME, 1, start, len(data), (headers or {}).get(number)))
        out.append(data[: (cut_data or {}).get(number, len(data))])
    image = b"".join(out)
    return cut(zlib.compress(image) if compressed else image, truncate)
