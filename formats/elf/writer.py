"""Writes ELF vmcores that crash, drgn, gdb, makedumpfile, libkdumpfile and Volatility open."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dumpxlate.elf.container import PT_NOTE, Segments, program_headers
from dumpxlate.elf.notes import note_parts
from dumpxlate.emit import TrimmedSink, append_pages
from dumpxlate.errors import UnsupportedFeatureError
from dumpxlate.format import require_physical
from dumpxlate.formats.elf.loads import mapped_loads, plain_loads
from dumpxlate.guest_notes import notes_for
from dumpxlate.pages import CodecId
from dumpxlate.pageset import PageRuns, difference, intersection
from dumpxlate.version import PRODUCER
from dumpxlate.window import Window

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dumpxlate.dump import Dump, Machine
    from dumpxlate.format import Loss, WriteOptions
    from dumpxlate.io.sink import Sink
    from dumpxlate.pages import PageBatch
    from dumpxlate.pageset import PageSet
    from dumpxlate.paging.mappings import Mappings

__all__ = ["ElfWriter"]

_ALIGN = 4096


class ElfWriter:
    """Plans and writes one ELF vmcore.

    ::

        header | program headers | [section header 0] | notes | padding to a page | pages, ascending

    Every PT_LOAD has p_filesz == p_memsz, or p_filesz 0 for RAM that the source left out: Volatility drops segments
    in between. Zero pages are holes of the file, not missing memory.

    ``begin`` and ``length`` cut memory to the byte, as QEMU's dump-guest-memory does. With ``paging`` there is a
    segment for each mapping of the guest's page tables, and several may show the same bytes.

    Raises:
        MapError: the dump is keyed by machine frames, or a PV guest's page tables need its map.
        UnsupportedFeatureError: no RAM lies in the window asked for, or no page tables are known.
    """

    accepts = frozenset({CodecId.RAW})
    seeks = False
    codec = None
    losses: tuple[Loss, ...] = ()
    remarks: tuple[str, ...] = ()

    def __init__(self, dump: Dump, options: WriteOptions) -> None:
        require_physical(dump, "elf")
        self._page_size = dump.pages.page_size
        self._window = Window.of(dump.pages, options)
        self.pages: PageSet = self._window.cut(dump.pages.stored)
        missing: PageSet = difference(self._window.cut(dump.pages.ram), self.pages)
        mappings = _mappings(dump) if options.paging else None
        if options.paging:
            self.remarks = _remarks(mappings)
        if mappings is not None and options.paging == "mapped":
            mapped = _pages_of(mappings, self._page_size)
            self.pages, missing = intersection(self.pages, mapped), intersection(missing, mapped)
            if not self.pages.count + missing.count:
                raise UnsupportedFeatureError("no page table maps RAM in the range asked for", feature="paging")
        held, gone = (PageRuns(*self._window.clip(pages)) for pages in (self.pages, missing))
        self._bytes = held.count
        self._sink: Sink
        if mappings is None:
            self._plan(dump, plain_loads(held, gone))
        else:
            self._plan(dump, mapped_loads(held, gone, mappings, unmapped=options.paging == "all"))

    def _plan(self, dump: Dump, loads: Segments) -> None:
        machine = dump.machine
        notes = note_parts(notes_for(dump, PRODUCER), machine.endian)
        length = sum(map(len, notes))
        bits = _class(machine.word_bits, loads, self._bytes, length)
        note = _note_segment(length)
        size = len(_headers(bits, machine, note, loads))
        note.offset[:] = size
        start = -(-(size + length) // _ALIGN) * _ALIGN
        loads.offset[loads.filesz > 0] += start
        headers = _headers(bits, machine, note, loads)
        self._head = [headers, *notes, bytes(start - size - length)]

    def begin(self, sink: Sink) -> None:
        """Write headers and notes."""
        sink.append(self._head)
        self._sink = self._trimmed(sink)

    def _trimmed(self, sink: Sink) -> Sink | TrimmedSink:
        """Let what lies outside the window fall away."""
        return TrimmedSink(sink, *self._cut) if self._cut else sink

    @cached_property
    def _cut(self) -> tuple[int, int] | None:
        """Bytes of the pages to drop first, and to let through then; None where all of them are wanted."""
        if not self.pages.count:
            return None
        first, last = int(self.pages.select(0, 1)[0]) * self._page_size, self.pages.stop * self._page_size
        skip = max(self._window.begin - first, 0)
        return (skip, self._bytes) if skip or min(self._window.end, last) < last else None

    def write(self, batch: PageBatch) -> None:
        """Write the next pages."""
        append_pages(self._sink, batch, self._page_size)

    def state(self) -> Mapping[str, Any]:
        """Nothing has to be known again."""
        return {}

    def restore(self, sink: Sink, done: int, state: Mapping[str, Any]) -> None:
        """Go on behind ``done`` pages."""
        self._sink = self._trimmed(sink)
        if isinstance(self._sink, TrimmedSink):
            self._sink.pass_over(done * self._page_size)

    def finish(self) -> None:
        """Nothing is left to write: every offset was known from the start."""


def _note_segment(length: int) -> Segments:
    zero = np.zeros(1, np.int64)
    made = Segments.make(zero, np.array([length]), filesz=np.array([length]), offset=zero.copy())
    return replace(made, type=np.array([PT_NOTE]), flags=zero, memsz=zero)


def _mappings(dump: Dump) -> Mappings | None:
    """Follow the guest's page tables; None where no processor has paging. Most conversions need nothing of it."""
    from dumpxlate.paging.guest import guest_mappings

    return guest_mappings(dump)


def _remarks(mappings: Mappings | None) -> tuple[str, ...]:
    """Say what the page tables were not believed."""
    if mappings is None:
        return ("no processor has paging: virtual addresses are physical ones",)
    met = ", ".join(f"{count:,} {fault}" for fault, count in mappings.faults.items())
    return (f"of {mappings.tables:,} page tables: {met}",) if met else ()


def _pages_of(mappings: Mappings, page_size: int) -> PageRuns:
    """Give the pages that are mapped, at least in part."""
    first = mappings.physical // page_size
    return PageRuns.from_runs(first, -(-(mappings.physical + mappings.length) // page_size) - first)


def _class(word_bits: Literal[32, 64], loads: Segments, memory: int, notes: int) -> Literal[32, 64]:
    """Choose the class as QEMU does: 64-bit headers for a 32-bit machine too when memory or file pass 4 GiB."""
    end = int((loads.paddr + loads.memsz).max(initial=0))
    file_end = memory + len(loads) * 64 + notes + 2 * _ALIGN
    return 64 if word_bits == 64 or max(end, file_end) > 0xFFFFFFFF else 32


def _headers(bits: Literal[32, 64], machine: Machine, note: Segments, loads: Segments) -> bytes:
    joined = Segments(*(np.concatenate((getattr(note, name), getattr(loads, name))) for name in Segments.__slots__))
    return program_headers(bits=bits, endian=machine.endian, machine=machine.arch.elf_machine, segments=joined)
