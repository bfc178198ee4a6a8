"""Page stores: over extents of one file, with an index that is read late, and seen through a frame map."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from dumpxlate.arrays import ascending, distinct, expand
from dumpxlate.errors import MapError
from dumpxlate.extents import Extents, in_runs
from dumpxlate.io.spliced import lacking
from dumpxlate.pages import ABSENT, EXCLUDED, STORED, ZERO, PageBatch, PageTable, damage_of, lost_pages, why_lost
from dumpxlate.pageset import EMPTY, PageRuns, PageSet, difference, intersection, union
from dumpxlate.places import Places

if TYPE_CHECKING:
    from collections.abc import Callable

    from dumpxlate.arrays import Bools, Int64s
    from dumpxlate.io.source import Source
    from dumpxlate.p2m.map import P2M
    from dumpxlate.pages import PageStore, ReadAt

__all__ = [
    "MISS_LIMIT",
    "DeferredStore",
    "IndexedStore",
    "MapFit",
    "RemappedStore",
    "UnkeyedStore",
    "fetch_from",
    "with_bytes",
]

MISS_LIMIT = 0.01
"""Share of a map's pages that a dump may lack (and of a dump's pages that the map may lack) before it does not fit."""

_FAR = 1 << 62
_MOST_SLOTS = 1 << 12


class IndexedStore:
    """A store of raw pages over extents of one source.

    Args:
        source: the file.
        page_size: bytes a page.
        index: where stored pages lie.
        zero: RAM known to be zero without bytes in the file (holes of a sparse image).
        excluded: RAM that the file leaves out.
        lost: RAM that the file promises, and has no bytes for.
        repeated: pages of which the file has further copies, which do not count.

    Attributes:
        damage: what is missing or broken, as the index shows that was read for it.
    """

    def __init__(
        self,
        source: Source,
        page_size: int,
        index: Extents | Places,
        *,
        zero: PageSet = EMPTY,
        excluded: PageSet = EMPTY,
        lost: PageSet = EMPTY,
        repeated: int = 0,
    ) -> None:
        lacks = lacking(source)
        if lacks.count:
            extents = in_runs(index, page_size)
            gone = _over(extents, lacks, page_size)
            start, count = difference(extents.pages(), gone).runs()
            index, lost = extents.through(start, count, start, page_size), union(lost, gone)
        self.page_size = page_size
        self.repeated = repeated
        self.damage: tuple[str, ...] = ()
        self.index = index
        self._source = source
        self._zero = zero
        self.read_at: ReadAt = source.read
        self.stored: PageSet = union(index.pages(), zero) if zero.count else index.pages()
        self.lost: PageSet = difference(lost, self.stored) if lost.count else lost
        self.ram: PageSet = union(self.stored, excluded) if excluded.count else self.stored
        if self.lost.count:
            self.ram = union(self.ram, self.lost)

    def locate(self, pfn: Int64s) -> PageTable:
        """Say for each pfn what is known and where."""
        index = self.index
        offset = index.offsets(pfn) if isinstance(index, Places) else index.offsets(pfn, self.page_size)
        table = PageTable.raw(pfn, offset, self.page_size)
        rest = table.state == ABSENT
        if rest.any():
            known = self.ram.contains(pfn)
            zero = self._zero.contains(pfn)
            table.state[rest & known] = EXCLUDED
            table.state[rest & zero] = ZERO
        return table

    def seen_through(self, frames: P2M) -> IndexedStore:
        """Key the same pages by the pfns of a map; one whose frame is not here is excluded."""
        index = frames.seen(self.index, self.page_size)
        zero = frames.preimage(self._zero) if self._zero.count else EMPTY
        return IndexedStore(self._source, self.page_size, index, zero=zero, excluded=frames.pages())

    def fetch(self, table: PageTable) -> PageBatch:
        """Bring the bytes of located pages; those in holes of the file are zero, which needs no reading."""
        return fetch_from(self._source, table.where_zero(self._in_hole(table.offset)) if self._has_holes else table)

    @cached_property
    def _data(self) -> tuple[Int64s, Int64s]:
        """Where the parts of the file begin and end that are no holes."""
        start, length = self._source.data_runs()
        return start, start + length

    @cached_property
    def _has_holes(self) -> bool:
        start, end = self._data
        return len(start) != 1 or int(end[0] - start[0]) < self._source.size

    def _in_hole(self, offset: Int64s) -> Bools:
        """Tell which pages lie in a hole from their first byte to their last."""
        start, end = self._data
        run = np.searchsorted(end, offset, side="right")
        begins = np.append(start, np.int64(self._source.size))[run]
        found: Bools = (offset >= 0) & (offset + self.page_size <= begins)
        return found

    def outside_holes(self) -> PageRuns:
        """Give the pages that have bytes in the file, but for those that lie in holes of it."""
        if not self._has_holes:
            return self.index.pages()
        extents, size = in_runs(self.index, self.page_size), self.page_size
        # What leaves the file is no hole, but bad.
        start, end = (np.append(edges, far) for edges, far in zip(self._data, (self._source.size, _FAR), strict=True))
        begin, stop = extents.offset, extents.offset + extents.count * size
        first = np.searchsorted(end, begin, side="right")
        count = np.maximum(np.searchsorted(start, stop, side="left") - first, 0)
        run, which = expand(first, count), np.repeat(np.arange(len(begin)), count)
        low = (np.maximum(start[run], begin[which]) - begin[which]) // size
        high = -((begin[which] - np.minimum(end[run], stop[which])) // size)
        return PageRuns.from_runs(extents.start[which] + low, high - low)

    def place(self, table: PageTable) -> Int64s:
        """Say where in the file the bytes of located pages are."""
        return self._source.place(table.offset)


def _over(extents: Extents, lacks: PageRuns, page_size: int) -> PageRuns:
    """Give the pages of which some bytes are missing in the file."""
    start, length = lacks.runs()
    begin, stop = extents.offset, extents.offset + extents.count * page_size
    first = np.searchsorted(start + length, begin, side="right")
    count = np.maximum(np.searchsorted(start, stop, side="left") - first, 0)
    run, which = expand(first, count), np.repeat(np.arange(len(begin)), count)
    low = (np.maximum(start[run], begin[which]) - begin[which]) // page_size
    high = -((begin[which] - np.minimum((start + length)[run], stop[which])) // page_size)
    return PageRuns.from_runs(extents.start[which] + low, high - low)


def fetch_from(source: Source, table: PageTable) -> PageBatch:
    """Bring the bytes of located pages from a source, which may move them into a body of its own."""
    if not (table.state == STORED).any():
        return PageBatch(table, memoryview(b""))
    body, offset = source.gather(table.offset, table.size)
    lacks = lacking(source)
    if lacks.count:
        gone = (table.offset >= 0) & (lacks.rank(table.offset + table.size) > lacks.rank(table.offset))
        offset = np.where(gone, len(body), offset)
    return PageBatch(PageTable(table.pfn, table.state, table.codec, offset, table.size), body)


class DeferredStore:
    """A store whose index is read when it is first needed, so that opening a dump takes no longer for a larger one.

    Args:
        load: reads the index and makes the store.
        page_size: bytes a page.
        entries: rows that the index has, as the header says.
    """

    def __init__(self, load: Callable[[], PageStore], page_size: int, entries: int) -> None:
        self._load = load
        self.page_size = page_size
        self.entries = entries

    @cached_property
    def loaded(self) -> PageStore:
        """The store itself; the first access reads the index."""
        return self._load()

    @property
    def ram(self) -> PageSet:
        """Every RAM page that the dump knows of."""
        return self.loaded.ram

    @property
    def stored(self) -> PageSet:
        """Those of them that it has content for."""
        return self.loaded.stored

    @property
    def lost(self) -> PageSet:
        """Those that the file promises, and has no bytes for."""
        return lost_pages(self.loaded)

    @property
    def lost_why(self) -> str:
        """Why they are lost; empty for the usual reason."""
        return why_lost(self.loaded)

    @property
    def damage(self) -> tuple[str, ...]:
        """What is missing or broken, as the index shows."""
        return damage_of(self.loaded)

    def locate(self, pfn: Int64s) -> PageTable:
        """Say for each pfn what is known and where."""
        return self.loaded.locate(pfn)

    def fetch(self, table: PageTable) -> PageBatch:
        """Bring the bytes of located pages."""
        return self.loaded.fetch(table)

    @property
    def read_at(self) -> ReadAt | None:
        """What reads the bytes of one located page."""
        return self.loaded.read_at

    def place(self, table: PageTable) -> Int64s:
        """Say where in the file the bytes of located pages are."""
        return self.loaded.place(table)


class UnkeyedStore(DeferredStore):
    """Pages of a guest in the order of their pfns, which themselves are lost: only the guest's map tells them.

    Args:
        refuse: raises the error that says so, for whoever asks for a page without a map.
        source: the file.
        page_size: bytes a page.
        offset: where the first page is.
        count: pages that were written.
        there: those of them that the file still has.
    """

    def __init__(
        self, refuse: Callable[[], NoReturn], source: Source, page_size: int, offset: int, count: int, there: int
    ) -> None:
        super().__init__(refuse, page_size, count)
        self._source, self._offset, self._there = source, offset, there

    def keyed(self, p2m: P2M) -> IndexedStore:
        """Key the pages by the machine frames that a map has for them, in the order of its pfns.

        Raises:
            MapError: the map does not have as many pages as were written, so that it is of another moment.
        """
        count = p2m.runs.total
        if count != self.entries and not self._only_slots_behind(count):
            raise MapError(
                f"the map has {count:,} pages, and {self.entries:,} were written: without an index only a map of the "
                f"moment of the dump tells which page is which"
            )
        size, there = self.page_size, min(self._there, count)
        mfn = p2m.mfn(p2m.pages().select(0, count))
        at = self._offset + np.arange(there, dtype=np.int64) * size
        frames, _ = Extents.from_pairs(mfn[:there], at, size, last_wins=False)
        return IndexedStore(self._source, size, frames, lost=PageRuns.from_pfns(distinct(mfn[there:])[0]))

    def _only_slots_behind(self, count: int) -> bool:
        """Tell whether what was written behind so many pages is zero: Xen has slots for more pages than it finds."""
        rest = self.entries - count
        if not 0 < rest <= _MOST_SLOTS or self._there < self.entries:
            return False
        return not any(self._source.view(self._offset + count * self.page_size, rest * self.page_size))


@dataclass(frozen=True, slots=True)
class MapFit:
    """How well a map and a dump fit.

    Attributes:
        mapped: pfns that the map gives a page.
        missing: those whose machine frame the dump lacks.
        aliases: pfns beyond the first on one machine frame.
        held: machine frames in the dump, those of the guest only where it is a part of a host's.
        unmapped: those that no pfn maps to.
        foreign: pfns that show another domain's frame, which is no page of this guest.
        identity: pfns that show the machine's own frame, a device's, or none.
        invalid: pfns without any frame.
    """

    mapped: int
    missing: int
    aliases: int
    held: int
    unmapped: int
    foreign: int = 0
    identity: int = 0
    invalid: int = 0

    @property
    def fits(self) -> bool:
        """Whether both shares of misses stay within MISS_LIMIT."""
        return (
            self.mapped > self.missing
            and self.missing <= MISS_LIMIT * self.mapped
            and self.unmapped <= MISS_LIMIT * self.held
        )

    def __str__(self) -> str:
        return (
            f"{self.missing:,} of {self.mapped:,} mapped pages are not in the dump, "
            f"{self.unmapped:,} of {self.held:,} pages in the dump are not in the map, {self.aliases:,} aliases"
        )


class RemappedStore:
    """A store seen through a frame map: the same pages under the pfns that map to them. Nothing is read or copied.

    Args:
        inner: store keyed by the frames that the map leads to.
        frames: the map; a pfn whose frame the inner store lacks is excluded.
        whole: the map is of all that the inner store holds; else, as a guest's on its host, of a part of it.
    """

    def __init__(self, inner: PageStore, frames: P2M, *, whole: bool = True) -> None:
        self._whole = whole
        self.page_size = inner.page_size
        self._inner = inner.loaded if isinstance(inner, DeferredStore) else inner
        self._frames = frames
        self.ram: PageSet = frames.pages()
        self._direct = self._inner.seen_through(frames) if isinstance(self._inner, IndexedStore) else None
        self.stored: PageSet = self._direct.stored if self._direct else frames.preimage(self._inner.stored)

    @cached_property
    def lost(self) -> PageSet:
        """Those that the file promises, and has no bytes for."""
        lost = lost_pages(self._inner)
        return self._frames.preimage(lost) if lost.count else EMPTY

    @property
    def damage(self) -> tuple[str, ...]:
        """What is missing or broken in the inner store."""
        return damage_of(self._inner)

    def locate(self, pfn: Int64s) -> PageTable:
        """Say for each pfn what is known and where."""
        if self._direct:
            return self._direct.locate(pfn)
        frame = self._frames.mfn(pfn)
        order = ascending(frame)  # an ascending search is several times faster than one at random
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        found = self._inner.locate(frame[order]).where(back)
        state = found.state.copy()
        state[(state == ABSENT) & (frame >= 0)] = EXCLUDED
        return PageTable(pfn, state, found.codec, found.offset, found.size)

    def fit(self) -> MapFit:
        """Compare the map with the frames that the inner store holds."""
        held, aliases = self._inner.stored, self._frames.aliases
        found = intersection(self._frames.frames(), held).count if aliases else self.stored.count
        return MapFit(
            mapped=self.ram.count,
            missing=self.ram.count - self.stored.count - self.lost.count,
            aliases=aliases,
            held=held.count if self._whole else found,
            unmapped=held.count - found if self._whole else 0,
            foreign=self._frames.foreign.total,
            identity=self._frames.identity.total,
            invalid=self._frames.invalid,
        )

    def fetch(self, table: PageTable) -> PageBatch:
        """Bring the bytes of located pages."""
        return self._inner.fetch(table)

    @property
    def read_at(self) -> ReadAt | None:
        """What reads the bytes of one located page."""
        return self._inner.read_at

    def place(self, table: PageTable) -> Int64s:
        """Say where in the file the bytes of located pages are."""
        return self._inner.place(table)


def with_bytes(store: PageStore) -> PageSet:
    """Give the stored pages that have bytes in the file, and no hole of it, as far as the index tells.

    The other stored pages are zero.
    """
    inner = store.loaded if isinstance(store, DeferredStore) else store
    return inner.outside_holes() if isinstance(inner, IndexedStore) else inner.stored
