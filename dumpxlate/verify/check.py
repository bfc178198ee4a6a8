"""Checks one dump against itself: every page is located, brought and decoded, and nothing is written.

Pages are counted as a conversion to raw pages counts them, so that a check predicts what ``convert --salvage
--bad-pages skip`` leaves out.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.codecs import batch as batches
from dumpxlate.codecs.forks import shared_map
from dumpxlate.codecs.workers import default_threads
from dumpxlate.pages import BAD, EXCLUDED, STORED, ZERO, CodecId, PageState, PageTable, windows
from dumpxlate.progress import Meter, Progress
from dumpxlate.stores import DeferredStore, with_bytes
from dumpxlate.verify.missing import BadRun, BadRuns, Missing, bad_runs, missing_pages

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dumpxlate.arrays import Int64s
    from dumpxlate.dump import Dump
    from dumpxlate.pages import PageStore
    from dumpxlate.pageset import PageSet
    from dumpxlate.stores import MapFit

__all__ = ["BadRun", "CheckReport", "check"]


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a check found.

    Attributes:
        ram: pages of RAM that the dump knows of.
        pages: those of them by state: stored, zero (whether they have bytes or not), excluded, bad.
        codecs: pages that have bytes, by codec.
        page_size: bytes a page.
        bad: the first runs of bad pages.
        bad_runs: how many there are.
        missing: these, and what the file should have and has not.
        overlapping: pages whose bytes are also part of another page's, near in memory, but not the same ones.
        repeated: pages of which the file has further copies, which do not count.
        damage: what the reader says is missing or broken.
        remarks: oddities that it tolerated.
        fit: how the p2m map and the dump fit, where one was given.
        seconds: from the first page to the last.
    """

    ram: int = 0
    pages: Mapping[str, int] = field(default_factory=dict)
    codecs: Mapping[str, int] = field(default_factory=dict)
    page_size: int = 0
    bad: tuple[BadRun, ...] = ()
    bad_runs: int = 0
    missing: Missing = field(default_factory=Missing)
    overlapping: int = 0
    repeated: int = 0
    damage: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    fit: MapFit | None = None
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        fits = self.fit is None or self.fit.fits
        return fits and not (self.damage or self.bad_runs or self.overlapping)


def check(
    dump: Dump,
    *,
    first: int = 20,
    threads: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> CheckReport:
    """Check a dump: what its reader reports, and whether every page decodes.

    Args:
        dump: what to check.
        first: runs of bad pages that are listed.
        threads: workers; 0 does all in this thread, None takes one for each processor, up to 8.
        progress: called after each batch.

    Raises:
        CorruptDumpError: its index cannot be read.
        MissingCodecError: the library of a codec is not installed.
    """
    # Zero pages without bytes are counted, not looked at: a few bytes of a hostile file can make any number of them.
    stored, looked = dump.pages.stored, with_bytes(dump.pages)
    walk, size = _Walk(dump.pages, looked), dump.pages.page_size
    meter = Meter("check", looked.count * size, progress)
    found = _Found(BadRuns(first))
    threads = default_threads() if threads is None else threads
    with contextlib.closing(shared_map(walk.look, windows(looked, size), workers=threads)) as parts:
        for part in parts:
            found.add(part)
            meter.add(part.pages * size)
    found.states[EXCLUDED] += dump.pages.ram.count - stored.count
    found.states[ZERO] += stored.count - looked.count
    inner = dump.pages.loaded if isinstance(dump.pages, DeferredStore) else dump.pages
    wanted = (PageState.STORED, PageState.ZERO, PageState.EXCLUDED, PageState.BAD)
    return CheckReport(
        ram=dump.pages.ram.count,
        pages={state.name.lower(): int(found.states[state]) for state in wanted},
        codecs={codec.name.lower(): int(found.codecs[codec]) for codec in CodecId if found.codecs[codec]},
        page_size=size,
        bad=tuple(found.bad.first),
        bad_runs=found.bad.runs,
        missing=missing_pages(dump.pages, found.bad),
        overlapping=found.overlapping,
        repeated=getattr(inner, "repeated", 0),
        damage=dump.defects,
        remarks=dump.remarks,
        fit=dump.fit(),
        seconds=meter.seconds,
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """What a window gave.

    Attributes:
        pages: pages in it.
        states: pages by state.
        codecs: pages by codec.
        overlapping: pages that share some bytes with another.
        bad: first frame, length, reason and place in the file of each run of bad pages, shape (4, runs).
    """

    pages: int
    states: Int64s
    codecs: Int64s
    overlapping: int
    bad: Int64s


@dataclass(frozen=True, slots=True)
class _Walk:
    """Looks at some pages of a store."""

    store: PageStore
    pages: PageSet

    def look(self, window: tuple[int, int]) -> _Part:
        """Locate, bring and decode a window of ranks; runs in a worker."""
        store, size = self.store, self.store.page_size
        table = store.locate(self.pages.select(*window))
        state = batches.mark_zero(batches.decode(store.fetch(table), size), size).table.state
        has_bytes = table.state == STORED
        return _Part(
            pages=len(table),
            states=np.bincount(state, minlength=len(PageState)),
            codecs=np.bincount(table.codec[has_bytes], minlength=len(CodecId))[: len(CodecId)],
            overlapping=_overlapping(table),
            bad=bad_runs(store, table, np.flatnonzero(state == BAD)),
        )


def _overlapping(table: PageTable) -> int:
    """Count pages that begin inside another one's bytes; those that have all bytes in common are shared on purpose."""
    rows = table.stored()
    ends = rows.offset + rows.size
    if (rows.offset[1:] >= ends[:-1]).all():
        return 0
    order = np.lexsort((rows.size, rows.offset))
    offset, ends = rows.offset[order], ends[order]
    shared = (offset[1:] == offset[:-1]) & (ends[1:] == ends[:-1])
    inside = offset[1:] < np.maximum.accumulate(ends)[:-1]
    return int((inside & ~shared).sum())


@dataclass(slots=True)
class _Found:
    """Adds windows up.

    Attributes:
        bad: takes the bad pages.
    """

    bad: BadRuns
    states: Int64s = field(default_factory=lambda: np.zeros(len(PageState), np.int64))
    codecs: Int64s = field(default_factory=lambda: np.zeros(len(CodecId), np.int64))
    overlapping: int = 0

    def add(self, part: _Part) -> None:
        """Take the next window."""
        self.states += part.states
        self.codecs += part.codecs
        self.overlapping += part.overlapping
        self.bad.add(part.bad)
