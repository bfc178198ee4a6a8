"""Reads an output again, before it has its name, and compares it with what went into it."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.errors import VerificationError
from dumpxlate.format import OpenOptions
from dumpxlate.io.source import open_source
from dumpxlate.pages import ABSENT, PageState
from dumpxlate.pageset import PageRuns, difference
from dumpxlate.registry import find_format, find_wrapper
from dumpxlate.verify.compare import compare
from dumpxlate.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from dumpxlate.arrays import Int64s
    from dumpxlate.dump import Dump, Space
    from dumpxlate.format import WriteOptions
    from dumpxlate.pages import PageBatch, PageStore, PageTable, ReadAt
    from dumpxlate.pageset import PageSet
    from dumpxlate.progress import Progress
    from dumpxlate.verify.compare import Comparison
    from dumpxlate.verify.facts import RegisterDifference

__all__ = ["Written", "verify"]

_SELECTORS = frozenset({"cs", "ds", "es", "fs", "gs", "ss"})
_NO_REGISTERS = frozenset({"orig_eax", "orig_rax"})  # what Linux notes of a system call


@dataclass(frozen=True, slots=True)
class Written:
    """What an output should be.

    Attributes:
        path: where it can be read.
        format: its format.
        container: what it is wrapped in, if anything.
        pages: the pages that went into it.
        options: what was asked of it.
        bad: pages of the input that did not decode.
    """

    path: Path
    format: str
    container: str | None
    pages: PageSet
    options: WriteOptions
    bad: int


def verify(
    dump: Dump,
    written: Written,
    *,
    threads: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> None:
    """Check that an output holds the pages that went into it, no others, and the registers and texts that it tells.

    What was left out is not looked for: pages outside a window or a part, declared losses, pages that do not decode.

    Args:
        dump: what was converted.
        written: what came of it.
        threads: workers, as for ``compare``.
        progress: called after each batch.

    Raises:
        VerificationError: something is not the same; says what, and where first.
        FormatError: the output cannot even be opened.
    """
    name = os.fspath(written.path)
    window = Window.of(dump.pages, written.options)
    edges = _edges(window)
    with _reopened(dump, written) as out:
        whole = difference(written.pages, edges)
        # Of a dump keyed by machine frames, pfns that share a frame all show its page, and one of them was written.
        shown = whole if dump.space is not out.frames_space else difference(out.dump.pages.stored, edges)
        found = compare(
            replace(dump, pages=_Chosen(dump.pages, whole)),
            replace(out.dump, pages=_Chosen(out.dump.pages, shown)),
            first=1,
            threads=threads,
            progress=progress,
        )
        wrong = _complaint(found, written) or _edge_complaint(dump, out.dump, window, written.pages)
    if wrong:
        raise VerificationError(f"written, and reads back differently: {wrong}; it was not given its name", path=name)


@dataclass(frozen=True, slots=True)
class _Reopened:
    """An output that was opened again; the space of its own frame numbers."""

    dump: Dump
    frames_space: Space


@contextlib.contextmanager
def _reopened(dump: Dump, written: Written) -> Iterator[_Reopened]:
    """Open an output in the format that it was written in: memory may look like anything."""
    _forget_cached(written.path)
    source = open_source(written.path)
    try:
        inside = find_wrapper(written.container).unwrap(source) if written.container else source
        out = find_format(written.format).open([inside], OpenOptions())
        space = out.space
        if dump.p2m is not None and space is not dump.space:
            out = out.with_p2m(dump.p2m)
        yield _Reopened(out, space)
    finally:
        source.close()


def _forget_cached(path: Path) -> None:
    """Let the kernel drop what it has cached of a file, which is durable, so that the disk is asked."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def _edges(window: Window) -> PageRuns:
    """Give the pages that a window cuts through: some formats keep them whole, and some do not."""
    ends = {at // window.page_size for at in (window.begin, window.end) if at % window.page_size}
    return PageRuns.from_pfns(np.array(sorted(ends), np.int64))


def _complaint(found: Comparison, written: Written) -> str:
    """Say what is wrong, if anything is."""
    wrong = {kind: found.pages.get(kind, 0) for kind in ("different", "only_a", "only_b")}
    wrong["bad"] = found.pages.get("bad", 0) - written.bad
    if any(wrong.values()):
        total = sum(count for count in wrong.values() if count > 0)
        place = next((f", the first at {each.address:#x}" for each in found.first), "")
        return f"{total:,} pages differ{place}"
    registers = [each for each in found.facts.differing if _matters(each)]
    if registers:
        return f"{len(registers)} registers differ, the first is {registers[0].name} of vcpu {registers[0].cpu}"
    return "" if found.facts.same_text else "VMCOREINFO differs"


def _matters(register: RegisterDifference) -> bool:
    """Tell registers of the machine from what notes have beside or above them: Xen's contexts keep neither."""
    if register.name in _SELECTORS:
        return (register.a ^ register.b) & 0xFFFF != 0
    return register.name not in _NO_REGISTERS


def _edge_complaint(dump: Dump, out: Dump, window: Window, pages: PageSet) -> str:
    """Compare the bytes inside the window of pages that it cuts through."""
    size = window.page_size
    for pfn in _edges(window).select(0, 2).tolist():
        if not pages.contains(np.array([pfn]))[0] or dump.states([pfn])[0] not in (PageState.STORED, PageState.ZERO):
            continue
        low, high = max(pfn * size, window.begin), min((pfn + 1) * size, window.end)
        if dump.read(low, high - low) != out.read(low, high - low):
            return f"memory from {low:#x} to {high:#x} differs"
    return ""


@dataclass(frozen=True, slots=True)
class _Chosen:
    """Some pages of a store.

    Attributes:
        store: the store.
        stored: the pages.
    """

    store: PageStore
    stored: PageSet

    @property
    def page_size(self) -> int:
        """Bytes a page."""
        return self.store.page_size

    @property
    def read_at(self) -> ReadAt | None:
        """Reads a piece of the body at once, as the store does."""
        return self.store.read_at

    @property
    def ram(self) -> PageSet:
        """The pages: nothing else is known."""
        return self.stored

    def locate(self, pfn: Int64s) -> PageTable:
        """Say what is known of each pfn: nothing of those that were not chosen."""
        found, chosen = self.store.locate(pfn), self.stored.contains(pfn)
        return replace(
            found,
            state=np.where(chosen, found.state, np.uint8(ABSENT)),
            offset=np.where(chosen, found.offset, np.int64(-1)),
            size=np.where(chosen, found.size, np.int32(0)),
        )

    def fetch(self, table: PageTable) -> PageBatch:
        """Bring the bytes of located pages."""
        return self.store.fetch(table)

    def place(self, table: PageTable) -> Int64s:
        """Say where in the file the bytes of located pages are."""
        return self.store.place(table)
