"""Finds a PV guest's p2m in its machine pages by what it looks like: no symbols, no shared_info, not even a cr3.

A page of the array holds words that are frames of the dump, or flagged as none, and nothing else. That is rare, and
two things put such pages in order:

* a page that begins with the frame of a page that begins with the frame of a page that begins with a frame: the three
  levels of frame lists, which the tool stack needs and every guest keeps;
* page tables that map such pages one behind the other: the linear list. Where the dump has no cr3, the first table of
  a 64-bit guest gives itself away: Xen lets its entry 258 lead back to itself (LINEAR_PT_VIRT_START).

Memory is full of copies: the array that the builder made for the guest to start with, lists of frames for the balloon,
what a freed page still holds. So every candidate is weighed against all evidence there is, the best is taken, and if it
is not good enough, none.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np

from dumpxlate.arch.xen_vcpu import WordBits
from dumpxlate.codecs import batch as batches
from dumpxlate.codecs.workers import default_threads, ordered_map
from dumpxlate.errors import MapError
from dumpxlate.memory import PhysicalMemory
from dumpxlate.p2m.evidence import BOUND, LINEAR, Evidence, confidence, from_frames, from_lists, from_tables
from dumpxlate.p2m.lists import entries_per_page, frame_list_leaves, frame_lists_reach, read_leaves
from dumpxlate.p2m.tables import mappings
from dumpxlate.pages import windows
from dumpxlate.progress import Meter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dumpxlate.arrays import Bools, Int64s
    from dumpxlate.p2m.map import P2M
    from dumpxlate.pages import PageStore
    from dumpxlate.progress import Progress

__all__ = ["Candidate", "search"]

_MOST = 64
"""Candidates of a kind that are weighed; a guest that has more of them makes them up."""

_COLUMNS = np.array([0, 37, 83, 131, 191, 241, 307, 359, 421, 467, 511], np.int64)
"""Words of a page that are looked at first; in no step that tables have."""

_SELF_SLOT = 258


@dataclass(frozen=True, slots=True)
class Candidate:
    """A map that was found, and what speaks for it.

    Attributes:
        p2m: the map.
        how: where it was found.
        evidence: what was counted.
        word_bits: width of the guest.
    """

    p2m: P2M
    how: str
    evidence: tuple[Evidence, ...]
    word_bits: WordBits

    @property
    def confidence(self) -> float:
        """How sure it is, from 0 to 1."""
        return confidence(self.evidence)


@dataclass(frozen=True, slots=True)
class _Shapes:
    """What a guest's pages look like.

    Attributes:
        begins: frames whose first word is a frame too, ascending.
        first: that word.
        leaves: frames whose sampled words are frames or flagged, ascending.
        filled: of these, those with a frame among the samples.
        roots: frames that look like first page tables.
    """

    begins: Int64s
    first: Int64s
    leaves: Int64s
    filled: Bools
    roots: Int64s


def search(
    store: PageStore,
    roots: Sequence[int],
    word_bits: WordBits,
    *,
    progress: Callable[[Progress], None] | None = None,
    threads: int | None = None,
) -> Candidate:
    """Search all machine pages of a guest for its p2m.

    Args:
        store: the guest's pages, keyed by machine frame.
        roots: machine addresses of first page tables, as the vcpus have them; may be none.
        word_bits: width that the dump says the guest has. The other is tried too: old dumps say little.
        progress: called after each batch.
        threads: workers; 0 does all in this thread, None takes one for each processor, up to 8.

    Raises:
        MapError: there is none, or none that is sure enough.
    """
    if not store.stored.count:
        raise MapError("search: the dump has no page with content")
    memory = PhysicalMemory(store)
    threads = default_threads() if threads is None else threads
    best: Candidate | None = None
    for bits in sorted(get_args(WordBits), key=lambda bits: bits != word_bits):
        shapes = _scan(store, bits, Meter("search", store.stored.count * store.page_size, progress), threads)
        known = [root for root in roots if memory.holds(np.array([root // 4096], np.int64))[0]]
        tables = known or [frame * 4096 for frame in shapes.roots[:_MOST].tolist()]
        for candidate in _candidates(store, memory, shapes, tables, bits):
            if best is None or candidate.confidence > best.confidence:
                best = candidate
        if best and best.confidence >= BOUND:
            return best
    if best is None:
        raise MapError("search: no page of this dump looks like part of a p2m that leads anywhere")
    worst = min(best.evidence, key=lambda each: each.share)
    raise MapError(
        f"search: what looks most like a p2m ({best.how}) is not sure enough: {best.confidence:.1%}, expected "
        f"{BOUND:.0%} ({worst})"
    )


def _scan(store: PageStore, word_bits: WordBits, meter: Meter, threads: int) -> _Shapes:
    """Look at all pages once."""

    def look(window: tuple[int, int]) -> tuple[int, _Shapes]:
        return window[1] - window[0], _shapes(store, window, word_bits)

    parts = []
    with contextlib.closing(ordered_map(look, windows(store.stored, store.page_size), threads=threads)) as looked:
        for pages, part in looked:
            parts.append(part)
            meter.add(pages * store.page_size)
    return _Shapes(*(np.concatenate([getattr(part, name) for part in parts]) for name in _Shapes.__slots__))


def _shapes(store: PageStore, window: tuple[int, int], word_bits: WordBits) -> _Shapes:
    """Look at a window of pages; runs in a worker."""
    size = store.page_size
    table = store.locate(store.stored.select(*window))
    batch = batches.gather(batches.decode(store.fetch(table), size), size)
    rows = batch.table.stored()
    at = int(rows.offset[0]) if len(rows) else 0
    body = np.frombuffer(batch.body, np.uint8, len(rows) * size, at) if len(rows) else np.empty(0, np.uint8)
    words = body.view(f"<u{word_bits // 8}").reshape(len(rows), size * 8 // word_bits)
    first = words[:, 0].astype(np.int64)
    begins = store.ram.contains(first)
    # Few pages get past their first word, so that the others cost little.
    some = np.flatnonzero(begins | _is_flagged(first, word_bits))
    sampled = words[some][:, _COLUMNS].astype(np.int64)
    frames = store.ram.contains(sampled.reshape(-1)).reshape(sampled.shape)
    like: Bools = np.all(frames | _is_flagged(sampled, word_bits), axis=1)
    roots: Bools = np.zeros(len(rows), bool)
    if word_bits == 64:
        back = words[:, _SELF_SLOT].astype(np.int64)
        roots = (back % 2 != 0) & (back >> 12 & (1 << 40) - 1 == rows.pfn)
    return _Shapes(rows.pfn[begins], first[begins], rows.pfn[some[like]], np.any(frames[like], axis=1), rows.pfn[roots])


def _is_flagged(words: Int64s, word_bits: WordBits) -> Bools:
    """Tell entries that are no memory of the guest: one of their two highest bits is set."""
    flagged: Bools = words >> (word_bits - 2) != 0
    return flagged


def _candidates(
    store: PageStore, memory: PhysicalMemory, shapes: _Shapes, roots: list[int], word_bits: WordBits
) -> Iterator[Candidate]:
    """Read and weigh what may be a p2m; what does not know the dump's pages is dropped at once."""
    for found, how, lists in (*_by_lists(memory, shapes, word_bits), *_by_tables(memory, shapes, roots, word_bits)):
        evidence = from_frames(found, store.ram)
        if confidence(evidence) >= BOUND:
            told = from_tables(found, memory, roots, word_bits)
            # Pages in a row say nothing of where the row begins; frame lists do, also of kernels without a linear map.
            if lists is not None:
                told = [each for each in told if each.name != LINEAR or each.agree]
                yield Candidate(found, how, (*evidence, from_lists(found, lists), *told), word_bits)
            elif any(each.name == LINEAR and each.agree for each in told):
                yield Candidate(found, how, (*evidence, *told), word_bits)
        else:
            yield Candidate(found, how, tuple(evidence), word_bits)


def _by_lists(memory: PhysicalMemory, shapes: _Shapes, word_bits: WordBits) -> Iterator[tuple[P2M, str, Int64s | None]]:
    """Read what begins as three levels of frame lists do."""
    at = np.searchsorted(shapes.begins, shapes.first)
    at = np.minimum(at, max(len(shapes.begins) - 1, 0))
    leads = shapes.begins[at] == shapes.first  # the first word leads to a page that begins with a frame
    for top in shapes.begins[leads & leads[at]][:_MOST].tolist():
        try:
            size = frame_lists_reach(memory, top, word_bits)
            lists, leaves = frame_list_leaves(memory, top, size, word_bits)
            found = read_leaves(memory, leaves, size, word_bits).trimmed()
        except MapError:
            continue
        pages = np.unique(np.concatenate((lists, leaves[: -(-found.size // entries_per_page(word_bits))])))
        yield found, f"frame lists at machine frame {top:#x}", pages[pages >= 0]


def _by_tables(
    memory: PhysicalMemory, shapes: _Shapes, roots: list[int], word_bits: WordBits
) -> Iterator[tuple[P2M, str, Int64s | None]]:
    """Read rows of pages that look like the array, where page tables map them one behind the other."""
    pages, frames = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for page, frame in mappings(memory, roots, word_bits):
        like = np.isin(frame, shapes.leaves)
        pages.append(page[like])
        frames.append(frame[like])
    page, frame = np.concatenate(pages), np.concatenate(frames)
    order = np.argsort(page, kind="stable")
    page, frame = page[order], frame[order]
    filled = shapes.filled[np.searchsorted(shapes.leaves, frame)]
    ends = np.flatnonzero(np.diff(page) != 1) + 1
    rows = [row for row in np.split(np.arange(len(page)), ends) if filled[row].any()]
    for row in sorted(rows, key=lambda row: -int(np.count_nonzero(filled[row])))[:_MOST]:
        inside = np.flatnonzero(filled[row])
        row = row[inside[0] : inside[-1] + 1]
        try:
            size = len(row) * entries_per_page(word_bits)
            found = read_leaves(memory, frame[row], size, word_bits).trimmed()
        except MapError:
            continue
        yield found, f"linear list at {int(page[row[0]]) * 4096 & (1 << word_bits) - 1:#x}", None
