"""What speaks for a map: a guest's memory says in several places which frames its pages are.

Each piece of evidence counts what agrees with the map among what could. A map that is another guest's, of another
moment, shifted by a page or put together in the wrong order, fails one of them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dumpxlate.p2m.tables import mappings
from dumpxlate.pageset import EMPTY, PageRuns

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dumpxlate.arch.xen_vcpu import WordBits
    from dumpxlate.arrays import Int64s
    from dumpxlate.memory import PhysicalMemory
    from dumpxlate.p2m.map import P2M
    from dumpxlate.pageset import PageSet

__all__ = [
    "BOUND",
    "LINEAR",
    "SAMPLE",
    "Evidence",
    "confidence",
    "from_frames",
    "from_lists",
    "from_tables",
    "known_frames",
]

BOUND = 0.95
"""Confidence that a map must have where nobody tells that it is one: of a stopped guest's own it is 1 or nearly so."""

LINEAR = "linear map"
"""Name of the evidence of a kernel that maps its memory linearly."""

_ALIGNED = 18
"""Kernels begin the linear map of their memory at a multiple of 1 GiB, 2**18 pages."""

SAMPLE = 4096
"""Tables that are asked: of a guest of up to 8 GiB all of them, which map its pages one by one."""

_MIN_LINEAR = 64
"""Pages that tables must map, and linearly, to say anything."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """How far one thing agrees with a map.

    Attributes:
        name: which thing, a word or two.
        says: what was counted, for people.
        agree: how many agree with the map.
        total: of how many.
    """

    name: str
    says: str
    agree: int
    total: int

    @property
    def share(self) -> float:
        """What part agrees; 1 of nothing."""
        return self.agree / self.total if self.total else 1.0

    def __str__(self) -> str:
        return f"{self.name}: {self.agree:,} of {self.total:,} {self.says}"


def confidence(evidence: Iterable[Evidence]) -> float:
    """Give the lowest share: a map is as good as what speaks least for it. 0 without any evidence."""
    return min((each.share for each in evidence), default=0.0)


def known_frames(p2m: P2M, held: PageSet) -> tuple[PageRuns, int]:
    """Compare the frames of a map with those of a guest, piece by piece.

    Returns:
        The pfns whose frame is none of the guest's, and how many frames of the guest some pfn has.
    """
    seen = np.zeros(held.count, bool)
    strangers = [EMPTY.runs()]
    for pfn, mfn in p2m.chunks():
        own = held.contains(mfn)
        seen[held.rank(mfn[own])] = True
        strangers.append(PageRuns.from_pfns(pfn[~own]).runs())
    start, count = (np.concatenate(part) for part in zip(*strangers, strict=True))
    return PageRuns.from_runs(start, count), int(np.count_nonzero(seen))


def from_frames(p2m: P2M, held: PageSet) -> list[Evidence]:
    """Compare the frames of a map with those of a guest."""
    strangers, known = known_frames(p2m, held)
    pages = p2m.runs.total
    return [
        Evidence("pages", "pages of the map are in the dump", pages - strangers.count, pages),
        Evidence("frames", "pages of the dump are in the map", known, held.count),
    ]


def from_lists(p2m: P2M, frames: Int64s) -> Evidence:
    """See whether a map knows the pages that it was read from: they are the guest's own."""
    known = int(np.count_nonzero(p2m.pfn(frames) >= 0))
    return Evidence("lists", "pages of the guest's lists are in the map themselves", known, len(frames))


def from_tables(
    p2m: P2M, memory: PhysicalMemory, roots: Sequence[int], word_bits: WordBits, *, most: int | None = SAMPLE
) -> list[Evidence]:
    """Compare a map with a guest's page tables.

    Every kernel maps its memory linearly too: page after page, from an address that is a multiple of 1 GiB on. So the
    tables say of many pages which frame they are. Under a map that is shifted, or in disorder, they do not.

    Args:
        p2m: the map.
        memory: machine memory.
        roots: machine addresses of first tables.
        word_bits: width of the guest.
        most: tables that are asked, so that it takes no longer for a larger guest; None for all of them.

    Returns:
        What the tables say, and what the linear map does; nothing where no tables are in memory.
    """
    base, resolved, mapped = _linear_base(p2m, memory, mappings(memory, roots, word_bits, most=most))
    if mapped < _MIN_LINEAR:
        return []
    found = Evidence("page tables", "entries for the guest's own pages lead into the map", resolved, mapped)
    agree, total = (
        (0, mapped)
        if base is None
        else _compare_linear(p2m, memory, mappings(memory, roots, word_bits, most=most), base)
    )
    if base is None or agree < _MIN_LINEAR:
        return [found, Evidence(LINEAR, "pages are mapped linearly from any multiple of 1 GiB on", 0, mapped)]
    address = base * 4096 & (1 << word_bits) - 1
    says = f"pages that the kernel maps linearly from {address:#x} on are where the map has them"
    return [found, Evidence(LINEAR, says, agree, total)]


def _linear_base(
    p2m: P2M, memory: PhysicalMemory, mapped_pages: Iterable[tuple[Int64s, Int64s]]
) -> tuple[int | None, int, int]:
    """Find the virtual page from which most pages are mapped linearly; count entries that the map resolves."""
    bases: Counter[int] = Counter()
    resolved = mapped = 0
    for page, frame in mapped_pages:
        held = memory.holds(frame)
        pfn = p2m.pfn(frame[held])
        mapped += len(pfn)
        resolved += int(np.count_nonzero(pfn >= 0))
        base = (page[held] - pfn)[pfn >= 0]
        base = base[base & (1 << _ALIGNED) - 1 == 0]
        for value, count in zip(*np.unique(base, return_counts=True), strict=True):
            bases[int(value)] += int(count)
    return (bases.most_common(1)[0][0] if bases else None), resolved, mapped


def _compare_linear(
    p2m: P2M, memory: PhysicalMemory, mapped_pages: Iterable[tuple[Int64s, Int64s]], base: int
) -> tuple[int, int]:
    """Count the pages in the linear map that are where a map has them, of all that are the guest's own."""
    agree = total = 0
    for page, frame in mapped_pages:
        inside = (page >= base) & (page < base + p2m.size)
        page, frame = page[inside], frame[inside]
        held = memory.holds(frame)
        total += int(np.count_nonzero(held))
        agree += int(np.count_nonzero(p2m.mfn(page[held] - base) == frame[held]))
    return agree, total
