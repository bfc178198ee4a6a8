"""Split dumps: which parts belong together, in which order, and what is missing between them."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from dumpxlate.errors import CorruptDumpError, UnsupportedFeatureError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dumpxlate.formats.kdump.header import Part

__all__ = ["gaps", "in_order"]

_AGREE = ("signature", "sysname", "nodename", "release", "version", "machine", "tv_sec", "tv_usec", "bitmap_blocks")


def in_order(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Sort the parts of a dump by their pfns; a single file stays as it is.

    Raises:
        UnsupportedFeatureError: several files, of which one is a whole dump.
        CorruptDumpError: they are of different dumps, or hold the same pages.
    """
    if len(parts) == 1:
        return tuple(parts)
    for part in parts:
        if not part.is_split:
            raise UnsupportedFeatureError(
                f"{len(parts)} files were given, but this one is a whole dump, not a part of a split one",
                path=part.source.name,
                format="kdump",
                feature="sets",
            )
    ordered = sorted(parts, key=lambda part: part.pfns)
    for part in ordered[1:]:
        _check_same_dump(ordered[0], part)
    _check_disjoint(ordered)
    return tuple(ordered)


def gaps(parts: Sequence[Part]) -> list[tuple[int, int]]:
    """Give the ranges of pfns (first, one past the last) that no part holds; the parts are in order."""
    found, at = [], 0
    for start, stop in (part.pfns for part in parts):
        if start > at:
            found.append((at, start))
        at = max(at, stop)
    return [*found, (at, parts[0].max_mapnr)] if at < parts[0].max_mapnr else found


def _check_same_dump(one: Part, other: Part) -> None:
    """Compare what makedumpfile copies into every header."""
    differ = [name for name in _AGREE if getattr(one.header, name) != getattr(other.header, name)]
    differ += [
        name for name in ("endian", "bits", "block_size", "max_mapnr") if getattr(one, name) != getattr(other, name)
    ]
    if differ:
        raise CorruptDumpError(
            f"a part of another dump than {one.source.name}: {differ[0]} differs", path=other.source.name, offset=0
        )


def _check_disjoint(ordered: Sequence[Part]) -> None:
    """Refuse parts that hold the same pages; those without any are in nobody's way."""
    held = [part for part in ordered if part.pfns[0] < part.pfns[1]]
    for before, part in pairwise(held):
        if part.pfns[0] < before.pfns[1]:
            raise CorruptDumpError(
                f"begins at pfn {part.pfns[0]:#x}, but {before.source.name} reaches to {before.pfns[1]:#x}",
                path=part.source.name,
            )
