"""Writes ELF vmcores that crash, drgn, gdb, makedumpfile, libkdumpfile and Volatility open."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from dumpxlate.elf.container import PT_NOTE, Segments, program_headers
from dumpxlate.elf.notes import pack_notes
from dumpxlate.emit import TrimmedSink, append_pages
from dumpxlate.format import require_physical
from dumpxlate.guest_notes import notes_for
from dumpxlate.pages import CodecId
from dumpxlate.pageset import difference
from dumpxlate.version import PRODUCER
from dumpxlate.window import Window

if TYPE_CHECKING:
    from dumpxlate.dump import Dump, Machine
    from dumpxlate.format import Loss, WriteOptions
    from dumpxlate.io.sink import Sink
    from dumpxlate.pages import PageBatch
    from dumpxlate.pageset import PageSet

__all__ = ["ElfWriter"]

_ALIGN = 4096


class ElfWriter:
    """Plans and writes one ELF vmcore.

    ::

        header | program headers | [section header 0] | notes | padding to a page | pages, ascending

    Every PT_LOAD has p_filesz == p_memsz, or p_filesz 0 for RAM that the source left out: Volatility drops segments
    in between. Zero pages are holes of the file, not missing memory.

    ``begin`` and ``length`` cut memory to the byte, as QEMU's dump-guest-memory does.

    Raises:
        MapError: the dump is keyed by machine frames.
        UnsupportedFeatureError: no RAM lies in the window asked for.
    """

    accepts = frozenset({CodecId.RAW})
    seeks = False
    codec = None
    losses: tuple[Loss, ...] = ()

    def __init__(self, dump: Dump, options: WriteOptions) -> None:
        require_physical(dump, "elf")
        self._page_size = dump.pages.page_size
        self._window = Window.of(dump.pages, options)
        self.pages: PageSet = self._window.cut(dump.pages.stored)
        self._missing = difference(self._window.cut(dump.pages.ram), self.pages)
        self._sink: Sink
        self._plan(dump)

    def _plan(self, dump: Dump) -> None:
        machine = dump.machine
        notes = pack_notes(notes_for(dump, PRODUCER), machine.endian)
        loads = self._loads()
        bits = _class(machine.word_bits, loads, len(notes))
        note = _note_segment(len(notes))
        size = len(_headers(bits, machine, note, loads))
        note.offset[:] = size
        start = -(-(size + len(notes)) // _ALIGN) * _ALIGN
        loads.offset[loads.filesz > 0] += start
        headers = _headers(bits, machine, note, loads)
        self._head = headers + notes + bytes(start - size - len(notes))

    def _loads(self) -> Segments:
        """One PT_LOAD a run, offsets counted from the first byte of memory."""
        start, length = self._window.clip(self.pages)
        out, missing = self._window.clip(self._missing)
        loads = Segments.make(
            np.concatenate((start, out)),
            np.concatenate((length, missing)),
            filesz=np.concatenate((length, np.zeros(len(out), np.int64))),
            offset=np.concatenate((np.cumsum(length) - length, np.zeros(len(out), np.int64))),
        )
        return loads.where(np.argsort(loads.paddr, kind="stable"))

    def begin(self, sink: Sink) -> None:
        """Write headers and notes."""
        sink.append([self._head])
        first, last = (int(pfn) * self._page_size for pfn in self._ends())
        skip = max(self._window.begin - first, 0)
        length = min(self._window.end, last) - first - skip
        cut = skip or length < last - first
        self._sink = sink
        if cut:
            self._sink = TrimmedSink(sink, skip, self._bytes())

    def _ends(self) -> tuple[int, int]:
        """First pfn, and one past the last, of the pages to write."""
        return (int(self.pages.select(0, 1)[0]), self.pages.stop) if self.pages.count else (0, 0)

    def _bytes(self) -> int:
        """Bytes of memory to write."""
        return int(self._window.clip(self.pages)[1].sum())

    def write(self, batch: PageBatch) -> None:
        """Write the next pages."""
        append_pages(self._sink, batch, self._page_size)

    def finish(self) -> None:
        """Nothing is left to write: every offset was known from the start."""


def _note_segment(length: int) -> Segments:
    zero = np.zeros(1, np.int64)
    made = Segments.make(zero, np.array([length]), filesz=np.array([length]), offset=zero.copy())
    return replace(made, type=np.array([PT_NOTE]), flags=zero, memsz=zero)


def _class(word_bits: Literal[32, 64], loads: Segments, head: int) -> Literal[32, 64]:
    """Choose the class as QEMU does: 64-bit headers for a 32-bit machine too when memory or file pass 4 GiB."""
    end = int((loads.paddr + loads.memsz).max(initial=0))
    file_end = int(loads.filesz.sum()) + len(loads) * 64 + head + 2 * _ALIGN
    return 64 if word_bits == 64 or max(end, file_end) > 0xFFFFFFFF else 32


def _headers(bits: Literal[32, 64], machine: Machine, note: Segments, loads: Segments) -> bytes:
    joined = Segments(*(np.concatenate((getattr(note, name), getattr(loads, name))) for name in Segments.__slots__))
    return program_headers(bits=bits, endian=machine.endian, machine=machine.arch.elf_machine, segments=joined)
