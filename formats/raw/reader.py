"""Reads raw images: no page is looked at, only where the files have holes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.bare import ASSUMED, assumed_machine
from dumpxlate.dump import Dump
from dumpxlate.errors import CorruptDumpError, UnsupportedFeatureError
from dumpxlate.formats.raw.map_file import find_map
from dumpxlate.io.joined import ConcatenatedSource
from dumpxlate.pageset import EMPTY, PageRuns, difference, intersection
from dumpxlate.segments import index_segments
from dumpxlate.stores import IndexedStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dumpxlate.arrays import Int64s
    from dumpxlate.format import OpenOptions
    from dumpxlate.formats.raw.map_file import RawMap
    from dumpxlate.io.source import Source
    from dumpxlate.pageset import PageSet
    from dumpxlate.segments import SegmentIndex

__all__ = ["open_raw"]

_MAX_ADDRESS = 1 << 62


def open_raw(sources: Sequence[Source], options: OpenOptions) -> Dump:
    """Open a raw image, or the pieces of one with their addresses.

    Raises:
        UnsupportedFeatureError: several files without addresses.
    """
    addresses = _addresses(sources, options)
    remarks: list[str] = []
    damage: list[str] = []
    beside = None if options.addresses else _map_beside(sources[0], damage)
    if beside:
        addresses = (beside.base,)
        remarks.append("which pages are RAM, and of what machine, is read from the map beside the file")
    else:
        remarks += [ASSUMED, "offset in the file is taken for physical address, and everything for RAM"]
    machine = beside.machine if beside else assumed_machine()
    ram, missing = (beside.ram, beside.missing) if beside else (_everything(sources, addresses), EMPTY)
    held = difference(ram, missing)
    index = _index(sources, addresses, machine.page_size, held)
    if index.repeated:
        remarks.append(f"pieces overlap: {index.repeated:,} bytes are there more than once; the first counts")
    if index.pieces:
        remarks.append(f"{index.pieces:,} pages are there only in part; the rest of them is zero")
    return Dump(
        format="raw",
        variant=f"{len(sources)} pieces" if len(sources) > 1 else "with its map" if beside else "without a map",
        machine=machine,
        pages=IndexedStore(
            index.source,
            machine.page_size,
            index.extents,
            zero=difference(held, index.extents.pages()),
            excluded=PageRuns(*missing.runs()),
        ),
        sources=tuple(sources),
        attributes={"address": ", ".join(map(hex, addresses))},
        remarks=tuple(remarks),
        damage=tuple(damage),
    )


def _addresses(sources: Sequence[Source], options: OpenOptions) -> tuple[int, ...]:
    """Give the physical address of each file."""
    addresses = options.addresses or ((0,) if len(sources) == 1 else ())
    if len(addresses) != len(sources):
        raise UnsupportedFeatureError(
            f"{len(sources)} raw files, {len(addresses)} addresses: give each its own, as in low.bin@0 "
            "high.bin@0x100000000",
            format="raw",
            feature="sets",
        )
    for address, source in zip(addresses, sources, strict=True):
        if not 0 <= address <= _MAX_ADDRESS - source.size:
            raise UnsupportedFeatureError(
                f"address {address:#x} is beyond all memory", path=source.name, format="raw", feature="address"
            )
    return addresses


def _map_beside(source: Source, damage: list[str]) -> RawMap | None:
    """Read the map beside a file; one that does not fit is damage, since without it other pages would be RAM."""
    try:
        return find_map(source.name, source.size)
    except CorruptDumpError as error:
        damage.append(f"{error}; without it all of the image is taken for RAM")
        return None


def _everything(sources: Sequence[Source], addresses: Sequence[int]) -> PageRuns:
    """Give the pages that files at some addresses touch."""
    size = assumed_machine().page_size
    first = np.array(addresses, np.int64)
    last = first + np.array([source.size for source in sources], np.int64)
    return PageRuns.from_runs(first // size, -(-last // size) - first // size)


def _index(sources: Sequence[Source], addresses: Sequence[int], page_size: int, held: PageSet) -> SegmentIndex:
    """Index those of the pages in ``held`` that are no holes of the files."""
    ends = np.cumsum([source.size for source in sources]).tolist()
    parts = []
    for source, address, end in zip(sources, addresses, ends, strict=True):
        low, high = _data(source, address, page_size, held)
        parts.append(np.array((low, high - low, low + (end - source.size - address)), np.int64))
    joined = sources[0] if len(sources) == 1 else ConcatenatedSource(sources)
    start, length, offset = np.concatenate(parts, axis=1)
    return index_segments(joined, start, length, offset, page_size)


def _data(source: Source, address: int, page_size: int, held: PageSet) -> tuple[Int64s, Int64s]:
    """Give the addresses (from, up to) of a file's data: whole pages, as far as the file has them."""
    start, length = source.data_runs()
    low = (start + address) // page_size
    high = -(-(start + length + address) // page_size)
    first, count = intersection(PageRuns.from_runs(low, high - low), held).runs()
    return np.maximum(first * page_size, address), np.minimum((first + count) * page_size, address + source.size)
