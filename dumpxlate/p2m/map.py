"""Frame maps of paravirtual guests: pfn to mfn and back, kept as runs.

A PV guest numbers its memory from 0 (pfn) while its page tables, its control registers and an old Xen dump speak of
machine frames (mfn). The map between them is the guest's p2m; Linux marks entries that are no memory of the guest in
their two highest bits (arch/x86/xen/p2m.c).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import numpy as np

from dumpxlate.arrays import ascending, runs, slices
from dumpxlate.extents import Extents, ExtentsBuilder, in_runs, through_each
from dumpxlate.pageset import PageRuns
from dumpxlate.places import Places, count_marked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from dumpxlate.arrays import Int64s
    from dumpxlate.pageset import PageSet

__all__ = ["P2M", "DeferredP2M", "Entries", "FrameRuns"]

_CHUNK = 1 << 20
"""Pages given in one go: bounds memory whatever the size of the map."""


class Entries(Protocol):
    """Unsigned words that are looked at in slices: an array, or one that stays in a file."""

    def __len__(self) -> int: ...

    def __getitem__(self, piece: slice, /) -> NDArray[np.unsignedinteger]: ...


@dataclass(frozen=True)
class FrameRuns:
    """Runs of pfns that map to consecutive frames; ascending by pfn, disjoint.

    Attributes:
        pfn: first pfn of each run, int64.
        frame: frame of that pfn, int64.
        count: length of each run, int64.
    """

    pfn: Int64s
    frame: Int64s
    count: Int64s

    @classmethod
    def from_pairs(cls, pfn: Int64s, frame: Int64s) -> Self:
        """Make runs of single pairs, ascending by pfn."""
        first, count = runs(pfn, frame)
        return cls(pfn[first], frame[first], count)

    @classmethod
    def join(cls, parts: list[FrameRuns]) -> Self:
        """Put runs of ascending parts behind one another."""
        if len(parts) == 1:
            return cls(parts[0].pfn, parts[0].frame, parts[0].count)
        empty = np.empty(0, np.int64)
        return cls(
            np.concatenate([empty, *(part.pfn for part in parts)]),
            np.concatenate([empty, *(part.frame for part in parts)]),
            np.concatenate([empty, *(part.count for part in parts)]),
        )

    @cached_property
    def total(self) -> int:
        """Number of pfns in all runs."""
        return int(self.count.sum())

    def find(self, pfn: Int64s) -> Int64s:
        """Give the frame of each pfn, -1 where it has none."""
        if not len(self.pfn):
            return np.full(len(pfn), -1, np.int64)
        run = np.searchsorted(self.pfn, pfn, side="right") - 1
        delta = pfn - self.pfn[run]
        return np.where((run >= 0) & (delta < self.count[run]), self.frame[run] + delta, -1)

    def inverse(self) -> FrameRuns:
        """Give the pfn of each frame: runs by frame, cut where they overlap, as they do where pfns share a frame."""
        frame, pfn, count = self.frame, self.pfn, self.count
        if (frame[1:] < frame[:-1]).any():
            order = ascending(frame)
            frame, pfn, count = frame[order], pfn[order], count[order]
        reach = np.maximum.accumulate(frame + count) if len(frame) else frame
        cut = np.maximum(np.append(frame[:1], reach[:-1]) - frame, 0)
        if not cut.any():
            return FrameRuns(frame, pfn, count)
        left = cut < count
        return FrameRuns((frame + cut)[left], (pfn + cut)[left], (count - cut)[left])


class P2M:
    """The map of one guest.

    Args:
        pages: pfns that are memory of the guest.
        size: entries of the map, one past the last pfn that it speaks of.
        foreign: pfns that show another domain's frame (bit 63, or 31, of the entry).
        identity: pfns that show the machine's own frame, a device or a hole (bit 62, or 30).
    """

    def __init__(
        self,
        pages: FrameRuns,
        size: int,
        *,
        foreign: FrameRuns | None = None,
        identity: FrameRuns | None = None,
    ) -> None:
        empty = FrameRuns.join([])
        self.runs = pages
        self.size = size
        self.foreign = foreign or empty
        self.identity = identity or empty

    @classmethod
    def from_pairs(cls, pfn: Int64s, mfn: Int64s, *, size: int | None = None) -> Self:
        """Make a map of single pairs, in any order; the first of several entries for a pfn counts."""
        order = ascending(pfn)
        pfn, mfn = pfn[order], mfn[order]
        keep = np.append(True, pfn[1:] != pfn[:-1])[: len(pfn)] & (pfn >= 0) & (mfn >= 0)
        pfn, mfn = pfn[keep], mfn[keep]
        return cls(FrameRuns.from_pairs(pfn, mfn), max(size or 0, int(pfn[-1]) + 1 if len(pfn) else 0))

    @classmethod
    def from_entries(cls, entries: Entries, width: Literal[4, 8]) -> Self:
        """Read a guest's own array, indexed by pfn.

        Args:
            entries: p2m entries as the guest keeps them, unsigned, shape (size,); may be in a file, since it is read
                in slices.
            width: bytes of the guest's word. All ones is no page; the top bit marks foreign frames, the next one
                identity frames. mfn 0 belongs to the hypervisor and is no page either.
        """
        pieces = ((piece.start, np.asarray(entries[piece])) for piece in slices(len(entries)))
        return cls.from_pieces(pieces, width, len(entries))

    @classmethod
    def from_pieces(
        cls, pieces: Iterable[tuple[int, NDArray[np.unsignedinteger]]], width: Literal[4, 8], size: int
    ) -> Self:
        """Read a guest's own array piece by piece.

        Args:
            pieces: first pfn and entries of each piece, ascending and disjoint; a pfn in none of them has no page.
            width: bytes of the guest's word, as for ``from_entries``.
            size: entries of the whole array.
        """
        kinds = [ExtentsBuilder(1) for _ in range(3)]
        for first, entries in pieces:
            parts = cls._classify(entries.astype(np.uint64, copy=False), width, first)
            for kind, (pfn, frame) in zip(kinds, parts, strict=True):
                kind.add(pfn, frame)
        pages, foreign, identity = (FrameRuns(pfn, frame, count) for pfn, count, frame in (kind.runs for kind in kinds))
        return cls(pages, size, foreign=foreign, identity=identity)

    @staticmethod
    def _classify(entries: NDArray[np.uint64], width: int, first: int) -> tuple[tuple[Int64s, Int64s], ...]:
        """Sort entries into the guest's pages, foreign frames and identity frames: pfn and frame of each."""
        flag = np.uint64(1 << 8 * width - 2)  # of identity frames; that of foreign ones is twice this
        page = entries - np.uint64(1) < flag - np.uint64(1)  # 0, less one, is above every flag
        flagged = np.flatnonzero(~page & (entries != 0) & (entries != np.uint64((1 << 8 * width) - 1)))
        frame = (entries[flagged] & (flag - np.uint64(1))).view(np.int64)
        foreign = entries[flagged] >= flag + flag
        return (
            (np.flatnonzero(page) + first, entries[page].view(np.int64)),
            (flagged[foreign] + first, frame[foreign]),
            (flagged[~foreign] + first, frame[~foreign]),
        )

    def trimmed(self) -> P2M:
        """Cut the entries behind the last one that says something."""
        ends = [int(part.pfn[-1] + part.count[-1]) for part in (self.runs, self.foreign, self.identity) if part.total]
        return P2M(self.runs, max(ends, default=0), foreign=self.foreign, identity=self.identity)

    def mfn(self, pfn: Int64s) -> Int64s:
        """Give the machine frame of each pfn, -1 where it has no page."""
        return self.runs.find(pfn)

    def pfn(self, mfn: Int64s) -> Int64s:
        """Give the pfn of each machine frame, -1 where none maps to it; of several the one first in mfn order."""
        return self._inverse.find(mfn)

    @cached_property
    def by_frame(self) -> FrameRuns:
        """The runs, ascending by frame; they overlap where pfns share a frame."""
        order = ascending(self.runs.frame)
        return FrameRuns(self.runs.pfn[order], self.runs.frame[order], self.runs.count[order])

    @cached_property
    def _inverse(self) -> FrameRuns:
        return self.by_frame.inverse()

    @property
    def inverse(self) -> FrameRuns:
        """The pfn of each frame, as ``pfn`` gives it, in runs."""
        return self._inverse

    def inverted(self) -> P2M:
        """Give the map the other way: from machine frames to the pfn that maps to each, as ``pfn`` gives it."""
        back = self._inverse
        return P2M(back, int(back.pfn[-1] + back.count[-1]) if len(back.pfn) else 0)

    def pages(self) -> PageRuns:
        """Give the pfns that have a page."""
        return self._pages

    def frames(self) -> PageRuns:
        """Give the machine frames that pfns map to."""
        return self._frames

    @cached_property
    def _pages(self) -> PageRuns:
        return PageRuns.from_runs(self.runs.pfn, self.runs.count)

    @cached_property
    def _frames(self) -> PageRuns:
        return PageRuns.from_runs(self.by_frame.frame, self.by_frame.count)

    @cached_property
    def aliases(self) -> int:
        """Number of pfns beyond the first that map to a machine frame."""
        marked = count_marked(self.runs.frame, self.runs.count)
        return self.runs.total - (self.frames().count if marked is None else marked)

    @property
    def invalid(self) -> int:
        """Entries without any frame."""
        return self.size - self.runs.total - self.foreign.total - self.identity.total

    def chunks(self) -> Iterator[tuple[Int64s, Int64s]]:
        """Write the map out as (pfn, mfn) arrays, a million pages at a time."""
        pages = self.pages()
        for first in range(0, pages.count, _CHUNK):
            pfn = pages.select(first, first + _CHUNK)
            yield pfn, self.mfn(pfn)

    def preimage(self, frames: PageSet) -> PageRuns:
        """Give the pfns whose machine frame is in a set."""
        start, count = frames.runs()
        return self.seen(Extents(start, count, start)).pages()

    def seen(self, index: Extents | Places, page_size: int = 1) -> Extents | Places:
        """Give pages by machine frame as pages by pfn."""
        runs = self.runs
        found = through_each(index, runs.pfn, runs.count, runs.frame, page_size)
        if found is not None:
            return found
        runs = self.by_frame
        return in_runs(index, page_size).through(runs.pfn, runs.count, runs.frame, page_size)

    def entries(self, start: int, stop: int) -> NDArray[np.uint64]:
        """Write the guest's own 64-bit array for pfns ``start`` up to ``stop``, flag bits included."""
        pfn = np.arange(start, stop, dtype=np.int64)
        out = self.mfn(pfn).astype(np.uint64)  # -1 becomes all ones, which is "no page"
        for special, flag in ((self.foreign, 1 << 63), (self.identity, 1 << 62)):
            frame = special.find(pfn)
            at = frame >= 0
            out[at] = frame[at].astype(np.uint64) | np.uint64(flag)
        return out

    def __repr__(self) -> str:
        return f"P2M({self.runs.total} pages in {len(self.runs.pfn)} runs, {self.size} entries)"


class DeferredP2M(P2M):
    """A map whose entries are read when they are first needed, so that opening a dump takes no longer for a larger one.

    Args:
        load: reads the map.
        entries: rows that it takes to read.
    """

    def __init__(self, load: Callable[[], P2M], entries: int) -> None:
        self._load = load
        self.entries_to_read = entries

    @cached_property
    def loaded(self) -> P2M:
        """The map itself; the first access reads it."""
        return self._load()

    def __getattr__(self, name: str) -> Any:
        """Give what the base class keeps in itself."""
        if name in ("runs", "size", "foreign", "identity"):
            return getattr(self.loaded, name)
        raise AttributeError(name)
