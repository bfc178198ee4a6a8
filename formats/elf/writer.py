"""Writes ELF vmcores that crash, drgn, gdb, makedumpfile, libkdumpfile and Volatility open."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from dumpxlate.elf import PT_NOTE, Segments, program_headers
from dumpxlate.emit import append_pages
from dumpxlate.format import require_physical
from dumpxlate.guest_notes import notes_for
from dumpxlate.notes import pack_notes
from dumpxlate.pages import CodecId
from dumpxlate.pageset import difference
from dumpxlate.version import PRODUCER

if TYPE_CHECKING:
    from dumpxlate.dump import Dump
    from dumpxlate.format import Loss, WriteOptions
    from dumpxlate.pages import PageBatch
    from dumpxlate.pageset import PageSet
    from dumpxlate.sink import Sink

__all__ = ["ElfWriter"]

_ALIGN = 4096


class ElfWriter:
    """Plans and writes one ELF vmcore.

    ::

        header | program headers | [section header 0] | notes | padding to a page | pages, ascending

    Every PT_LOAD has p_filesz == p_memsz, or p_filesz 0 for RAM that the source left out: Volatility drops segments
    in between. Zero pages are holes of the file, not missing memory.

    Raises:
        MapError: the dump is keyed by machine frames.
    """

    accepts = frozenset({CodecId.RAW})
    seeks = False
    codec = None
    losses: tuple[Loss, ...] = ()

    def __init__(self, dump: Dump, options: WriteOptions) -> None:
        require_physical(dump, "elf")
        options.refuse("elf", "compress", "part")
        self.pages: PageSet = dump.pages.stored
        self._page_size = dump.pages.page_size
        self._sink: Sink
        self._plan(dump)

    def _plan(self, dump: Dump) -> None:
        machine = dump.machine
        notes = pack_notes(notes_for(dump, PRODUCER), machine.endian)
        loads = self._loads(dump)
        bits = _class(machine.word_bits, loads, self._page_size)
        note = Segments.make(*(np.zeros(1, np.int64),) * 2, filesz=np.array([len(notes)]), offset=np.zeros(1, np.int64))
        note = replace(note, type=np.array([PT_NOTE]), flags=np.array([0]))
        size = len(_headers(bits, machine.endian, machine.arch.elf_machine, note, loads))
        note.offset[:] = size
        self._start = -(-(size + len(notes)) // _ALIGN) * _ALIGN
        loads.offset[loads.filesz > 0] += self._start
        headers = _headers(bits, machine.endian, machine.arch.elf_machine, note, loads)
        self._head = headers + notes + bytes(self._start - size - len(notes))

    def _loads(self, dump: Dump) -> Segments:
        """One PT_LOAD a run, offsets counted from the first page."""
        start, count = self.pages.runs()
        out, missing = difference(dump.pages.ram, self.pages).runs()
        length = count * self._page_size
        loads = Segments.make(
            np.concatenate((start, out)) * self._page_size,
            np.concatenate((length, missing * self._page_size)),
            filesz=np.concatenate((length, np.zeros(len(out), np.int64))),
            offset=np.concatenate((np.cumsum(length) - length, np.zeros(len(out), np.int64))),
        )
        return loads.where(np.argsort(loads.paddr, kind="stable"))

    def begin(self, sink: Sink) -> None:
        """Write headers and notes."""
        self._sink = sink
        sink.append([self._head])

    def write(self, batch: PageBatch) -> None:
        """Write the next pages."""
        append_pages(self._sink, batch, self._page_size)

    def finish(self) -> None:
        """Nothing is left to write: every offset was known from the start."""


def _class(word_bits: Literal[32, 64], loads: Segments, page_size: int) -> Literal[32, 64]:
    """Choose the class as QEMU does: 64-bit headers for a 32-bit machine too when memory or file pass 4 GiB."""
    end = int((loads.paddr + loads.memsz).max(initial=0))
    file_end = int((loads.offset + loads.filesz).max(initial=0)) + (64 << 20) + page_size
    return 64 if word_bits == 64 or max(end, file_end) > 0xFFFFFFFF else 32


def _headers(bits: Literal[32, 64], endian: Literal["<", ">"], machine: int, note: Segments, loads: Segments) -> bytes:
    joined = Segments(*(np.concatenate((getattr(note, name), getattr(loads, name))) for name in Segments.__slots__))
    return program_headers(bits=bits, endian=endian, machine=machine, segments=joined)
