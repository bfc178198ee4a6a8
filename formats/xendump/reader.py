"""Reads old Xen dumps: header and contexts at once, the index when a page is first asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from dumpxlate.arch.xen_vcpu import VGCF_HVM_GUEST, context_layout
from dumpxlate.arrays import distinct, slices
from dumpxlate.dump import Dump, Space
from dumpxlate.errors import CorruptDumpError, TruncatedDumpError, UnsupportedFeatureError
from dumpxlate.extents import ExtentsBuilder
from dumpxlate.formats.xendump import layout
from dumpxlate.formats.xendump.layout import PAGE_SIZE, XcCoreHeader
from dumpxlate.pageset import PageRuns
from dumpxlate.stores import DeferredStore, IndexedStore
from dumpxlate.structs import parse
from dumpxlate.xen import context_width, xen_cpus, xen_machine

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dumpxlate.arrays import Int64s
    from dumpxlate.io.source import Source

__all__ = ["open_xendump"]

_CHUNK = 1 << 20


@dataclass(frozen=True)
class _File:
    """The header, checked against the file, and what follows from it."""

    source: Source
    header: XcCoreHeader
    entry_size: Literal[4, 8]

    @cached_property
    def whole_pages(self) -> int:
        """Pages that are in the file to their last byte."""
        room = (self.source.size - self.header.xch_pages_offset) // PAGE_SIZE
        return max(0, min(self.header.xch_nr_pages, room))

    def chunks(self) -> Iterator[tuple[int, Int64s]]:
        """Read the index piece by piece: the first row's number, and a frame for each, -1 where none is."""
        for rows in slices(self.header.xch_nr_pages):
            count = rows.stop - rows.start
            at = self.header.xch_index_offset + rows.start * self.entry_size
            entries = np.frombuffer(self.source.view(at, count * self.entry_size), f"<u{self.entry_size}")
            frames = entries.astype(np.int64)
            # 32-bit tools wrote ~0 with 32 bits, whatever the width of the entry.
            frames[frames == 0xFFFFFFFF] = -1
            yield rows.start, frames


def open_xendump(source: Source) -> Dump:
    """Open an old Xen dump.

    Raises:
        UnsupportedFeatureError: a big-endian file.
        CorruptDumpError: the header contradicts itself or the file.
    """
    header = _header(source)
    file = _File(source, header, _entry_size(source, header))
    contexts, remarks = _contexts(source, header)
    width = context_width(contexts[0]) if contexts else 64
    cpus = xen_cpus(contexts, width)
    hvm = _is_hvm(header, contexts, remarks)
    by_frame = DeferredStore(partial(_store_by_mfn, file), PAGE_SIZE, header.xch_nr_pages)
    by_position = DeferredStore(partial(_store_by_position, file), PAGE_SIZE, header.xch_nr_pages)
    lost = header.xch_nr_pages - file.whole_pages
    damage: tuple[str, ...] = ()
    if lost:
        damage = (f"truncated: {lost:,} of {header.xch_nr_pages:,} pages lie beyond the end of the file",)
    elif source.size > header.xch_pages_offset + header.xch_nr_pages * PAGE_SIZE:
        remarks.append("bytes behind the last page are ignored: tools before 2009 did not truncate an older file")
    return Dump(
        format="xendump",
        variant=f"{'fully virtualised' if hvm else 'paravirtual'} guest, {8 * file.entry_size}-bit index",
        machine=xen_machine(width, paravirtual=not hvm),
        pages=by_position if hvm else by_frame,
        space=Space.PHYSICAL if hvm else Space.MACHINE,
        sources=(source,),
        cpus=cpus,
        frames=by_frame,
        attributes={
            "xch_magic": f"{header.xch_magic:#x}",
            "xch_nr_vcpus": header.xch_nr_vcpus,
            "xch_nr_pages": header.xch_nr_pages,
            "xch_ctxt_offset": header.xch_ctxt_offset,
            "xch_index_offset": header.xch_index_offset,
            "xch_pages_offset": header.xch_pages_offset,
            "index_entry_bytes": file.entry_size,
        },
        remarks=tuple(remarks),
        damage=damage,
    )


def _header(source: Source) -> XcCoreHeader:
    body = source.view(0, min(source.size, 24))
    if bytes(body[:3]) == b"\xf0\x0f\xeb":
        raise UnsupportedFeatureError(
            "a big-endian xendump: no x86 tool wrote one, and none is known", format="xendump", feature="big-endian"
        )
    header = parse(XcCoreHeader, body, 0, "<", what="xc_core_header")
    for field, low, high in (
        ("xch_nr_pages", 1, layout.MAX_PAGES),
        ("xch_nr_vcpus", 0, layout.MAX_VCPUS),
        ("xch_ctxt_offset", 24, 0xFFFFFFFF),
        ("xch_index_offset", header.xch_ctxt_offset, 0xFFFFFFFF),
        ("xch_pages_offset", header.xch_index_offset, 0xFFFFFFFF),
    ):
        value = getattr(header, field)
        if not low <= value <= high:
            raise CorruptDumpError(
                f"{field} is {value:#x}, expected {low:#x} to {high:#x}", offset=0, what="xc_core_header"
            )
    if header.xch_pages_offset % PAGE_SIZE:
        raise CorruptDumpError(
            f"xch_pages_offset is {header.xch_pages_offset:#x}, expected a multiple of {PAGE_SIZE}",
            offset=0,
            what="xc_core_header",
        )
    return header


def _entry_size(source: Source, header: XcCoreHeader) -> Literal[4, 8]:
    """Derive the width of an index entry from the room between index and pages.

    Raises:
        CorruptDumpError: there is no room for the index.
        TruncatedDumpError: the file ends inside it.
    """
    room = header.xch_pages_offset - header.xch_index_offset
    count = header.xch_nr_pages
    wide = count * 8 <= room < count * 8 + PAGE_SIZE
    narrow = count * 4 <= room < count * 4 + PAGE_SIZE
    if room < count * 4:
        raise CorruptDumpError(
            f"room for {room} bytes, but {count} entries take at least {count * 4}",
            offset=header.xch_index_offset,
            what="page index",
        )
    size: Literal[4, 8] = 4 if narrow and not wide else 8
    if (wide and narrow) or (room >= count * 8 and not wide):
        size = _entry_size_by_content(source, header)
    if header.xch_index_offset + count * size > source.size:
        raise TruncatedDumpError(
            "page index",
            offset=header.xch_index_offset,
            wanted=count * size,
            available=source.size - header.xch_index_offset,
        )
    return size


def _entry_size_by_content(source: Source, header: XcCoreHeader) -> Literal[4, 8]:
    """Tell 8-byte entries by their upper halves: zero, or all ones together with the lower half."""
    start = header.xch_index_offset
    length = min(header.xch_nr_pages * 8, max(source.size - start, 0)) // 8 * 8
    for at in range(0, length, 8 * _CHUNK):
        words = np.frombuffer(source.view(start + at, min(8 * _CHUNK, length - at)), "<u4").reshape(-1, 2)
        if not ((words[:, 1] == 0) | (words == 0xFFFFFFFF).all(axis=1)).all():
            return 4
    return 8


def _contexts(source: Source, header: XcCoreHeader) -> tuple[list[bytes], list[str]]:
    """Cut the vcpu contexts out; where their size makes no sense there are none."""
    count, length = header.xch_nr_vcpus, header.xch_index_offset - header.xch_ctxt_offset
    if not count:
        return [], ["no vcpu contexts: Xen 3.0.0 wrote none for a guest with one vcpu"]
    size, rest = divmod(length, count)
    if rest or size not in layout.CONTEXT_SIZES:
        return [], [f"vcpu contexts of {length} bytes for {count} vcpus are neither 2800 nor 5168 each: left out"]
    body = source.view(header.xch_ctxt_offset, length)
    return [bytes(body[at : at + size]) for at in range(0, length, size)], []


def _is_hvm(header: XcCoreHeader, contexts: list[bytes], remarks: list[str]) -> bool:
    hvm = header.xch_magic == layout.XC_CORE_MAGIC_HVM
    if not hvm and contexts:
        # Tools up to Xen 3.0.3 knew one magic only.
        flags = context_layout(context_width(contexts[0])).unpack(contexts[0], "<")["flags"]
        hvm = bool(flags & VGCF_HVM_GUEST)
    if hvm:
        remarks.append(
            "a fully virtualised guest: page i of the file is taken for pfn i, which holds unless it was ballooned; "
            "a map given with --p2m is followed instead"
        )
    return hvm


def _store_by_mfn(file: _File) -> IndexedStore:
    """Key pages by the mfn that the index gives; the first of several copies counts, as in crash."""
    return _indexed(file, file.chunks())


def _store_by_position(file: _File) -> IndexedStore:
    """Key pages by their place: the order of guest-physical memory, without the hole below 4 GiB."""
    return _indexed(file, ((first, _by_place(first, entries)) for first, entries in file.chunks()))


def _by_place(first: int, entries: Int64s) -> Int64s:
    row = np.arange(first, first + len(entries))
    place = np.where(row < layout.HVM_MMIO_START, row, row + layout.HVM_MMIO_PAGES)
    return np.where(entries == -1, np.int64(-1), place)


def _indexed(file: _File, chunks: Iterable[tuple[int, Int64s]]) -> IndexedStore:
    """Index rows by frame; those whose page lies beyond the end of the file are left out."""
    stored, lost = ExtentsBuilder(PAGE_SIZE), [np.empty(0, np.int64)]
    for first, frame in chunks:
        whole = min(max(file.whole_pages - first, 0), len(frame))
        at = file.header.xch_pages_offset + first * PAGE_SIZE
        stored.add(frame[:whole], np.arange(at, at + whole * PAGE_SIZE, PAGE_SIZE))
        beyond = frame[whole:]
        lost.append(beyond[beyond >= 0])
    index, repeated = stored.index()
    missing = PageRuns.from_pfns(distinct(np.concatenate(lost))[0])
    return IndexedStore(file.source, PAGE_SIZE, index, lost=missing, repeated=repeated)
